"""Train a refiner: the rows of a set as examples, and a recipe's settings for both stages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from pydantic import field_validator

from ine.errors import RecipeError
from ine.recipe.loading import apply_override
from ine.refining.asking import conversation_of
from ine.refining.dataset import Row
from ine.refining.settings import SYSTEM, USER, RefineSettings
from ine.training.examples import Example
from ine.training.refining_reward import IPR
from ine.training.rewards import RewardSettings
from ine.training.settings import GrpoSettings, SftSettings
from ine.yaml_files import Section, load_yaml, validated


@dataclass(frozen=True)
class SetExamples(Sequence[Example]):
    """The rows of a training set as examples, each read when it is asked for."""

    rows: Sequence[Row]
    settings: RefineSettings
    """What the model is asked, as it will be asked when it refines."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> "SetExamples": ...
    def __getitem__(self, place: int | slice) -> "Example | SetExamples":
        """Return an example, or some of them."""
        if isinstance(place, slice):
            return SetExamples(self.rows[place], self.settings)
        row = self.rows[place]
        asked = conversation_of(row.query, row.picture, self.settings)
        return Example(asked=asked.turns, answer=row.response)

    def __iter__(self) -> Iterator[Example]:
        """Return the examples one after the other."""
        return (self[place] for place in range(len(self)))


class AskedSettings(Section):
    """What the model is sent about a prompt and its picture, in training and when it is used."""

    system: str = SYSTEM
    user: str = USER
    """"{prompt}" stands for the prompt."""

    picture: bool = True
    """Whether the picture is shown; without it the model learns from the prompt alone."""

    @field_validator("user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        """Check that the prompt has a place."""
        if "{prompt}" not in value:
            raise ValueError(f"{value!r} has no {{prompt}}; say where the prompt stands")
        return value

    def reading(self, **changes: Any) -> RefineSettings:
        """Return it as settings of the loop."""
        return RefineSettings(**self.model_dump(), **changes)


class TrainingRecipe(Section):
    """How a refiner is trained; every field may be left out."""

    kind: Literal["refiner"] = "refiner"
    version: Literal[1] = 1
    name: str = ""
    about: str = ""
    base: str = ""
    """Folder or hub id of the vision-language model."""

    sft: SftSettings = SftSettings()
    grpo: GrpoSettings = GrpoSettings()
    reward: RewardSettings = IPR
    asked: AskedSettings = AskedSettings()


def load_training(path: Path | None, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """Return a checked recipe, the defaults without a file.

    Args:
        path: A YAML file.
        overrides: "section.key=value" strings, values parsed as YAML.

    Raises:
        RecipeError: It cannot be read, or fields are wrong, all listed at once.
    """
    data: dict[str, Any] = {}
    where: str | Path = "--set"
    if path is not None:
        where = path
        data = load_yaml(path).data
        if missing := [name for name in ("kind", "version") if name not in data]:
            raise RecipeError(
                f"{path}: has no {' and no '.join(missing)}; a recipe of a refiner has kind: "
                "refiner and version: 1"
            )
    for override in overrides:
        apply_override(data, override)
    return validated(TrainingRecipe, data, where)
