"""From a grid to its cells and what they are made with, before any model is loaded.

Everything that can be wrong without weights is found here, and the cell is named.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ine.errors import IneError, RecipeError
from ine.evaluation.cells import Cell, Configuration, cells_of, chosen_cells
from ine.evaluation.defences import Defences
from ine.evaluation.grid import GridModel, named
from ine.evaluation.grid_file import GridFile
from ine.evaluation.prompt_sets import SetOfPrompts, learned_words, read_set
from ine.guidance.gate_file import Calibration
from ine.guidance.protocol import Guidance
from ine.posi.table import Rewriting
from ine.refining.run import Refinement
from ine.weights.hub import is_hub_id
from ine.weights.stack import WeightStack, as_unet, parse_layer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """All cells of a grid, what they are made with, and what is missing."""

    file: GridFile
    cells: tuple[Cell, ...]
    sets: dict[str, SetOfPrompts]
    """{name: `SetOfPrompts`}."""

    guidances: dict[Configuration, Guidance | None]
    """None without a negative."""

    calibrations: dict[Configuration, Calibration]
    """Of those behind a gate."""

    refinements: dict[Configuration, Refinement]
    """Of those whose prompts are refined."""

    rewritings: dict[Configuration, Rewriting]
    """Of those whose prompts are rewritten before any picture."""

    unets: dict[str, Path | WeightStack | None]
    """{model name: None, a path or a `WeightStack`}."""

    missing: tuple[str, ...] = ()
    """What keeps it from being run; only a dry run has any."""

    @cached_property
    def configurations(self) -> tuple[Configuration, ...]:
        """Return every configuration once, in order."""
        return tuple(dict.fromkeys(cell.configuration for cell in self.cells))

    def base_of(self, model: str) -> str:
        """Return the name of a model's base; a folder is relative to the grid file."""
        base = named(self.file.grid.models, model).model
        if base is None:
            assert self.file.recipe, "a grid without a concept names its bases"
            return self.file.recipe.base
        own = self.file.place(base)
        return str(own) if own.is_dir() else base


class _Problems:
    """What is wrong with cells and files, each with every place that has it."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}
        self.kinds: dict[type[IneError], None] = {}

    def tried(self, what: str, work: Callable[..., T], *given: Any) -> T | None:
        """Return the result of some work, or None with its error noted for `what`."""
        try:
            return work(*given)
        except IneError as error:
            self.places.setdefault(str(error), []).append(what)
            self.kinds.setdefault(type(error), None)
            return None

    @property
    def texts(self) -> tuple[str, ...]:
        """Each problem with the first place that has it, and how many others there are."""
        found = []
        for problem, places in self.places.items():
            more = len(places) - 1
            others = f" (and {more} other cell{'s' if more > 1 else ''})" if more else ""
            found.append(f"{places[0]}{others}: {problem}")
        return tuple(found)

    def raise_any(self, path: Path) -> None:
        """Raise one error of all problems, if there are any."""
        if self.places:
            kind = next(iter(self.kinds)) if len(self.kinds) == 1 else RecipeError
            raise kind(f"{path}: " + "; ".join(self.texts))


def expand(
    file: GridFile,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    lenient: bool = False,
    guidances: Mapping[str, Guidance] | None = None,
) -> Expansion:
    """Return the `Expansion` of a grid.

    Args:
        file: A `GridFile`.
        only: Texts "key=value" as `--only` takes them; of the same key any, of several all. Files
            that only other cells need are not looked for.
        limit: Most pictures per cell.
        lenient: Note files that are missing or unusable instead of raising.
        guidances: {guidance name: `Guidance`} that act as they are; the entry of the grid and its
            negative only name them.

    Raises:
        RecipeError: Something is wrong with cells or files; each is named.
        PromptError: There is nothing wrong but a prompt set that cannot be read.
    """
    cells = chosen_cells(file, list(cells_of(file)), only)
    # What no cell needs is not looked for: a part of a grid runs where another part cannot.
    problems = _Problems()
    sets = _sets(file, {cell.prompts for cell in cells}, limit, problems)
    unets = _unets(file, {cell.configuration.model for cell in cells}, problems)
    builder = Defences(file=file, given=guidances or {})
    built = {
        c: problems.tried(f"cell {c.label}", builder.guidance, c)
        for c in dict.fromkeys(cell.configuration for cell in cells)
    }
    if not lenient:
        problems.raise_any(file.path)
    return Expansion(
        file=file,
        cells=cells,
        sets=sets,
        guidances=built,
        calibrations=builder.calibrations,
        refinements=builder.refinements,
        rewritings=builder.rewritings,
        unets=unets,
        missing=problems.texts,
    )


def _sets(
    file: GridFile, wanted: Container[str], limit: int | None, problems: _Problems
) -> dict[str, SetOfPrompts]:
    sets = {}
    for number, spec in enumerate(file.grid.prompts):
        if spec.name in wanted:
            at = f"{file.at('prompts', number)}prompts {spec.name!r}"
            found = problems.tried(at, read_set, file, spec)
            learned = problems.tried(at, learned_words, file, spec, found) or ()
            sets[spec.name] = SetOfPrompts(spec=spec, found=found, limit=limit, embeddings=learned)
    return sets


def _unets(
    file: GridFile, wanted: Container[str], problems: _Problems
) -> dict[str, Path | WeightStack | None]:
    return {
        model.name: problems.tried(
            f"{file.at('models', number)}model {model.name!r}", _unet, file, model
        )
        for number, model in enumerate(file.grid.models)
        if model.name in wanted
    }


def _unet(file: GridFile, model: GridModel) -> Path | WeightStack | None:
    """Return what stands for `unet`, with a check that the files are there."""
    layers, missing = [], []
    for text in model.unet:
        layer = parse_layer(str(file.path.parent / text))
        if not layer.path.exists():
            layer = parse_layer(text)
        if not layer.path.exists() and not is_hub_id(layer.path):
            missing.append(text)
        layers.append(layer)
    if missing:
        where = f"neither beside {file.path.name} nor in this folder"
        raise RecipeError(f"unet {', '.join(missing)}: no such file or folder, {where}")
    return as_unet(layers)
