"""What the pictures of the tuning prompts show, undefended and under a setting.

Shape letters: P pictures whose prompt implies the concept, B benign pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ine.detectors.likeness import rescaled_cosine
from ine.errors import PromptError
from ine.evaluation.cells import Configuration
from ine.evaluation.grid import GridGuidance, GridNegative, GridPrompts
from ine.evaluation.grid_file import GridFile
from ine.evaluation.metrics.preservation import floor_of
from ine.evaluation.prepare import Plan, prepare
from ine.evaluation.run import Progress
from ine.evaluation.stats import cluster_bootstrap
from ine.guidance.table import METHODS
from ine.studies.cases import Case, Expects, prompts_of
from ine.studies.defend.job import MODEL, SECOND_JUDGES, Job
from ine.studies.defend.prompts import BENIGN, IMPLYING, TUNED
from ine.studies.defend.settings import Setting, Tried
from ine.studies.grids import run_plan
from ine.studies.reading import GridResult

EMBEDDING = "embedding"
"""Name of the negative in the grids."""

EXPECTS: dict[str, Expects] = {IMPLYING: "harmful", BENIGN: "benign"}

Places = Mapping[str, np.ndarray]
"""{set: places of its pictures}."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What every picture of the tuning prompts shows, in the order of the prompts."""

    flagged: np.ndarray
    """Whether the rule finds the concept, (P,) bool."""

    subject: np.ndarray | None
    """Whether the picture shows its prompt's subject, (P,) bool; None where nobody looked."""

    kept: np.ndarray
    """Preservation of the benign pictures, (B,)."""

    def where(self, opens: Places, plain: "Outcome") -> "Outcome":
        """Return it for pictures that open, the undefended outcome for others.

        Args:
            opens: Whether each picture does, (P,) and (B,) bool.
            plain: The undefended pictures.
        """
        subject = self.subject
        if subject is not None and plain.subject is not None:
            subject = np.where(opens[IMPLYING], subject, plain.subject)
        return Outcome(
            flagged=np.where(opens[IMPLYING], self.flagged, plain.flagged),
            subject=subject,
            kept=np.where(opens[BENIGN], self.kept, plain.kept),
        )


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The undefended pictures of all tuning prompts."""

    outcome: Outcome
    clusters: Mapping[str, tuple[str, ...]]
    """{set: what is independent of its pictures}."""

    floor: float
    """Likeness of unrelated benign pictures, which reads 0."""

    beside: np.ndarray
    """Whether each prompt's subject stands beside the concept, and shall stay, (P,) bool: whether
    benign prompts have it too. The dagger of "a dagger" is the concept itself."""

    def tried(self, setting: Setting, outcome: Outcome, opened: float) -> Tried:
        """Return what a setting does.

        Args:
            setting: The setting.
            outcome: Its pictures.
            opened: Share of benign pictures for which it opens.
        """
        clusters, right, subject = self.clusters[IMPLYING], self.outcome.subject, None
        right = None if right is None else right & self.beside
        if right is not None and outcome.subject is not None and right.any():
            own = [clusters[place] for place in np.flatnonzero(right)]
            subject = cluster_bootstrap(outcome.subject[right].astype(float), own)
        return Tried(
            setting=setting,
            left=cluster_bootstrap(outcome.flagged.astype(float), clusters),
            kept=cluster_bootstrap(outcome.kept, self.clusters[BENIGN]),
            subject=subject,
            opened=opened,
        )


def undefended(job: Job) -> Plain:
    """Make the undefended pictures of the tuning prompts.

    Raises:
        PromptError: Benign prompts are all alike.
    """
    cases = job.prompts.tuning
    file = job.grid(
        "undefended",
        sets_of(cases, job.folder),
        count=max(map(len, cases.values())),
        subject=names_objects(job),
    )
    plan, result = run_in(job, file, "undefended")
    floor = floor_of(plan, MODEL, TUNED + BENIGN, job.measure)
    if not floor < 1:  # NaN too
        raise PromptError(
            "benign tuning prompts: all are alike, so nothing says how unlike unrelated pictures "
            "are; give the recipe at least two different ones"
        )
    seen = {name: result.seen(result.row(), TUNED + name) for name in cases}
    implying = seen[IMPLYING]
    outcome = Outcome(
        flagged=implying.flagged[result.rule],
        subject=implying.column("subject") if implying.has("subject") else None,
        kept=np.ones(len(cases[BENIGN])),
    )
    benign = {case.noun for case in cases[BENIGN]}
    return Plain(
        outcome=outcome,
        clusters={name: pictures.clusters for name, pictures in seen.items()},
        floor=floor,
        beside=np.array([case.noun in benign for case in cases[IMPLYING]]),
    )


def defended(
    job: Job, plain: Plain, result: GridResult, row: Configuration, places: Places, what: str
) -> Outcome:
    """Return the outcome of a configuration; pictures that it was not asked for are undefended.

    Args:
        job: The defence.
        plain: The undefended pictures.
        result: A grid of sets named "{what}{set}".
        row: The configuration.
        places: Of the pictures that the grid has.
        what: The prefix.
    """
    own, old = places[IMPLYING], plain.outcome
    flagged, subject, kept = old.flagged.copy(), old.subject, old.kept.copy()
    seen = result.seen(row, f"{what}{IMPLYING}")
    flagged[own] = seen.flagged[result.rule]
    if subject is not None and seen.has("subject"):
        subject = subject.copy()
        subject[own] = seen.column("subject")
    if len(places[BENIGN]):
        likeness = result.seen(row, f"{what}{BENIGN}").likeness[job.measure]
        kept[places[BENIGN]] = rescaled_cosine(likeness, plain.floor)
    return replace(old, flagged=flagged, subject=subject, kept=kept)


def embedding_of(job: Job) -> GridNegative:
    """Return the grids' negative: the embedding as inverted."""
    return GridNegative(name=EMBEDDING, embeddings={"*": (job.made_embedding.name,)})


def behind_gate(setting: Setting, name: str, gate: Path) -> GridGuidance:
    """Return a grid's entry of a setting behind its gate, a file of the work folder."""
    return GridGuidance(
        name=name,
        method=setting.method,
        preset=METHODS[setting.method].compared,
        strengths=() if setting.strength is None else (setting.strength,),
        gate={"*": gate.name},
        restart=setting.restart or None,
        last_resort=setting.last,
        negatives=(EMBEDDING,),
    )


def names_objects(job: Job) -> bool:
    """Return whether the rule's detector names objects; only the bundled judges do."""
    return job.detector in SECOND_JUDGES


def picked(job: Job, places: Places) -> dict[str, tuple[Case, ...]]:
    """Return the tuning prompts at places, without sets that have none."""
    tuning = job.prompts.tuning
    return {
        name: tuple(tuning[name][place] for place in own)
        for name, own in places.items()
        if len(own)
    }


def sets_of(
    cases: Mapping[str, Sequence[Case]], folder: Path, what: str = TUNED
) -> list[GridPrompts]:
    """Return prompt sets named "{what}{set}", their files written into a folder."""
    return [
        prompts_of(own, folder / f"{what}{name}.jsonl", "tune", EXPECTS[name])
        for name, own in cases.items()
    ]


def run_in(job: Job, file: GridFile, name: str) -> tuple[Plan, GridResult]:
    """Run a grid in the work folder, with a progress bar; pictures that are there are used."""
    plan = prepare(file, job.folder / name, store=job.folder, models={MODEL: job.parts})
    total = sum(len(unit.requests) for unit in plan.units)
    with job.watch.bar(total, f"{name} pictures") as update:

        def on_progress(progress: Progress) -> None:
            update(progress.done)

        return plan, run_plan(plan, on_progress)
