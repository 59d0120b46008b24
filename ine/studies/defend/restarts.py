"""What restarts add to a setting, on the tuning prompts.

A picture is restarted where the concept still shows at half the run, so what restarts do cannot be
read off pictures without them: these runs are made as `ine generate` makes them, with the gate of
the setting. Benign pictures for which neither the look-ahead nor the gate at half the run opens
are known to stay as they are, and are not made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ine.evaluation.grid import GridGuidance
from ine.guidance.gate_file import Calibration, gate_path, write_calibration
from ine.guidance.table import METHODS
from ine.studies.defend.job import Job
from ine.studies.defend.looks import Looks
from ine.studies.defend.outcomes import (
    EMBEDDING,
    Places,
    Plain,
    behind_gate,
    defended,
    embedding_of,
    names_objects,
    picked,
    run_in,
    sets_of,
)
from ine.studies.defend.prompts import BENIGN, IMPLYING
from ine.studies.defend.settings import Setting, Tried

ADDITIVE = "additive"
"""The guidance of a last resort."""

RESTARTED = "restarted-"
"""What the sets of pictures that may be restarted are called."""


def restarted(
    job: Job,
    looks: Looks,
    plain: Plain,
    best: Sequence[Tried],
    gate_of: Callable[[Setting], Calibration],
) -> Iterator[Tried]:
    """Yield what settings do with every ladder of restarts.

    Args:
        job: The defence.
        looks: The scores of the tuning prompts' pictures.
        plain: The undefended pictures.
        best: The settings; one whose strength is not set cannot be multiplied, and is left out.
        gate_of: Returns the gates with the thresholds and window of a setting.
    """
    settings = [
        setting
        for one in best
        if one.setting.strength is not None or not METHODS[one.setting.method].has_strength
        for setting in ladders_of(job, one.setting)
    ]
    if not settings:
        return
    gates = [gate_of(setting) for setting in settings]
    places = _places(looks, gates)
    cases = picked(job, places)
    file = job.grid(
        "restarted",
        sets_of(cases, job.folder, RESTARTED),
        [embedding_of(job)],
        [
            _entry(job, k, one, gate)
            for k, (one, gate) in enumerate(zip(settings, gates, strict=True))
        ],
        count=max(map(len, cases.values())),
        subject=names_objects(job),
    )
    result = run_in(job, file, "restarted")[1]
    for k, (setting, gate) in enumerate(zip(settings, gates, strict=True)):
        row = result.row(f"restart-{k}", setting.strength, EMBEDDING)
        outcome = defended(job, plain, result, row, places, RESTARTED)
        yield plain.tried(setting, outcome, float(opens_for(looks, gate).mean()))


def ladders_of(job: Job, setting: Setting) -> list[Setting]:
    """Return a setting with every way to restart that is tried with its guidance.

    Any guidance but additive has additive guidance as its last resort.
    """
    search = job.recipe.defence
    last = None if setting.method == ADDITIVE else search.last_resort
    return [replace(setting, restart=ladder, last=last) for ladder in search.restarts]


def is_whole(job: Job, setting: Setting) -> bool:
    """Return whether a setting has the last resort that a recipe wants for its guidance."""
    search = job.recipe.defence
    wanted = search.restarts and search.last_resort is not None and setting.method != ADDITIVE
    return setting.last is not None or not wanted


def _entry(job: Job, number: int, setting: Setting, gate: Calibration) -> GridGuidance:
    """Return a grid's entry of a setting; its gate is written into the work folder."""
    name = f"restart-{number}"
    path = gate_path([job.folder / f"{name}.safetensors"])
    write_calibration(gate, path, force=True)
    return behind_gate(setting, name, path)


def _places(looks: Looks, gates: Sequence[Calibration]) -> Places:
    """Return the places of the pictures that may be steered or restarted by any of the gates."""
    opens = np.any([opens_for(looks, gate) for gate in gates], axis=0)
    return {
        IMPLYING: np.arange(len(looks.scores[IMPLYING])),
        BENIGN: np.flatnonzero(opens),
    }


def opens_for(looks: Looks, gate: Calibration) -> np.ndarray:
    """Return for which benign pictures the look-ahead or the gate at half the run opens, (B,)."""
    assert gate.look_ahead is not None, "ine defend makes look-aheads"
    (probe,) = gate.look_ahead.probes
    ahead, late = np.array(looks.scores[BENIGN]), np.array(looks.late)
    return (ahead > probe.threshold) | (late > gate.gate.threshold)
