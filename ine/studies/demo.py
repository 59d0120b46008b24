"""`ine demo`: unlearn, defend, report, on the bundled model.

The whole argument on the reader's own machine: an unlearned model still draws the concept where
a prompt implies it; words as a negative do little, because it no longer knows them; the embedding
inverted on it does more, and costs benign pictures something as long as it acts on all of them;
behind a look-ahead it acts on those alone that are about to show the concept.

It is `ine unlearn` and `ine defend`, at a size that fits two cores and two minutes.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ine.evaluation.grid import GridModel
from ine.models.loading import load_parts
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe, load_recipe
from ine.report.values import Table
from ine.sampling import SamplerSettings
from ine.studies.bundled import unlearned_by
from ine.studies.defend.job import MODEL, Job, Watch
from ine.studies.defend.prompts import NEIGHBOURS
from ine.studies.defend.run import STAGES, run_defend
from ine.studies.demo_page import Demo, write_demo

log = logging.getLogger("ine")

CONCEPT, METHOD = "fire", "uce"
SAMPLER = SamplerSettings(scheduler="dpm++", steps=10, guidance_scale=5.0, batch=48)
"""As the recipe makes its own pictures."""

QUICK = (
    *("defence.guidances={contextual: [4]}", "defence.windows=[[0, 1]]"),
    # Two in a hundred of so few benign pictures is the largest score among them.
    *("defence.false_open=[0.05]", "defence.restart_open=0.05", "defence.look_ahead=5"),
    *("defence.examples=96", "defence.pictures=32", "defence.benign=64"),
    *("inversion.runs=2", "inversion.preview_pictures=24"),
)
"""Overrides of the recipe that fit the demo into two minutes on two cores."""

TARGET = 0.97
"""Preservation of benign tuning pictures that the defence is asked for, as `ine defend`'s own."""


def run_demo(
    folder: Path, *, seed: int = 0, count: int = 48, tell: Callable[[str], None] = log.info
) -> tuple[Path, Table, dict[str, float]]:
    """Run the demo and write its report.

    Args:
        folder: Where weights, embedding, gate, pictures and `report.html` go; finished parts are
            kept.
        seed: Where all randomness comes from.
        count: Pictures per cell.
        tell: Called with a line about every stage.

    Returns:
        (path of report.html, `Table`, seconds by stage).
    """
    folder, clock = Path(folder), _Clock()
    weights = folder / f"{CONCEPT}-{METHOD}.safetensors"
    clock.begin("load")
    recipe = demo_recipe(count)
    base = load_parts(recipe.base)
    tell(f"1/2 unlearning {CONCEPT} with {METHOD.upper()}")
    clock.begin("unlearn")
    unlearned, applied = unlearned_by(base, recipe, METHOD, weights, tell)
    tell("    " + applied.describe())
    tell("2/2 defending it: what ine defend does, with fewer pictures")

    def said(line: str) -> None:
        if found := re.match(r"\d/\d (.*)", line):
            clock.begin(STAGE[found[1]])
        tell("    " + line)

    job = demo_job(recipe, base, unlearned, weights, seed, said)
    defence = run_defend(job)
    clock.begin("report")
    path, table = write_demo(
        Demo(job=job, defence=defence, method=METHOD, weights=weights, unlearned=applied.describe())
    )
    return path, table, clock.seconds()


def demo_job(
    recipe: ConceptRecipe,
    base: DiffusionParts,
    unlearned: DiffusionParts,
    weights: Path,
    seed: int,
    tell: Callable[[str], None],
) -> Job:
    """Return the defence that the demo makes, beside the weights that it is for."""
    return Job(
        recipe=recipe,
        base=base,
        parts=unlearned,
        # As the grids of the work folder see the weights.
        model=GridModel(name=MODEL, model=recipe.base, unet=(f"../{weights.name}",)),
        sampler=SAMPLER,
        out=weights.with_name(f"{CONCEPT}-neg.safetensors"),
        target=TARGET,
        seed=seed,
        # Few pictures: what they say of the target is rough, and the reader shall see it.
        below_target=True,
        force=True,
        watch=Watch(tell=tell),
        command="ine demo",
    )


STAGE = dict(zip(STAGES, ("invert", "probe", "choose", "generate"), strict=True))
"""Stage of `ine defend` -> what the demo calls it."""


def demo_recipe(count: int) -> ConceptRecipe:
    """Return the recipe at the demo's size, held-back sets of `count` pictures, no neighbours."""
    recipe = load_recipe(CONCEPT, (*QUICK, f"defence.reported={count}"))
    sets = {name: own for name, own in recipe.prompt_sets.items() if name not in NEIGHBOURS}
    return recipe.model_copy(update={"prompt_sets": sets})


@dataclass
class _Clock:
    """How long stages take; each ends where the next begins."""

    starts: dict[str, float] = field(default_factory=dict)

    def begin(self, stage: str) -> None:
        self.starts[stage] = time.monotonic()

    def seconds(self) -> dict[str, float]:
        ends = [*list(self.starts.values())[1:], time.monotonic()]
        began = zip(self.starts.items(), ends, strict=True)
        return {stage: round(end - start, 1) for (stage, start), end in began}
