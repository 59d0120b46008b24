"""One concept of `ine demo --full`: weights and embeddings made once as files, and grids of them.

Grids stand in the study's folder beside the files that they name, and `ine evaluate` runs them
too. A study may be killed and resumes, and several processes may share its folder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from ine.evaluation.grid import GridGuidance, GridModel, GridNegative, GridPrompts
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.studies.bundled import bundled_grid, embedding_of, unlearned_by
from ine.studies.cases import Case, Expects, cases_of, prompts_of
from ine.studies.grids import run_grid, write_grid
from ine.studies.reading import GridResult

NEIGHBOURS = ("snow", "flowers")
EXPECTS: dict[str, Expects] = {
    "benign": "benign",
    "snow": "neighbour",
    "flowers": "neighbour",
    "twins_test": "neighbour",
}
"""What prompt sets expect that are not harmful."""


@contextmanager
def made_once(file: Path) -> Iterator[None]:
    """Hold a lock beside a file, so that of several processes one makes it and the others wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        yield


@dataclass(frozen=True, kw_only=True)
class Study:
    """One concept on the bundled model."""

    recipe: ConceptRecipe
    base: DiffusionParts
    folder: Path
    count: int
    """Pictures per cell."""

    seeds: tuple[int, ...]
    """Of inversions."""

    tell: Callable[[str], None]
    models: dict[str, DiffusionParts] = field(default_factory=dict)
    """{name: parts} of what was unlearned in this process."""

    def unlearned(self, method: str, **changes: float) -> GridModel:
        """Return a model unlearned with the recipe's settings, or with changed ones."""
        name = "-".join([method, *(f"{k}{v}" for k, v in changes.items())])
        file = self.folder / f"{self.recipe.name}-{name}.safetensors"
        if name not in self.models:
            with made_once(file):
                made = unlearned_by(self.base, self.recipe, method, file, self.tell, **changes)
            self.models[name] = made[0]
        return GridModel(name=name, unet=(file.name,))

    def inverted(
        self,
        name: str,
        place: str,
        parts: DiffusionParts,
        recipe: ConceptRecipe | None = None,
        seed: int = 0,
    ) -> GridNegative:
        """Return a negative of a name: the embedding of a recipe on a model, kept in a place."""
        recipe = recipe or self.recipe
        file = self.embedding_file(place, recipe)
        with made_once(self.folder / file):
            embedding_of(self.base, parts, recipe, self.folder / file, seed, self.tell)
        return GridNegative(name=name, embeddings={"*": (file,)})

    def embedding_file(self, place: str, recipe: ConceptRecipe | None = None) -> str:
        """Return the file of an embedding as grids name it."""
        return f"embeddings/{place}/{(recipe or self.recipe).name}-neg.safetensors"

    def cases(self, name: str) -> tuple[Case, ...]:
        """Return the cases of a prompt set of the recipe."""
        return cases_of(self.recipe, name, self.count, self.recipe.prompt_nouns)

    def prompts(self, *names: str) -> list[GridPrompts]:
        """Return prompt sets of the recipe, written as files."""
        expects = {name: EXPECTS.get(name, "harmful") for name in names}
        return [
            prompts_of(self.cases(name), self.folder / f"{name}.jsonl", "test", expects[name])
            for name in names
        ]

    def run(
        self,
        name: str,
        models: Sequence[GridModel],
        prompts: Sequence[GridPrompts],
        negatives: Sequence[GridNegative] = (),
        guidances: Sequence[GridGuidance] = (),
    ) -> GridResult:
        """Write and run a grid."""
        self.tell(f"  {name}")
        concept = self.recipe.name
        grid = bundled_grid(
            f"{concept}-{name}",
            f"{concept} on the bundled model: {name}.",
            self.recipe,
            models,
            prompts,
            negatives,
            guidances,
            rules=(self.recipe.pictures.rule, *(f"mini-{n}@0.5" for n in NEIGHBOURS)),
        )
        how = (
            f"Made by `ine demo --full`. Run here: ine evaluate {name}.yaml --out {name} --store ."
        )
        file = write_grid(grid, self.folder / f"{name}.yaml", how)
        parts = {m.name: self.models.get(m.name, self.base) for m in models}
        return run_grid(file, self.folder / name, store=self.folder, models=parts)
