"""From a recipe and an unlearned model to a defence: every stage resumes where it was left."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ine.calibration.check import provenance
from ine.detectors.table import Detector, load_detector
from ine.embeddings.embedding import ConceptEmbedding, read_embedding, write_embedding
from ine.errors import IneError, OutputError
from ine.evaluation.stats import Estimate
from ine.files import check_free, check_suffix, sha256_of, write_bytes, write_json
from ine.guidance.coarse import check_model
from ine.guidance.gate_file import write_calibration
from ine.guidance.gates import Window
from ine.guidance.recommended import PREFIX, Recommendation
from ine.guidance.table import METHODS
from ine.inversion.folder import remove_folder
from ine.inversion.run import picture_key, run_inversion, state_keys
from ine.inversion.steering import check_steering
from ine.studies.defend.gate import gate_of
from ine.studies.defend.job import Job
from ine.studies.defend.looks import look
from ine.studies.defend.prompts import BENIGN, IMPLYING
from ine.studies.defend.report import HeldBack, hold_back, write_defence_report
from ine.studies.defend.settings import Tried, Tuning, check_search
from ine.studies.defend.teaching import teach
from ine.studies.defend.tuning import tune

STAGES = ("invert", "learn the probe", "choose on tuning prompts", "measure on held-back prompts")


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What `ine defend` made."""

    embedding: Path
    gate: Path
    report: Path
    recommendation: Recommendation
    tuning: Tuning
    held_back: HeldBack
    figures: Mapping[str, str]
    """Header keys that hold figures, and their values."""


def run_defend(job: Job) -> Defence:
    """Make a defence: embedding, gate, and the report; finished parts are used as they are.

    Raises:
        IneError: Whatever a user can fix; that no setting preserves enough among it.
    """
    check_job(job)
    tell = job.watch.tell
    detector = load_detector(job.detector)
    tell(f"1/4 {STAGES[0]}")
    embedding = inverted(job, detector)
    tell(f"2/4 {STAGES[1]}")
    gates = teach(job, embedding)
    tell(f"3/4 {STAGES[2]}")
    looks = look(job, gates)
    gate_for = partial(gate_of, job, gates, looks, provenance(job.parts, [embedding]))
    tuning = tune(job, looks, gate_for)
    check_reached(job, tuning)
    chosen = tuning.chosen
    tell(f"    chosen: {chosen.setting}; on tuning prompts {_left(tuning)}")
    write_calibration(gate_for(chosen.setting), job.made_gate, force=True)
    tell(f"4/4 {STAGES[3]}")
    held_back = hold_back(job, chosen)
    recommendation = recommend(job, chosen)
    figures = figures_of(job, held_back)
    report = write_defence_report(job, embedding, tuning, held_back)
    # The gate first: an embedding never recommends a gate that is not beside it.
    write_bytes(job.gate, job.made_gate.read_bytes())
    about = {**embedding.metadata, **recommendation.metadata(), **figures}
    write_embedding(replace(embedding, metadata=about), job.out, force=job.force)
    if job.purge:
        purge(job)
    return Defence(
        embedding=job.out,
        gate=job.gate,
        report=report,
        recommendation=recommendation,
        tuning=tuning,
        held_back=held_back,
        figures=figures,
    )


def check_job(job: Job) -> None:
    """Raise `IneError` for what would be refused later, before any work."""
    check_suffix(job.out)
    check_free(job.out, job.force)
    check_model(job.parts)
    check_search(job.recipe.defence)
    check_steering(job.recipe.inversion)
    _ = job.prompts
    if job.gate.exists() and not job.force:
        made = job.made_gate
        if not made.exists() or made.read_bytes() != job.gate.read_bytes():
            raise OutputError(f"{job.gate}: exists already; give --force to replace it")


def inverted(job: Job, detector: Detector) -> ConceptEmbedding:
    """Return the embedding, inverted where the work folder does not have it."""
    recipe, file, options = job.recipe, job.made_embedding, job.inversion
    made = job.folder / "inverted.json"
    made_from = picture_key(job.base, recipe, options)
    key = " ".join(state_keys(job.parts, recipe, made_from, options.trigger))
    if file.exists() and _key_in(made) == key:
        return read_embedding(file)
    bar = job.watch.bar
    with (
        bar(recipe.pictures.count, "concept pictures") as pictures,
        bar(recipe.inversion.all_steps, "inversion") as steps,
    ):
        embedding, _, _ = run_inversion(
            job.base,
            job.parts,
            recipe,
            options,
            detector,
            on_pictures=lambda tried, kept, wanted: pictures(min(kept, wanted)),
            on_step=lambda progress: steps(progress.done),
        )
    write_json(made, {"key": key})
    return embedding


def _key_in(path: Path) -> str | None:
    """Return what the embedding in the work folder depends on; None if that is not known."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def purge(job: Job) -> None:
    """Remove the pictures and latents of the work folder, and what detectors saw in them.

    Raises:
        OutputError: The run folder of the inversion holds a file that no run puts there.
    """
    remove_folder(job.inversion.folder)
    for name in ("units", "readings", "examples"):
        if (job.folder / name).exists():
            shutil.rmtree(job.folder / name)


def check_reached(job: Job, tuning: Tuning) -> None:
    """Raise `IneError` where no setting keeps the targets, unless the closest is asked for."""
    if tuning.reached or job.below_target:
        return
    most, wanted = tuning.chosen, job.recipe.defence.subject
    able, subject = _rounded_down(most.kept.value), most.subject
    if subject is None or able < job.target:
        what = (
            f"a preservation of {job.target:g} on {most.kept.count} benign tuning pictures; the "
            f"most is {able:.3f}"
        )
        instead = f"give a --target-preservation of at most {able:.3f}"
    else:
        able = _rounded_down(subject.value)
        what = (
            f"the subject in {wanted:g} of {subject.count} tuning pictures with it; the most is "
            f"{able:.3f}"
        )
        instead = f"give --set defence.subject={able:.3f}"
    raise IneError(
        f"no setting keeps {what} ({most.setting}; {_left(tuning)}). Nothing was written but "
        f"{job.folder}: {instead}, or --below-target to recommend this setting"
    )


def _rounded_down(value: float) -> float:
    return math.floor(value * 1000) / 1000


def _left(tuning: Tuning) -> str:
    left, undefended = tuning.chosen.left, tuning.undefended
    return (
        f"{undefended.value:.3f} -> {left.value:.3f} of {left.count} pictures show the concept, "
        f"preservation {tuning.chosen.kept.value:.3f}{_kept_subject(tuning.chosen.subject)}"
    )


def _kept_subject(subject: Estimate | None) -> str:
    return "" if subject is None else f", subject {subject.value:.3f}"


def recommend(job: Job, chosen: Tried) -> Recommendation:
    """Return what the file recommends; the gate is in the work folder."""
    setting = chosen.setting
    return Recommendation(
        guidance=setting.method,
        strength=setting.strength,
        preset=METHODS[setting.method].compared,
        window=None if setting.window == (0, 1) else Window(*setting.window),
        look_ahead=job.recipe.defence.look_ahead,
        restart=setting.restart,
        last_strength=setting.last,
        gate_hash=sha256_of(job.made_gate.read_bytes())[:16],
    )


def figures_of(job: Job, held_back: HeldBack) -> dict[str, str]:
    """Return the header's figures, all of held-back prompts."""
    found: dict[str, Any] = {
        "left": held_back.left,
        **({"left_without_restart": held_back.without} if held_back.without else {}),
        "undefended": held_back.undefended,
        "preservation": held_back.kept,
        "measure": job.measure,
        "judge": held_back.judge,
        "rule": job.recipe.pictures.rule,
        "target_preservation": f"{job.target:g}",
        "held_back": f"{job.prompts.sources[IMPLYING]}; {job.prompts.sources[BENIGN]}",
    }
    return {PREFIX + key: _text(value) for key, value in found.items()}


def _text(value: Estimate | str) -> str:
    """Return a figure with N and its interval, ".018 (N 192, 95% .005 to .04)"."""
    if isinstance(value, str):
        return value
    return f"{value.value:.3f} (N {value.count}, 95% {value.low:.3f} to {value.high:.3f})"
