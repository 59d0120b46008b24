"""Losses that bring the concept back behind a gate that stays shut: of vectors, and of words.

Behind a shut gate a picture is the undefended one, so each is the loss of the bare model and the
term of `ine.attacks.through_gate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch

from ine.attacks.denoising import Denoising, View
from ine.attacks.objectives import HOLDER, Cost, gradients, joined
from ine.attacks.step import Victim
from ine.attacks.through_gate import GateLoss
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import batch_loss
from ine.inversion.templates import captions_for
from ine.models.parts import DiffusionParts
from ine.recipe import InversionSettings


def shut_loss(victim: Victim, gate: GateLoss) -> Callable[..., torch.Tensor]:
    """Return a `loss_of` for `ine.inversion.invert.invert` that keeps a gate shut.

    Its first part is that of an inversion that knows of no defence, of the same pictures, noise and
    timesteps.

    Args:
        victim: Model and sampler.
        gate: The term.
    """

    def loss_of(
        parts: DiffusionParts,
        pictures: ConceptPictures,
        spec: InversionSettings,
        vectors: Sequence[torch.Tensor],
        trigger: str,
        plural: Sequence[str],
        alpha_bar: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        denoising = batch_loss(
            parts, pictures, spec, vectors, trigger, plural, alpha_bar, generator
        )
        index = torch.randint(pictures.count, (gate.pictures,), generator=generator).tolist()
        nouns = [pictures.captions[i] if pictures.captions else "" for i in index]
        captions = captions_for(spec, nouns, trigger, plural, generator)
        noise = torch.randn((len(index), *pictures.mean.shape[1:]), generator=generator)
        excess, _ = gate.excess(victim, captions, noise, {trigger: tuple(vectors)})
        return denoising + gate.of(excess).mean()

    return loss_of


@dataclass(frozen=True, eq=False)
class ShutDenoising(Denoising):
    """The denoising loss of phrases with the term that keeps a gate shut.

    The victim is the bare model. Every view has a start noise, from which its prompt is led to the
    probe.
    """

    _: KW_ONLY
    gate: GateLoss

    def draw(self, generator: torch.Generator, count: int) -> tuple[list[View], Cost]:
        """Return views as `Denoising` does, each with a start noise."""
        views, cost = super().draw(generator, count)
        starts = [torch.randn(view.x_t.shape, generator=generator) for view in views]
        pairs = zip(views, starts, strict=True)
        return [replace(view, start=start) for view, start in pairs], cost

    @torch.no_grad()
    def losses(self, phrases: Sequence[str], views: Sequence[View]) -> tuple[torch.Tensor, Cost]:
        """Return (losses (B,), U-Net evaluations)."""
        total, cost = super().losses(phrases, views)
        for view in views:
            texts = [joined(phrase, view.prompt) for phrase in phrases]
            for first in range(0, len(texts), self.batch):
                some = texts[first : first + self.batch]
                excess, asked = self.gate.excess(self.victim, some, _start(view, len(some)))
                total[first : first + len(some)] += self.gate.of(excess).cpu() / len(views)
                cost += asked
        return total, cost

    def gradient(
        self, vectors: Sequence[torch.Tensor], views: Sequence[View]
    ) -> tuple[list[torch.Tensor], Cost]:
        """Return (gradients, U-Net evaluations); a backward pass counts as two forward ones."""
        found, cost = super().gradient(vectors, views)
        leaves = [v.detach().clone().requires_grad_(True) for v in vectors]
        for view in views:
            texts, given = [joined(HOLDER, view.prompt)], {HOLDER: tuple(leaves)}
            excess, asked = self.gate.excess(self.victim, texts, _start(view, 1), given)
            (self.gate.of(excess).mean() / len(views)).backward()
            cost += 3 * asked
        return [a + b for a, b in zip(found, gradients(leaves), strict=True)], cost


def _start(view: View, count: int) -> torch.Tensor:
    assert view.start is not None  # from `ShutDenoising.draw`
    return view.start.repeat(count, 1, 1, 1)
