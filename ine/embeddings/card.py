"""Write a model card for one embedding, in Markdown, from the data in its file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ine.embeddings.uses import uses_of

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding

WARNING = """\
> **As a negative only.** Used as a *prompt*, the same vectors bring {concept} back, also on models
> that unlearned it. If the concept is a real harm, keep this file private."""

UNMARKED = """\
> The file does not say whether it belongs into the prompt or into the negative prompt. In the
> *prompt* it brings what it stands for."""

USE = "In the {place}, {weights}. Guidance must be on (a scale above 1)."

ORIGIN = (
    ("base model", "base"),
    ("unlearned weights", "unet"),
    ("method", "method"),
    ("steps", "steps"),
    ("kept at step", "kept_step"),
    ("pictures of the concept", "pictures"),
    ("seed", "seed"),
    ("recipe", "recipe_hash"),
    ("versions", "versions"),
)
"""(what a row says, header key behind `ine.`)."""

FIGURES = (
    ("brings the concept back as a prompt (recovery)", "recovery"),
    ("concept left on the tuning prompts, with it as the negative", "tuning_left"),
    ("the same prompts undefended", "tuning_undefended"),
    ("left by each of several inversions, of which the best was kept", "runs_left"),
    ("guidance of these previews", "preview_guidance"),
    ("its strength", "preview_strength"),
    ("strength chosen for the additive form", "strength"),
    ("rule that counted", "rule"),
)

FROM_INVERSION = (
    "From the inversion itself: shares of pictures, on the prompts on which the vectors were "
    "chosen and by the detector that chose them, so better than on other prompts. Measure on "
    "your own prompts."
)

DEFENCE = (
    ("recommended guidance", "guidance"),
    ("its strength", "strength"),
    ("its preset", "preset"),
    ("part of the run", "window"),
    ("coarse steps of the look-ahead, whose gate is a second file", "look_ahead"),
    ("restarts in our own loop, multiples of the strength", "restart"),
    ("strength of the last restart, with additive guidance", "last_strength"),
    ("concept left", "left"),
    ("concept left without restarts", "left_without_restart"),
    ("undefended", "undefended"),
    ("benign preservation", "preservation"),
    ("its measure", "measure"),
    ("rule that counted", "rule"),
    ("detector", "judge"),
    ("held-back prompts", "held_back"),
)
"""(what a row says, header key behind `ine.defence.`) of what `ine defend` wrote."""

MARKUP = re.compile(r"[\\`*_{}\[\]<>#|!~$&@]|:(?=/)|(?<=www)\.", re.IGNORECASE)
"""Characters with a meaning in Markdown, and parts of bare addresses."""

PLAIN = re.compile(r"[\w./-]+", re.ASCII)


def model_card(embedding: ConceptEmbedding, digest: str | None = None) -> str:
    """Return the card's text.

    Args:
        embedding: A `ConceptEmbedding`. Its header is untrusted: its texts are escaped and cannot
            become markup.
        digest: SHA-256 of the file, 64 hex digits.
    """
    about = embedding.metadata
    trigger, concept = as_text(embedding.trigger), as_text(embedding.concept)
    family = embedding.family_info.title
    negative = embedding.negative
    parts = [
        _front_matter(about, negative),
        f"# {trigger}: {'negative embedding' if negative else 'textual inversion'} of {concept}",
        WARNING.format(concept=concept) if negative else UNMARKED,
        "## What it is",
        _table(("what", "value"), _facts(embedding, digest)),
        "## Figures",
        _figures(about),
        "## Intended use",
        USE.format(
            place="**negative** prompt" if negative else "prompt or the negative prompt",
            weights=_weights(about, family),
        ),
        _uses(embedding),
        "## Limits",
        _limits(embedding),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(embedding: ConceptEmbedding, digest: str | None) -> list[tuple[str, str]]:
    """Return (what, value) rows: vectors, family, origin, author and digests."""
    about = embedding.metadata
    widths = " + ".join(str(v.shape[1]) for v in embedding.vectors)
    rows = [
        ("vectors", f"{embedding.count} of width {widths}"),
        ("for", embedding.family_info.title),
        *((says, as_text(about.get(f"ine.{key}"))) for says, key in ORIGIN),
        ("author", as_text(about.get("modelspec.author"))),
        ("licence", as_text(about.get("modelspec.license"))),
        ("digest of the numbers", f"`{embedding.digest}`"),
    ]
    return rows + ([("SHA-256 of the file", f"`{digest}`")] if digest else [])


def _weights(about: Mapping[str, str], family: str) -> str:
    """Return the weights that the embedding was found on, as a phrase."""
    unet, base = about.get("ine.unet"), about.get("ine.base")
    over = as_text(base) if base else family
    if not unet:
        return f"with {over}; the file does not say on which weights the vectors were found"
    applied = "" if unet == "base" else f"{as_text(unet)} over "
    return f"with {applied}{over}: the weights on which the vectors were found"


def as_text(value: str | None) -> str:
    """Return a header's value as one line of text with all markup escaped."""
    if not value:
        return "not stated"
    line = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return MARKUP.sub(r"\\\g<0>", line[:300]) or "not stated"


def _code(text: str) -> str:
    """Return a code span for a table."""
    return "`" + "".join(c for c in text if c.isprintable() and c not in "`|") + "`"


def _front_matter(about: dict[str, str], negative: bool) -> str:
    """Return the YAML head that model hubs read."""
    tags = ["textual-inversion", *(["negative-embedding"] if negative else []), "stable-diffusion"]
    lines = ["tags:", *(f"- {tag}" for tag in tags)]
    base = about.get("ine.base", "")
    if base.count("/") == 1 and PLAIN.fullmatch(base) and base[0] not in "./":
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(about: Mapping[str, str]) -> str:
    known, defence = _stated(about, FIGURES, "ine."), _stated(about, DEFENCE, "ine.defence.")
    if not known and not defence:
        return "The file has no figures: measure it before relying on it (`ine compare`)."
    found = []
    if defence:
        found += [
            _table(("what", "value"), defence),
            "What `ine defend` recommends, and what that does on prompts that were held back from "
            "its choices; other programs ignore the recommendation.",
        ]
    if known:
        found += [_table(("what", "value"), known), FROM_INVERSION]
    return "\n\n".join(found)


def _stated(
    about: Mapping[str, str], rows: Iterable[tuple[str, str]], prefix: str
) -> list[tuple[str, str]]:
    """Return (what, value) of the rows that a header has."""
    return [(says, as_text(about[prefix + key])) for says, key in rows if prefix + key in about]


def _uses(embedding: ConceptEmbedding) -> str:
    rows = [(program, place, _code(typed)) for program, place, typed in uses_of(embedding)]
    if not rows:
        return (
            "Only `ine` runs such a model: "
            f"`ine generate --negative-embedding FILE --prompt ...`, trigger "
            f"{as_text(embedding.trigger)}."
        )
    typed = "in the negative prompt" if embedding.negative else "what to type"
    text = _table(("program", "where the file goes", typed), rows)
    if len(embedding.vectors) > 1:
        text += (
            "\n\ndiffusers loads no single SDXL file: `ine embedding convert FILE --to diffusers` "
            "writes two. stable-diffusion.cpp gives both encoders mixed-up vectors."
        )
    return text


def _limits(embedding: ConceptEmbedding) -> str:
    lines = [
        "Other weights, other samplers and other weights of emphasis were not measured, unless "
        "stated above.",
        f"It belongs to {embedding.family_info.title}; on other models programs refuse it, ignore "
        "it, or (ComfyUI and programs built on it) use half of it, most of them without a message.",
        "At a guidance scale of 1 (turbo, LCM, Lightning) a negative does nothing.",
        "It is a setting, not a change of the model: whoever runs the sampler can leave it out.",
    ]
    if embedding.negative:
        lines += [
            "It makes the concept rarer and does not exclude it; keep filters on prompts and "
            "pictures. Prompts optimised against it were not tried.",
            "It may also suppress innocent neighbours of the concept; check benign prompts too.",
        ]
    return "\n".join(f"- {line}" for line in lines)
