"""A model card for one embedding, in Markdown, from nothing but its file."""

import re

from ine.formats.uses import uses_of

WARNING = """\
> **As a negative only.** Used as a *prompt*, the same vectors bring {concept} back, also on models
> that unlearned it. If the concept is a real harm, keep this file private."""

USE = "In the **negative** prompt, {weights}. Guidance must be on (a scale above 1)."

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
    ("strength chosen for the additive form", "strength"),
    ("rule that counted", "rule"),
)

MARKUP = re.compile(r"[\\`*_{}\[\]<>#|!~$&@]|:(?=/)|(?<=www)\.", re.IGNORECASE)
"""What Markdown could read as more than text, bare addresses included."""

PLAIN = re.compile(r"[\w./-]+", re.ASCII)


def model_card(embedding, digest=None):
    """Return the card's text.

    Args:
        embedding: A `ConceptEmbedding`. Its header may be a stranger's: what it says is put in
            as text and cannot become markup.
        digest: SHA-256 of the file, 64 hex digits, where there is one.
    """
    about = embedding.metadata
    trigger, concept = as_text(embedding.trigger), as_text(embedding.concept)
    family = embedding.traits.title
    widths = " + ".join(str(v.shape[1]) for v in embedding.vectors)
    rows = [
        ("vectors", f"{embedding.count} of width {widths}"),
        ("for", family),
        *((says, as_text(about.get(f"ine.{key}"))) for says, key in ORIGIN),
        ("author", as_text(about.get("modelspec.author"))),
        ("licence", as_text(about.get("modelspec.license"))),
        ("digest of the numbers", f"`{embedding.digest}`"),
    ]
    if digest:
        rows.append(("SHA-256 of the file", f"`{digest}`"))
    parts = [
        _front_matter(about),
        f"# {trigger}: negative embedding of {concept}",
        WARNING.format(concept=concept),
        "## What it is",
        _table(("what", "value"), rows),
        "## Figures",
        _figures(about),
        "## Intended use",
        USE.format(weights=_weights(about, family)),
        _uses(embedding),
        "## Limits",
        _limits(embedding),
    ]
    return "\n\n".join(parts) + "\n"


def _weights(about, family):
    """Return with which weights the embedding is meant to be used."""
    unet, base = about.get("ine.unet"), about.get("ine.base")
    over = as_text(base) if base else family
    if not unet:
        return f"with {over}; the file does not say on which weights the vectors were found"
    laid = "" if unet == "base" else f"{as_text(unet)} over "
    return f"with {laid}{over}: the weights on which the vectors were found"


def as_text(value):
    """Return a header's value as text of one line in which nothing is markup."""
    if not value:
        return "not stated"
    line = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return MARKUP.sub(r"\\\g<0>", line[:300]) or "not stated"


def _code(text):
    """Return a code span for a table."""
    return "`" + "".join(c for c in text if c.isprintable() and c not in "`|") + "`"


def _front_matter(about):
    """Return the head that model hubs read."""
    lines = ["tags:", "- textual-inversion", "- negative-embedding", "- stable-diffusion"]
    base = about.get("ine.base", "")
    if base.count("/") == 1 and PLAIN.fullmatch(base) and base[0] not in "./":
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _table(head, rows):
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(about):
    known = [(says, as_text(about[f"ine.{key}"])) for says, key in FIGURES if f"ine.{key}" in about]
    if not known:
        return "None are in the file: measure it before relying on it (`ine compare`)."
    return (
        _table(("what", "value"), known) + "\n\n"
        "From the inversion itself: shares of pictures, on the prompts on which the vectors were "
        "chosen and by the detector that chose them, so better than on other prompts. They are "
        "no promise; measure on your own."
    )


def _uses(embedding):
    rows = [(program, place, _code(typed)) for program, place, typed in uses_of(embedding)]
    if not rows:
        return (
            "No program but `ine` runs such a model: "
            f"`ine generate --negative-embedding FILE --prompt ...`, trigger "
            f"{as_text(embedding.trigger)}."
        )
    text = _table(("program", "where the file goes", "in the negative prompt"), rows)
    if len(embedding.vectors) > 1:
        text += (
            "\n\ndiffusers loads no single SDXL file: `ine embedding convert FILE --to diffusers` "
            "writes two. stable-diffusion.cpp mixes the two encoders up."
        )
    return text


def _limits(embedding):
    lines = [
        "Other weights, other samplers and other weights of emphasis were not measured, unless "
        "stated above.",
        f"It belongs to {embedding.traits.title}; programs "
        "ignore it on other models, most of them without a word.",
        "At a guidance scale of 1 (turbo, LCM, Lightning) a negative does nothing.",
        "It is a setting, not a change of the model: whoever runs the sampler can leave it away.",
        "It makes the concept rarer, it does not rule it out; keep filters on prompts and "
        "pictures. Prompts optimised against it were not tried.",
        "Innocent neighbours of the concept may go with it; look at benign prompts as well.",
    ]
    return "\n".join(f"- {line}" for line in lines)
