"""What an embedding's file recommends: guidance, strength, part of the run, look-ahead, restarts.

`ine defend` writes it into the header, under `ine.defence.`; `ine generate` and `ine.protect` apply
it. A file of another program, or of `ine invert`, recommends nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import EmbeddingError, IneError
from ine.guidance.gates import Window
from ine.guidance.negative import Negative
from ine.guidance.protocol import Guidance
from ine.guidance.restart import ladder_text
from ine.guidance.table import METHODS, build_guidance

PREFIX = "ine.defence."


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """How a file's embedding should act."""

    guidance: str
    """A name of `METHODS`."""

    strength: float | None = None
    """None is the method's own."""

    preset: str | None = None
    window: Window | None = None
    """The part of the run in which it acts; None is all of it."""

    look_ahead: int | None = None
    """Coarse steps of the look-ahead, whose gate is beside the file; None is without a gate."""

    restart: tuple[float, ...] = ()
    """Multiples of the strength with which a loop that can restarts pictures in which the concept
    still shows at half the run (`ine.guidance.restart`); () restarts none."""

    last_strength: float | None = None
    """Strength of additive guidance in one more restart, where the concept shows after all others;
    None makes none."""

    gate_hash: str = ""
    """First 16 hex digits of the SHA-256 of the gate's file."""

    def metadata(self) -> dict[str, str]:
        """Return it as header keys and values."""
        window = f"{self.window.first:g}:{self.window.last:g}" if self.window else None
        given = {
            "guidance": self.guidance,
            "strength": None if self.strength is None else f"{self.strength:g}",
            "preset": self.preset,
            "window": window,
            "look_ahead": None if self.look_ahead is None else str(self.look_ahead),
            "restart": ladder_text(self.restart) or None,
            "last_strength": None if self.last_strength is None else f"{self.last_strength:g}",
            "gate_hash": self.gate_hash or None,
        }
        return {PREFIX + key: value for key, value in given.items() if value is not None}

    def method(self, negative: Negative) -> Guidance:
        """Return the guidance with a negative, without gate and window."""
        return build_guidance(self.guidance, negative, self.preset, {"strength": self.strength})

    def __str__(self) -> str:
        """Return it as a log line says it, "additive, strength 8, in 0:0.6 of the run"."""
        parts = [self.guidance if self.preset is None else f"{self.guidance} {self.preset}"]
        if self.strength is not None:
            parts.append(f"strength {self.strength:g}")
        if self.window:
            parts.append(f"in {self.window.first:g}:{self.window.last:g} of the run")
        if self.look_ahead is not None:
            parts.append(f"where a look-ahead of {self.look_ahead} steps finds the concept")
        if self.restart:
            parts.append(f"restarts at {ladder_text(self.restart)} times the strength")
        if self.last_strength is not None:
            parts.append(f"and at last additive at {self.last_strength:g}")
        return ", ".join(parts)


def recommendation_of(embedding: ConceptEmbedding) -> Recommendation | None:
    """Return what the header of an embedding recommends, or None.

    Raises:
        EmbeddingError: It recommends something that makes no sense or needs a later version.
    """
    stated = {
        key.removeprefix(PREFIX): value
        for key, value in embedding.metadata.items()
        if key.startswith(PREFIX)
    }
    if "guidance" not in stated:
        return None
    try:
        found = _read(stated)
        found.method(Negative())  # names and numbers that no method takes are refused here
    except (ValueError, IneError) as error:
        raise EmbeddingError(
            f"embedding {embedding.trigger!r}: its header recommends a defence that cannot be used "
            f"({error}); update ine, make the file again with ine defend, or remove its "
            f"{PREFIX}* keys"
        ) from error
    return found


def _read(stated: Mapping[str, str]) -> Recommendation:
    """Return the recommendation; raise `ValueError` or `IneError` for what makes no sense."""
    if stated["guidance"] not in METHODS:
        raise ValueError(f"guidance {stated['guidance']!r} is unknown")
    strength = float(stated["strength"]) if "strength" in stated else None
    if strength is not None and not math.isfinite(strength):
        raise ValueError(f"strength is {strength}")
    window = None
    if "window" in stated:
        first, _, last = stated["window"].partition(":")
        window = Window(float(first), float(last))
    look_ahead = int(stated["look_ahead"]) if "look_ahead" in stated else None
    if look_ahead is not None and look_ahead < 1:
        raise ValueError(f"look_ahead is {look_ahead}")
    restart = tuple(float(part) for part in stated.get("restart", "").split(",") if part)
    if not all(0 < factor < math.inf for factor in restart):
        raise ValueError(f"restart is {stated['restart']}")
    if restart and look_ahead is None:
        raise ValueError("restarts need the gate of a look-ahead")
    at_last = float(stated["last_strength"]) if "last_strength" in stated else None
    if at_last is not None and not (restart and 0 <= at_last < math.inf):
        raise ValueError(f"last_strength is {at_last}, after {restart or 'no'} restarts")
    return Recommendation(
        guidance=stated["guidance"],
        strength=strength,
        preset=stated.get("preset"),
        window=window,
        look_ahead=look_ahead,
        restart=restart,
        last_strength=at_last,
        gate_hash=stated.get("gate_hash", ""),
    )
