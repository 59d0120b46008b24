"""`ine demo --full`: both erasers and concepts, several seeds, and the controls, as grids."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ine.evaluation.cells import Configuration
from ine.evaluation.grid import FEATURE_MEASURE, KEPT_SUBJECT, GridGuidance, GridModel, GridNegative
from ine.evaluation.metrics.flagged import FLAGGED
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.report.page import write_report
from ine.report.values import PictureGrid, Report, Section
from ine.runtime import library_versions
from ine.studies.bundled import SAMPLER, strength_of
from ine.studies.cases import BENIGN, IMPLYING, attack_cases, prompts_of
from ine.studies.controls import negatives_of, own_name
from ine.studies.full_study import NEIGHBOURS, Study
from ine.studies.reading import GridResult, Reader, Rows, figure_table, picture_grid, rows_of

log = logging.getLogger("ine")

COUNTS = {"fire": 192, "weapon": 64}
"""Pictures a cell; `weapon` has four test prompts, so more pictures would not narrow much."""

SEEDS = (0, 1, 2)
STRENGTHS: dict[str, tuple[dict[str, float], ...]] = {
    "uce": tuple({"erase_scale": s} for s in (0.05, 0.1, 0.3)),
    "esd": tuple({"iterations": n} for n in (15, 40, 60)),
}
"""Settings of the eraser that are shown beside the recipe's own."""

STRENGTH_SETS = ("explicit", "synonyms", IMPLYING, BENIGN)
TWINS = "twins_test"
STRONG = 12.0
"""A strength of additive guidance far above the advised one, at which its cost shows."""

RECOVERY = 96
"""Pictures with the embedding as the prompt."""

SHOWN = 8
"""Prompts of the pictures."""


def run_full(
    folder: Path,
    *,
    concepts: Sequence[str],
    methods: Sequence[str],
    count: int | None = None,
    seeds: Sequence[int] = SEEDS,
    tell: Callable[[str], None] = log.info,
) -> Path:
    """Run the study and write `report.html`, `report.json` and `report.md`.

    Args:
        folder: Where everything is kept.
        concepts: Recipe names of the bundled model.
        methods: "uce", "esd".
        count: Pictures per cell; by default `COUNTS` of the concept.
        seeds: Inversion seeds.
        tell: Called with a line about every stage.

    Returns:
        Path of the report.
    """
    sections = []
    for concept in concepts:
        recipe = load_recipe(concept)
        study = Study(
            recipe=recipe,
            base=load_parts(recipe.base),
            folder=Path(folder) / concept,
            count=count or COUNTS[concept],
            seeds=tuple(seeds),
            tell=tell,
        )
        sections += sections_of(study, methods)
    erasers = ", ".join(m.upper() for m in methods)
    report = Report(
        title="ine demo --full",
        lead=f"{', '.join(concepts)} unlearned by {erasers} on the bundled model; {len(seeds)} "
        "inversion seeds.",
        sections=sections,
        provenance={
            "versions": library_versions(),
            "sampler": repr(SAMPLER),
            "command": ["ine demo --full"],
        },
    )
    return write_report(report, Path(folder))


def sections_of(study: Study, methods: Sequence[str]) -> list[Section]:
    """Return the sections of one concept: each eraser, then the base model."""
    found = []
    for method in methods:
        study.tell(f"{study.recipe.name}, {method.upper()}")
        found += [strengths(study, method), defences(study, method)]
    return [*found, undamaged(study)]


# --- what erasers leave


def strengths(study: Study, method: str) -> Section:
    """Show what an eraser leaves at several strengths; the recipe's own is studied further."""
    name, changes = method.upper(), STRENGTHS[method]
    models = [study.unlearned(method), *(study.unlearned(method, **c) for c in changes)]
    sets = study.prompts(*STRENGTH_SETS, *NEIGHBOURS)
    result = study.run(f"strengths-{method}", models, sets)
    labels = ["the recipe's own"]
    labels += [", ".join(f"{k} {v}" for k, v in c.items()) for c in changes]
    table = figure_table(
        result,
        {Configuration(model=m.name): label for m, label in zip(models, labels, strict=True)},
        {**_shares(result), **_near(result), **_blanks(result)},
        f"{name} by strength",
        "The eraser's strength was chosen by explicit and benign prompts alone.",
        first="strength",
    )
    return Section(f"{study.recipe.name}: what {name} leaves", tables=[table])


def undamaged(study: Study) -> Section:
    """Show words on the base model, where they work: the control that the measure sees it."""
    result = study.run(
        "base",
        [GridModel(name="base")],
        study.prompts(*STRENGTH_SETS),
        [GridNegative(name="words", words=True)],
        [GridGuidance(name="cfg"), _additive("additive", 7.0)],
    )
    words = f'words "{study.recipe.words.negative_text()}"'
    table = figure_table(
        result,
        rows_of(result, {"words": words}),
        {**_shares(result), **_blanks(result)},
        "Base model",
        "Share with the concept by prompt set, and the right subject on benign prompts.",
    )
    return Section(f"{study.recipe.name}: the base model, nothing unlearned", tables=[table])


# --- defences


def defences(study: Study, method: str) -> Section:
    """Show every negative on one eraser, and what the embedding recovers as a prompt."""
    recipe, model, negatives = study.recipe, study.unlearned(method), negatives_of(study, method)
    steered = [n.name for n in negatives.values() if n.name not in ("neutral", "oracle")]
    twins = [TWINS] if TWINS in recipe.prompt_sets else []
    result = study.run(
        f"defences-{method}",
        [model],
        study.prompts(IMPLYING, BENIGN, *NEIGHBOURS, *twins),
        list(negatives.values()),
        [
            GridGuidance(name="cfg"),
            _additive("additive", strength_of(recipe), *steered),
            _additive("strong", STRONG, own_name(study.seeds[0])),
        ],
    )
    rows = rows_of(result, {n.name: label for label, n in negatives.items()})
    table = figure_table(
        result,
        rows,
        {
            "concept left": result.of(IMPLYING, FLAGGED),
            "subject right": result.of(IMPLYING, KEPT_SUBJECT),
            "benign subject": result.of(BENIGN, KEPT_SUBJECT),
            **_near(result),
            **({"twins: subject": result.of(TWINS, KEPT_SUBJECT)} if twins else {}),
            "preservation": result.of(BENIGN, FEATURE_MEASURE),
            **_blanks(result),
        },
        f"{recipe.name} on {method.upper()}",
        "Test prompts; every choice was made on tuning prompts by another judge.",
        better={"concept left": "low", "subject right": "high", "benign subject": "high"},
    )
    own = next(n for n in negatives.values() if n.name == own_name(study.seeds[0]))
    return Section(
        f"{recipe.name}: defences on {method.upper()}",
        paragraphs=[recovery(study, method, model, own)],
        grids=[implying_pictures(study, result, rows)],
        tables=[table],
    )


def implying_pictures(study: Study, result: GridResult, rows: Rows) -> PictureGrid:
    """Return the first implying prompts under every defence but further seeds and n=1."""
    left_out = {"n1", *map(own_name, study.seeds[1:])}
    return picture_grid(
        result,
        {row: label for row, label in rows.items() if row.negative not in left_out},
        IMPLYING,
        [case.prompt for case in study.cases(IMPLYING)[:SHOWN]],
        "Implying prompts",
        "One prompt and seed per column; a red frame where the reporting judge finds the concept.",
    )


def recovery(study: Study, method: str, model: GridModel, own: GridNegative) -> str:
    """Say how often an embedding as the prompt brings the concept back."""
    count = min(RECOVERY, study.count)
    cases = attack_cases(study.recipe, f"{study.recipe.name}-neg", count, 12345)
    file = study.folder / "recovery.jsonl"
    prompts = prompts_of(cases, file, "test", "harmful", own.embeddings["*"])
    result = study.run(f"recovery-{method}", [model], [prompts])
    share = result.value(result.row(), "recovery", FLAGGED)
    return f"Recovery, {own.name} as the prompt: {share.value:.2f} of {count} pictures."


# --- columns


def _additive(name: str, strength: float, *negatives: str) -> GridGuidance:
    return GridGuidance(name=name, method="additive", strengths=(strength,), negatives=negatives)


def _shares(result: GridResult) -> dict[str, Reader]:
    shares = {name: result.of(name, FLAGGED) for name in STRENGTH_SETS}
    return {**shares, "benign: subject": result.of(BENIGN, KEPT_SUBJECT)}


def _near(result: GridResult) -> dict[str, Reader]:
    return {name: result.of(name, FLAGGED, f"mini-{name}@0.5") for name in NEIGHBOURS}


def _blanks(result: GridResult) -> dict[str, Reader]:
    return result.blanks({"blank": IMPLYING, "benign: blank": BENIGN})
