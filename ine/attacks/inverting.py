"""The inverted embedding as an attack: through the bare model, or through its defence.

Inversion against the bare model is `ine invert`; used as a prompt its vectors bring the concept
back. Here the same vectors are learned through the prediction that the *defended* sampler makes,

    minimise over v   E || eps_defended(x_t, t, prompt(v)) - eps ||^2,

so that what the defence subtracts is made up for. After the attack on SLD of Pham et al. 2024
(arXiv 2308.01508), for any guidance. Timesteps are those that the sampler visits, one for a batch.
"""

import torch

from ine.inversion.images import draw_latents
from ine.inversion.invert import captions_for


def defended_loss(victim):
    """Return a `loss_of` for `ine.inversion.invert.invert` that looks through a defence.

    Args:
        victim: A `Victim` with a guidance.
    """

    def loss_of(_parts, pictures, spec, vectors, trigger, plural, _alpha_bar, generator):
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
