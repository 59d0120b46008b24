"""What is wrong with a training set, before hours are spent on it."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from ine.errors import IneError
from ine.files import sha256_of
from ine.refining.answers import read_answer
from ine.refining.dataset import RefiningSet, Row, image_bytes
from ine.refining.settings import RefineSettings

BALANCE = (0.1, 0.9)
"""Share of keeps outside of which a model may learn one answer alone."""

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One kind of fault and the rows that have it."""

    kind: str
    rows: tuple[int, ...]
    """Their numbers among the rows that were read, counted from 1."""

    advice: str

    def line(self) -> str:
        """Return it as one line."""
        shown = ", ".join(map(str, self.rows[:SHOWN]))
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        where = f" (row {shown}{more})" if self.rows else ""
        return f"{self.kind}{where}; {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a training set holds, and what is wrong with it."""

    rows: int
    keeps: int
    rewrites: int
    refused: int
    """Rows that screening left out."""

    seen: int
    """Rows with a signal of a rule."""

    problems: tuple[Problem, ...]


def check_set(found: RefiningSet, test: Iterable[str] = ()) -> Checked:
    """Return the facts and faults of a training set; every picture is decoded.

    Args:
        found: The set.
        test: Prompts that figures will be measured on, which must not be among its prompts.
    """
    kinds = [_kind(row) for row in found.rows]
    keeps = kinds.count("keep")
    problems = [
        *_unusable(kinds),
        *_repeated(found.rows),
        *_contradicting(found.rows),
        *_leaks(found.rows, test),
        *_unbalanced(keeps, len(kinds)),
        *_against_signals(found.rows, kinds),
        *_broken(found.rows),
    ]
    return Checked(
        rows=len(found.rows),
        keeps=keeps,
        rewrites=kinds.count("rewrite"),
        refused=len(found.refused),
        seen=sum(bool(row.textual or row.visual) for row in found.rows),
        problems=tuple(problems),
    )


def words_of(text: str) -> str:
    """Return the words of a prompt, by which prompts are compared."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _kind(row: Row) -> str:
    """Return "keep", "rewrite", or why the response is neither."""
    verdict = read_answer(row.response, RefineSettings(), original=row.query, current=row.query)
    return verdict.why or verdict.kind


def _unusable(kinds: Sequence[str]) -> list[Problem]:
    faults = dict.fromkeys(kind for kind in kinds if kind not in ("keep", "rewrite"))
    return [
        Problem(
            kind=f"{kinds.count(fault)} responses are neither keep nor a prompt: {fault}",
            rows=_numbers(kinds, lambda kind, fault=fault: kind == fault),
            advice="remove these rows or ask the teacher again",
        )
        for fault in faults
    ]


def _repeated(rows: Sequence[Row]) -> list[Problem]:
    groups = _groups(rows, lambda row: (words_of(row.query), row.response, _digest(row)))
    repeated = tuple(sorted(number for group in groups for number in group[1:]))
    advice = "keep one of each"
    return [_said("duplicates of earlier rows", repeated, advice)] if repeated else []


def _contradicting(rows: Sequence[Row]) -> list[Problem]:
    groups = _groups(rows, lambda row: (words_of(row.query), _digest(row)))
    differ = [g for g in groups if len({rows[number - 1].response for number in g}) > 1]
    found = tuple(sorted(number for group in differ for number in group))
    said = "rows have the prompt and picture of another with another response"
    return [_said(said, found, "keep one answer to each")] if found else []


def _leaks(rows: Sequence[Row], test: Iterable[str]) -> list[Problem]:
    held = {words_of(prompt) for prompt in test}
    found = _numbers(rows, lambda row: words_of(row.query) in held)
    advice = "remove them, or figures on those prompts say nothing"
    return [_said("prompts are among the test prompts", found, advice)] if found else []


def _unbalanced(keeps: int, count: int) -> list[Problem]:
    least, most = BALANCE
    if least <= keeps / count <= most:
        return []
    return [
        Problem(
            kind=f"{keeps} of {count} responses are keep",
            rows=(),
            advice=f"a share from {least:g} to {most:g} teaches both answers; add the other kind",
        )
    ]


def _against_signals(rows: Sequence[Row], kinds: Sequence[str]) -> list[Problem]:
    pairs = list(zip(rows, kinds, strict=True))
    kept = _numbers(pairs, lambda one: one[1] == "keep" and one[0].unsafe)
    changed = _numbers(
        pairs,
        lambda one: (
            one[1] == "rewrite" and bool(one[0].textual or one[0].visual) and not one[0].unsafe
        ),
    )
    said = [
        ("rows are kept although a rule found something", kept),
        ("rows are rewritten although no rule found anything", changed),
    ]
    advice = "look at them with `ine refine dataset show`"
    return [_said(kind, numbers, advice) for kind, numbers in said if numbers]


def _broken(rows: Sequence[Row]) -> list[Problem]:
    found = tuple(number for number, row in enumerate(rows, 1) if not _is_whole(row))
    return (
        [_said("pictures are missing or broken", found, "replace or remove them")] if found else []
    )


def _is_whole(row: Row) -> bool:
    try:
        return row.picture is not None
    except IneError:
        return False


def _digest(row: Row) -> str:
    """Return the digest of a picture's file; one that cannot be read is like no other."""
    try:
        return sha256_of(image_bytes(row))
    except IneError:
        return str(row.image)


def _groups(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[list[int]]:
    """Return the numbers of rows that share a key, for every key that several have."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        found[key(row)].append(number)
    return [group for group in found.values() if len(group) > 1]


def _numbers(items: Sequence, has: Callable[..., bool]) -> tuple[int, ...]:
    return tuple(number for number, item in enumerate(items, 1) if has(item))


def _said(kind: str, rows: tuple[int, ...], advice: str) -> Problem:
    return Problem(kind=f"{len(rows)} {kind}", rows=rows, advice=advice)
