"""How pictures are sampled: the settings that all pictures of a run share."""

import math
from dataclasses import dataclass, fields

from ine.errors import IneError
from ine.text.encode import PLAIN_TEXT, TextOptions


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How pictures are made; the same for all pictures of a run."""

    scheduler: str = "ddim"
    steps: int = 50
    guidance_scale: float = 7.5
    batch: int = 4
    """Pictures per unit. Within one shape results are exact; across shapes they agree to 1e-4."""

    reading: TextOptions = PLAIN_TEXT
    """How prompts are read."""

    def __post_init__(self) -> None:
        """Raise `IneError` if the guidance scale is not finite."""
        if not math.isfinite(self.guidance_scale):
            raise IneError(f"guidance scale is {self.guidance_scale}; give a finite number")

    def __repr__(self) -> str:
        """Return the fields, `reading` only if it is not the default.

        Cache keys contain this text, and those from before the field existed stay valid.
        """
        shown = [f.name for f in fields(self) if f.name != "reading" or self.reading != PLAIN_TEXT]
        return f"SamplerSettings({', '.join(f'{n}={getattr(self, n)!r}' for n in shown)})"
