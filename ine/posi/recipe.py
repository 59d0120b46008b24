"""POSI recipes: the language model, how it is asked, and how it is trained and rewarded."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ine.errors import RecipeError, did_you_mean
from ine.files import shipped, user_path
from ine.observers.question import Turn
from ine.recipe.loading import apply_override
from ine.training.ppo_settings import PpoSettings
from ine.training.rewards import RewardSettings
from ine.training.settings import GroupSettings, SftSettings
from ine.yaml_files import Section, load_yaml, validated

Text = Annotated[str, Field(min_length=1)]


class Template(Section):
    """How a prompt is put to the language model."""

    text: Text | None = None
    """With {instruction} and {prompt}, each once; None takes the model's own chat template."""

    def asked(self, instruction: str, prompt: str) -> str | tuple[Turn, ...]:
        """Return what the model is asked, see `ine.training.examples.Example`."""
        if self.text is None:
            return (Turn(role="system", text=instruction), Turn(role="user", text=prompt))
        # The prompt comes last: it may contain braces.
        return self.text.replace("{instruction}", instruction).replace("{prompt}", prompt)


class GeneratorSettings(Section):
    """Whose pictures the reward looks at."""

    model: Text = "mini"
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    """Of all three, None is the model's own."""


class PosiRecipe(Section):
    """How a rewriter is trained."""

    kind: Literal["posi"]
    version: Literal[1]
    about: Text
    base: Text
    """Folder of a causal language model; --base replaces it."""

    memory: Text
    """What training needs, in words."""

    template: Template = Template()
    sft: SftSettings = SftSettings()
    ppo: PpoSettings = PpoSettings()
    grpo: GroupSettings = GroupSettings()
    """In the place of PPO; its adapter has its own LoRA."""

    reward: RewardSettings = RewardSettings()
    generator: GeneratorSettings = GeneratorSettings()


def list_posi_recipes() -> dict[str, Path]:
    """Return {name: path} of the shipped POSI recipes."""
    return {path.stem: path for path in sorted((shipped("recipes") / "posi").glob("*.yaml"))}


def load_posi_recipe(name_or_path: str | Path, overrides: tuple[str, ...] = ()) -> PosiRecipe:
    """Return a checked recipe.

    Args:
        name_or_path: A shipped recipe's name, or a YAML file.
        overrides: "section.key=value" texts, values parsed as YAML.

    Raises:
        RecipeError: The name is unknown, the file cannot be read, or fields are wrong.
    """
    known = list_posi_recipes()
    path = known.get(str(name_or_path), user_path(name_or_path))
    if not path.is_file():
        raise RecipeError(
            f"POSI recipe {str(name_or_path)!r} is unknown{did_you_mean(name_or_path, known)}; "
            f"shipped: {', '.join(known)}; or give a file"
        )
    file = load_yaml(path)
    places = dict(file.places)
    for override in overrides:
        key = apply_override(file.data, override)
        places = {old: line for old, line in places.items() if old[: len(key)] != key}
        places[key] = f"--set {'.'.join(key)}"
    recipe = validated(PosiRecipe, file.data, path, places)
    for word in ("{instruction}", "{prompt}"):
        if recipe.template.text is not None and recipe.template.text.count(word) != 1:
            raise RecipeError(f"{path}: template.text has to contain {word} once")
    return recipe
