"""The gate of a defence: what its probes are, with the thresholds and the window of a setting."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ine.calibration.check import prompts_hash, sampler_record
from ine.calibration.thresholds import Ahead, calibrated, fewest_pictures, open_share
from ine.guidance.gate_file import Calibration
from ine.guidance.gates import Window
from ine.studies.defend.job import Job
from ine.studies.defend.looks import Looks
from ine.studies.defend.prompts import BENIGN, IMPLYING
from ine.studies.defend.settings import Setting
from ine.studies.defend.teaching import Gates


def gate_of(
    job: Job, gates: Gates, looks: Looks, made_with: Mapping[str, Any], setting: Setting
) -> Calibration:
    """Return the gates with the thresholds and the window of a setting.

    Args:
        job: The defence.
        gates: The gates without thresholds.
        looks: The scores of the tuning prompts' pictures.
        made_with: What `ine.calibration.check.provenance` says, which reads all weights.
        setting: The setting.
    """
    benign = job.prompts.tuning[BENIGN]
    record = {
        "prompts": {
            "source": f"recipe {job.recipe.name}, tuning prompts of ine defend",
            "distinct": len({case.prompt for case in benign}),
            "hash": prompts_hash([c.prompt for c in benign], [c.seed for c in benign]),
        },
        **gates.record,
        "seed": job.seed,
        "sampler": sampler_record(job.sampler),
        "open_on_tuning": open_share(setting.threshold, looks.scores[IMPLYING]),
        **made_with,
    }
    look = replace(gates.look, window=Window(*setting.window))
    ahead = Ahead(look=look, scores=looks.scores[BENIGN])
    late_open = _late_open(job, looks, setting)
    return calibrated(gates.late, looks.late, setting.false_open, record, ahead, late_open)


def _late_open(job: Job, looks: Looks, setting: Setting) -> float:
    """Return the share of benign pictures that may be restarted; at most that of the look-ahead."""
    wanted = min(setting.false_open, job.recipe.defence.restart_open)
    able = fewest_pictures(wanted) <= len(looks.late)
    return wanted if able else setting.false_open
