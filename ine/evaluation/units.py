"""Units of a grid: pictures of one fixed shape that are made together, under one key.

A unit always has `sampler.batch` pictures; where a cell ends sooner, its own are repeated and what
was made of the repetitions is thrown away. So a unit's pixels do not depend on what else is made.
"""

import json
import math
from dataclasses import dataclass, replace

import torch

from ine.files import sha256_of
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.posterior import Dynamic
from ine.guidance.rewind import Rewind
from ine.guidance.safree import Safree
from ine.guidance.sld import SafeLatent
from ine.guidance.table import describe
from ine.models.fingerprint import exact_digest
from ine.runtime import library_versions
from ine.sampling import PictureRequest, SamplerSettings, decode_latents, sample_requests

PICTURE_VERSION = 1
"""Raised when the same key would stand for other pixels."""

FORGETFUL = ("_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype")
"""Entries of a configuration that decide no pixel."""


@dataclass(frozen=True, kw_only=True)
class UnitOfWork:
    """One unit, planned."""

    key: str
    model: str
    configuration: object
    """The `Configuration` that needs it first; its guidance makes it."""

    requests: tuple[PictureRequest, ...]
    places: tuple[int, ...]
    """Position of each picture among the items of its cell."""

    sampler: SamplerSettings
    size: tuple[int | None, int | None] = (None, None)


def model_digest(parts):
    """Return 64 hex digits of all in a model that can change a pixel: weights, settings, words."""
    weights = exact_digest([parts.unet, parts.vae, *parts.text_encoders])
    configs = [parts.unet.config, parts.vae.config, *(e.config for e in parts.text_encoders)]
    settings = [_plain(config) for config in configs]
    settings += [_plain(parts.scheduler_config), parts.zeros_for_nothing, parts.embedded_scale]
    words = [sorted(t.get_vocab().items()) for t in parts.tokenizers]
    lengths = [t.model_max_length for t in parts.tokenizers]
    about = json.dumps([weights, settings, words, lengths], sort_keys=True, default=str)
    return sha256_of(about.encode())


def _plain(config):
    data = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {k: v for k, v in data.items() if k not in FORGETFUL}


def unit_key(digest, guidance, sampler, requests, size=(None, None)):
    """Return the key of a unit, 64 hex digits.

    Args:
        digest: From `model_digest`.
        guidance: A `Guidance`, None for the undefended model.
        sampler: `SamplerSettings`; its batch is the unit's shape.
        requests: The pictures, without repetitions.
        size: Width and height in pixels where they are not the model's own.
    """
    about = {
        "version": PICTURE_VERSION,
        "model": digest,
        "guidance": describe(guidance),
        "sampler": repr(sampler),
        "requests": [_named(request) for request in requests],
        "size": list(size),
    }
    return sha256_of(json.dumps(about, sort_keys=True).encode())


def _named(request):
    """Return what names a request in a key; without embeddings as it was before there were any."""
    learned = [[e.trigger, e.digest] for e in request.embeddings]
    return [request.prompt, request.seed, *([learned] if learned else [])]


def plan_units(configuration, guidance, items, sampler, facts):
    """Return the units of a cell, in order; their `places` cover its items once.

    Args:
        configuration: The cell's `Configuration`.
        guidance: Its `Guidance`, or None.
        items: The cell's `Item`s.
        sampler: `SamplerSettings` of the model.
        facts: `ModelFacts`: its digest, and its own size.
    """
    groups = {}
    for place, item in enumerate(items):
        own = sampler if item.guidance is None else replace(sampler, guidance_scale=item.guidance)
        groups.setdefault((own, facts.other_size(item.size)), []).append(place)
    found = []
    for (own, size), places in groups.items():
        for first in range(0, len(places), own.batch):
            some = tuple(places[first : first + own.batch])
            requests = tuple(items[place].request for place in some)
            found.append(
                UnitOfWork(
                    key=unit_key(facts.digest, guidance, own, requests, size),
                    model=configuration.model,
                    configuration=configuration,
                    requests=requests,
                    places=some,
                    sampler=own,
                    size=size,
                )
            )
    return found


def make_unit(parts, guidance, unit):
    """Return (pictures (B, H, W, 3) uint8, notes, U-Net calls) of a unit, repetitions left out."""
    parts = parts.of_size(*unit.size)
    count, batch = len(unit.requests), unit.sampler.batch
    padded = [unit.requests[i % count] for i in range(batch)]
    latents, notes, calls = sample_requests(parts, padded, guidance, unit.sampler)
    return decode_latents(parts, latents)[:count], notes[:count], calls[:count]


def made_by(device):
    """Return what besides the key may move the last bits, as plain values."""
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else None
    name = torch.device(device).type
    return {"device": name, "threads": threads, "versions": library_versions()}


# --- what a picture costs


@dataclass(frozen=True)
class Cost:
    """U-Net evaluations of one picture."""

    calls: float
    exact: bool = True
    """Whether every picture takes as many; behind a gate it depends on the picture."""


def cost_of(guidance, scale, steps):
    """Return the `Cost` of a picture: conditions a step, times steps.

    Args:
        guidance: A `Guidance`, None for the undefended model.
        scale: Guidance scale.
        steps: Denoising steps.
    """
    if isinstance(guidance, Rewind):
        # At the least all is undefended; the looks of a posterior or presence gate cost too.
        return Cost(2 * steps, exact=False)
    if isinstance(guidance, Gated):
        inner = cost_of(guidance.guidance, scale, steps)
        if isinstance(guidance.gate, Window):
            return Cost(_windowed(guidance, inner.calls / steps, steps), exact=False)
        return Cost((2 * steps + inner.calls) / 2, exact=False)
    plain = 1 if scale == 1 and isinstance(guidance, ClassifierFree | None) else 2
    if guidance is None:
        return Cost(plain * steps)
    count = len(guidance.negative.candidates())
    extra = 0
    if count > 1:
        queries = math.ceil(steps / guidance.negative.every)
        needs_empty = isinstance(guidance, ClassifierFree | Safree)
        extra = queries * (count - 1 + needs_empty)
    if isinstance(guidance, Additive | Dynamic):
        return Cost(3 * steps + extra)
    if isinstance(guidance, SafeLatent):
        return Cost(3 * steps + extra, exact=not guidance.warmup)
    if isinstance(guidance, Safree):
        return Cost(2 * steps + extra, exact=guidance.reattention is None and count == 1)
    return Cost(plain * steps + extra)


def _windowed(guidance, inside, steps):
    count = sum(guidance.gate.first <= i / steps < guidance.gate.last for i in range(steps))
    # Inside, the plain pair is asked first and what it answers is not asked again.
    return 2 * steps + max(0, inside - 1) * count if inside <= 2 else 2 * steps + count
