"""Losses of phrases by the U-Net's noise prediction, of the bare model or through a defence."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch

from ine.attacks.objectives import HOLDER, Cost, distance, gradients, joined
from ine.attacks.step import Victim
from ine.attacks.text_distance import TextDistance
from ine.finite import check_finite
from ine.guidance.cfg import classifier_free
from ine.inversion.images import ConceptPictures, draw_latents
from ine.models.parts import DiffusionParts
from ine.sampling import run_unet
from ine.text.encode import encode, encode_nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One prompt, noisy picture and timestep on which phrases are compared."""

    prompt: str
    x_t: torch.Tensor
    """Noisy latents, (1, C, H, W)."""

    target: torch.Tensor
    """The noise in them, or another prediction to match, (1, C, H, W)."""

    index: int
    """Step of the sampler."""

    plain: float = 1.0
    """The loss of the prompt without a phrase; losses are divided by it."""

    start: torch.Tensor | None = None
    """Start noise of a run whose gate shall stay shut, (1, C, H, W); None where none is asked."""


@dataclass(frozen=True, eq=False)
class Denoising:
    """The denoising loss of pictures of the concept.

        E || eps(x_t, t, phrase + prompt) - eps ||^2

    with eps of the bare model, or of the defended sampler where the victim has a guidance, divided
    by the same without the phrase: the late steps of a run have forty times the loss of the early
    ones, and would decide alone.

    Sources:
        Zhang et al. 2024, UnlearnDiffAtk (arXiv 2310.11868), eq. 5; there without a defence.
    """

    victim: Victim
    pictures: ConceptPictures
    prompts: tuple[str, ...]
    """The prompt that belongs to each picture."""

    batch: int = 8
    """Phrases in one U-Net call."""

    unit = "U-Net evaluations"

    def draw(self, generator: torch.Generator, count: int) -> tuple[list[View], Cost]:
        """Return views: a picture, its noise, a timestep of the sampler."""
        views = []
        for _ in range(count):
            number = int(torch.randint(self.pictures.count, (), generator=generator))
            x_0 = draw_latents(self.pictures, [number], generator)
            eps = torch.randn(x_0.shape, generator=generator)
            index = int(torch.randint(self.victim.sampler.steps, (), generator=generator))
            x_t = self.victim.noise(x_0, eps, index)
            views.append(View(prompt=self.prompts[number], x_t=x_t, target=eps, index=index))
        return self._measured(views)

    @torch.no_grad()
    def _measured(self, views: Sequence[View]) -> tuple[list[View], Cost]:
        """Return (the views with the loss of their prompts alone, U-Net evaluations)."""
        found, cost = [], 0
        for view in views:
            out, asked = self.victim.predict([view.prompt], view.x_t, view.index)
            plain = max(float(distance(out, view.target)), 1e-12)
            found.append(replace(view, plain=plain))
            cost += asked
        return found, cost

    @torch.no_grad()
    def losses(self, phrases: Sequence[str], views: Sequence[View]) -> tuple[torch.Tensor, Cost]:
        """Return (losses (B,), U-Net evaluations)."""
        total, cost = torch.zeros(len(phrases)), 0
        for view in views:
            texts = [joined(phrase, view.prompt) for phrase in phrases]
            found = []
            for first in range(0, len(texts), self.batch):
                some = texts[first : first + self.batch]
                out, asked = self.victim.predict(some, _repeated(view, some), view.index)
                found.append(distance(out, view.target))
                cost += asked
            total += torch.cat(found).cpu() / view.plain
        return total / len(views), cost

    def gradient(
        self, vectors: Sequence[torch.Tensor], views: Sequence[View]
    ) -> tuple[list[torch.Tensor], Cost]:
        """Return (gradients, U-Net evaluations); a backward pass counts as two forward ones."""
        leaves = [v.detach().clone().requires_grad_(True) for v in vectors]
        cost = 0
        for view in views:
            texts = [joined(HOLDER, view.prompt)]
            out, asked = self.victim.predict(texts, view.x_t, view.index, {HOLDER: tuple(leaves)})
            (distance(out, view.target).mean() / view.plain / len(views)).backward()
            cost += 3 * asked
        return gradients(leaves), cost


def _repeated(view: View, texts: Sequence[str]) -> torch.Tensor:
    return view.x_t.repeat(len(texts), 1, 1, 1)


@dataclass(frozen=True, eq=False)
class MatchedPrediction(Denoising):
    """Distance of the defended prediction to the base's prediction for the text's goal.

        E || eps_defended(x_t, t, phrase + prompt) - eps_base(x_t, t, f(prompt) + eta c) ||^2

    both guided: `TextDistance` seen through a defence, as P4D matches predictions (Chin et al.
    2024, arXiv 2309.06135, eq. 3).
    """

    _: KW_ONLY
    base: DiffusionParts
    """The model before unlearning."""

    text: TextDistance

    def draw(self, generator: torch.Generator, count: int) -> tuple[list[View], Cost]:
        """Return views whose target is the base's guided prediction for the goal."""
        views, cost = super().draw(generator, count)
        views, more = self._measured([self._aimed(view) for view in views])
        return views, cost + more + 2 * count

    @torch.no_grad()
    def _aimed(self, view: View) -> View:
        base = self.base
        t = self.victim.timesteps()[view.index].to(base.device)
        x_t = view.x_t.to(base.device, base.dtype)
        nothing = encode_nothing(base)
        plain = encode(base, [view.prompt])
        goal = replace(plain, states=self.text.goal_states(view.prompt))
        empty, aimed = (run_unet(base.unet, x_t, t, c) for c in (nothing, goal))
        check_finite(torch.cat([empty, aimed]), "U-Net", view.index, len(self.victim.timesteps()))
        scale = self.victim.sampler.guidance_scale
        target = self.victim.noise_of(classifier_free(empty, aimed, scale), x_t, view.index)
        return View(prompt=view.prompt, x_t=view.x_t, target=target, index=view.index)
