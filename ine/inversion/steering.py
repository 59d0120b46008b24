"""How the vectors of a preview steer: by the guidance and strength at which they will be used."""

from ine.errors import IneError, RecipeError
from ine.guidance.negative import Negative
from ine.guidance.protocol import Guidance
from ine.guidance.table import METHODS, find_method
from ine.recipe import InversionSettings


def steering(spec: InversionSettings, negative: Negative) -> Guidance:
    """Return the guidance of previews with a negative; see `check_steering` for what it needs."""
    return find_method(spec.preview_guidance).at(negative, spec.preview_strength)


def check_steering(spec: InversionSettings) -> None:
    """Raise `RecipeError` where a recipe's previews ask for what their guidance does not have."""
    name, strength = spec.preview_guidance, spec.preview_strength
    try:
        method = find_method(name)
    except IneError as error:
        raise RecipeError(f"inversion.preview_guidance: {error}") from error
    if method.kind.looks_itself:
        raise RecipeError(
            f"inversion.preview_guidance: {name} asks an observer about every picture, which an "
            "inversion does not have; give another guidance"
        )
    if strength is not None and not method.has_strength:
        able = [n for n, row in METHODS.items() if row.has_strength and not row.kind.looks_itself]
        raise RecipeError(
            f"inversion.preview_strength: {strength:g}, but {name} has no strength of its own; "
            f"leave it out, or set inversion.preview_guidance to one of {', '.join(able)}"
        )
