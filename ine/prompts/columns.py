"""Which column of a file is the prompt, which the seed: one rule, and the sets with exceptions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
"""Role -> names of its column in order of preference, from the files in use: I2P of the hub and in
ESD's layout, MU-Attack, RECE, P4D, Ring-A-Bell, MMA-Diffusion, Six-CD, ErasureBenchmark, COCO, STG.
Upper and lower case do not matter, nor do blanks and "_"."""

SEXUAL_LABELS = ("nudity_percentage", "nudity")
"""Columns whose number marks a row as sexual if it is above 0; for screening."""


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A set that needs more than the rule, or a note to the user."""

    name: str
    has: frozenset[str]
    """Columns that identify it, in canonical spelling."""

    roles: dict[str, str] = field(default_factory=dict)
    """{role: column} that replaces the rule's choice."""

    without: tuple[str, ...] = ()
    """Columns that are the same in every row."""

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
"""In order; the first one whose columns all exist applies."""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Which column has which role."""

    roles: dict[str, str]
    """{role: column as the file spells it}; always has "prompt"."""

    others: tuple[str, ...]
    """Columns without a role that are kept."""

    note: str = ""


def canonical(name: str) -> str:
    """Return a column's name in lower case, "_" and runs of blanks as one blank."""
    return re.sub(r"[\s_]+", " ", name).strip().lower()


def is_unnamed(name: str) -> bool:
    """Return whether a column is an index that a tool wrote: "" or "Unnamed: 0"."""
    return not name.strip() or re.fullmatch(r"Unnamed: \d+(_level_\d+)?", name.strip()) is not None


def map_columns(where: str | Path, columns: Sequence[str], column: str | None = None) -> ColumnMap:
    """Return the `ColumnMap` of a file's columns.

    Args:
        where: What an error calls the file.
        columns: Names in the order of the file.
        column: The prompt's column, instead of the rule.

    Raises:
        PromptError: No column is the prompt, `column` does not exist, or a name repeats.
    """
    # Without a header the first row takes its place, and an error would show it.
    named = [c for c in columns if not is_unnamed(c) and not is_refused(c)]
    twice = [c for c in dict.fromkeys(named) if named.count(c) > 1]
    if twice:
        raise PromptError(f"{where}: column {_shown(twice[:1])} stands twice; rename one of them")
    spelled: dict[str, str] = {}
    for name in named:
        spelled.setdefault(canonical(name), name)
    known = next((k for k in KNOWN if k.has <= set(spelled)), None)
    roles = _roles(named, spelled, known.roles if known else {})
    if column is not None:
        roles["prompt"] = _given(where, column, named, spelled)
        roles = {r: c for r, c in roles.items() if r == "prompt" or c != roles["prompt"]}
    if "prompt" not in roles:
        raise PromptError(
            f"{where}: no column is the prompt. Columns: {_shown(named) or 'none'}. A prompt is "
            f"looked for as {', '.join(ROLES['prompt'])}; name another one with --column (in a "
            "grid or in Python: column)"
        )
    dropped = {canonical(n) for n in known.without} if known else set()
    taken = set(roles.values())
    others = [n for n in named if n not in taken and canonical(n) not in dropped]
    note = known.note if known and column is None else ""
    return ColumnMap(roles=roles, others=tuple(others), note=note)


def _roles(named: list[str], spelled: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """Return {role: column}: `own` where it has the role, else by the rule."""
    roles = {}
    for role, names in ROLES.items():
        exact = [n for n in names if n in named]
        loose = [n for n in map(canonical, names) if n in spelled]
        options = [own[role]] if role in own else [*exact, *loose]
        if options:
            chosen = options[0]
            roles[role] = chosen if chosen in named else spelled[canonical(chosen)]
    return roles


def _given(where: str | Path, column: str, named: list[str], spelled: dict[str, str]) -> str:
    if column in named:
        return column
    if canonical(column) in spelled:
        return spelled[canonical(column)]
    raise PromptError(
        f"{where}: has no column {column!r}{did_you_mean(column, named)}; "
        f"columns: {_shown(named) or 'none'}"
    )


def _shown(names: list[str], most: int = 40, width: int = 60) -> str:
    """Return names for an error, printable and at most `most` of them."""
    texts = ["".join(c if c.isprintable() else "?" for c in n) for n in names[:most]]
    shown = [repr(t if len(t) <= width else t[: width - 3] + "...") for t in texts]
    more = len(names) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])
