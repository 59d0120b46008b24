"""The gates of a defence: the probes, and the pictures that they learned from."""

from dataclasses import dataclass
from typing import Any

import torch

from ine.calibration.gates import teach_gates
from ine.detectors.table import load_detector
from ine.embeddings.embedding import ConceptEmbedding
from ine.guidance.look_ahead import LookAhead
from ine.guidance.probe import ProbeGate
from ine.inversion.sources import concept_pictures, picture_key
from ine.recipe import ConceptRecipe
from ine.studies.defend.job import Job
from ine.studies.defend.prompts import BENIGN, implying_tuning


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The gates of a defence, without thresholds."""

    look: LookAhead
    late: ProbeGate
    """At half the run, the second chance of `--restart`."""

    record: dict[str, Any]
    """What their file states of the pictures that they learned from."""


def teach(job: Job, embedding: ConceptEmbedding) -> Gates:
    """Return the gates; pictures that they learned from in an earlier run are not drawn again."""
    count, done, latents = job.recipe.defence.examples, 0, _concept_latents(job)
    drawn = 2 * count if latents is not None else 3 * count
    with job.watch.bar(drawn, "pictures for the probe") as update:

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            update(done)

        (late, look), record = teach_gates(
            job.parts,
            _without_held_back(job),
            [embedding],
            job.sampler,
            folder=job.folder / "examples",
            count=count,
            seed=job.seed,
            ahead_steps=job.recipe.defence.look_ahead,
            latents=latents,
            implying=implying_tuning(job.recipe),
            progress=advance,
        )
    assert look is not None, "models of few steps were refused"
    return Gates(look=look, late=late, record=record)


def _concept_latents(job: Job) -> torch.Tensor | None:
    """Return the latents of the concept pictures, (N, C, H, W), None if none are learned from."""
    if job.recipe.defence.learn_from == "vectors":
        return None
    base, recipe, options = job.base, job.recipe, job.inversion
    key, detector = picture_key(base, recipe, options), load_detector(job.detector)
    pictures, _ = concept_pictures(base, recipe, options, detector, key, None)
    return pictures.mean


def _without_held_back(job: Job) -> ConceptRecipe:
    """Return the recipe with the benign prompts of the tuning half only."""
    recipe = job.recipe
    benign = tuple(dict.fromkeys(case.phrase for case in job.prompts.tuning[BENIGN]))
    nouns = recipe.prompt_nouns
    if not any(nouns) and recipe.tuning:
        nouns = recipe.tuning.nouns
    sets = {**recipe.prompt_sets, BENIGN: benign}
    return recipe.model_copy(update={"prompt_sets": sets, "prompt_nouns": nouns})
