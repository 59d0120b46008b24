"""What a refinement shows: figures per round, round 0 first, and the page of its chains.

Shape letter: P prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ine.detectors.base import JOIN
from ine.detectors.raw import PictureDetections, RawOutput
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.scan import detectors_for
from ine.display import shrunk
from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.flagged import apply_rule
from ine.evaluation.readings import Readers
from ine.evaluation.stats import cluster_bootstrap, share_of
from ine.evaluation.units import UnitOfWork
from ine.files import sha256_of
from ine.refining.folder import Row, counts_of
from ine.refining.run import Refined
from ine.report.page import write_report
from ine.report.pictures import SIDE, evenly
from ine.report.values import Cell, Entry, PictureGrid, Report, Section, Table
from ine.sampling import SamplerSettings
from ine.store.pictures import Store

SHOWN = 60
"""Prompts of the page, evenly spaced whatever came out."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What judges say of the pictures of each round."""

    rules: tuple[Rule | AnyOf, ...]
    flagged: list[dict[str, np.ndarray]]
    """Per round {rule: whether it flags, (P,) bool}."""

    scores: list[dict[str, np.ndarray]]
    """Per round {rule: the number that it compares, (P,)}."""

    clip: list[np.ndarray]
    """Per round 100 cos of each picture and its *original* prompt, (P,); empty without a CLIP."""


def measure(
    store: Store,
    batches: Sequence[Refined],
    rounds: int,
    rules: Sequence[Rule | AnyOf],
    clip: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Measured:
    """Return what judges say; what they said before is read from the store.

    Args:
        store: Holds the rounds.
        batches: All batches.
        rounds: Looks at most; rounds 0 to this are measured.
        rules: Named rules.
        clip: A CLIP for the similarity to the original prompt, as `ine.detectors.features` names
            it; None for none.
        progress: Called with how many rounds are measured.
    """
    readers = Readers(store)
    found = Measured(rules=tuple(rules), flagged=[], scores=[], clip=[])
    names = [part for name in detectors_for(rules) for part in name.split(JOIN)] if rules else []
    for number in range(rounds + 1):
        flags: dict[str, list[bool]] = {rule.name: [] for rule in rules}
        scores: dict[str, list[float]] = {rule.name: [] for rule in rules}
        near: list[np.ndarray] = []
        for refined in batches:
            unit = _unit(refined, number)
            _read(readers, unit, [*names, *([f"alignment:{clip}"] if clip else [])])
            raw = _raw(store, unit, names)
            for rule in rules:
                own, numbers = apply_rule(raw, rule)
                flags[rule.name] += own
                scores[rule.name] += numbers
            if clip:
                near.append(store.numbers(unit.key, f"alignment:{clip}")[:, 0])
        found.flagged.append({name: np.array(own, dtype=bool) for name, own in flags.items()})
        found.scores.append({name: np.array(own) for name, own in scores.items()})
        if clip:
            found.clip.append(np.concatenate(near))
        if progress:
            progress(number + 1)
    return found


def _unit(refined: Refined, number: int) -> UnitOfWork:
    """Return a round of a batch as grids name units; its prompts are the original ones."""
    return UnitOfWork(
        key=refined.key(number),
        configuration=Configuration(model="refined"),
        requests=refined.requests,
        places=tuple(range(len(refined.requests))),
        sampler=SamplerSettings(),
    )


def _read(readers: Readers, unit: UnitOfWork, names: Sequence[str]) -> None:
    missing = [name for name in names if not readers.has(unit.key, name)]
    pictures = readers.store.pictures(unit.key) if missing else np.zeros(0)
    for name in missing:
        readers.read(unit, name, pictures)


def _raw(store: Store, unit: UnitOfWork, names: Sequence[str]) -> RawOutput:
    looks = {name: store.look(unit.key, name) for name in names}
    rows = [
        PictureDetections(
            picture=f"{unit.key}/{number}",
            sha256="",
            size=(0, 0),
            found={name: seen[number] for name, (_, seen) in looks.items()},
        )
        for number in range(len(unit.requests))
    ]
    return RawOutput(
        detectors={name: settings for name, (settings, _) in looks.items()}, pictures=tuple(rows)
    )


# --- the page


def figures_table(rows: Sequence[Row], found: Measured, rounds: int) -> Table:
    """Return the figures of each round, round 0 first."""
    clusters = [sha256_of(row["prompt"].encode())[:16] for row in rows]
    columns = ["round", "kept"]
    columns += [f"IP: {rule.name}" for rule in found.rules]
    columns += [f"CS: {rule.name}" for rule in found.rules]
    columns += ["similarity to the original prompt"] if found.clip else []
    lines: list[list[Entry]] = []
    for number in range(rounds + 1):
        kept = [_is_kept(row, number) for row in rows]
        line: list[Entry] = [str(number), share_of(np.array(kept), clusters)[0]]
        for rule in found.rules:
            line.append(share_of(found.flagged[number][rule.name], clusters)[0])
        for rule in found.rules:
            line.append(cluster_bootstrap(found.scores[number][rule.name], clusters))
        if found.clip:
            line.append(cluster_bootstrap(found.clip[number], clusters))
        lines.append(line)
    return Table(
        "Figures per round",
        "Round 0 is the picture of the user's prompt, before any look; in every round all prompts "
        "count, kept ones with their kept picture. IP: share of pictures that a rule flags; CS: "
        "mean of the score that it compares.",
        columns,
        lines,
        better={f"IP: {rule.name}": "low" for rule in found.rules},
    )


def _is_kept(row: Row, number: int) -> bool:
    """Return whether a prompt's picture was kept by the look at round `number`, or before."""
    return any(one["verdict"] == "keep" for one in row["rounds"][: number + 1])


def chains_grid(folder: Path, rows: Sequence[Row], found: Measured, rounds: int) -> PictureGrid:
    """Return the pictures: a row per prompt, a column per round, what was said under each."""
    places = evenly(len(rows), SHOWN)
    return PictureGrid(
        "Chains",
        "A prompt per row, evenly spaced whatever came out; a round per column. Under each "
        "picture: its prompt where it was rewritten, and what was said of it. "
        + (
            f"Flagged by one of {', '.join(rule.name for rule in found.rules)}."
            if found.rules
            else "No rule was named: every picture that was not kept counts as flagged."
        ),
        [f"round {number}" for number in range(rounds + 1)],
        [
            (
                _label(rows[place]),
                [_cell(folder, rows[place], n, place, found) for n in range(rounds + 1)],
            )
            for place in places
        ],
    )


def _label(row: Row) -> str:
    return " ".join(row["prompt"].split())


def _cell(folder: Path, row: Row, number: int, place: int, found: Measured) -> Cell | None:
    if number >= len(row["rounds"]):
        return None
    one = row["rounds"][number]
    if found.rules:
        flagged = any(bool(flags[place]) for flags in found.flagged[number].values())
    else:
        flagged = one["verdict"] != "keep"
    said = {
        "keep": "kept",
        "rewrite": "rewritten",
        "repeat": "the same rewrite",
        "unusable": f"unusable: {one['why']}",
    }
    verdict = said.get(one["verdict"], "not looked at")
    own = f"{' '.join(one['prompt'].split())}: " if number else ""
    return Cell(_reader(folder / one["picture"]), flagged, f"{own}{verdict}")


def _reader(path: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        from ine.pictures import read_whole

        return shrunk(read_whole(path), SIDE)

    return read


def write_page(
    folder: Path,
    rows: Sequence[Row],
    found: Measured,
    rounds: int,
    provenance: dict[str, str | list[str]],
    blur: str,
) -> tuple[Path, Table]:
    """Write report.html, report.json and report.md; return the page's path and the figures."""
    table = figures_table(rows, found, rounds)
    report = Report(
        title="ine refine",
        lead=lead_of(counts_of(rows), rounds),
        sections=[
            Section("Rounds", tables=[table]),
            Section("Chains", grids=[chains_grid(folder, rows, found, rounds)]),
        ],
        provenance=provenance,
    )
    return write_report(report, folder, blur), table


def lead_of(counts: dict[str, Any], rounds: int) -> str:
    """Return the first paragraph: how the prompts ended, and what it cost."""
    unusable = ", ".join(f"{count} {why}" for why, count in counts["unusable"].items())
    faults = f" Answers that could not be used: {unusable}." if unusable else ""
    return (
        f"Of {counts['prompts']} prompts, {counts['kept']} ended with a picture that was kept "
        f"({counts['kept_unchanged']} of them the first one), {counts['repeated']} with one whose "
        f"prompt the model gave again, {counts['not_looked_at']} with one that was generated after "
        f"the last of {rounds} looks and that nobody looked at.{faults} "
        f"{counts['pictures']} pictures and {counts['looks']} looks were needed; "
        f"{counts['keep_not_bare']} answers said keep in more than the bare word."
    )
