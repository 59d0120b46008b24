"""From the fields of a gate's file to its values; a wrong one is named."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ine.errors import IneError, did_you_mean
from ine.guidance.gates import Window
from ine.guidance.look_ahead import ConceptProbe, LookAhead
from ine.guidance.probe import Probe, ProbeGate

Weights = Callable[[Any], torch.Tensor]
"""Returns the weights of a probe, (F,), given what the JSON object has for them."""


def check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a record whose parts `ine.calibration.check` could not read."""
    made = record.get("embeddings", [])
    named = isinstance(made, list) and all(
        isinstance(e, dict) and all(isinstance(e.get(k), str) for k in ("trigger", "vectors"))
        for e in made
    )
    prints = record.get("unet_fingerprint", "")
    numbers = prints[3:].split(",") if isinstance(prints, str) and prints else []
    for name, good in {
        "embeddings": named,
        "sampler": isinstance(record.get("sampler", {}), dict),
        "unet_fingerprint": isinstance(prints, str) and all(map(_is_number, numbers)),
        "text_width": isinstance(record.get("text_width", 0), int),
    }.items():
        if not good:
            raise IneError(f"{path}: ine never wrote such {name}; calibrate again")


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(text))
    return False


def gate_of(path: Path, settings: object, weights: Weights) -> ProbeGate:
    """Return the gate at half the run of a file's `settings`; `IneError` where they make none."""
    if not isinstance(settings, dict) or "threshold" not in settings:
        raise IneError(f"{path}: has no settings.threshold; calibrate again")
    _check_names(path, "settings", settings, ProbeGate)

    def build() -> ProbeGate:
        given = {**settings, "threshold": float(settings["threshold"])}
        if "queries" in given:
            given["queries"] = tuple(float(q) for q in given["queries"])
        if "window" in given:
            given["window"] = Window(*given["window"])
        if "probes" in given:
            given["probes"] = tuple(_probe_of(p, weights) for p in given["probes"])
        return ProbeGate(**given)

    return _built(path, "settings do not make a gate", build)


def look_ahead_of(path: Path, given: object, weights: Weights) -> LookAhead:
    """Return the look-ahead of a file's `look_ahead`; `IneError` where it makes none."""
    if not isinstance(given, dict):
        raise IneError(f"{path}: its look_ahead is no object; calibrate again")
    _check_names(path, "look_ahead", given, LookAhead)

    def build() -> LookAhead:
        probes = tuple(
            ConceptProbe(
                concept=str(one["concept"]),
                probe=_probe_of(one, weights),
                threshold=float(one["threshold"]),
            )
            for one in given["probes"]
        )
        scale = given.get("scale")
        return LookAhead(
            probes=probes,
            steps=int(given["steps"]),
            timestep=int(given["timestep"]),
            scale=None if scale is None else float(scale),
            window=Window(*given["window"]),
        )

    return _built(path, "look_ahead does not make a gate", build)


def _check_names(path: Path, where: str, given: Mapping[str, Any], kind: type) -> None:
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    if unknown := sorted(set(given) - set(known)):
        hint = did_you_mean(unknown[0], known)
        raise IneError(f"{path}: {where}.{unknown[0]} is unknown{hint}; calibrate again")


def _built(path: Path, what: str, build: Callable[[], Any]) -> Any:
    """Return what `build` makes of a file's settings."""
    try:
        return build()
    except IneError as error:
        raise IneError(f"{path}: {error}") from error
    # torch says RuntimeError of a number that is too large, Python OverflowError.
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise IneError(f"{path}: {what} ({error}); calibrate again") from error


def _probe_of(data: Mapping[str, Any], weights: Weights) -> Probe:
    weight = weights(data["weight"])
    if weight.dim() != 1 or not len(weight) or weight.dtype != torch.float32:
        raise ValueError(f"the weights of a probe are {weight.dtype}, {list(weight.shape)}")
    return Probe(weight, float(data["bias"]))
