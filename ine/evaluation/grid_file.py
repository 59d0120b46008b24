"""A grid file that was read and checked: the grid, where it came from, and its concept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ine.detectors.rule import AnyOf, Rule
from ine.detectors.rules import find_rule
from ine.errors import RecipeError, did_you_mean
from ine.evaluation.grid import Grid, with_rounds
from ine.evaluation.grid_checks import problems_of
from ine.files import sha256_of, shipped
from ine.recipe import ConceptRecipe, load_recipe
from ine.recipe.loading import with_overrides
from ine.yaml_files import KeyPath, load_yaml, place_of, validated


@dataclass(frozen=True, kw_only=True)
class GridFile:
    """A grid with where it came from."""

    grid: Grid
    path: Path
    text: str
    places: dict[KeyPath, str]
    """{key path: "line 7"}."""

    recipe: ConceptRecipe | None = None
    """The concept's `ConceptRecipe`, where there is one."""

    def place(self, name: str | Path) -> Path:
        """Return a path of the grid: beside the grid file, or where the user stands."""
        beside, here = self.path.parent / Path(name).expanduser(), Path(name).expanduser()
        return here if here.exists() and not beside.exists() else beside

    def at(self, *path: str | int) -> str:
        """Return "line 7: " for a key path."""
        return place_of(path, self.places)

    @property
    def rules(self) -> tuple[Rule | AnyOf, ...]:
        """Return the rules, the concept's where none is named."""
        names = self.grid.rules
        if not names:
            assert self.recipe, "a grid without a concept names its rules"
            names = (self.recipe.pictures.rule,)
        return tuple(find_rule(name) for name in dict.fromkeys(names))

    @property
    def work(self) -> str:
        """Return a digest of all that decides which pictures there are."""
        fields = {"rules", "judges", "metrics", "choose", "about"}
        return sha256_of(self.grid.model_dump_json(exclude=fields).encode())[:16]

    @property
    def digest(self) -> str:
        """Return a digest of the whole grid."""
        return sha256_of(self.grid.model_dump_json().encode())[:16]


def list_grids() -> dict[str, Path]:
    """Return {name: path} of the shipped grids."""
    folder = shipped("recipes")
    return {p.stem: p for kind in ("grids", "paper") for p in sorted(folder.glob(f"{kind}/*.yaml"))}


def load_grid(name_or_path: str | Path, overrides: Sequence[str] = ()) -> GridFile:
    """Return the checked `GridFile` of a YAML file or a shipped grid's name.

    Files that it names are looked at later, by `ine.evaluation.expand.expand`.

    Args:
        name_or_path: The file, or the name.
        overrides: Texts "section.key=value" as `--set` takes them.

    Raises:
        RecipeError: It cannot be read, or is wrong; all that is wrong is named, with lines.
    """
    path = Path(name_or_path).expanduser()
    known = list_grids()
    if not path.is_file() and str(name_or_path) in known:
        path = known[str(name_or_path)]
    if not path.is_file():
        hint = did_you_mean(path.name, known)
        raise RecipeError(f"{path}: no such grid file{hint}; shipped: {', '.join(known) or 'none'}")
    file = with_overrides(load_yaml(path), overrides)
    grid = validated(Grid, file.data, path, file.places)
    found = GridFile(grid=grid, path=path, text=file.text, places=file.places)
    if grid.concept:
        own = found.place(grid.concept)
        try:
            recipe = load_recipe(own if own.is_file() else grid.concept)
        except RecipeError as error:
            raise RecipeError(f"{path}: {found.at('concept')}concept: {error}") from error
        found = replace(found, recipe=recipe)
    if problems := list(problems_of(grid, found.recipe, found.at)):
        raise RecipeError(f"{path}: " + "; ".join(problems))
    return replace(found, grid=with_rounds(grid))
