"""Previews: what the vectors of a moment do, as a prompt and as a negative."""

from dataclasses import dataclass, replace

import numpy as np

from ine.embedding import new_embedding
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.inversion.concept import share_with
from ine.inversion.invert import Preview
from ine.recipe import pairs
from ine.runtime import seed_for
from ine.sampling import PictureRequest, SamplerSettings, generate


@dataclass(frozen=True)
class WithVectors:
    """Prompts that hold a trigger, encoded with its vectors; the negative stays as it is."""

    trigger: str
    vectors: tuple
    negative: Negative

    def begin(self, prompts):
        """Begin plain guidance with the vectors in the prompts."""
        learned = replace(prompts, vectors={self.trigger: self.vectors})
        return ClassifierFree(self.negative).begin(learned)


def choose(options, count, *seed):
    """Return `count` of the options, spread by a fixed shuffle, repeated where there are fewer."""
    order = sorted(range(len(options)), key=lambda i: seed_for(*seed, i))
    return [options[order[i % len(order)]] for i in range(count)]


def reviving_prompts(recipe, trigger, count, seed):
    """Return `count` pairs (prompt with a trigger, noun), captions and nouns spread evenly."""
    spec = recipe.inversion
    named = bool(spec.named_templates) and any(recipe.pictures.nouns)
    templates = spec.named_templates if named else spec.templates
    nouns = recipe.pictures.nouns if named else ("",)
    found = []
    for template, noun in choose(pairs(templates, nouns), count, seed, "recovery"):
        text = template.replace("{noun}", "{}").replace("{v}", "\0")
        found.append((recipe.fill(text, noun).replace("\0", trigger), noun))
    return found


def revive(parts, recipe, vectors, trigger, count, settings, seed, negative=None):
    """Return pictures of the vectors as the prompt, (count, H, W, 3) uint8.

    For measuring whether inversion works; an embedding of a real harm used so revives it.
    """
    prompts = [text for text, _ in reviving_prompts(recipe, trigger, count, seed)]
    guidance = WithVectors(trigger, tuple(vectors), negative or Negative())
    seeds = [seed_for(seed, "recovery", i) for i in range(count)]
    return in_units(parts, prompts, seeds, guidance, settings)


def in_units(parts, prompts, seeds, guidance, settings):
    """Return pictures of prompts, made in units of `settings.batch`, (B, H, W, 3) uint8."""
    wanted = zip(prompts, seeds, strict=True)
    requests = [PictureRequest(prompt=prompt, seed=seed) for prompt, seed in wanted]
    units = generate(parts, requests, guidance, settings)
    return np.concatenate([unit.pictures for unit in units])


def make_preview(parts, recipe, rule, detector, trigger, seed):
    """Return the `preview` function of `invert` for a recipe.

    Recovery: vectors as the prompt. Defence: vectors as the negative of plain guidance on the
    recipe's tuning prompts, same prompts and seeds every time, against no negative at all.
    """
    count = recipe.inversion.preview_pictures
    tuning = recipe.tuning
    settings = SamplerSettings(
        steps=tuning.steps if tuning else 20,
        guidance_scale=tuning.guidance_scale if tuning else recipe.pictures.guidance_scale,
        batch=recipe.pictures.batch,
    )
    prompts, seeds = [], []
    if tuning:
        chosen = choose(pairs(tuning.prompts, tuning.nouns), count, seed, "tuning")
        prompts = [recipe.fill(template, noun) for template, noun in chosen]
        seeds = [seed_for(seed, "tuning", i) for i in range(count)]

    # What recipes about people never want to see is kept away here too.
    unwanted = recipe.pictures.negative_prompt

    def share(pictures):
        return share_with(rule, detector, pictures)

    undefended = None

    def preview(vectors, step):
        nonlocal undefended
        recovery = share(
            revive(
                parts, recipe, vectors, trigger, count, settings, seed, negative=Negative(unwanted)
            )
        )
        left = None
        if tuning:
            if undefended is None:
                plain = ClassifierFree(Negative(unwanted))
                undefended = share(in_units(parts, prompts, seeds, plain, settings))
            embedding = new_embedding(tuple(vectors), trigger, recipe.name)
            guidance = ClassifierFree(Negative(unwanted, (embedding,)))
            left = share(in_units(parts, prompts, seeds, guidance, settings))
        return Preview(step=step, recovery=recovery, left=left, undefended=undefended)

    return preview
