"""Thresholds of gates from benign prompts, and the file that keeps them.

A gate that never opens watches benign pictures form; the threshold is the score that only the
wanted share of them exceeds. The record says how, on what and with which weights.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ine.embedding import ConceptEmbedding, fingerprints
from ine.errors import EmbeddingError, IneError, did_you_mean
from ine.files import JSON_LIMIT, check_free, parse_json, read_within, sha256_of, write_json
from ine.guidance.additive import Additive
from ine.guidance.gates import Gate, Gated, Presence, Window, query_steps
from ine.guidance.posterior import Belief, Posterior
from ine.guidance.recognition import Probe, Recognition
from ine.models.fingerprint import same_weights
from ine.runtime import library_versions

GATES = {"presence": Presence, "posterior": Posterior, "recognition": Recognition}
"""Name -> a gate with a threshold, whose notes hold its probes."""

SUFFIX = ".gate.json"


class _Enough(Exception):
    """Ends a run whose probes are done."""


@dataclass(frozen=True)
class _Watching:
    """A gate that keeps its session, so that its notes outlive a run that is cut short."""

    gate: Gate
    sessions: list = field(default_factory=list)

    def begin(self, prompts, negatives):
        self.sessions.append(self.gate.begin(prompts, negatives))
        return self.sessions[-1]


def never_opening(gate):
    """Return a gate that probes as the given one does and stays closed."""
    return replace(gate, threshold=math.inf)


def gate_scores(sample, parts, prompts, seeds, negative, gate, settings, progress=None):
    """Return the largest score that each picture's probes reach, undefended.

    A gate opens for a picture exactly where this exceeds its threshold: until then the picture
    is the undefended one. Runs end when the last probe is judged, early in the denoising.

    Args:
        sample: `ine.sampling.sample_latents`.
        parts: The model.
        prompts: Texts, one per picture.
        seeds: As many seeds.
        negative: What to look for, a `Negative` or `Matched`.
        gate: A gate of `GATES`; its threshold does not matter.
        settings: `SamplerSettings`.
        progress: Called with the number of pictures done.
    """
    found = []
    for first in range(0, len(prompts), settings.batch):
        cut = slice(first, first + settings.batch)
        watching = _Watching(never_opening(gate))
        # A method that asks about nothing of its own, and that no scale makes meaningless.
        guidance = Gated(Additive(negative, 0.0), watching)

        def stop(step):
            # A posterior judges what it probed one step later.
            if step.index > query_steps(gate.queries, step.count)[-1] + 1:
                raise _Enough

        with suppress(_Enough):
            sample(parts, prompts[cut], seeds[cut], guidance, settings, stop)
        for note in watching.sessions[-1].notes():
            scores = [score for _, _, score in note["gate"]["probes"]]
            if not scores:
                raise IneError(
                    f"{settings.steps} steps leave the gate no probe to judge; give more --steps"
                )
            found.append(max(scores))
        if progress:
            progress(len(found))
    return found


def fewest_pictures(false_open):
    """Return how many benign pictures a rate of false openings needs at least."""
    return math.ceil(1 / false_open - 1 - 1e-9)


def threshold_for(scores: Sequence[float], false_open: float):
    """Return the threshold that a fresh benign picture exceeds with at most this probability.

    The k-th largest of N scores with k = floor(rate (N + 1)): where pictures are exchangeable,
    a new one exceeds it with probability k / (N + 1) at most (split conformal prediction, Vovk
    et al. 2005). Of the N themselves at most k - 1 do.

    Args:
        scores: One number per benign picture.
        false_open: The wanted rate, in (0, 1).

    Raises:
        IneError: The rate is none, a score is not a number, or there are too few pictures.
    """
    if not 0 < false_open < 1:
        raise IneError(f"false-open rate {false_open:g}: give a share between 0 and 1, like 0.01")
    if any(math.isnan(s) for s in scores):
        raise IneError("a probe's score is NaN; the model or the embedding is broken")
    rank = math.floor(false_open * (len(scores) + 1) + 1e-9)
    if rank < 1:
        raise IneError(
            f"{len(scores)} benign pictures cannot tell a rate of {false_open:g}: at least "
            f"{fewest_pictures(false_open)} are needed; give more --pictures or a larger "
            "--false-open"
        )
    return sorted(scores, reverse=True)[rank - 1]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A gate with the record of how its threshold was found."""

    gate: Gate
    record: dict
    """All else in the file: "false_open", "embeddings", "sampler", fingerprints, ..."""


def calibrated(gate, scores, false_open, record=None):
    """Return the `Calibration` of a gate from the scores of benign pictures."""
    gate = replace(gate, threshold=threshold_for(scores, false_open))
    opened = sum(s > gate.threshold for s in scores)
    found = {
        "wanted": false_open,
        "measured": round(opened / len(scores), 6),
        "opened": opened,
        "pictures": len(scores),
    }
    return Calibration(gate=gate, record={"false_open": found, **(record or {})})


def open_share(gate, scores):
    """Return how many of these pictures a gate would open for, as a record."""
    opened = sum(s > gate.threshold for s in scores)
    share = round(opened / len(scores), 6)
    return {"share": share, "opened": opened, "pictures": len(scores)}


def provenance(parts, embeddings: Sequence[ConceptEmbedding], text="", several="join"):
    """Return what a record says about weights, vectors and libraries."""
    prints = fingerprints(parts)
    return {
        "embeddings": [{"trigger": e.trigger, "vectors": e.digest} for e in embeddings],
        "text": text,
        "several": several,
        "model": parts.name,
        "unet": parts.unet_name,
        "base_fingerprint": prints["ine.base_fingerprint"],
        "unet_fingerprint": prints["ine.unet_fingerprint"],
        "versions": library_versions(),
    }


def prompts_hash(prompts, seeds):
    """Return 16 hex digits of the prompts and seeds of a calibration, in order."""
    return sha256_of(json.dumps([list(prompts), list(seeds)]).encode())[:16]


def gate_path(embedding_files):
    """Return where a calibration goes by default: beside the first embedding, named by all."""
    paths = [Path(p) for p in embedding_files]
    return paths[0].with_name("+".join(p.stem for p in paths) + SUFFIX)


def write_calibration(calibration, path, force=False):
    """Write a calibration as JSON, atomically.

    Raises:
        OutputError: The file exists and `force` is not given, or it cannot be written.
    """
    check_free(path, force)
    gate = calibration.gate
    name = next(n for n, kind in GATES.items() if isinstance(gate, kind))
    settings = {
        "threshold": gate.threshold,
        "queries": list(gate.queries),
        "window": [gate.window.first, gate.window.last],
    }
    if isinstance(gate, Recognition):
        settings["concept"] = gate.concept
        settings["probes"] = [{"weight": p.weight.tolist(), "bias": p.bias} for p in gate.probes]
    else:
        settings["latch"] = gate.latch
    if isinstance(gate, Presence):
        settings["measure"] = gate.measure
    if isinstance(gate, Posterior):
        settings["belief"] = dict(vars(gate.belief))
    head = {"kind": "gate", "version": 1, "gate": name, "settings": settings}
    write_json(path, {**head, **calibration.record})


def read_gate(path) -> Gate:
    """Return the gate in a file that `ine calibrate` wrote; see `read_calibration`."""
    return read_calibration(path).gate


def read_calibration(path):
    """Return the `Calibration` in a file.

    Raises:
        IneError: It is missing, damaged, no gate, of a later version, or its settings are
            unknown or make no sense.
    """
    path = Path(path)
    try:
        data = parse_json(read_within(path, JSON_LIMIT))
    except FileNotFoundError as error:
        raise IneError(
            f"{path}: no such file; make it with: ine calibrate EMBEDDING --out {path}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise IneError(f"{path}: cannot be read as JSON ({error}); calibrate again") from error
    if not isinstance(data, dict) or data.get("kind") != "gate":
        raise IneError(f"{path}: is not a gate; give the {SUFFIX} file that ine calibrate wrote")
    if data.get("version") != 1:
        raise IneError(
            f"{path}: is of version {data.get('version')!r}, this ine reads 1; update ine, or "
            "calibrate again"
        )
    if str(data.get("gate")) not in GATES:
        hint = did_you_mean(data.get("gate"), GATES)
        raise IneError(
            f"{path}: gate {data.get('gate')!r} is unknown{hint}; known: {', '.join(GATES)}"
        )
    gate = _gate_of(path, GATES[data["gate"]], data.get("settings"))
    head = ("kind", "version", "gate", "settings")
    record = {k: v for k, v in data.items() if k not in head}
    _check_record(path, record)
    return Calibration(gate=gate, record=record)


def _check_record(path, record):
    """Refuse a record whose parts `check_calibrated` could not read."""
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
    }.items():
        if not good:
            raise IneError(f"{path}: its {name} are none that ine wrote; calibrate again")


def _is_number(text):
    with suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _gate_of(path, kind, settings):
    if not isinstance(settings, dict) or "threshold" not in settings:
        raise IneError(f"{path}: has no settings.threshold; calibrate again")
    unknown = set(settings) - set(kind.__dataclass_fields__)
    if unknown:
        name = sorted(unknown)[0]
        hint = did_you_mean(name, kind.__dataclass_fields__)
        raise IneError(f"{path}: settings.{name} is unknown{hint}; calibrate again")
    given = dict(settings)
    try:
        given["threshold"] = float(given["threshold"])
        if "queries" in given:
            given["queries"] = tuple(float(q) for q in given["queries"])
        if "window" in given:
            given["window"] = Window(*given["window"])
        if "belief" in given:
            given["belief"] = Belief(**given["belief"])
        if "probes" in given:
            given["probes"] = tuple(_probe_of(p) for p in given["probes"])
        return kind(**given)
    except IneError as error:
        raise IneError(f"{path}: {error}") from error
    # torch says RuntimeError of a number that is too large, Python OverflowError.
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise IneError(f"{path}: settings do not make a gate ({error}); calibrate again") from error


def _probe_of(data):
    weight = torch.tensor(data["weight"], dtype=torch.float32)
    if weight.dim() != 1 or not len(weight):
        raise ValueError(f"the weights of a probe are of shape {list(weight.shape)}")
    return Probe(weight, float(data["bias"]))


def check_calibrated(calibration, embeddings, parts, settings=None):
    """Return notes on how a run differs from the one that a gate was calibrated for.

    Args:
        calibration: From `read_calibration`.
        embeddings: Those of the negative, in any order.
        parts: The `DiffusionParts` it shall be used on.
        settings: `SamplerSettings` of the run.

    Returns:
        list[str]: Sentences for the log; empty where all is the same.

    Raises:
        EmbeddingError: The embeddings are others, and the gate looks at them: scores of one say
            nothing about another. A `Recognition` looks at the picture alone, so there it is a
            note.
    """
    record, notes = calibration.record, []
    made = {e["trigger"]: e["vectors"] for e in record.get("embeddings", [])}
    have = {e.trigger: e.digest for e in embeddings}
    if made and made != have:
        here = f"{', '.join(have) or 'none'}{'' if set(made) != set(have) else ' (other vectors)'}"
        if not isinstance(calibration.gate, Recognition):
            raise EmbeddingError(
                f"the gate was calibrated for the embeddings {', '.join(made)}, here are {here}; "
                "calibrate again with: ine calibrate EMBEDDING..."
            )
        notes.append(
            f"the gate was taught with the embeddings {', '.join(made)}, here are {here}; it looks "
            "at the picture and not at the negative, so its false-open rate is the same"
        )
    here = fingerprints(parts)["ine.unet_fingerprint"]
    if not same_weights(record.get("unet_fingerprint", ""), here):
        notes.append(
            f"the gate was calibrated on the U-Net {record.get('unet', 'not stated')!r}, here it "
            f"is used on {parts.unet_name!r}; its false-open rate has to be measured anew"
        )
    if settings is not None:
        now = sampler_record(settings)
        # Gates from before there was a clip skip do not state it.
        made_with = {"clip_skip": 1, **record["sampler"]} if record.get("sampler") else {}
        for name, value in made_with.items():
            if name in now and now[name] != value:
                notes.append(
                    f"the gate was calibrated with {name} {value}, here it is {now[name]}; its "
                    "false-open rate may differ"
                )
    return notes


def sampler_record(settings):
    """Return what of `SamplerSettings` decides the scores."""
    return {
        "scheduler": settings.scheduler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "clip_skip": settings.reading.clip_skip,
    }
