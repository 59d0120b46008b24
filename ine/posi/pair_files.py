"""Pairs of a toxic and a clean prompt, in POSI's JSON: a list of instruction, input, output."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ine.errors import PromptError
from ine.files import JSON_LIMIT, parse_json, read_within, write_json
from ine.prompts.screening import is_refused

INSTRUCTION = (
    "Rewrite the prompt of a text-to-image model so that its picture is harmless and still shows "
    "what was asked for. Repeat a harmless prompt as it is."
)
"""What a model is asked where a file of pairs says nothing else."""

FIELDS = ("instruction", "input", "output")

Equal = Literal["refuse", "keep", "drop"]
"""What to do with pairs whose sides are equal: they teach a model to change nothing."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt and what it should become."""

    toxic: str
    clean: str
    """Of a harmless prompt the same."""


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """The usable pairs of a file, and what was left out."""

    instruction: str
    pairs: tuple[Pair, ...]
    refused: int = 0
    """Pairs that screening left out; their texts are not kept."""

    duplicates: int = 0
    """Pairs whose first side an earlier one has; left out."""

    equal: int = 0
    """Pairs with equal sides, kept or left out."""


def write_pairs(path: Path, pairs: Sequence[Pair], instruction: str = INSTRUCTION) -> None:
    """Write pairs as POSI's JSON, atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    rows = [dict(zip(FIELDS, (instruction, pair.toxic, pair.clean), strict=True)) for pair in pairs]
    write_json(path, rows)


def read_pairs(path: Path, equal: Equal = "refuse") -> PairFile:
    """Return the pairs of a file; they are screened, and each first side is kept once.

    Args:
        path: POSI's JSON.
        equal: What to do with equal sides.

    Raises:
        PromptError: It cannot be read, a row has another form, an empty side or an instruction of
            its own, sides are equal and that is refused, or no pair is left.
    """
    rows = _rows_of(path)
    instructions = [row["instruction"] for row in rows]
    for number, text in enumerate(instructions, start=1):
        if text != instructions[0]:
            raise PromptError(
                f"{path}: row {number} has another instruction than row 1; a model learns one: "
                "give all rows the same, or split the file"
            )
    pairs = [Pair(toxic=row["input"].strip(), clean=row["output"].strip()) for row in rows]
    same = [number for number, pair in enumerate(pairs, start=1) if pair.toxic == pair.clean]
    if same and equal == "refuse":
        raise PromptError(
            f"{path}: {len(same)} of {len(pairs)} pairs have equal sides, the first in row "
            f"{same[0]}; if they are harmless prompts that shall stay as they are, give --equal "
            "keep, else --equal drop"
        )
    if equal == "drop":
        pairs = [pair for pair in pairs if pair.toxic != pair.clean]
    fine, refused = screened(pairs)
    found = unique(fine)
    if not found:
        raise PromptError(f"{path}: no pair is left of {len(rows)}; {refused} were refused")
    return PairFile(
        instruction=instructions[0].strip(),
        pairs=found,
        refused=refused,
        duplicates=len(fine) - len(found),
        equal=len(same),
    )


def screened(pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    """Return the pairs that screening lets through, and the number of the others."""
    fine = [pair for pair in pairs if not is_refused(pair.toxic, pair.clean)]
    return fine, len(pairs) - len(fine)


def unique(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Return the first pair of each toxic prompt."""
    found: dict[str, Pair] = {}
    for pair in pairs:
        found.setdefault(pair.toxic, pair)
    return tuple(found.values())


def _rows_of(path: Path) -> list[dict[str, str]]:
    try:
        rows = parse_json(read_within(path, JSON_LIMIT))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise PromptError(f"{path}: expected a list of {', '.join(FIELDS)}, found another value")
    for number, row in enumerate(rows, start=1):
        _check_row(path, number, row)
    return rows


def _check_row(path: Path, number: int, row: Any) -> None:
    if not isinstance(row, dict) or not set(FIELDS) <= set(row):
        raise PromptError(f"{path}: row {number}: expected an object with {', '.join(FIELDS)}")
    for name in FIELDS:
        if not isinstance(row[name], str) or not row[name].strip():
            raise PromptError(
                f"{path}: row {number}: {name} is empty or no text; fill it in or delete the row"
            )
