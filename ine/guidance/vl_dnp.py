"""Dynamic negatives: an observer says during the run what to steer a picture away from (VL-DNP).

    eps = eps_pos - s (eps_n - eps_0)        while n is set for that picture
    eps = eps_pos                            while it is not
    eps_pos = eps_0 + w (eps_c - eps_0)

"Dynamic VLM-Guided Negative Prompting for Diffusion Models" (arXiv 2510.26052), section 3: the
additive form with an n of its own for every picture, set by what the observer found at its last
look (`ine.guidance.observed`). As published n is words. An unlearned model does not understand
them, so n may also hold the embeddings of the concepts that were found, or both.

    words       the user's text, then the words by which concepts were named; without either, the
                recipe's own negative words of what was found
    embedding   the embeddings of the concepts that were found
    both        the embeddings, then the words, in one string

Two evaluations of the U-Net per picture and step where nothing was found, three where something
was.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, get_args

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.away import AwayFromFound, Steer
from ine.guidance.gates import Gated, Window
from ine.guidance.looks import Looks
from ine.guidance.method import Method
from ine.guidance.negative import Negative
from ine.guidance.observed import ObserverGate
from ine.guidance.observed_settings import PRESETS, SETTINGS, fields_of
from ine.guidance.protocol import Cost, Gate, Guidance, Prompts, Session
from ine.observers.unknown import OnUnknown
from ine.observers.watching import Watcher

STRENGTH = 7.5
"""Of the released code; its README gives 15 as an example."""


@dataclass(frozen=True, kw_only=True)
class VlDnp(Method):
    """An observer that decides, and what it steers a picture away from.

    `build` makes one of what a user gives, see `ine.guidance.observed_settings`.
    """

    presets: ClassVar[tuple[str, ...]] = PRESETS
    needs_negative: ClassVar[bool] = False
    looks_itself: ClassVar[bool] = True
    file_settings: ClassVar[tuple[str, ...]] = ("phrases", "cache")
    schedulers: ClassVar[Mapping[str, str]] = MappingProxyType({"as-released": "dpm++"})

    given: Negative
    """Text before the words that were named, and embeddings, each of a concept that is watched
    for. Of the static baseline, the whole negative."""

    watcher: Watcher | None
    """None for the static baseline of the paper: the same form, always on."""

    steer: Steer = "words"
    strength: float = STRENGTH
    """s, in units of w."""

    looks_at: Looks = field(default_factory=Looks)
    on_unknown: OnUnknown = "steer"
    as_released: bool = False
    """As in the released code, see `ine.guidance.released`."""

    window: Window = field(default_factory=Window)
    """Part of the run in which pictures are steered."""

    def __post_init__(self) -> None:
        """Raise `IneError` for settings with which it could never act, or not as asked."""
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise IneError(
                f"vl-dnp: strength is {self.strength}; give a finite number of 0 or more"
            )
        for name, kind in (("steer", Steer), ("on_unknown", OnUnknown)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise IneError(f"vl-dnp: {name} is {getattr(self, name)!r}; give one of {known}")
        if self.watcher is None:
            if not self.given.prompt():
                raise IneError(
                    "vl-dnp static: nothing to steer away from; give a negative text, an "
                    "embedding, or a file of phrases"
                )
            return
        _check_embeddings(self.watcher.concepts, self.given, self.steer)
        if self.as_released and not any(one.vocabulary for one in self.watcher.sought):
            raise IneError(
                "vl-dnp as-released: reads the words in a model's reply, and a judge gives none; "
                "give an observer vlm:... or openai:..., or the preset as-described"
            )

    @property
    def negative(self) -> Negative:  # type: ignore[override]
        """All that a picture may be steered away from, for logs and checks."""
        return self.steering.negative

    @property
    def steering(self) -> AwayFromFound:
        """The method behind the observer; of the static baseline, all there is."""
        watched = self.watcher is not None
        return AwayFromFound(
            given=self.given,
            sought=self.watcher.sought if self.watcher else (),
            steer=self.steer,
            strength=self.strength,
            as_released=self.as_released and watched,
        )

    @property
    def innermost(self) -> Guidance:
        """The method behind the observer, which without findings acts on every concept."""
        return self.split()[0]

    def split(self) -> tuple[Guidance, Gate | None]:
        """Return (the method behind the observer, the gate that the observer decides)."""
        if self.watcher is None:
            gate = None if self.window == Window() else self.window
            return Additive(self.given, self.strength), gate
        return self.steering, ObserverGate(
            watcher=self.watcher,
            looks=self.looks_at,
            on_unknown=self.on_unknown,
            as_released=self.as_released,
            window=self.window,
        )

    def cost(self, scale: float, steps: int) -> Cost:
        """Return three evaluations per step where something is found, else two; their mean.

        Raises:
            IneError: It looks at steps that the run does not have.
        """
        return self._whole().cost(scale, steps)

    def begin(self, prompts: Prompts) -> AbstractContextManager[Session]:
        """Load the observer, and encode what is known before the run.

        Raises:
            IneError: The observer cannot be loaded or reached, or the model cannot be previewed.
        """
        return self._whole().begin(prompts)

    def _whole(self) -> Guidance:
        method, gate = self.split()
        return method if gate is None else Gated(method, gate)

    def with_embedding(self, embedding: ConceptEmbedding) -> Self:
        """Return it with one more embedding of a concept that is watched for."""
        return replace(self, given=self.given.joined(embedding))

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of what a user can give."""
        return SETTINGS

    @classmethod
    def build(cls, negative: Negative, preset: str | None, settings: dict[str, Any]) -> Self:
        """Return the method of a preset (None is as-described) and settings, all optional."""
        return cls(**fields_of(negative, preset or PRESETS[0], settings))


def _check_embeddings(concepts: Sequence[str], given: Negative, steer: Steer) -> None:
    """Raise `IneError` where an embedding and a concept have no partner."""
    own = {e.concept: e.trigger for e in given.embeddings}
    strange = [
        f"{trigger} ({concept})" for concept, trigger in own.items() if concept not in concepts
    ]
    if strange:
        raise IneError(
            f"vl-dnp: the observer looks for {', '.join(concepts)}, so that the embedding "
            f"{strange[0]} would never act; look for its concept too, or leave it out"
        )
    if steer == "words":
        return
    missing = [concept for concept in concepts if concept not in own]
    if not own or (missing and steer == "embedding"):
        raise IneError(
            f"vl-dnp: steer {steer}: no embedding is given for {', '.join(missing)}; give one of "
            "each concept that is looked for, or steer words"
        )
