"""What `ine compare` compares, and the grids that make it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ine.detectors.rules import find_rule
from ine.embeddings.embedding import ConceptEmbedding, read_embedding
from ine.evaluation.grid import (
    Grid,
    GridGuidance,
    GridMetrics,
    GridModel,
    GridNegative,
    GridPrompts,
)
from ine.evaluation.grid_file import GridFile
from ine.guidance.restart import LADDER
from ine.guidance.table import MethodRow, find_method
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.sampling import SamplerSettings
from ine.studies.cases import BENIGN, TUNING, Case, prompts_of, set_cases
from ine.studies.grids import metrics_by, sampler_of, write_grid

USUAL = ("cfg", "additive", "sld", "safree")

MODEL, WORDS, EMBEDDING = "model", "words", "embedding"
SHEET, SWEPT, KEPT_SET = "shown", "implying", "benign"
"""Names in the grids: the model, its negatives, and the prompt sets."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is compared."""

    methods: tuple[str, ...] = USUAL
    strengths: Mapping[str, tuple[float, ...]] | None = None
    """{method: strengths} where they are not the table's; see `compare.read_strengths`."""

    prompts: tuple[str, ...] = ()
    """Rows of the pictures; without any, the first prompts of both sets."""

    implying: str | tuple[str, ...] = TUNING
    """Name of a prompt set of the recipe, or prompts: where the concept is to be kept out."""

    benign: str | tuple[str, ...] = BENIGN
    """Name of a prompt set, or prompts: what is to stay as it is."""

    count: int = 48
    """Pictures per point and prompt set."""

    seed: int = 0
    observer: str | None = None
    """What looks at previews, for methods that ask an observer; see `ine.observers.table`."""

    look_for: str = ""
    """Name or file of the recipe of what it looks for."""

    def sweep(self, method: MethodRow) -> tuple[float | None, ...]:
        """Return the strengths of a method, (None,) where it has none."""
        return (self.strengths or {}).get(method.name) or method.strengths or (None,)

    def shown(self, method: MethodRow, recipe: ConceptRecipe) -> float | None:
        """Return the strength of a method's pictures: of those swept, the nearest to the usual."""
        usual = recipe.strength if method.shown is None else method.shown
        strengths = [s for s in self.sweep(method) if s is not None]
        if not strengths:
            return None
        wanted = strengths[len(strengths) // 2] if usual is None else usual
        return min(strengths, key=lambda s: abs(s - wanted))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method with one negative."""

    method: MethodRow
    negative: str
    """`WORDS` or `EMBEDDING`."""

    label: str
    """What the negative is called."""

    restarts: bool = False
    """Whether a gate decides which pictures are restarted, see `ine.guidance.restart`."""

    @property
    def in_words(self) -> bool:
        """Whether the negative is words."""
        return self.negative == WORDS

    @property
    def guidance(self) -> str:
        """The name of its guidance in the grids."""
        return f"{self.method.name}-restart" if self.restarts else self.method.name

    @property
    def name(self) -> str:
        """What legends call it."""
        return f"{self.method.name}, {self.label}"

    def title(self, strength: float | None) -> str:
        """Return what a column of pictures is called."""
        at = "" if strength is None else f" s={strength:g}"
        return f"{self.method.name}{at}, {self.label}"


def entries_of(
    embeddings: Sequence[ConceptEmbedding], methods: Sequence[MethodRow], gate: bool = False
) -> tuple[Entry, ...]:
    """Return what is compared; with a gate, methods that have a strength restart with it too."""
    joined = "embedding" if len(embeddings) == 1 else f"{len(embeddings)} embeddings joined"
    found = []
    for method in methods:
        for negative, label in ((WORDS, WORDS), (EMBEDDING, joined)):
            found.append(Entry(method=method, negative=negative, label=label))
            if gate and method.strengths and not method.kind.looks_itself:
                label = f"{label}, restarted"
                found.append(Entry(method=method, negative=negative, label=label, restarts=True))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and the grids that make it; `compare.check` says what is wrong with it."""

    parts: DiffusionParts
    """The model, unlearned."""

    model: GridModel
    """What the grids say of the model, so that `ine evaluate` can run them."""

    recipe: ConceptRecipe
    """Its words, rule and prompt sets are used."""

    files: tuple[Path, ...]
    """Embeddings; several are joined."""

    choice: Choice
    sampler: SamplerSettings
    folder: Path
    """Where grids, pictures and the report go; pictures that are there are used."""

    gate: Path | None = None
    """A file of `ine calibrate`: methods with a strength are compared with restarts too."""

    @cached_property
    def embeddings(self) -> tuple[ConceptEmbedding, ...]:
        """The embeddings of the files."""
        return tuple(read_embedding(file) for file in self.files)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What is compared: each method with each negative."""
        methods = [find_method(name) for name in self.choice.methods]
        return entries_of(self.embeddings, methods, self.gate is not None)

    @cached_property
    def metrics(self) -> GridMetrics:
        """What is measured: preservation, by features of the rule's detector if it has any."""
        return metrics_by(find_rule(self.recipe.pictures.rule).detector)

    @property
    def measure(self) -> str:
        """The measure of preservation."""
        return self.metrics.preservation[0]

    def cases(self, given: str | Sequence[str]) -> tuple[Case, ...]:
        """Return the cases of a prompt set."""
        return set_cases(self.recipe, given, self.choice.count, self.choice.seed)

    def rows(self) -> tuple[Case, ...]:
        """Return the cases whose pictures are shown."""
        choice = self.choice
        if choice.prompts:
            # The seed that `ine generate --seed` takes, so that a picture can be made again.
            return tuple(Case(prompt=p, noun=p, phrase=p, seed=choice.seed) for p in choice.prompts)
        return self.cases(choice.implying)[:4] + self.cases(choice.benign)[:4]

    def shown(self, entry: Entry) -> float | None:
        """Return the strength at which an entry's pictures are shown."""
        return self.choice.shown(entry.method, self.recipe)

    def total(self) -> int:
        """Return how many pictures there are."""
        points = sum(len(self.choice.sweep(e.method)) for e in self.entries)
        return (len(self.entries) + 1) * len(self.rows()) + 2 * self.choice.count * (points + 1)

    def sheet(self) -> GridFile:
        """Write and return the grid of the pictures that are shown."""
        cases = self.rows()
        strengths = {e.method.name: (self.shown(e),) for e in self.entries}
        prompts = prompts_of(cases, self.folder / f"{SHEET}.jsonl", "tune", "harmful")
        return self._grid("sheet", (prompts,), strengths, len(cases))

    def frontier(self) -> GridFile:
        """Write and return the grid of the sweep of strengths."""
        choice = self.choice
        implying, benign = self.cases(choice.implying), self.cases(choice.benign)
        prompts = (
            prompts_of(implying, self.folder / f"{SWEPT}.jsonl", "tune", "harmful"),
            prompts_of(benign, self.folder / f"{KEPT_SET}.jsonl", "tune", "benign"),
        )
        strengths = {e.method.name: choice.sweep(e.method) for e in self.entries}
        return self._grid("frontier", prompts, strengths, choice.count)

    def _grid(
        self,
        name: str,
        prompts: tuple[GridPrompts, ...],
        strengths: Mapping[str, tuple[float | None, ...]],
        count: int,
    ) -> GridFile:
        guidances = {e.guidance: self._guidance(e, strengths[e.method.name]) for e in self.entries}
        files = tuple(str(file.absolute()) for file in self.files)
        grid = Grid(
            kind="grid",
            version=1,
            name=f"compare-{name}",
            about=f"The {name} of a comparison for {self.recipe.name}.",
            models=(self.model,),
            negatives=(
                GridNegative(name=WORDS, text=self.recipe.words.negative_text()),
                GridNegative(name=EMBEDDING, embeddings={"*": files}),
            ),
            guidances=tuple(guidances.values()),
            prompts=prompts,
            sampler=sampler_of(self.sampler, count),
            rules=(self.recipe.pictures.rule,),
            metrics=self.metrics,
        )
        how = f"Made by `ine compare`. Run here: ine evaluate {name}.yaml --out {name} --store ."
        return write_grid(grid, self.folder / f"{name}.yaml", how)

    def _settings(self, method: MethodRow) -> dict[str, bool | int | float | str]:
        if not method.kind.looks_itself:
            return {}
        return {"observer": self.choice.observer or "", "concept": self.choice.look_for}

    def _guidance(self, entry: Entry, strengths: Sequence[float | None]) -> GridGuidance:
        return GridGuidance(
            name=entry.guidance,
            method=entry.method.name,
            preset=entry.method.compared,
            settings=self._settings(entry.method),
            strengths=tuple(s for s in strengths if s is not None),
            gate={"*": str(self.gate.absolute())} if entry.restarts and self.gate else {},
            restart=LADDER if entry.restarts else None,
        )
