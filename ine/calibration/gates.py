"""Both gates of a concept: a look-ahead, and one at half the run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ine.calibration.features import noise_levels
from ine.calibration.scores import gate_scores
from ine.calibration.teach import teach_probes
from ine.calibration.thresholds import Ahead, calibrated, open_share
from ine.detectors.rules import find_rule
from ine.detectors.table import load_detector
from ine.embeddings.embedding import ConceptEmbedding
from ine.embeddings.fit import fingerprints
from ine.guidance.gate_file import Calibration
from ine.guidance.look_ahead import STEPS, ConceptProbe, LookAhead
from ine.guidance.probe import QUERIES, ProbeGate
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.sampling import SamplerSettings

Gates = tuple[ProbeGate, LookAhead | None]
"""That at half the run and the look-ahead; models of few steps have only the first."""

Pictures = tuple[Sequence[str], Sequence[int]]
"""(prompts, seeds), one of each for a picture."""


def teach_gates(
    parts: DiffusionParts,
    recipe: ConceptRecipe,
    embeddings: Sequence[ConceptEmbedding],
    sampler: SamplerSettings,
    *,
    folder: Path,
    count: int = 512,
    seed: int = 0,
    ahead_steps: int = STEPS,
    base: DiffusionParts | None = None,
    latents: torch.Tensor | None = None,
    implying: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda pictures: None,
) -> tuple[Gates, dict[str, Any]]:
    """Return (gates without thresholds, what their file states about the examples).

    Args:
        parts: The unlearned model.
        recipe: The concept, with benign prompts.
        embeddings: The concept's embeddings for this model.
        sampler: Of the runs that the gates shall watch.
        folder: Where finished units of examples go.
        count: Pictures drawn of each kind.
        seed: Seed of all random numbers.
        ahead_steps: Coarse steps of the look-ahead.
        base: The base model, if its pictures of the concept count too.
        latents: Clean latents of pictures of the concept, to learn from in place of pictures
            that the vectors draw, (N, C, H, W).
        implying: Prompts that imply the concept, to learn from those of their pictures that show
            it; by default the recipe's tuning prompts.
        progress: Called with the number of pictures of every unit.
    """
    rule = find_rule(recipe.pictures.rule)
    taught = teach_probes(
        parts,
        recipe,
        embeddings,
        sampler,
        QUERIES,
        rule,
        load_detector(rule.detector),
        count=count,
        seed=seed,
        folder=folder,
        key=fingerprints(parts)["ine.unet_fingerprint"],
        progress=progress,
        base=base,
        latents=latents,
        implying=implying,
    )
    gate = ProbeGate(0.0, taught.late, QUERIES, recipe.name)
    look = None
    if not parts.few_steps:
        # At the same noise level, of noised pictures too: fitted on latents of the look-ahead
        # itself it told pictures of the concept from innocent ones no better (docs/guidance.md).
        asked = ConceptProbe(concept=recipe.name, probe=taught.ahead[0], threshold=0.0)
        level = round(noise_levels(parts, sampler, QUERIES)[0][0])
        look = LookAhead(probes=(asked,), steps=ahead_steps, timestep=level)
    return (gate, look), {"examples": {**taught.record, "rule": rule.name}}


def looks_at(gates: Gates, benign: Pictures, implying: Pictures) -> int:
    """Return how many pictures `calibrate_gates` makes, none of them to its end."""
    return len(benign[0]) * (1 if gates[1] is None else 2) + len(implying[0])


def calibrate_gates(
    parts: DiffusionParts,
    gates: Gates,
    sampler: SamplerSettings,
    benign: Pictures,
    implying: Pictures,
    false_open: float,
    record: Mapping[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Set the thresholds on benign pictures; record how often the gate opens on implying ones.

    Args:
        parts: The unlearned model.
        gates: From `teach_gates`.
        sampler: Of the runs that the gates shall watch.
        benign: Pictures that set the thresholds.
        implying: Pictures of prompts that imply the concept; may be none.
        false_open: Largest share of benign pictures for which a gate may open.
        record: What else the file shall state.
        progress: Called with the number of pictures done.
    """
    gate, look = gates
    done = 0

    def scores(one: ProbeGate | LookAhead, pictures: Pictures) -> list[float]:
        nonlocal done
        found = gate_scores(parts, *pictures, one, sampler, lambda n: progress(done + n))
        done += len(found)
        return found

    ahead = None if look is None else Ahead(look=look, scores=scores(look, benign))
    late, tuning = scores(gate, benign), scores(look or gate, implying)
    found = calibrated(gate, late, false_open, record, ahead)
    found.record["open_on_tuning"] = open_share(found.threshold, tuning) if tuning else None
    return found
