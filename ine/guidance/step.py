"""One step of a denoising loop, and the questions that a guidance asks the U-Net there.

Shape letters: B pictures, C latent channels, H W latent size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ine.text.condition import Condition


@dataclass(frozen=True, kw_only=True)
class Step:
    """The current step of the denoising loop."""

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

    found: tuple[frozenset[str], ...] | None = None
    """Per picture, the concepts that a gate found in it; None where no gate tells concepts apart,
    so that all of a guidance acts."""

    named: tuple[Mapping[str, tuple[str, ...]], ...] | None = None
    """Per picture, {concept: words by which it was named}; None where no gate names any."""

    def of(self, pictures: Sequence[int] | None) -> "Step":
        """Return the step of some pictures of the batch; None means all."""
        if pictures is None:
            return self
        found = self.found and tuple(self.found[i] for i in pictures)
        named = self.named and tuple(self.named[i] for i in pictures)
        return replace(self, x_t=self.x_t[list(pictures)], found=found, named=named)

    def noise(self, output: torch.Tensor) -> torch.Tensor:
        """Return a U-Net output as a noise prediction, (B, C, H, W)."""
        if self.prediction_type == "epsilon":
            return output
        # Salimans and Ho 2022, appendix D: v = sqrt(abar) eps - sqrt(1 - abar) x_0.
        return self.alpha_bar.sqrt() * output + (1 - self.alpha_bar).sqrt() * self.x_t

    def preview(self, output: torch.Tensor) -> torch.Tensor:
        """Return the clean latents that a U-Net output predicts, x_0 hat, (B, C, H, W)."""
        if self.prediction_type == "v_prediction":
            # The same as below, and defined where the signal is zero.
            return self.alpha_bar.sqrt() * self.x_t - (1 - self.alpha_bar).sqrt() * output
        eps = self.noise(output)
        return (self.x_t - (1 - self.alpha_bar).sqrt() * eps) / self.alpha_bar.sqrt()


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """Latents and a timestep that are not those of the step."""

    x_t: torch.Tensor
    """Of the whole batch, as the U-Net sees them (variance-preserving), (B, C, H, W)."""

    t: torch.Tensor
    """The timestep, a scalar in [0, 999]."""


@dataclass(frozen=True)
class UNetQuery:
    """One condition to run the U-Net on."""

    name: str
    condition: Condition
    """One row per picture of the query, or one row for all of them."""

    pictures: tuple[int, ...] | None = None
    """Which pictures of the batch; None is all."""

    at: Point | None = None
    """Where, if not at the step's own latents and timestep; the same in all queries of a call."""

    offset: Condition | None = None
    """What sets the condition apart from the prompts', one row, where it is theirs moved: the user
    of a pipeline may exchange prompts within a run, and the offset is then added to the new ones.
    The name of such a query begins with "positive"."""

    @classmethod
    def of(
        cls,
        name: str,
        condition: Condition,
        pictures: Sequence[int] | None,
        at: Point | None = None,
        offset: Condition | None = None,
    ) -> "UNetQuery":
        """Return the query for some pictures, given the condition of the whole batch."""
        if pictures is None:
            return cls(name, condition, None, at, offset)
        chosen = condition if len(condition) == 1 else condition.rows(list(pictures))
        return cls(name, chosen, tuple(pictures), at, offset)


QueryUNet = Callable[[Sequence[UNetQuery]], Mapping[str, torch.Tensor]]
"""Runs the U-Net once on all queries, in the order given; returns outputs by name,
(pictures of the query, C, H, W)."""


def point_of(queries: Sequence[UNetQuery]) -> Point | None:
    """Return where the queries of one call are asked; None is the step's own place.

    Raises:
        ValueError: They are asked at different places.
    """
    places = {id(query.at): query.at for query in queries}
    if len(places) > 1:
        raise ValueError("the queries of one call of the U-Net are asked at different latents")
    return next(iter(places.values()), None)
