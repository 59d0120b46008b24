"""Defaults for guidance methods, so that a new one states only what differs."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.negative import Negative
from ine.guidance.protocol import Again, Cost, Gate, Guidance, Notes, Prompts, Session
from ine.text.condition import Condition

SettingValue = bool | int | float | str
"""What a user can give for a setting of a method."""


class Method:
    """Defaults of `Guidance` for a frozen dataclass with a field `negative`.

    Its other fields are the settings that a user can give. A field `strength` says how strongly
    the negative acts.
    """

    negative: Negative

    strength: float | None
    """Only in methods that have one; None takes it from the guidance scale."""

    presets: ClassVar[tuple[str, ...]] = ()
    """Names of published settings."""

    nfe_per_step: ClassVar[int] = 3
    """Conditions that the U-Net is run on at every step."""

    reads_prompts: ClassVar[bool] = False

    needs_negative: ClassVar[bool] = True
    """Whether it makes no sense with an empty negative."""

    schedulers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """{preset: scheduler that it was published with}, a name of `ine.sampling.SCHEDULERS`."""

    looks_itself: ClassVar[bool] = False
    """Whether it brings a gate of its own, so that no other can stand before it."""

    file_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that are files, which a grid may have beside it."""

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the settings that a user can give."""
        return tuple(f.name for f in fields(cast(Any, cls)) if f.name != "negative")

    @classmethod
    def build(cls, negative: Negative, preset: str | None, settings: dict[str, Any]) -> Self:
        """Return the method with a negative, a preset (None is the default) and other settings."""
        return cast(Any, cls)(negative, **settings)

    @classmethod
    def stated_strength(cls, embeddings: Sequence[ConceptEmbedding]) -> float | None:
        """Return the strength that embeddings state for this method; None for none."""
        return None

    @property
    def attempts(self) -> tuple[Guidance, ...]:
        """The runs of the loop: one."""
        return (self,)

    @property
    def noise(self) -> int:
        """The picture's own."""
        return 0

    @property
    def innermost(self) -> Guidance:
        """Itself: there is no gate around it."""
        return self

    def split(self) -> tuple[Guidance, Gate | None]:
        """Return (itself, None): there is no gate around it."""
        return self, None

    def begin(self, prompts: Prompts) -> AbstractContextManager[Session]:
        """Prepare for a batch; every method has its own, see `Guidance.begin`."""
        raise NotImplementedError(f"{type(self).__name__} has no begin")

    def cost(self, scale: float, steps: int) -> Cost:
        """Return `nfe_per_step` U-Net evaluations per step."""
        return Cost(self.nfe_per_step * steps)

    def with_fixed_strength(self, scale: float) -> Self:
        """Return itself: the strength does not follow the guidance scale."""
        return self

    def scaled(self, factor: float) -> Self:
        """Return the method with its strength multiplied, or itself if it has none.

        Raises:
            IneError: The strength is None (taken from the guidance scale), so there is no number
                to multiply.
        """
        if "strength" not in self.settings():
            return self
        if self.strength is None:
            raise IneError("restart: the method's strength is not set; give --negative-strength")
        return cast(Self, replace(cast(Any, self), strength=self.strength * factor))

    def with_embedding(self, embedding: ConceptEmbedding) -> Self:
        """Return the method with one more embedding, joined with the others in one string."""
        return cast(Self, replace(cast(Any, self), negative=self.negative.joined(embedding)))


@dataclass(frozen=True)
class Around(Method):
    """Defaults for a guidance that acts through another one."""

    guidance: Guidance

    @property
    def negative(self) -> Negative:  # type: ignore[override]
        """The negative of the method inside."""
        return self.guidance.negative

    @property
    def innermost(self) -> Guidance:
        """The method inside, without its gates."""
        return self.guidance.innermost

    @property
    def noise(self) -> int:
        """The noise of the run inside."""
        return self.guidance.noise

    @property
    def reads_prompts(self) -> bool:  # type: ignore[override]
        """Whether the method inside needs the prompts as plain text."""
        return self.guidance.reads_prompts

    def with_fixed_strength(self, scale: float) -> Self:
        """Return it with the strength of the method inside written out as a number."""
        return replace(self, guidance=self.guidance.with_fixed_strength(scale))

    def scaled(self, factor: float) -> Self:
        """Return it with the strength of the method inside multiplied."""
        return replace(self, guidance=self.guidance.scaled(factor))

    def with_embedding(self, embedding: ConceptEmbedding) -> Self:
        """Return it with one more embedding for the method inside to steer away from."""
        return replace(self, guidance=self.guidance.with_embedding(embedding))


class MethodSession:
    """Defaults of `Session` for a method that logs nothing and never restarts a picture."""

    positive: Condition

    @property
    def again(self) -> dict[int, Again]:
        """No picture."""
        return {}

    @property
    def found(self) -> tuple[frozenset[str], ...] | None:
        """Nothing is known: there is no gate."""
        return None

    def notes(self) -> list[Notes]:
        """Return nothing, once per picture."""
        return [{} for _ in range(len(self.positive))]
