"""What a gate's file states of its making, and how a run differs from that."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ine.embeddings.embedding import ConceptEmbedding
from ine.embeddings.fit import fingerprints
from ine.errors import IneError
from ine.files import sha256_of
from ine.guidance.gate_file import Calibration
from ine.models.parts import DiffusionParts
from ine.runtime import library_versions
from ine.sampling import SamplerSettings
from ine.weights.fingerprint import same_weights

UNNAMED = "concept"
"""The concept of a gate that names none."""


def provenance(parts: DiffusionParts, embeddings: Sequence[ConceptEmbedding]) -> dict[str, Any]:
    """Return what a record says about weights, vectors and libraries."""
    prints = fingerprints(parts)
    return {
        "embeddings": [{"trigger": e.trigger, "vectors": e.digest} for e in embeddings],
        "model": parts.name,
        "unet": parts.unet_name,
        "base_fingerprint": prints["ine.base_fingerprint"],
        "unet_fingerprint": prints["ine.unet_fingerprint"],
        "text_width": parts.width,
        "versions": library_versions(),
    }


def prompts_hash(prompts: Sequence[str], seeds: Sequence[int]) -> str:
    """Return 16 hex digits of the prompts and seeds of a calibration, in order."""
    return sha256_of(json.dumps([list(prompts), list(seeds)]).encode())[:16]


def check_calibrated(
    calibration: Calibration,
    embeddings: Sequence[ConceptEmbedding],
    parts: DiffusionParts,
    settings: SamplerSettings | None = None,
) -> list[str]:
    """Return notes on how a run differs from the one that a gate was calibrated for.

    A gate looks at the picture alone, so other embeddings are a note and not an error.

    Args:
        calibration: From `read_calibration`.
        embeddings: Those of the negative, in any order.
        parts: The `DiffusionParts` it shall be used on.
        settings: `SamplerSettings` of the run.

    Returns:
        Sentences for the log; empty where all is the same.

    Raises:
        IneError: The gate was calibrated on a model with text states of another width, or it
            recognises another concept than the embeddings are of.
    """
    record = calibration.record
    if record.get("text_width", parts.width) != parts.width:
        raise IneError(
            f"the gate was calibrated on a model with text states of width {record['text_width']}, "
            f"{parts.name} has {parts.width}; calibrate one for this model: ine calibrate EMBEDDING"
        )
    _check_concept(calibration, embeddings)
    notes = _embedding_notes(record, embeddings)
    here = fingerprints(parts)["ine.unet_fingerprint"]
    if not same_weights(record.get("unet_fingerprint", ""), here):
        notes.append(
            f"the gate was calibrated on the U-Net {record.get('unet', 'not stated')!r}, here it "
            f"is used on {parts.unet_name!r}; its false-open rate has to be measured again"
        )
    return notes if settings is None else [*notes, *_sampler_notes(record, settings)]


def _check_concept(calibration: Calibration, embeddings: Sequence[ConceptEmbedding]) -> None:
    look, late = calibration.look_ahead, calibration.gate.concept
    known = {late} if look is None else {late, *(probe.concept for probe in look.probes)}
    # Files of other programs state no concept, and neither does a gate that is built by hand.
    stated = {e.concept for e in embeddings if e.concept != e.trigger}
    if late == UNNAMED or not embeddings or len(stated) < len({e.concept for e in embeddings}):
        return
    if not known & stated:
        raise IneError(
            f"the gate recognises {', '.join(sorted(known))}, and the negative is of "
            f"{', '.join(sorted(stated))}: it would not act where it is needed; give the gate of "
            "that concept, or make one: ine calibrate EMBEDDING"
        )


def _embedding_notes(
    record: Mapping[str, Any], embeddings: Sequence[ConceptEmbedding]
) -> list[str]:
    made = {e["trigger"]: e["vectors"] for e in record.get("embeddings", [])}
    have = {e.trigger: e.digest for e in embeddings}
    if not made or made == have:
        return []
    here = f"{', '.join(have) or 'none'}{'' if set(made) != set(have) else ' (other vectors)'}"
    return [
        f"the gate was taught with the embeddings {', '.join(made)}, here are {here}; it looks "
        "at the picture and not at the negative, so its false-open rate is the same"
    ]


def _sampler_notes(record: Mapping[str, Any], settings: SamplerSettings) -> list[str]:
    now = sampler_record(settings)
    # Gates from before there was a clip skip do not state it.
    made_with = {"clip_skip": 1, **record["sampler"]} if record.get("sampler") else {}
    return [
        f"the gate was calibrated with {name} {value}, here it is {now[name]}; its "
        "false-open rate may differ"
        for name, value in made_with.items()
        if name in now and now[name] != value
    ]


def sampler_record(settings: SamplerSettings) -> dict[str, str | int | float]:
    """Return what of `SamplerSettings` decides the scores."""
    return {
        "scheduler": settings.scheduler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "clip_skip": settings.reading.clip_skip,
    }
