"""The inverted embedding as an attack: through the bare model, or through its defence.

Inversion against the bare model is `ine invert`; used as a prompt its vectors bring the concept
back. Here the same vectors are learned through the prediction that the *defended* sampler makes,

    minimise over v   E || eps_defended(x_t, t, prompt(v)) - eps ||^2,

so that they make up for what the defence subtracts. After the attack on SLD of Pham et al. 2024
(arXiv 2308.01508), for any guidance. Timesteps are those that the sampler visits, one for a batch.
"""

from collections.abc import Callable, Sequence

import torch

from ine.attacks.step import Victim
from ine.inversion.images import ConceptPictures, draw_latents
from ine.inversion.templates import captions_for
from ine.models.parts import DiffusionParts
from ine.recipe import InversionSettings


def defended_loss(victim: Victim) -> Callable[..., torch.Tensor]:
    """Return a `loss_of` for `ine.inversion.invert.invert` that goes through a defence.

    Args:
        victim: The model with its guidance.
    """

    def loss_of(
        _parts: DiffusionParts,
        pictures: ConceptPictures,
        spec: InversionSettings,
        vectors: Sequence[torch.Tensor],
        trigger: str,
        plural: Sequence[str],
        _alpha_bar: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        count = spec.batch
        index = torch.randint(pictures.count, (count,), generator=generator)
        x_0 = draw_latents(pictures, index, generator)
        eps = torch.randn(x_0.shape, generator=generator)
        step = int(torch.randint(victim.sampler.steps, (), generator=generator))
        nouns = [pictures.captions[i] if pictures.captions else "" for i in index.tolist()]
        captions = captions_for(spec, nouns, trigger, plural, generator)
        x_t = victim.noise(x_0, eps, step)
        predicted, _ = victim.predict(captions, x_t, step, {trigger: tuple(vectors)})
        return (predicted - eps.to(predicted)).pow(2).mean()

    return loss_of
