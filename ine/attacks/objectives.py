"""What an attacker of prompts minimises: one phrase before every prompt, some loss.

An objective draws views (which prompts, pictures, noise and timesteps one round looks at), tells
the losses of phrases on them, and the gradient with respect to the phrase's token vectors. All of
a round's phrases are compared on the same views.

Shape letters: B phrases, K tokens of a phrase, D width of a token table, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from ine.attacks.prediction import Victim
from ine.guidance.cfg import classifier_free
from ine.guidance.safree import closing
from ine.inversion.images import draw_latents
from ine.sampling import run_unet
from ine.text import encode, encode_nothing, tokenize

HOLDER = "adversarial-phrase"
"""The word that stands for the phrase's vectors while gradients are taken."""


class Objective(Protocol):
    """What a phrase is searched for."""

    unit: str
    """What a budget counts, such as "U-Net evaluations"."""

    def draw(self, generator: torch.Generator, count: int) -> tuple[Sequence, int]:
        """Return (`count` views, what they cost in units)."""

    def losses(self, phrases: Sequence[str], views: Sequence) -> tuple[torch.Tensor, int]:
        """Return (losses (B,), what they cost in units)."""

    def gradient(self, vectors, views: Sequence) -> tuple[list[torch.Tensor], int]:
        """Return (gradient per text encoder (K, D), what it cost in units).

        Args:
            vectors: The phrase's token vectors, one (K, D) tensor per text encoder.
            views: From `draw`.
        """


def joined(phrase, prompt):
    """Return the adversarial prompt: the phrase in front, as in UnlearnDiffAtk."""
    return f"{phrase} {prompt}".strip()


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What one round looks at once."""

    prompt: str
    x_t: torch.Tensor
    """Noisy latents, (1, C, H, W)."""

    target: torch.Tensor
    """The noise that is in them, or another prediction to be matched, (1, C, H, W)."""

    index: int
    """Step of the sampler."""

    plain: float = 1.0
    """The loss of the prompt without a phrase, in which losses are told."""


@dataclass(frozen=True, eq=False)
class Denoising:
    """The denoising loss of pictures of the concept.

        E || eps(x_t, t, phrase + prompt) - eps ||^2

    with eps of the bare model, or of the defended sampler where the victim has a guidance, divided
    by the same without the phrase: the late steps of a run have forty times the loss of the early
    ones, and alone would choose.

    Sources:
        Zhang et al. 2024, UnlearnDiffAtk (arXiv 2310.11868), eq. 5; there without a defence.
    """

    victim: Victim
    pictures: object
    """`ConceptPictures`."""

    prompts: tuple[str, ...]
    """The prompt that belongs to each picture."""

    batch: int = 8
    """Phrases in one U-Net call."""

    unit = "U-Net evaluations"

    def draw(self, generator, count):
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
    def _measured(self, views):
        """Return (the views with the loss of their prompts alone, U-Net evaluations)."""
        found, cost = [], 0
        for view in views:
            out, asked = self.victim.predict([view.prompt], view.x_t, view.index)
            plain = max(float(_distance(out, view.target)), 1e-12)
            found.append(replace(view, plain=plain))
            cost += asked
        return found, cost

    @torch.no_grad()
    def losses(self, phrases, views):
        """Return (losses (B,), U-Net evaluations)."""
        total, cost = torch.zeros(len(phrases)), 0
        for view in views:
            texts = [joined(phrase, view.prompt) for phrase in phrases]
            found = []
            for first in range(0, len(texts), self.batch):
                some = texts[first : first + self.batch]
                out, asked = self.victim.predict(some, _repeated(view, some), view.index)
                found.append(_distance(out, view.target))
                cost += asked
            total += torch.cat(found).cpu() / view.plain
        return total / len(views), cost

    def gradient(self, vectors, views):
        """Return (gradients, U-Net evaluations); a backward pass counts as two forward ones."""
        leaves = [v.detach().clone().requires_grad_(True) for v in vectors]
        cost = 0
        for view in views:
            texts = [joined(HOLDER, view.prompt)]
            out, asked = self.victim.predict(texts, view.x_t, view.index, {HOLDER: tuple(leaves)})
            (_distance(out, view.target).mean() / view.plain / len(views)).backward()
            cost += 3 * asked
        return [leaf.grad for leaf in leaves], cost


def _repeated(view, texts):
    return view.x_t.repeat(len(texts), 1, 1, 1)


def _distance(out, target):
    return (out - target.to(out)).pow(2).flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class TextDistance:
    """How far a text's state is from that of the prompt with the concept's direction added.

        || f(phrase + prompt) - (f(prompt) + eta c) ||^2,   c = mean of f(with) - f(without)

    over pairs of texts with the concept and without it, f the state at the end of the text. No
    U-Net and no picture is needed, so the same phrases serve against every defence.

    Sources:
        Tsai et al. 2024, Ring-A-Bell (arXiv 2310.10012), eqs. 2-3. There the whole prompt is free
        and f is all of its states; here a phrase stands before a prompt and moves its tokens, so
        that states place by place would mostly say how many tokens there are.
    """

    parts: object
    prompts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    """Texts with the concept and without it."""

    strength: float = 3.0
    """eta."""

    unit = "text encodings"

    @cached_property
    def direction(self):
        """Return c of all states and of that at the end, (L, D) and (D,)."""
        having, lacking = (list(texts) for texts in zip(*self.pairs, strict=True))
        with torch.no_grad():
            whole = (encode(self.parts, t).states for t in (having, lacking))
            ends = (end_states(self.parts, t) for t in (having, lacking))
            return [(a - b).mean(0) for a, b in (whole, ends)]

    @torch.no_grad()
    def goal_states(self, prompt):
        """Return the text states that are aimed at, (1, L, D)."""
        return encode(self.parts, [prompt]).states + self.strength * self.direction[0]

    @torch.no_grad()
    def goal(self, prompt):
        """Return the state at the end of the text that is aimed at, (1, D)."""
        return end_states(self.parts, [prompt]) + self.strength * self.direction[1]

    def draw(self, generator, count):
        """Return prompts with their goals."""
        chosen = torch.randint(len(self.prompts), (count,), generator=generator).tolist()
        return [(self.prompts[i], self.goal(self.prompts[i])) for i in chosen], count

    @torch.no_grad()
    def losses(self, phrases, views):
        """Return (losses (B,), text encodings)."""
        total = torch.zeros(len(phrases))
        for prompt, goal in views:
            states = end_states(self.parts, [joined(phrase, prompt) for phrase in phrases])
            total += _distance(states, goal).cpu()
        return total / len(views), len(phrases) * len(views)

    def gradient(self, vectors, views):
        """Return (gradients, text encodings); a backward pass counts as two forward ones."""
        leaves = [v.detach().clone().requires_grad_(True) for v in vectors]
        for prompt, goal in views:
            texts = [joined(HOLDER, prompt)]
            states = end_states(self.parts, texts, {HOLDER: tuple(leaves)})
            (_distance(states, goal).mean() / len(views)).backward()
        return [leaf.grad for leaf in leaves], 3 * len(views)


def end_states(parts, texts, vectors=None):
    """Return the state at the end-of-text token of each text, (B, D)."""
    tokenizer = parts.tokenizers[0]
    counts = {trigger: len(v[0]) for trigger, v in (vectors or {}).items()}
    ids = tokenize(tokenizer, texts, counts).ids.tolist()
    states = encode(parts, texts, vectors).states
    return states[range(len(texts)), [closing(tokenizer, row) for row in ids]]


@dataclass(frozen=True, eq=False)
class MatchedPrediction(Denoising):
    """The defended prediction is to equal what the base would predict for the goal of the text.

        E || eps_defended(x_t, t, phrase + prompt) - eps_base(x_t, t, f(prompt) + eta c) ||^2

    both guided: `TextDistance` seen through a defence, as P4D matches predictions (Chin et al.
    2024, arXiv 2309.06135, eq. 3).
    """

    base: object = None
    """`DiffusionParts` of the model before unlearning."""

    text: TextDistance = None

    def draw(self, generator, count):
        """Return views whose target is the base's guided prediction for the goal."""
        views, cost = super().draw(generator, count)
        views, more = self._measured([self._aimed(view) for view in views])
        return views, cost + more + 2 * count

    @torch.no_grad()
    def _aimed(self, view):
        base = self.base
        t = self.victim.timesteps()[view.index].to(base.device)
        x_t = view.x_t.to(base.device, base.dtype)
        nothing = encode_nothing(base)
        plain = encode(base, [view.prompt])
        goal = replace(plain, states=self.text.goal_states(view.prompt))
        empty, aimed = (run_unet(base.unet, x_t, t, c) for c in (nothing, goal))
        scale = self.victim.sampler.guidance_scale
        target = self.victim.noise_of(classifier_free(empty, aimed, scale), x_t, view.index)
        return View(prompt=view.prompt, x_t=view.x_t, target=target, index=view.index)
