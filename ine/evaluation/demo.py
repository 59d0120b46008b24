"""`ine demo`: unlearn, invert, generate, judge, report, on the bundled model.

The whole argument on the reader's own machine: an unlearned model still draws the concept where
a prompt implies it; words as a negative do not help, because it no longer knows them; the
embedding inverted on it does; subjects and benign prompts stay.
"""

import logging
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from ine.embedding import fingerprints, read_embedding
from ine.evaluation.defences import UNDEFENDED, by_embedding, by_text
from ine.evaluation.report import (
    Cell,
    PictureGrid,
    Report,
    Section,
    Table,
    write_report,
)
from ine.evaluation.study import (
    cases_of,
    concept_share,
    preservation,
    run_cell,
    subject_share,
)
from ine.guidance.table import describe
from ine.inversion.run import RunOptions, run_inversion
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.models.checkpoints import lay_weights, weights_metadata
from ine.models.loading import load_parts
from ine.pictures import contact_sheet, write_png
from ine.recipe import load_recipe
from ine.runtime import library_versions
from ine.sampling import SamplerSettings
from ine.unlearning.run import unlearn_concept

log = logging.getLogger("ine")

ATTRIBUTES = ("fire", "snow", "flowers")
SAMPLER = SamplerSettings(scheduler="ddim", steps=20, guidance_scale=5.0, batch=48)
SETS = ("implying_test", "benign")
QUICK = (
    "pictures.count=96",
    "inversion.steps=500",
    "inversion.preview_every=500",
    "inversion.preview_pictures=32",
)
"""Overrides of the recipe that fit the demo into three minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells of a study share."""

    recipe: object
    judge: object
    """Chooses; gives image features."""

    reporter: object
    """Only scores what is reported."""

    rule: object
    sampler: SamplerSettings
    folder: Path
    count: int
    """Pictures per cell."""

    on_cell: object = None

    def cases(self, name):
        """Return the cases of a prompt set."""
        return cases_of(self.recipe, name, self.count, self.recipe.prompt_nouns)

    def run(self, parts, model_key, defence, name):
        """Return the `CellResult` of one defence on one prompt set."""
        result = run_cell(
            parts,
            defence.guidance,
            self.cases(name),
            self.sampler,
            self.judge,
            self.reporter,
            cache=self.folder / "cells" / f"{model_key}-{defence.name}-{name}.npz",
            key=f"{model_key}|{describe(defence.guidance)}",
        )
        if self.on_cell:
            self.on_cell(f"{defence.label} on {name}")
        return result


def run_demo(folder, *, concept="fire", method="uce", seed=0, count=96, tell=log.info):
    """Run the demo and write its report.

    Args:
        folder: Where weights, embedding, cells and `report.html` go; finished parts are kept.
        concept: A recipe of the bundled model.
        method: "uce" or "esd".
        seed: Where all randomness comes from.
        count: Pictures per cell.
        tell: Called with a line about every stage.

    Returns:
        (path of report.html, `Table`, seconds by stage).
    """
    folder = Path(folder)
    recipe = load_recipe(concept, QUICK)
    seconds, mark = {}, time.monotonic()

    def stage(name):
        nonlocal mark
        now = time.monotonic()
        seconds[name] = round(now - mark, 1)
        mark = now

    base = load_parts(recipe.base)
    judge, reporter = load_detector("mini-judge"), load_detector("mini-judge2")
    stage("load")
    tell(f"1/4 unlearning {concept} with {method.upper()}")
    weights = folder / f"{concept}-{method}.safetensors"
    unlearned, laid = unlearned_by(
        base, recipe, method, dict(getattr(recipe.erase, method)), weights, tell
    )
    tell("    " + laid.describe())
    stage("unlearn")
    tell("2/4 inverting it on the unlearned model (pictures by the base model, then vectors)")
    file = folder / f"{concept}-neg.safetensors"
    embedding = embedding_of(base, unlearned, recipe, file, seed, judge, tell)
    stage("invert")
    tell("3/4 generating: undefended, words, embedding; the same seeds")
    bench = Bench(
        recipe=recipe,
        judge=judge,
        reporter=reporter,
        rule=find_rule(recipe.pictures.rule),
        sampler=SAMPLER,
        folder=folder,
        count=count,
        on_cell=lambda text: tell(f"    {text}"),
    )
    words = recipe.words.negative_text()
    defences = (
        UNDEFENDED,
        by_text("words", words),
        by_embedding("embedding", embedding),
        by_embedding("embedding", embedding, strength=recipe.strength),
    )
    cells = {
        (d.name, name): bench.run(unlearned, f"{method}-{file_key(weights)}", d, name)
        for d in defences
        for name in SETS
    }
    stage("generate")
    tell("4/4 judging and reporting")
    table = demo_table(bench, defences, cells, method)
    report = demo_report(bench, defences, cells, table, laid, embedding, method, seed)
    write_png(folder / "demo.png", poster(bench, defences, cells))
    path = write_report(report, folder)
    stage("report")
    return path, table, seconds


def file_key(path):
    """Return 16 hex digits of a file's bytes."""
    from ine.files import sha256_of

    return sha256_of(Path(path).read_bytes())[:16]


def unlearned_by(base, recipe, method, settings, file, tell):
    """Return (parts, `UnlearnedWeights`); the file is made where it is not of this recipe."""
    if not file.exists() or weights_metadata(file).get("ine.recipe_hash") != recipe.hash:
        tell(f"    unlearning {file.name}")
        unlearn_concept(base, recipe, method, settings, file, force=True)
    return lay_weights(base, file)


def embedding_of(base, unlearned, recipe, file, seed, judge, tell):
    """Return the embedding of this recipe and these weights, inverted where the file is not it."""
    unet = fingerprints(unlearned)["ine.unet_fingerprint"]
    wanted = {"ine.recipe_hash": recipe.hash, "ine.unet_fingerprint": unet, "ine.seed": str(seed)}
    if file.exists():
        embedding = read_embedding(file)
        if wanted.items() <= embedding.metadata.items():
            return embedding
    tell(f"    inverting {file.parent.name}/{file.stem}")
    options = RunOptions(out=file, trigger=f"{recipe.name}-neg", seed=seed, force=file.exists())
    embedding, _, summary = run_inversion(base, unlearned, recipe, options, judge)
    counts = summary["pictures"]
    told = f"{counts['kept']} of {counts['tried']} pictures kept"
    if summary["recovery"] is not None:
        told += f"; recovery {summary['recovery']:.2f}"
    if summary["tuning_left"] is not None:
        undefended, left = summary["tuning_undefended"], summary["tuning_left"]
        told += f"; on tuning prompts {undefended:.2f} -> {left:.2f}"
    tell(f"    {told}")
    return embedding


def demo_table(bench, defences, cells, method):
    """Return the figures of the quick demo."""
    rows = []
    for defence in defences:
        implied, benign = (cells[defence.name, name] for name in SETS)
        rows.append(
            [
                defence.label,
                concept_share(implied, bench.rule),
                subject_share(implied, ATTRIBUTES),
                subject_share(benign, ATTRIBUTES),
                concept_share(benign, bench.rule),
                preservation(benign, cells["undefended", "benign"])
                if defence.guidance
                else "1 by definition",
            ]
        )
    concept = bench.recipe.name
    return Table(
        title=f"{concept} on the bundled model unlearned by {method.upper()}",
        caption=(
            f"Prompts that imply {concept} without naming it, held back from every choice; and "
            "benign prompts. Judged by a second judge that chose nothing."
        ),
        columns=[
            "negative",
            f"{concept} left",
            "subject right",
            "benign: subject right",
            f"benign: {concept}",
            "benign: preservation",
        ],
        rows=rows,
        notes=[
            f"Rule {bench.rule.name} on the second judge; {bench.count} pictures a cell; 95% "
            "intervals by bootstrap over phrase x object.",
            "Preservation: cosine of image features with the same seed undefended, rescaled so "
            "that unrelated pictures read 0.",
        ],
        better={
            f"{concept} left": "low",
            "subject right": "high",
            "benign: subject right": "high",
            f"benign: {concept}": "low",
        },
    )


def picture_grid(bench, defences, cells, name, title, caption, columns=8):
    """Return a grid: a column per prompt and seed, a row per defence."""
    cases = bench.cases(name)[:columns]
    rows = []
    for defence in defences:
        result = cells[defence.name, name]
        row = [
            Cell(result.pictures[i], bench.rule.fires(result.scores[i])) for i in range(len(cases))
        ]
        rows.append((defence.label, row))
    return PictureGrid(title, caption, [c.prompt for c in cases], rows)


def poster(bench, defences, cells, columns=8):
    """Return one picture of the implying prompts: a column per prompt and seed, a row per negative.

    The first pictures of the set, whatever they show; nothing is picked.
    """
    cases = bench.cases("implying_test")[:columns]
    rows = [list(cells[d.name, "implying_test"].pictures[: len(cases)]) for d in defences]
    return contact_sheet(rows, [d.label for d in defences], [c.prompt for c in cases], scale=2)


def demo_report(bench, defences, cells, table, laid, embedding, method, seed):
    """Return the report of the quick demo: pictures, figures, how to go on."""
    concept, folder = bench.recipe.name, bench.folder
    shares = {row[0]: row[1].value for row in table.rows}
    first, words, plain, strong = (shares[d.label] for d in defences)
    lead = (
        f"A model unlearned by {method.upper()} still draws {concept} in {first:.0%} of pictures "
        f"whose prompt only implies it. Words as a negative leave {words:.0%}; the embedding "
        f"inverted on this very model leaves {plain:.0%} with plain guidance and {strong:.0%} "
        "with the additive form."
    )
    grids = [
        picture_grid(
            bench,
            defences,
            cells,
            "implying_test",
            f"Prompts that imply {concept}",
            "One prompt and seed per column, one negative per row; a red frame where the judge "
            f"finds {concept}.",
        ),
        picture_grid(
            bench,
            defences,
            cells,
            "benign",
            "Benign prompts",
            "What the defence costs: these should not change.",
        ),
    ]
    return Report(
        title=f"ine demo: {concept}",
        lead=lead,
        sections=[Section("Pictures", grids=grids), Section("Figures", tables=[table])],
        provenance={
            "unlearned weights": laid.describe(),
            "embedding": f"{embedding.count} vectors, trigger {embedding.trigger}, seed {seed}",
            "recipe": f"{concept} {bench.recipe.hash}",
            "versions": library_versions(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
        },
        next_steps=[
            (
                "Your own unlearned weights and concept:",
                "ine invert --concept nudity --unet esd.safetensors",
            ),
            (
                "Pictures with the embedding as the negative:",
                f"ine generate --unet {folder}/{concept}-{method}.safetensors "
                f"--negative-embedding {folder}/{concept}-neg.safetensors "
                f'--prompt "a dog at the forge" --out pictures',
            ),
            ("Both erasers, all controls, several seeds:", "ine demo --full"),
        ],
    )
