"""The seam between the denoising loop and a guidance method.

The loop knows schedulers and latents; a guidance method knows which conditions the U-Net has to
be asked about and how the answers become one prediction. It asks as often as it needs within
a step, so a gate can probe first and decide then, and it may ask for some pictures only.

Shape letters: B pictures, C latent channels, H W latent size.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from ine.text import LITERAL, Condition, Reading, as_nothing, encode
from ine.weights_in_prompts import plain_text


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where the denoising loop stands."""

    index: int
    """0-based position in the run, in [0, count)."""

    count: int
    """Number of steps of the run."""

    t: torch.Tensor
    """The timestep the U-Net is given, a scalar in [0, 999]."""

    x_t: torch.Tensor
    """Noisy latents as the U-Net sees them (variance-preserving), (B, C, H, W)."""

    alpha_bar: torch.Tensor
    """Signal power of `x_t`, a scalar in (0, 1]."""

    prediction_type: str
    """ "epsilon" or "v_prediction": what the U-Net's outputs are."""

    def of(self, pictures):
        """Return the step of some pictures only; of all of them for None."""
        return self if pictures is None else replace(self, x_t=self.x_t[list(pictures)])

    def noise(self, output):
        """Return the noise prediction that a U-Net output stands for, (B, C, H, W)."""
        if self.prediction_type == "epsilon":
            return output
        # Salimans and Ho 2022, appendix D: v = sqrt(abar) eps - sqrt(1 - abar) x_0.
        return self.alpha_bar.sqrt() * output + (1 - self.alpha_bar).sqrt() * self.x_t

    def preview(self, output):
        """Return the clean latents that a U-Net output implies, x_0 hat, (B, C, H, W)."""
        if self.prediction_type == "v_prediction":
            # The same as below, and defined where the signal is zero.
            return self.alpha_bar.sqrt() * self.x_t - (1 - self.alpha_bar).sqrt() * output
        eps = self.noise(output)
        return (self.x_t - (1 - self.alpha_bar).sqrt() * eps) / self.alpha_bar.sqrt()


@dataclass(frozen=True)
class Wanted:
    """One condition that the U-Net is asked about."""

    name: str
    condition: Condition
    """One row per picture asked about, or one row for all of them."""

    pictures: tuple[int, ...] | None = None
    """Which pictures of the batch; None is all."""

    @classmethod
    def of(cls, name, condition, pictures):
        """Return a wish about some pictures, given the condition of the whole batch."""
        if pictures is None or len(condition) == 1:
            return cls(name, condition, pictures)
        return cls(name, condition.rows(list(pictures)), pictures)


Ask = Callable[[Sequence[Wanted]], Mapping[str, torch.Tensor]]
"""Runs all that is wanted as one U-Net call, conditions in the order given; returns outputs
by name, (pictures asked about, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What `begin` is told about the batch."""

    parts: object
    """The `DiffusionParts` that are guided."""

    texts: tuple[str, ...]
    """B prompts."""

    scale: float
    """Classifier-free guidance scale w."""

    reading: Reading = LITERAL
    """How prompts and negatives are read: weights, layer of the text encoder."""

    vectors: Mapping[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    """{trigger: vectors per text encoder} of the learned words in the prompts; a negative brings
    its own."""

    def encode(self, texts, vectors=None):
        """Return the condition of texts; see `ine.text.encode`."""
        return encode(self.parts, list(texts), vectors, self.reading)

    def words(self):
        """Return the prompts as they are tokenised: where weights are read, without their marks."""
        return tuple(map(plain_text, self.texts)) if self.reading.weights else self.texts

    def positive(self):
        """Return the condition of the prompts, B rows."""
        return self.encode(self.texts, self.vectors)

    def empty(self):
        """Return the condition of no text, B rows."""
        return self.nothing().repeat(len(self.texts))

    def nothing(self):
        """Return the condition of no text, one row; see `ine.text.encode_nothing`."""
        return as_nothing(self.parts, self.encode([""]))


class Session(Protocol):
    """A guidance method at work on one batch; holds its state per picture."""

    def predict(
        self, step: Step, ask: Ask, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """Return the guided U-Net output of a step, (pictures asked about, C, H, W).

        Args:
            step: Where the loop stands, all B pictures.
            ask: Runs the U-Net.
            pictures: Which pictures; None is all. A gate leaves closed ones out, and whatever
                state a method holds for those does not move.
        """

    def notes(self) -> list[dict]:
        """Return what is worth logging, one dict per picture."""


class Guidance(Protocol):
    """A guidance method with its settings."""

    def begin(self, prompts: Prompts) -> AbstractContextManager[Session]:
        """Prepare for a batch: encode, rewrite the positive condition, hook the U-Net.

        Whatever is done to the model is undone when the context ends.
        """
