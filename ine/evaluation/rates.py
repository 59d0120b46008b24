"""How long a U-Net evaluation takes, measured or kept from earlier runs."""

import json
import logging
import time
from pathlib import Path

import torch

from ine.errors import OutputError
from ine.evaluation.plan import Plan
from ine.files import write_json
from ine.guidance.protocol import Prompts

log = logging.getLogger("ine")


def _rates(plan: Plan) -> dict[str, float]:
    try:
        found = json.loads((Path(plan.store.folder) / "rates.json").read_text(encoding="utf-8"))
        return {k: float(v) for k, v in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _rate_key(plan: Plan, model: str) -> str:
    facts = plan.facts[model]
    assert facts is not None, "only a dry run goes on without a model"
    return f"{facts.family} {facts.width}x{facts.height} on {plan.shelf.device}"


def keep_rate(plan: Plan, seconds: float) -> None:
    """Keep what a U-Net evaluation took, for the next estimate; not worth an error."""
    keys = {_rate_key(plan, m) for m in plan.facts}
    if len(keys) == 1:
        try:
            write_json(Path(plan.store.folder) / "rates.json", _rates(plan) | {keys.pop(): seconds})
        except OutputError as error:
            log.warning("%s", error)


def rate_of(plan: Plan, model: str) -> float | None:
    """Return the seconds of a U-Net evaluation: stored, else measured on two; None without weights.

    A measured one leaves out the decoder and detectors.
    """
    if plan.facts[model] is None:
        return None
    stored = _rates(plan).get(_rate_key(plan, model))
    return measured_rate(plan, model) if stored is None else stored


@torch.no_grad()
def measured_rate(plan: Plan, model: str) -> float:
    """Return the seconds of a U-Net evaluation in a unit's batch, the faster of two."""
    from ine.sampling import make_scheduler, run_unet, start_noise

    parts, sampler = plan.shelf.parts(model), plan.sampler(model)
    rows = 2 * sampler.batch
    prompts = Prompts(parts=parts, texts=("",) * rows, scale=2.0)
    condition = prompts.positive()
    x = start_noise(parts.latent_shape, [0] * rows).to(parts.device, parts.dtype)
    scheduler = make_scheduler(sampler.scheduler, parts.scheduler_config, sampler.steps)
    found = []
    for _ in range(2):
        start = time.monotonic()
        run_unet(parts.unet, x, scheduler.timesteps[0].to(parts.device), condition).sum().item()
        found.append((time.monotonic() - start) / rows)
    return min(found)
