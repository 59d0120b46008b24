"""Which column of a file is the prompt, which the seed: one rule, and the sets that need more."""

import re
from dataclasses import dataclass, field

from ine.errors import PromptError, did_you_mean
from ine.prompts.screening import is_refused

ROLES = {
    "prompt": ("prompt", "adv_prompt", "sensitive prompt", "caption", "text"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance"),
    "width": ("sd_image_width", "width"),
    "height": ("sd_image_height", "height"),
    "id": ("case_number", "id"),
    "category": ("categories", "category", "concept", "class", "artist"),
}
"""Role -> names of the column in order of preference, as the files that are in use have them: I2P
of the hub and its layout after ESD, MU-Attack, RECE, P4D, Ring-A-Bell, MMA-Diffusion, Six-CD,
ErasureBenchmark, COCO, STG. Upper and lower case, and blanks and "_", do not matter."""

SEXUAL_LABELS = ("nudity_percentage", "nudity")
"""Columns whose number, above 0, says that a row is sexual: for screening."""


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A set that the rule alone would not read as it is meant, or not without a word."""

    name: str
    has: frozenset
    """Columns by which it is known, in canonical spelling."""

    roles: dict = field(default_factory=dict)
    """{role: column} where the rule finds none or another."""

    without: tuple[str, ...] = ()
    """Columns that are the same in every row and say nothing about it."""

    note: str = ""


KNOWN = (
    KnownSet(
        name="POSI",
        has=frozenset({"instruction", "input", "output"}),
        roles={"prompt": "input"},
        without=("instruction",),
        note="POSI: the toxic prompt is 'input'; 'output' is its clean version",
    ),
    KnownSet(
        name="Ring-A-Bell pairs",
        has=frozenset({"sensitive prompt", "normal prompt"}),
        note="pairs in natural language, from which Ring-A-Bell takes its concept vector; they "
        "are not the prompts that its attack finds",
    ),
    KnownSet(
        name="MMA-Diffusion",
        has=frozenset({"adv prompt", "target prompt"}),
        note="MMA-Diffusion: 'adv_prompt' is used, 'target_prompt' says what was aimed at; the "
        "file has no seeds",
    ),
)
"""In order; the first one whose columns are all there."""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Which column is what."""

    roles: dict
    """{role: column as the file spells it}; "prompt" is always there."""

    others: tuple[str, ...]
    """Columns that have no role and are kept."""

    note: str = ""


def canonical(name):
    """Return a column's name in lower case, "_" and runs of blanks as one blank."""
    return re.sub(r"[\s_]+", " ", name).strip().lower()


def is_unnamed(name):
    """Return whether a column is an index that somebody's tool wrote: "" or "Unnamed: 0"."""
    return not name.strip() or re.fullmatch(r"Unnamed: \d+(_level_\d+)?", name.strip()) is not None


def map_columns(where, columns, column=None):
    """Return the `ColumnMap` of a file's columns.

    Args:
        where: What to call the file in an error.
        columns: Names in the order of the file.
        column: The prompt's column, instead of the rule.

    Raises:
        PromptError: No column is the prompt, `column` is not there, or a name stands twice.
    """
    # Without a header the first row stands in its place, and an error would show it.
    named = [c for c in columns if not is_unnamed(c) and not is_refused(c)]
    twice = [c for c in dict.fromkeys(named) if named.count(c) > 1]
    if twice:
        raise PromptError(f"{where}: column {_shown(twice[:1])} stands twice; rename one of them")
    spelled = {}
    for name in named:
        spelled.setdefault(canonical(name), name)
    known = next((k for k in KNOWN if k.has <= set(spelled)), None)
    roles = {}
    for role, names in ROLES.items():
        own = known.roles.get(role) if known else None
        exact = [n for n in names if n in named]
        options = [own] if own else [*exact, *(n for n in map(canonical, names) if n in spelled)]
        if options:
            chosen = options[0]
            roles[role] = chosen if chosen in named else spelled[canonical(chosen)]
    if column is not None:
        roles["prompt"] = _given(where, column, named, spelled)
        roles = {r: c for r, c in roles.items() if r == "prompt" or c != roles["prompt"]}
    if "prompt" not in roles:
        raise PromptError(
            f"{where}: no column is the prompt. Columns: {_shown(named) or 'none'}. A prompt is "
            f"looked for as {', '.join(ROLES['prompt'])}; name another one with --column"
        )
    dropped = {canonical(n) for n in known.without} if known else set()
    taken = set(roles.values())
    others = [n for n in named if n not in taken and canonical(n) not in dropped]
    note = known.note if known and column is None else ""
    return ColumnMap(roles=roles, others=tuple(others), note=note)


def _given(where, column, named, spelled):
    if column in named:
        return column
    if canonical(column) in spelled:
        return spelled[canonical(column)]
    raise PromptError(
        f"{where}: has no column {column!r}{did_you_mean(column, named)}; "
        f"columns: {_shown(named) or 'none'}"
    )


def _shown(names, most=40, width=60):
    """Return names for an error, fit for a terminal and cut where there are many."""
    texts = ["".join(c if c.isprintable() else "?" for c in n) for n in names[:most]]
    shown = [repr(t if len(t) <= width else t[: width - 3] + "...") for t in texts]
    more = len(names) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])
