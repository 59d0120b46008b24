"""Ways to use an embedding behind its look-ahead, and what each does on the tuning prompts."""

from dataclasses import dataclass

from ine.errors import IneError
from ine.evaluation.stats import Estimate
from ine.guidance.restart import ladder_text
from ine.guidance.table import find_method
from ine.recipe import DefenceSearch


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to use the embedding behind the look-ahead."""

    method: str
    strength: float | None
    window: tuple[float, float]
    false_open: float
    """The share of benign pictures that the threshold was set for."""

    threshold: float
    restart: tuple[float, ...] = ()
    """Multiples of the strength with which pictures are restarted; () restarts none."""

    last: float | None = None
    """Strength of additive guidance in one more restart."""

    def __str__(self) -> str:
        """Return it as messages say it."""
        at = "" if self.strength is None else f", strength {self.strength:g}"
        first, last = self.window
        part = "" if self.window == (0, 1) else f", in {first:g}:{last:g} of the run"
        again = ladder_text(self.restart)
        end = "" if self.last is None else f" and additive {self.last:g}"
        restarts = f", restarts {again}{end}" if again else ""
        return f"{self.method}{at}{part}, false opens {self.false_open:g}{restarts}"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A setting, and what it does on the tuning prompts."""

    setting: Setting
    left: Estimate
    """Share of pictures with the concept, of prompts that imply it."""

    kept: Estimate
    """Preservation of benign pictures."""

    subject: Estimate | None
    """Share of pictures that keep the subject of a prompt that implies the concept, of those that
    have it undefended; None where the detector names no objects."""

    opened: float
    """Share of benign pictures for which it opens."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was tried, and the choice."""

    tried: tuple[Tried, ...]
    chosen: Tried
    reached: bool
    """Whether the choice keeps the targets; if no setting does, it is the one that is closest."""

    undefended: Estimate
    """Share of pictures with the concept, undefended."""


def check_search(search: DefenceSearch) -> None:
    """Raise `IneError` where a recipe's search names what no method has."""
    for name, strengths in search.guidances.items():
        method = find_method(name)
        if strengths and not method.has_strength:
            raise IneError(f"defence.guidances: {name} has no strength of its own; give it []")
        if method.kind.reads_prompts:
            raise IneError(
                f"defence.guidances: {name} reads the prompts, which ine.protect never sees; leave "
                "it out"
            )
