"""The file of a calibrated gate.

    NAME.gate.safetensors   the weights of its probes, and in the header, under "ine.gate", one JSON
                            object with all else
    NAME.gate.json          the same object with the weights in it; all files of version 1, which
                            know no look-ahead

The record says how probes and thresholds were found, on what and with which weights.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ine.errors import IneError, did_you_mean
from ine.files import JSON_LIMIT, atomic_path, check_free, parse_json, read_within, write_json
from ine.guidance.gate_fields import Weights, check_record, gate_of, look_ahead_of
from ine.guidance.look_ahead import LookAhead
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.protocol import Gate
from ine.weights.files import read_file, write_safetensors

NAME = "recognition"
"""What the files call the gate."""

REMOVED = ("presence", "posterior")
"""Gates of earlier versions; docs/lab-log.md says why they were removed."""

SUFFIX = ".gate.safetensors"
VERSIONS = (1, 2)
HEADER = "ine.gate"
HEAD = ("kind", "version", "gate", "settings", "look_ahead")
"""What is not part of the record."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A gate with the record of how its thresholds were found."""

    gate: ProbeGate
    """Looks at half the run: the second chance beside a look-ahead."""

    look_ahead: LookAhead | None = None
    """None in files of version 1."""

    record: dict[str, Any]
    """All else in the file: "false_open", "embeddings", "sampler", fingerprints, ..."""

    @property
    def default(self) -> LookAhead | ProbeGate:
        """The gate that decides about a picture: the look-ahead if there is one."""
        return self.look_ahead or self.gate

    @property
    def threshold(self) -> float:
        """That of `default`; of its first concept where there are several."""
        look = self.look_ahead
        return self.gate.threshold if look is None else look.probes[0].threshold


def gate_path(embedding_files: Sequence[Path | str]) -> Path:
    """Return where a calibration goes by default: beside the first embedding, named by all."""
    paths = [Path(p) for p in embedding_files]
    return paths[0].with_name("+".join(p.stem for p in paths) + SUFFIX)


def write_calibration(calibration: Calibration, path: Path | str, force: bool = False) -> None:
    """Write a calibration atomically: as JSON if the name ends in .json, else as safetensors.

    Raises:
        OutputError: The file exists and `force` is not given, or it cannot be written.
    """
    check_free(path, force)
    if Path(path).suffix == ".json":
        write_json(path, _document(calibration, lambda _name, probe: probe.weight.tolist()))
        return
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, probe: Probe) -> str:
        tensors[name] = probe.weight
        return name

    header = {HEADER: json.dumps(_document(calibration, keep), ensure_ascii=False)}
    with atomic_path(path) as part, part.open("wb") as file:
        write_safetensors(file, tensors, header)


def check_gate_path(path: Path | str) -> None:
    """Raise `IneError` for a name that is neither *.safetensors nor *.json."""
    if Path(path).suffix not in (".safetensors", ".json"):
        raise IneError(f"{path}: the file of a gate ends in {SUFFIX} (or .gate.json)")


def summary(calibration: Calibration) -> dict[str, Any]:
    """Return what the file says, with a digest in the place of every probe's weights."""
    return _document(calibration, lambda _name, probe: probe.digest)


def _document(calibration: Calibration, weight_of: Callable[[str, Probe], Any]) -> dict[str, Any]:
    """Return the JSON object of a calibration; `weight_of(name, probe)` stands for the weights."""
    gate, look = calibration.gate, calibration.look_ahead
    settings = {
        "threshold": gate.threshold,
        "queries": list(gate.queries),
        "window": [gate.window.first, gate.window.last],
        "concept": gate.concept,
        "probes": [
            {"weight": weight_of(f"half.{i}.weight", p), "bias": p.bias}
            for i, p in enumerate(gate.probes)
        ],
    }
    head = {"kind": "gate", "version": 1, "gate": NAME, "settings": settings}
    if look is not None:
        head["version"] = 2
        head["look_ahead"] = {
            "steps": look.steps,
            "timestep": look.timestep,
            "scale": look.scale,
            "window": [look.window.first, look.window.last],
            "probes": [
                {
                    "concept": p.concept,
                    "threshold": p.threshold,
                    "weight": weight_of(f"look_ahead.{i}.weight", p.probe),
                    "bias": p.probe.bias,
                }
                for i, p in enumerate(look.probes)
            ],
        }
    return {**head, **calibration.record}


def read_gate(path: Path | str) -> Gate:
    """Return the gate in a file that `ine calibrate` wrote; see `Calibration.default`."""
    return read_calibration(path).default


def read_calibration(path: Path | str) -> Calibration:
    """Return the `Calibration` in a file.

    Raises:
        IneError: It is missing, damaged, no gate, of a later version, or its settings are
            unknown or make no sense.
    """
    path = Path(path)
    data, weights = _opened(path)
    if not isinstance(data, dict) or data.get("kind") != "gate":
        raise IneError(f"{path}: is not a gate; give the {SUFFIX} file that ine calibrate wrote")
    if data.get("version") not in VERSIONS:
        raise IneError(
            f"{path}: is of version {data.get('version')!r}, this ine reads 1 and 2; update ine, "
            "or calibrate again"
        )
    if data.get("gate") in REMOVED:
        raise IneError(
            f"{path}: gate {data['gate']!r} was removed because the probe gate is better in every "
            f"figure (docs/guidance.md); make one with: ine calibrate EMBEDDING --out {path}"
        )
    if data.get("gate") != NAME:
        hint = did_you_mean(str(data.get("gate")), (NAME,))
        raise IneError(f"{path}: gate {data.get('gate')!r} is unknown{hint}; known: {NAME}")
    gate = gate_of(path, data.get("settings"), weights)
    look = data.get("look_ahead")
    record = {k: v for k, v in data.items() if k not in HEAD}
    check_record(path, record)
    ahead = None if look is None else look_ahead_of(path, look, weights)
    return Calibration(gate=gate, look_ahead=ahead, record=record)


def _opened(path: Path) -> tuple[Any, Weights]:
    """Return (the JSON object of a file, what finds the weights of its probes)."""
    try:
        if path.suffix == ".safetensors" and path.is_file():
            tensors, metadata = read_file(path)
            return parse_json(metadata.get(HEADER, "null")), lambda name: tensors[name]
        data = parse_json(read_within(path, JSON_LIMIT))
    except FileNotFoundError as error:
        raise IneError(
            f"{path}: no such file; make it with: ine calibrate EMBEDDING --out {path}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise IneError(f"{path}: cannot be read as JSON ({error}); calibrate again") from error
    return data, lambda numbers: torch.tensor(numbers, dtype=torch.float32)
