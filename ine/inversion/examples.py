"""Teaching a gate with the unlearned model's own pictures: with the vectors as prompt, and without.

What an unlearned model draws when something reaches the concept is not what the base draws, and
the vectors are such a something: on the bundled model's tuning prompts, opening for one benign
picture in twenty, a probe taught by them misses .04 (UCE) and .10 (ESD) of the pictures that
burn, one taught by the base's pictures .10 and .26. Only activations are kept, never a picture.

Shape letters: N pictures, F features of a probe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from ine.errors import PicturesError
from ine.files import sha256_of, write_bytes
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import query_steps
from ine.guidance.negative import Negative
from ine.guidance.recognition import features_of, fit_probe, listening
from ine.inversion.concept import concept_requests
from ine.inversion.objective import noised
from ine.inversion.preview import WithVectors, choose
from ine.recipe import pairs
from ine.runtime import generator_for, seed_for
from ine.sampling import alpha_bar_at, decode_latents, make_scheduler, run_unet, sample_latents
from ine.text import LITERAL, encode_nothing

FEWEST = 32
"""Pictures of each kind without which a probe is not worth fitting."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Activations on pictures of one kind, and whether the concept is in them."""

    features: tuple[torch.Tensor, ...]
    """One (N, F) per noise level."""

    shown: torch.Tensor
    """(N,) bool: whether the rule found the concept."""


@torch.no_grad()
def noised_features(parts, latents, t, alpha_bar, generator, batch=32, reading=LITERAL):
    """Return features of clean latents at a noise level, (N, F).

    Args:
        parts: The `DiffusionParts` that are listened to.
        latents: Clean latents as the U-Net wants them, (N, C, H, W).
        t: The timestep, in [0, 999].
        alpha_bar: Its signal power, in (0, 1].
        generator: A CPU `torch.Generator`.
        batch: Rows per call.
        reading: How the text, which is none, is read.
    """
    noise = torch.randn(latents.shape, generator=generator)
    noisy = noised(latents, noise, torch.tensor(alpha_bar)).split(batch)
    empty = encode_nothing(parts, reading)
    found = []
    with listening(parts.unet) as heard:
        for rows in noisy:
            rows = rows.to(parts.device, parts.dtype)
            run_unet(parts.unet, rows, torch.tensor(t), empty.repeat(len(rows)))
            found.append(features_of(heard).cpu())
    return torch.cat(found)


def noise_levels(parts, settings, queries: Sequence[float]):
    """Return [(timestep, signal power), ...] of the queries in runs of these settings."""
    scheduler = make_scheduler(
        settings.scheduler, parts.scheduler_config, settings.steps, parts.device
    )
    count = len(scheduler.timesteps)
    steps = [query_steps((query,), count)[0] for query in queries]
    timesteps = scheduler.timesteps
    return [(float(timesteps[i]), float(alpha_bar_at(scheduler, i, timesteps[i]))) for i in steps]


def benign_templates(recipe):
    """Return the recipe's benign prompt templates, what an eraser shall preserve among them."""
    preserved = recipe.erase.preserve if recipe.erase else ()
    return tuple(dict.fromkeys((*recipe.prompt_sets.get("benign", ()), *preserved)))


def filled(recipe, templates, subjects):
    """Return every different prompt of templates and subjects, subjects fastest."""
    return list(dict.fromkeys(recipe.fill(t, s) for t, s in pairs(templates, subjects)))


def benign_prompts(recipe, count, seed):
    """Return `count` benign prompts of a recipe, templates and subjects spread evenly."""
    texts = filled(recipe, benign_templates(recipe), recipe.prompt_nouns)
    return choose(texts, count, seed, "examples", "absent")


def showing_prompts(recipe, trigger, count, seed):
    """Return `count` benign prompts of a recipe with the trigger in them.

    Before the subject where the concept is an attribute of one ("a {v} {noun}"), else as the
    subject.
    """
    named = bool(recipe.inversion.named_templates)
    subjects = [f"{trigger} {n}" if named else trigger for n in (recipe.prompt_nouns or ("",))]
    texts = filled(recipe, benign_templates(recipe), subjects)
    return choose(texts, count, seed, "examples", "shown")


def make_examples(
    parts,
    prompts,
    guidance,
    settings,
    queries,
    rule,
    detector,
    *,
    seed,
    kind,
    folder,
    key,
    told,
    drawer=None,
):
    """Return the `Examples` of prompts; units that are in `folder` are read back.

    Args:
        parts: The unlearned `DiffusionParts`.
        prompts: N texts.
        guidance: How they are drawn.
        settings: `SamplerSettings`.
        queries: Fractions of the run at whose noise levels features are taken.
        rule: What the concept is.
        detector: The rule's detector.
        seed: Where all randomness comes from.
        kind: "absent", or "shown" and by which vectors; told apart in seeds and files.
        folder: Where finished units go.
        key: All else that decides the features.
        told: Called with the number of pictures of every unit.
        drawer: Who draws them, where it is not `parts`.
    """
    levels = noise_levels(parts, settings, queries)
    units = []
    for first in range(0, len(prompts), settings.batch):
        texts = list(prompts[first : first + settings.batch])
        path = Path(folder) / f"{kind}-{first:06d}.safetensors"
        unit_key = sha256_of(key.encode(), repr((texts, seed, levels, settings)).encode())[:16]
        unit = _read(path, unit_key)
        if unit is None:
            seeds = [seed_for(seed, "examples", kind, first + i) % 2**32 for i in range(len(texts))]
            latents, _, _ = sample_latents(drawer or parts, texts, seeds, guidance, settings)
            shown = [rule.fires(scores) for scores in detector(decode_latents(parts, latents))]
            unit = {"shown": torch.tensor(shown)}
            for number, (t, alpha_bar) in enumerate(levels):
                noise = generator_for(seed, "examples", kind, first, number)
                unit[f"features.{number}"] = noised_features(
                    parts, latents.float().cpu(), t, alpha_bar, noise, reading=settings.reading
                )
            write_bytes(path, save(unit, {"key": unit_key}))
        units.append(unit)
        told(len(texts))
    return Examples(
        features=tuple(
            torch.cat([u[f"features.{number}"] for u in units]) for number in range(len(levels))
        ),
        shown=torch.cat([u["shown"] for u in units]),
    )


def _read(path, key):
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def teach_probes(
    parts,
    recipe,
    embeddings,
    settings,
    queries,
    rule,
    detector,
    *,
    count=512,
    seed=0,
    folder,
    key="",
    told=lambda pictures: None,
    base=None,
):
    """Return (probes, record): a `Probe` per query, and how many pictures of each kind taught them.

    Pictures with the vectors in the prompt count where the rule finds the concept, those
    without where it does not. A concept of many faces is not all in its vectors; what the base
    draws of it can be learned from too.

    Args:
        parts: The unlearned `DiffusionParts`.
        recipe: A `ConceptRecipe` with benign prompts.
        embeddings: The concept's `ConceptEmbedding`s for this model; each draws its part.
        settings: `SamplerSettings` of the runs that are to be watched.
        queries: Fractions of the run, one probe each.
        rule: What the concept is.
        detector: The rule's detector.
        count: Pictures drawn of each kind.
        seed: Where all randomness comes from.
        folder: Where finished units go.
        key: What the model is, for the units.
        told: Called with the number of pictures of every unit.
        base: The base model's parts, where its pictures of the concept count too.

    Raises:
        PicturesError: Too few pictures of a kind.
    """
    unwanted = Negative(recipe.pictures.negative_prompt)
    plain = ClassifierFree(unwanted)
    drawn = [("absent", benign_prompts(recipe, count, seed), plain, None)]
    for number, embedding in enumerate(embeddings):
        share = count // len(embeddings) + (number < count % len(embeddings))
        prompts = showing_prompts(recipe, embedding.trigger, share, seed)
        guidance = WithVectors(embedding.trigger, embedding.vectors, unwanted)
        drawn.append((f"shown-{embedding.trigger}", prompts, guidance, None))
    if base is not None:
        requests, _ = concept_requests(recipe, seed)
        prompts = choose([r.prompt for r in requests], count, seed, "examples", "base")
        drawn.append(("shown-base", prompts, plain, base))
    digests = ",".join(e.digest for e in embeddings)
    features, labels, record = [], [], {}
    for kind, prompts, guidance, drawer in drawn:
        found = make_examples(
            parts,
            prompts,
            guidance,
            settings,
            queries,
            rule,
            detector,
            seed=seed,
            kind=kind,
            folder=folder,
            key=f"{key}|{digests}|{rule.name}",
            told=told,
            drawer=drawer,
        )
        wanted = kind != "absent"
        keep = found.shown if wanted else ~found.shown
        record[kind] = {"drawn": len(keep), "kept": int(keep.sum())}
        features.append([f[keep] for f in found.features])
        labels.append(torch.full((int(keep.sum()),), wanted))
    _check_enough(record, recipe, rule)
    joined = [torch.cat(parts_of_one) for parts_of_one in zip(*features, strict=True)]
    return tuple(fit_probe(f, torch.cat(labels)) for f in joined), record


def _check_enough(record, recipe, rule):
    """Raise `PicturesError` where a kind is too small to learn from."""
    for what, kinds in (
        ("are free of", [k for k in record if k == "absent"]),
        ("show", [k for k in record if k != "absent"]),
    ):
        kept, drawn = (sum(record[k][n] for k in kinds) for n in ("kept", "drawn"))
        if kept < FEWEST:
            raise PicturesError(
                f"only {kept} of {drawn} pictures {what} {recipe.name} by rule {rule.name}, a "
                f"probe needs {FEWEST}; draw more with --examples, or look whether the embedding "
                "recovers the concept on this model"
            )
