"""What the look-ahead scores of the tuning prompts' pictures, kept so that no look is repeated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ine.calibration.scores import gate_scores
from ine.calibration.thresholds import fewest_pictures, threshold_for
from ine.errors import IneError
from ine.files import sha256_of, write_json
from ine.guidance.look_ahead import LookAhead
from ine.guidance.probe import ProbeGate
from ine.studies.cases import Case
from ine.studies.defend.job import Job
from ine.studies.defend.prompts import BENIGN
from ine.studies.defend.teaching import Gates
from ine.weights.fingerprint import exact_digest

LATE = "late"
"""Name of the benign pictures' scores at half a run."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """The scores of the tuning prompts' pictures."""

    scores: Mapping[str, Sequence[float]]
    """{set: one score per picture} of the look-ahead."""

    late: Sequence[float]
    """Scores of the benign pictures at half a run."""

    def thresholds(self, rates: Sequence[float]) -> dict[float, float]:
        """Return {share of benign pictures for which it may open: threshold}.

        Rates that need more benign pictures than there are give none.

        Raises:
            IneError: There are too few for any.
        """
        benign = self.scores[BENIGN]
        able = [rate for rate in rates if len(benign) >= fewest_pictures(rate)]
        if not able:
            needed = min(map(fewest_pictures, rates))
            raise IneError(
                f"{len(benign)} benign tuning pictures cannot tell any rate of defence.false_open; "
                f"at least {needed} are needed: --set defence.benign={needed}"
            )
        return {rate: threshold_for(benign, rate) for rate in able}


def look(job: Job, gates: Gates) -> Looks:
    """Return the scores of the tuning prompts' pictures, in the look-ahead and at half a run."""
    cases = job.prompts.tuning
    path, key = job.folder / "looks.json", _key(job, gates)
    known = _read(path, key)
    asked: dict[str, tuple[LookAhead | ProbeGate, Sequence[Case]]] = {
        name: (gates.look, own) for name, own in cases.items()
    }
    asked[LATE] = (gates.late, cases[BENIGN])
    done = sum(map(len, known.values()))
    with job.watch.bar(sum(len(own) for _, own in asked.values()), "looks ahead") as update:
        update(done)
        for name, (gate, own) in asked.items():
            if name in known:
                continue

            def advance(count: int, before: int = done) -> None:
                update(before + count)

            prompts, seeds = [c.prompt for c in own], [c.seed for c in own]
            known[name] = gate_scores(job.parts, prompts, seeds, gate, job.sampler, advance)
            done += len(own)
            write_json(path, {"key": key, "scores": known})
    return Looks(scores={name: known[name] for name in cases}, late=known[LATE])


def _key(job: Job, gates: Gates) -> str:
    """Return what the scores depend on."""
    (probe,), (late,) = gates.look.probes, gates.late.probes
    about = (probe.probe.digest, gates.look.steps, gates.look.timestep, gates.look.scale)
    wanted = [[(c.prompt, c.seed) for c in own] for own in job.prompts.tuning.values()]
    weights = exact_digest([job.parts.unet, *job.parts.text_encoders])
    depends = (about, late.digest, gates.late.queries, repr(job.sampler), wanted, weights)
    return sha256_of(repr(depends).encode())[:16]


def _read(path: Path, key: str) -> dict[str, list[float]]:
    """Return the scores that are there and of this key; a file of another kind has none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return dict(data["scores"]) if data["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
