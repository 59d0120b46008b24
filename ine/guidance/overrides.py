"""What a user says of a defence instead of what the embeddings' files recommend."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ine.guidance.gate_file import Calibration
from ine.guidance.gates import Window
from ine.guidance.method import SettingValue


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the user says instead; what is left out is as the files recommend."""

    guidance: str | None = None
    strength: float | None = None
    preset: str | None = None
    settings: Mapping[str, SettingValue] = field(default_factory=dict)
    window: Window | None = None
    gate: Calibration | None = None
    gated: bool = True
    """False steers every picture, whatever a file recommends."""

    late: bool = False
    """Whether the gate at half the run is asked instead of the look-ahead."""

    ladder: tuple[float, ...] | None = None
    """A second chance at half the run, see `ine.guidance.restart`; None is as recommended, which
    needs the look-ahead; () makes none."""

    can_restart: bool = True
    """Whether the loop that makes the pictures can restart one."""

    scale: float | None = None
    """Guidance scale of the run; a ladder multiplies strengths that follow it."""

    def __str__(self) -> str:
        """Return what differs, as a log line says it."""
        part = self.window
        window = None if part is None else f"part {part.first:g}:{part.last:g}"
        found = [
            self.guidance,
            None if self.strength is None else f"strength {self.strength:g}",
            self.preset and f"preset {self.preset}",
            *(f"{key} {value}" for key, value in self.settings.items()),
            window,
            "another gate" if self.gate else None,
            None if self.gated else "no gate",
            "the gate at half the run" if self.late else None,
            "restarts" if self.ladder else None,
        ]
        return ", ".join(filter(None, found))
