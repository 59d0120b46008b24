"""Cells of a grid: a configuration on a prompt set with a seed; which there are, and `--only`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ine.errors import RecipeError, did_you_mean
from ine.evaluation.grid import NONE, Grid, GridGuidance, GridModel, GridNegative, named
from ine.evaluation.grid_file import GridFile


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is compared: a model and a defence, or the model undefended."""

    model: str
    guidance: str = NONE
    strength: float | None = None
    negative: str = NONE

    @property
    def is_defended(self) -> bool:
        """Return whether there is a defence."""
        return self.guidance != NONE

    @property
    def undefended(self) -> "Configuration":
        """Return the same model without the defence."""
        return Configuration(model=self.model)

    @property
    def label(self) -> str:
        """Return it as one text, for errors and tables."""
        if not self.is_defended:
            return f"{self.model}, undefended"
        if self.negative == NONE:
            return f"{self.model}, {self.guidance}"
        at = "" if self.strength is None else f" at {self.strength:g}"
        return f"{self.model}, {self.guidance}{at}, {self.negative}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration on one prompt set with one grid seed."""

    configuration: Configuration
    prompts: str
    seed: int

    @property
    def label(self) -> str:
        """Return it as one text."""
        return f"{self.configuration.label}, on {self.prompts}, seed {self.seed}"


def cells_of(file: GridFile) -> Iterator[Cell]:
    """Yield every cell, model by model, the undefended ones of each first."""
    for configuration in _configurations(file.grid):
        for spec in file.grid.prompts:
            for seed in _seeds(file, configuration):
                yield Cell(configuration=configuration, prompts=spec.name, seed=seed)


def _configurations(grid: Grid) -> Iterator[Configuration]:
    """Yield every `Configuration` of a grid, model by model, the undefended one first."""
    for model in grid.models:
        yield Configuration(model=model.name)
        for guidance in grid.guidances:
            for negative in _negatives(grid, guidance, model):
                for strength in guidance.strengths or (None,):
                    yield Configuration(
                        model=model.name,
                        guidance=guidance.name,
                        strength=strength,
                        negative=negative.name,
                    )


def _seeds(file: GridFile, configuration: Configuration) -> tuple[int, ...]:
    """Return the grid seeds of a configuration: those of its negative, where it names any."""
    if not configuration.is_defended:
        return file.grid.seeds
    if configuration.negative == NONE:
        return file.grid.seeds
    own = named(file.grid.negatives, configuration.negative).seeds
    return tuple(seed for seed in file.grid.seeds if not own or seed in own)


def _negatives(grid: Grid, guidance: GridGuidance, model: GridModel) -> list[GridNegative]:
    """Return the negatives that a guidance acts with on a model."""
    if guidance.models and model.name not in guidance.models:
        return []
    wanted = guidance.negatives
    if guidance.is_alone:
        return [GridNegative(name=NONE)]
    return [
        negative
        for negative in grid.negatives
        if negative.name != NONE
        and (not wanted or negative.name in wanted or negative.group in wanted)
    ]


KEYS: dict[str, Callable[[GridFile, Cell], list[str]]] = {
    "model": lambda file, cell: [cell.configuration.model],
    "guidance": lambda file, cell: [cell.configuration.guidance],
    "negative": lambda file, cell: [
        cell.configuration.negative,
        *(n.group for n in file.grid.negatives if n.name == cell.configuration.negative),
    ],
    "strength": lambda file, cell: [
        "" if cell.configuration.strength is None else f"{cell.configuration.strength:g}"
    ],
    "prompts": lambda file, cell: [cell.prompts],
    "role": lambda file, cell: [named(file.grid.prompts, cell.prompts).role],
    "expects": lambda file, cell: [named(file.grid.prompts, cell.prompts).expects],
    "seed": lambda file, cell: [str(cell.seed)],
}
"""What `--only` can ask for -> the values that a cell has."""

OF_DEFENCES = ("guidance", "negative", "strength")


def chosen_cells(file: GridFile, cells: Sequence[Cell], only: Iterable[str]) -> tuple[Cell, ...]:
    """Return the cells that `--only` leaves; the undefended ones that they need among them.

    Raises:
        RecipeError: A key or value is unknown, or nothing is left.
    """
    wanted: dict[str, set[str]] = {}
    for text in only:
        key, equals, value = text.partition("=")
        if not equals or key not in KEYS:
            hint = did_you_mean(key, KEYS)
            raise RecipeError(f"--only {text}: expected KEY=VALUE{hint}; keys: {', '.join(KEYS)}")
        known = dict.fromkeys(v for cell in cells for v in KEYS[key](file, cell) if v)
        if value not in known:
            hint = did_you_mean(value, known)
            raise RecipeError(
                f"--only {text}: {key} {value!r} is not in this grid{hint}; there are "
                f"{', '.join(known) or 'none'}"
            )
        wanted.setdefault(key, set()).add(value)

    def left(cell: Cell) -> bool:
        undefended = not cell.configuration.is_defended
        keys = [k for k in wanted if not (undefended and k in OF_DEFENCES)]
        return all(wanted[key] & set(KEYS[key](file, cell)) for key in keys)

    found = tuple(filter(left, cells))
    if not found:
        raise RecipeError(f"--only {' '.join(only)}: no cell of the grid is left")
    return found
