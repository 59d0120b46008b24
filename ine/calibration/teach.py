"""Train a gate's probe on pictures that the unlearned model draws with the vectors and without.

An unlearned model that is brought back to the concept draws it otherwise than the base does. On
the first bundled model a probe trained on pictures drawn with the vectors missed fewer of the
pictures that burn than one trained on the base's pictures, which cost nothing where an inversion
has made them already (docs/lab-log.md). Closest to what a gate has to find are the pictures that
the unlearned model itself draws of prompts that imply the concept. With those that show it, a
probe finds much more of phrases that it did not learn from (docs/lab-log.md). It also opens for
more innocent pictures of such prompts: right for a look-ahead, which decides what is steered, and
wrong for the look at half the run, which decides whether steering was enough. So there are two.

Shape letters: N pictures, F features of a probe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ine.calibration.examples import ExampleMaker, Examples, Kind
from ine.calibration.fit import fit_probe
from ine.calibration.prompts import benign_prompts, implying_prompts, showing_prompts
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.table import Detector
from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import PicturesError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe
from ine.inversion.concept import concept_requests
from ine.inversion.preview import WithVectors, choose
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.sampling import SamplerSettings

FEWEST = 32
"""Pictures of each kind that a probe needs at least."""

ABSENT = "absent"
"""Name of the kind without the concept."""

IMPLIED = "shown-implied"
"""Name of the kind that the unlearned model draws of prompts that imply the concept."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Probes, and what they learned from."""

    late: tuple[Probe, ...]
    """One per query, of pictures of the concept as such."""

    ahead: tuple[Probe, ...]
    """One per query, of those and of pictures whose prompts imply it: finds more, and is more often
    wrong about innocent pictures of such prompts."""

    record: dict[str, dict[str, int]]
    """{kind: {"drawn": N, "kept": N}} of the pictures that they learned from."""


def teach_probes(
    parts: DiffusionParts,
    recipe: ConceptRecipe,
    embeddings: Sequence[ConceptEmbedding],
    settings: SamplerSettings,
    queries: Sequence[float],
    rule: Rule | AnyOf,
    detector: Detector,
    *,
    count: int = 512,
    seed: int = 0,
    folder: Path,
    key: str = "",
    progress: Callable[[int], None] = lambda pictures: None,
    base: DiffusionParts | None = None,
    latents: torch.Tensor | None = None,
    implying: Sequence[str] | None = None,
) -> Taught:
    """Draw pictures, and return the probes that learned from them.

    Pictures with the vectors in the prompt count where the rule finds the concept, those
    without where it does not. The vectors need not hold every face of a concept, so the base
    model's pictures of it can be learned from too.

    Args:
        parts: The unlearned model.
        recipe: The concept, with benign prompts.
        embeddings: The concept's embeddings for this model; each draws its share.
        settings: Of the runs that the probe shall watch.
        queries: Fractions of the run, one probe each.
        rule: What the concept is.
        detector: The rule's detector.
        count: Pictures drawn of each kind.
        seed: Seed of all random numbers.
        folder: Where finished units go.
        key: Which model it is, for the units.
        progress: Called with the number of pictures of every unit.
        base: The base model, if its pictures of the concept count too.
        latents: Clean latents of pictures that show the concept, (N, C, H, W), from the first
            `count` of which it learns in place of those with the vectors.
        implying: Prompts that imply the concept; by default the recipe's tuning prompts.

    Raises:
        PicturesError: There are too few pictures of a kind, or the file of a unit is damaged.
    """
    digests = ",".join(e.digest for e in embeddings)
    maker = ExampleMaker(
        parts=parts,
        settings=settings,
        queries=queries,
        rule=rule,
        detector=detector,
        seed=seed,
        folder=folder,
        key=f"{key}|{digests}|{rule.name}",
        progress=progress,
    )
    implying = implying_prompts(recipe) if implying is None else implying
    drawn_with = embeddings if latents is None else ()
    kinds = _kinds(recipe, drawn_with, implying, count, seed, base)
    found = {kind.name: maker.examples(kind) for kind in kinds}
    if latents is not None:
        found["shown-given"] = maker.examples_of(latents[:count])
    return _taught(found, recipe, rule)


def _taught(found: Mapping[str, Examples], recipe: ConceptRecipe, rule: Rule | AnyOf) -> Taught:
    """Return the probes that learn from {kind: its examples}, of which it keeps those that fit."""
    keep = {n: own.shown if n != ABSENT else ~own.shown for n, own in found.items()}
    record = {n: {"drawn": len(k), "kept": int(k.sum())} for n, k in keep.items()}
    _check_enough(record, recipe, rule)
    shown = {name: [f[keep[name]] for f in own.features] for name, own in found.items()}
    late = _fitted({name: own for name, own in shown.items() if name != IMPLIED})
    ahead = _fitted(shown) if IMPLIED in shown and keep[IMPLIED].any() else late
    return Taught(late=late, ahead=ahead, record=record)


def _fitted(features: Mapping[str, Sequence[torch.Tensor]]) -> tuple[Probe, ...]:
    """Return a probe per noise level, of {kind: features (N, F) per level}."""
    labels = [torch.full((len(own[0]),), name != ABSENT) for name, own in features.items()]
    levels = zip(*features.values(), strict=True)
    return tuple(fit_probe(torch.cat(level), torch.cat(labels)) for level in levels)


def _kinds(
    recipe: ConceptRecipe,
    embeddings: Sequence[ConceptEmbedding],
    implying: Sequence[str],
    count: int,
    seed: int,
    base: DiffusionParts | None,
) -> list[Kind]:
    """Return the kinds: benign, of each embedding, of prompts that imply it, of the base."""
    unwanted = Negative(recipe.pictures.negative_prompt)
    plain = ClassifierFree(unwanted)
    kinds = [Kind(name=ABSENT, prompts=benign_prompts(recipe, count, seed), guidance=plain)]
    for number, embedding in enumerate(embeddings):
        share = count // len(embeddings) + (number < count % len(embeddings))
        kinds.append(
            Kind(
                name=f"shown-{embedding.trigger}",
                prompts=showing_prompts(recipe, embedding.trigger, share, seed),
                guidance=WithVectors(embedding.trigger, embedding.vectors, unwanted),
            )
        )
    if implying:
        texts = choose(implying, count, seed, "examples", "implied")
        kinds.append(Kind(name=IMPLIED, prompts=texts, guidance=ClassifierFree()))
    if base is not None:
        requests, _ = concept_requests(recipe, seed)
        prompts = choose([r.prompt for r in requests], count, seed, "examples", "base")
        kinds.append(Kind(name="shown-base", prompts=prompts, guidance=plain, drawer=base))
    return kinds


def _check_enough(
    record: dict[str, dict[str, int]], recipe: ConceptRecipe, rule: Rule | AnyOf
) -> None:
    """Raise `PicturesError` where a kind is too small to learn from."""
    for what, kinds in (
        ("are free of", [k for k in record if k == ABSENT]),
        ("show", [k for k in record if k not in (ABSENT, IMPLIED)]),
    ):
        kept, drawn = (sum(record[k][n] for k in kinds) for n in ("kept", "drawn"))
        if kept < FEWEST:
            raise PicturesError(
                f"only {kept} of {drawn} pictures {what} {recipe.name} by rule {rule.name}, a "
                f"probe needs {FEWEST}; draw more with --examples, or learn from the base model's "
                "pictures too with --base-examples: the embedding recovers the concept rarely here"
            )
