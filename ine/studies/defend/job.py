"""What `ine defend` works on, where it keeps its work, and how it says how far it is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ine.detectors.rules import find_rule
from ine.evaluation.grid import (
    Grid,
    GridGuidance,
    GridJudges,
    GridModel,
    GridNegative,
    GridPrompts,
)
from ine.evaluation.grid_file import GridFile
from ine.guidance.gate_file import gate_path
from ine.inversion.sources import RunOptions
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.sampling import SamplerSettings
from ine.studies.bundled import JUDGE, REPORTER
from ine.studies.defend.prompts import Prompts, prompts_for
from ine.studies.grids import metrics_by, sampler_of, write_grid

MODEL = "model"
SECOND_JUDGES = {JUDGE: REPORTER}
"""Detector that choices are made by -> one of another build, which only looks at the report."""

Update = Callable[[int], None]
"""Called with how much of a stage is done."""


def _no_bar(total: int, label: str) -> AbstractContextManager[Update]:
    return nullcontext(lambda done: None)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How the user sees what happens."""

    tell: Callable[[str], None] = lambda line: None
    """Called with a line about every stage."""

    bar: Callable[[int, str], AbstractContextManager[Update]] = _no_bar
    """Called with (how much there is to do, what); yields an `Update`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One defence to be made."""

    recipe: ConceptRecipe
    base: DiffusionParts
    parts: DiffusionParts
    """The unlearned model."""

    model: GridModel
    """What the grids say of it."""

    sampler: SamplerSettings
    out: Path
    """The embedding's file; the gate goes beside it."""

    target: float
    """Least mean preservation of benign tuning prompts, in [0, 1]."""

    seed: int = 0
    images: Path | None = None
    """A folder with pictures of the concept; None has the base model make them."""

    skip_bad: bool = False
    below_target: bool = False
    """Whether to recommend the setting that preserves most where none reaches the target."""

    force: bool = False
    purge: bool = False
    """Whether to remove all pictures and latents at the end."""

    watch: Watch = field(default_factory=Watch)
    command: str = ""
    """The command that is run, for the report."""

    @property
    def folder(self) -> Path:
        """The work folder, from which an interrupted run resumes; the report goes there."""
        return work_folder(self.out)

    @property
    def gate(self) -> Path:
        """The gate's file."""
        return gate_path([self.out])

    @property
    def made_embedding(self) -> Path:
        """The embedding as inverted, in the work folder."""
        return self.folder / self.out.name

    @property
    def inversion(self) -> RunOptions:
        """How it is inverted, in the work folder."""
        file = self.made_embedding
        return RunOptions(
            out=file,
            trigger=file.stem,
            seed=self.seed,
            images=self.images,
            skip_bad=self.skip_bad,
            force=file.exists(),
        )

    @property
    def made_gate(self) -> Path:
        """The gate with the threshold that was chosen, in the work folder."""
        return gate_path([self.made_embedding])

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts of both halves."""
        return prompts_for(self.recipe, self.seed)

    @cached_property
    def detector(self) -> str:
        """The name of the detector that choices are made by."""
        return find_rule(self.recipe.pictures.rule).detector

    @cached_property
    def measure(self) -> str:
        """The measure of preservation: features of the rule's detector, else of small pictures."""
        return metrics_by(self.detector).preservation[0]

    def grid(
        self,
        name: str,
        prompts: Sequence[GridPrompts],
        negatives: Sequence[GridNegative] = (),
        guidances: Sequence[GridGuidance] = (),
        judges: GridJudges | None = None,
        *,
        count: int,
        subject: bool = False,
    ) -> GridFile:
        """Write and return a grid of the work folder.

        Args:
            name: "undefended", "steered" or "held-back".
            prompts: Its prompt sets.
            negatives: Its negatives.
            guidances: Its guidances.
            judges: Who looks; the rule's own detector by default.
            count: Pictures of its largest cell.
            subject: Whether to look for the subject of each prompt; asks for a detector of objects.
        """
        grid = Grid(
            kind="grid",
            version=1,
            name=f"defend-{name}",
            about=f"The {name} pictures of `ine defend` for {self.recipe.name}.",
            models=(self.model,),
            negatives=tuple(negatives),
            guidances=tuple(guidances),
            prompts=tuple(prompts),
            sampler=sampler_of(self.sampler, count),
            rules=(self.recipe.pictures.rule,),
            judges=judges or GridJudges(),
            metrics=metrics_by(self.detector).model_copy(update={"subject": subject}),
        )
        how = f"Made by `ine defend`. Run here: ine evaluate {name}.yaml --out {name} --store ."
        return write_grid(grid, self.folder / f"{name}.yaml", how)


def work_folder(out: Path) -> Path:
    """Return the work folder of an embedding's file."""
    return out.with_name(out.stem + ".defend")
