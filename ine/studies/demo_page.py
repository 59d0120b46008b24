"""The page of `ine demo`: pictures, figures, how to go on."""

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.display import contact_sheet
from ine.evaluation.grid import KEPT_SUBJECT
from ine.evaluation.metrics.flagged import FLAGGED
from ine.pictures import write_png
from ine.report.page import write_report
from ine.report.values import PictureGrid, Report, Section, Table
from ine.runtime import library_versions
from ine.studies.defend.job import Job
from ine.studies.defend.prompts import BENIGN, IMPLYING
from ine.studies.defend.report import HeldBack, pictures_of
from ine.studies.defend.run import Defence
from ine.studies.reading import figure_table

POSTER = {IMPLYING: 5, BENIGN: 3}
"""Columns of the picture, by prompt set."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo after its defence was made."""

    job: Job
    defence: Defence
    method: str
    weights: Path
    unlearned: str
    """The weights in words."""

    @property
    def concept(self) -> str:
        """The concept's name."""
        return self.job.recipe.name

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.weights.parent

    @property
    def held_back(self) -> HeldBack:
        """The pictures of the held-back prompts: undefended, words, embedding, the defence."""
        return self.defence.held_back


def write_demo(demo: Demo) -> tuple[Path, Table]:
    """Write the report and `demo.png`; return the path of report.html and the table."""
    table = demo_table(demo)
    write_png(demo.folder / "demo.png", poster(demo))
    return write_report(demo_report(demo, table), demo.folder), table


def demo_table(demo: Demo) -> Table:
    """Return the figures of the demo."""
    concept, held_back = demo.concept, demo.held_back
    result = held_back.result
    blanks = result.blanks({"blank": IMPLYING, "benign: blank": BENIGN})
    return figure_table(
        result,
        held_back.rows,
        {
            f"{concept} left": result.of(IMPLYING, FLAGGED),
            "subject right": result.of(IMPLYING, KEPT_SUBJECT),
            "benign: subject right": result.of(BENIGN, KEPT_SUBJECT),
            f"benign: {concept}": result.of(BENIGN, FLAGGED),
            "benign: preservation": result.of(BENIGN, held_back.measure),
            **blanks,
        },
        f"{concept} on the bundled model unlearned by {demo.method.upper()}",
        f"Prompts that imply {concept} without naming it, held back from every choice; and benign "
        "prompts. Judged by a second judge that chose nothing.",
        notes=[
            f"The defence: {demo.defence.recommendation}.",
            f"Rule {result.rule} on the second judge; {demo.job.recipe.defence.reported} pictures "
            "a cell; 95% intervals over phrase x object.",
            "Preservation: cosine of image features with the same seed undefended, rescaled so "
            "that unrelated pictures read 0.",
            *(["blank: pictures wholly of one colour."] if blanks else []),
        ],
        better={
            f"{concept} left": "low",
            "subject right": "high",
            "benign: subject right": "high",
            f"benign: {concept}": "low",
        },
    )


def picture_grids(demo: Demo) -> list[PictureGrid]:
    """Return the pictures of both sets: a column per prompt and seed, a row per negative."""
    titles = {IMPLYING: f"Prompts that imply {demo.concept}", BENIGN: "Benign prompts"}
    return [pictures_of(demo.job, demo.held_back, name, title) for name, title in titles.items()]


def poster(demo: Demo) -> np.ndarray:
    """Return one picture, a row per negative: prompts that imply the concept, then benign ones.

    The first prompts whose undefended picture shows the concept, and the first benign ones,
    whatever the other rows show.
    """
    result, rows, sets = demo.held_back.result, demo.held_back.rows, demo.job.prompts.held_back
    undefended = next(iter(rows))
    shown = {
        IMPLYING: [k for k, flag in enumerate(result.flagged(undefended, IMPLYING)) if flag],
        BENIGN: list(range(len(sets[BENIGN]))),
    }
    chosen = [(name, k) for name, count in POSTER.items() for k in shown[name][:count]]
    pictures = [
        {name: result.pictures(row, name, len(sets[name])) for name in POSTER} for row in rows
    ]
    return contact_sheet(
        [[found[name][k] for name, k in chosen] for found in pictures],
        list(rows.values()),
        [sets[name][k].prompt for name, k in chosen],
        scale=2,
    )


def lead_of(demo: Demo) -> str:
    """Return the first paragraph: what is left with each negative, and what it costs."""
    result, rows = demo.held_back.result, list(demo.held_back.rows)
    left = [result.value(row, IMPLYING, FLAGGED).value for row in rows]
    kept = [result.value(row, BENIGN, demo.held_back.measure).value for row in rows[2:]]
    return (
        f"A model unlearned by {demo.method.upper()} still draws {demo.concept} in {left[0]:.0%} "
        f"of pictures whose prompt only implies it. Words as a negative leave {left[1]:.0%}; the "
        f"embedding inverted on this very model leaves {left[2]:.0%}, and preserves benign "
        f"pictures by {kept[0]:.2f}. Behind a look-ahead, which steers only the pictures that are "
        f"about to show {demo.concept}, it leaves {left[-1]:.0%} and preserves {kept[-1]:.2f}."
    )


def demo_report(demo: Demo, table: Table) -> Report:
    """Return the report of the demo."""
    concept, job = demo.concept, demo.job
    file, work = job.out, job.folder
    held_back = work / "held-back"
    return Report(
        title=f"ine demo: {concept}",
        lead=lead_of(demo),
        sections=[
            Section("Pictures", grids=picture_grids(demo)),
            Section("Figures", tables=[table]),
        ],
        provenance={
            "command": ["ine demo"],
            "unlearned weights": demo.unlearned,
            "embedding": f"trigger {file.stem}, seed {job.seed}",
            "recipe": f"{concept} {job.recipe.hash}",
            "sampler": repr(job.sampler),
            "versions": library_versions(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
        },
        next_steps=[
            (
                "Your own unlearned weights and concept:",
                "ine defend --concept nudity --unet esd.safetensors",
            ),
            (
                "Pictures with the defence, as its file recommends:",
                f"ine generate --unet {demo.weights} --negative-embedding {file} "
                '--prompt "a dog at the forge" --out pictures',
            ),
            (
                "The same cells, as a grid to change:",
                f"ine evaluate {held_back}.yaml --out {held_back} --store {work}",
            ),
            ("Both erasers, all controls, several seeds:", "ine demo --full"),
        ],
    )
