"""What a defence does on prompts that were held back from every choice, and the page about it."""

from dataclasses import dataclass, replace
from pathlib import Path

from ine.embeddings.embedding import ConceptEmbedding
from ine.evaluation.grid import KEPT_SUBJECT, GridGuidance, GridJudges, GridNegative
from ine.evaluation.metrics.evaluations import CALLS
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.plan import Configuration
from ine.evaluation.stats import Estimate, decimal
from ine.report.page import write_report
from ine.report.values import Entry, PictureGrid, Report, Section, Table
from ine.runtime import library_versions
from ine.studies.cases import Expects, prompts_of
from ine.studies.defend.job import SECOND_JUDGES, Job
from ine.studies.defend.outcomes import (
    EMBEDDING,
    behind_gate,
    embedding_of,
    names_objects,
    run_in,
)
from ine.studies.defend.prompts import BENIGN, IMPLYING
from ine.studies.defend.settings import Tried, Tuning
from ine.studies.defend.tuning_page import runs_tables, tuning_drawing, tuning_table
from ine.studies.reading import GridResult, Rows, blur_for, figure_table, picture_grid

WORDS, ALWAYS, WITHOUT, DEFENCE = "words", "always", "without-restarts", "defence"
"""Names of the negative in words and of the guidances in the grid."""

SHOWN = 8
"""Pictures of a row."""


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """The defence on held-back prompts."""

    result: GridResult
    rows: Rows
    """Undefended, words, the embedding always on, the defence without restarts if it has any, the
    defence."""

    measure: str
    judge: str
    """The detector that looked."""

    @property
    def defence(self) -> Configuration:
        """The configuration of the defence."""
        return list(self.rows)[-1]

    @property
    def without(self) -> Estimate | None:
        """The same without its restarts, as a pipeline has it; None if it has none."""
        found = [row for row in self.rows if row.guidance == WITHOUT]
        return self.result.value(found[0], IMPLYING, FLAGGED) if found else None

    @property
    def undefended(self) -> Estimate:
        """Share of pictures with the concept, undefended."""
        return self.result.value(self.result.row(), IMPLYING, FLAGGED)

    @property
    def left(self) -> Estimate:
        """The same with the defence."""
        return self.result.value(self.defence, IMPLYING, FLAGGED)

    @property
    def kept(self) -> Estimate:
        """Preservation of benign pictures with the defence."""
        return self.result.value(self.defence, BENIGN, self.measure)


def hold_back(job: Job, chosen: Tried) -> HeldBack:
    """Make the pictures of the held-back prompts, and look at them.

    Args:
        job: The defence; its gate is in the work folder.
        chosen: The setting.
    """
    setting = chosen.setting
    guidances = [GridGuidance(name=ALWAYS), behind_gate(setting, DEFENCE, job.made_gate)]
    if setting.restart:
        without = replace(setting, restart=(), last=None)
        guidances.append(behind_gate(without, WITHOUT, job.made_gate))
    negatives = [
        GridNegative(name=WORDS, text=job.recipe.words.negative_text()),
        embedding_of(job),
    ]
    expects: dict[str, Expects] = {IMPLYING: "harmful", BENIGN: "benign"}
    sets = [
        prompts_of(cases, job.folder / f"{name}.jsonl", "test", expects.get(name, "neighbour"))
        for name, cases in job.prompts.held_back.items()
    ]
    second = SECOND_JUDGES.get(job.detector)
    count = job.recipe.defence.reported
    file = job.grid(
        "held-back",
        sets,
        negatives,
        guidances,
        GridJudges(test=second),
        count=count,
        subject=names_objects(job),
    )
    _, result = run_in(job, file, "held-back")
    rows = {
        result.row(): "undefended",
        result.row(ALWAYS, None, WORDS): f'words "{job.recipe.words.negative_text()}", always',
        result.row(ALWAYS, None, EMBEDDING): "embedding, always",
        **(
            {result.row(WITHOUT, setting.strength, EMBEDDING): "the defence, no restarts"}
            if setting.restart
            else {}
        ),
        result.row(DEFENCE, setting.strength, EMBEDDING): "the defence",
    }
    return HeldBack(result=result, rows=rows, measure=job.measure, judge=second or job.detector)


def held_back_grids(job: Job, held_back: HeldBack) -> list[PictureGrid]:
    """Return the first pictures of the held-back prompts, undefended and defended."""
    implying = f"Prompts that imply {job.recipe.name}"
    return [
        pictures_of(job, held_back, IMPLYING, implying),
        pictures_of(job, held_back, BENIGN, "Benign prompts"),
    ]


def write_defence_report(
    job: Job, embedding: ConceptEmbedding, tuning: Tuning, held_back: HeldBack
) -> Path:
    """Write `report.html`, `report.json` and `report.md` into the work folder; return the first."""
    recipe = job.recipe
    report = Report(
        title=f"ine defend: {recipe.name} on {job.parts.unet_name}",
        lead=lead_of(job, tuning, held_back),
        sections=[
            Section(
                "On held-back prompts",
                tables=[held_back_table(job, held_back)],
                grids=[] if job.purge else held_back_grids(job, held_back),
            ),
            Section(
                "How it was chosen",
                tables=[tuning_table(job, tuning), *runs_tables(job, embedding)],
                drawings=[tuning_drawing(job, tuning)],
            ),
        ],
        provenance=_provenance(job, embedding),
        next_steps=[
            (
                "Pictures with the defence, as the file recommends:",
                f"ine generate --negative-embedding {job.out} --prompt '...'",
            ),
            (
                "Attack it, before relying on it:",
                f"ine audit --concept {recipe.name} --negative-embedding {job.out}",
            ),
        ],
    )
    return write_report(report, job.folder, blur_for(recipe))


def _provenance(job: Job, embedding: ConceptEmbedding) -> dict[str, str | list[str]]:
    recipe = job.recipe
    return {
        **({"command": [job.command]} if job.command else {}),
        "model": f"{job.parts.name}, U-Net {job.parts.unet_name}",
        "embedding": f"{embedding.count} vectors, trigger {embedding.trigger}",
        "recipe": f"{recipe.name} {recipe.hash}",
        "search": repr(recipe.defence),
        "sampler": repr(job.sampler),
        "seed": str(job.seed),
        "versions": library_versions(),
    }


def lead_of(job: Job, tuning: Tuning, held_back: HeldBack) -> str:
    """Return the first paragraph: what the defence does, and how sure that is."""
    left, before, kept = held_back.left, held_back.undefended, held_back.kept
    short = (
        f" That is below the target of {job.target:g}, which it keeps on the tuning prompts."
        if tuning.reached and kept.value < job.target
        else ""
    )
    return (
        f"On held-back prompts that imply {job.recipe.name} the undefended model shows it in "
        f"{decimal(before.value)} of {before.count} pictures, the defence leaves "
        f"{decimal(left.value)} ({decimal(left.low)} to {decimal(left.high)}). Benign pictures are "
        f"preserved by {kept.value:.3f} of {kept.count}.{short} It is: {tuning.chosen.setting}."
        f"{_without_restarts(held_back.without)}"
    )


def _without_restarts(left: Estimate | None) -> str:
    """Return what is left where pictures cannot be restarted; "" where none are."""
    if left is None:
        return ""
    return (
        " Where no picture can be restarted (a ControlNet, a guider), "
        f"{decimal(left.value)} are left."
    )


def held_back_table(job: Job, held_back: HeldBack) -> Table:
    """Return the figures on held-back prompts."""
    concept, result, measure = job.recipe.name, held_back.result, held_back.measure
    kept = [name for name in job.prompts.held_back if name != IMPLYING]
    named = [name for name in job.prompts.held_back if _has_subjects(job, name)]

    def calls(row: Configuration) -> Entry:
        mean, benign = (result.entry(row, name, CALLS) for name in (IMPLYING, BENIGN))
        return f"{mean} (benign {benign})"

    return figure_table(
        result,
        held_back.rows,
        {
            f"{concept} left": result.of(IMPLYING, FLAGGED),
            **{f"{name}: subject right": result.of(name, KEPT_SUBJECT) for name in named},
            **{f"{name}: preservation": result.of(name, measure) for name in kept},
            "U-Net calls": calls,
        },
        f"{concept}, held-back prompts",
        f"Prompts: {job.prompts.sources[IMPLYING]}; {job.prompts.sources[BENIGN]}.",
        notes=[
            f"Rule {result.rule}, detector {held_back.judge}; {job.recipe.defence.reported} "
            "pictures a cell; 95% intervals over phrase x object.",
            f"Preservation ({measure}): likeness to the same seed undefended, rescaled so that "
            "unrelated pictures read 0.",
        ],
        better={f"{concept} left": "low"},
    )


def _has_subjects(job: Job, name: str) -> bool:
    """Return whether the subjects of a held-back set's prompts are looked for."""
    cases = job.prompts.held_back[name]
    return job.detector in SECOND_JUDGES and all(case.noun != case.prompt for case in cases)


def pictures_of(job: Job, held_back: HeldBack, name: str, title: str) -> PictureGrid:
    """Return the first pictures of a held-back set: a column per prompt, a row per negative."""
    prompts = [case.prompt for case in job.prompts.held_back[name][:SHOWN]]
    caption = "The first of the set, whatever they show; the same seeds in every row."
    return picture_grid(held_back.result, held_back.rows, name, prompts, title, caption)
