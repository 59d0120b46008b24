"""The interface between the denoising loop and a guidance method.

The loop knows schedulers and latents. A guidance method knows which conditions to run the U-Net
on and how the outputs become one prediction. It may run the U-Net several times within a step, so
a gate can look first and decide then, and it may run it for some pictures of the batch only.

Shape letters: B pictures, C latent channels, H W latent size.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.guidance.negative import Negative
from ine.guidance.prompts import Prompts
from ine.guidance.step import Point, QueryUNet, Step, UNetQuery

__all__ = [
    "Again",
    "Cost",
    "Gate",
    "GateSession",
    "Guidance",
    "Notes",
    "Point",
    "Prompts",
    "QueryUNet",
    "Session",
    "Step",
    "UNetQuery",
]

Notes = dict[str, Any]
"""What a guidance logs about one picture, as it goes into JSON."""


@dataclass(frozen=True)
class Cost:
    """Number of function evaluations (NFE): how often the U-Net runs for one picture."""

    nfe: float
    exact: bool = True
    """Whether the number is the same for every picture; behind a gate it depends on the picture."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """A picture that the loop has to restart."""

    further: int = 1
    """How many of `Guidance.attempts` further on; 1 is the next."""

    found: frozenset[str] = frozenset()
    """Concepts that were found in it."""


class Session(Protocol):
    """A guidance method applied to one batch; it keeps its state per picture."""

    @property
    def again(self) -> Mapping[int, Again]:
        """Pictures that the loop has to restart; none for a method that never restarts one."""

    @property
    def found(self) -> tuple[frozenset[str], ...] | None:
        """Per picture, the concepts that its gate found; None where it has no such gate."""

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """Return the guided U-Net output of a step, (pictures, C, H, W).

        Args:
            step: The current step, with all B pictures.
            query_unet: Runs the U-Net.
            pictures: Which pictures of the batch; None means all. A gate leaves out the pictures
                for which it is closed, and the method's state of those must not change.
        """

    def notes(self) -> list[Notes]:
        """Return what to log, one dict per picture."""


class GateSession(Protocol):
    """A gate applied to one batch."""

    @property
    def found(self) -> tuple[frozenset[str], ...] | None:
        """Per picture, the concepts found in it so far; None for a gate that knows no concepts."""

    @property
    def named(self) -> tuple[Mapping[str, tuple[str, ...]], ...] | None:
        """Per picture, {concept: words by which it was named}; None for a gate without words."""

    def open(self, step: Step, query_unet: QueryUNet) -> tuple[int, ...]:
        """Return the pictures whose gate is open at a step, in order.

        Args:
            step: The current step.
            query_unet: Runs the U-Net; a query that was made at this step already costs nothing.
        """

    def notes(self) -> list[Notes]:
        """Return what to log, one dict per picture."""


class Gate(Protocol):
    """Decides when a method may act."""

    def begin(self, prompts: Prompts) -> GateSession:
        """Prepare for a batch."""

    def cost(self, inner: Cost, steps: int) -> Cost:
        """Return the `Cost` of a picture, given that of the method without the gate."""


class Guidance(Protocol):
    """A guidance method with its settings: a frozen dataclass.

    `ine.guidance.method.Method` has defaults for most of this.
    """

    @property
    def negative(self) -> Negative:
        """What it steers away from."""

    @property
    def attempts(self) -> tuple["Guidance", ...]:
        """The runs of the loop, in order: itself, or more for a method that restarts pictures."""

    @property
    def noise(self) -> int:
        """Which of a picture's noises a run with it begins with (`ine.guidance.attempts.NOISES`).

        0 is its own; only restarts begin with another.
        """

    @property
    def innermost(self) -> "Guidance":
        """The method without its gates."""

    def split(self) -> tuple["Guidance", Gate | None]:
        """Return (the method without its outermost gate, that gate), or (itself, None)."""

    @property
    def reads_prompts(self) -> bool:
        """Whether it needs the prompts as plain text, without weights."""

    def begin(self, prompts: Prompts) -> AbstractContextManager[Session]:
        """Prepare for a batch: encode texts, rewrite the positive condition, hook the U-Net.

        The end of the context undoes all changes to the model.
        """

    def cost(self, scale: float, steps: int) -> Cost:
        """Return the U-Net evaluations of a picture at a guidance scale."""

    def with_fixed_strength(self, scale: float) -> "Guidance":
        """Return it with a strength that follows the guidance scale written out as a number."""

    def scaled(self, factor: float) -> "Guidance":
        """Return it with its strength multiplied; a method without a strength returns itself."""

    def with_embedding(self, embedding: ConceptEmbedding) -> "Guidance":
        """Return it with one more embedding to steer away from."""
