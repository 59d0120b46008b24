"""Settings of a guider that make no sense."""

import math

from ine.errors import IneError
from ine.protection.handle import ON_OVERFLOW


def check_settings(
    guidance_scale: float,
    strength: float | None,
    guidance_rescale: float,
    on_overflow: str,
    shift: float | None = None,
) -> None:
    """Raise `IneError` for settings of `EmbeddingGuider` that make no sense."""
    if on_overflow not in ON_OVERFLOW:
        raise IneError(
            f"EmbeddingGuider: on_overflow is {on_overflow!r}; give one of {', '.join(ON_OVERFLOW)}"
        )
    if not (math.isfinite(guidance_scale) and math.isfinite(guidance_rescale)):
        raise IneError(
            f"EmbeddingGuider: guidance_scale {guidance_scale} and guidance_rescale "
            f"{guidance_rescale}; give finite numbers"
        )
    if strength is None and not guidance_scale > 1:
        raise IneError(
            f"EmbeddingGuider: with guidance_scale {guidance_scale} the negative has the "
            "strength w - 1 <= 0; use a scale above 1, or give a strength"
        )
    if strength is not None and not (math.isfinite(strength) and strength >= 0):
        raise IneError(f"EmbeddingGuider: strength is {strength}; give a number of 0 or more")
    if shift is not None and not 0 < shift <= 1:
        raise IneError(f"EmbeddingGuider: shift is {shift}; give a number in (0, 1], or None")
