"""The coarse run of a batch from its first step, with the guidance of the undefended run.

`ine.guidance.coarse` has the steps; here they are asked of the U-Net. Shape letters: B pictures,
C latent channels, H W latent size.
"""

from dataclasses import dataclass

import torch

from ine.guidance.cfg import classifier_free
from ine.guidance.coarse import check_model, coarse_run, coarse_timesteps, signal_powers
from ine.guidance.protocol import Point, Prompts, QueryUNet, Step, UNetQuery
from ine.text.condition import Condition


@dataclass(frozen=True, kw_only=True)
class CoarseRun:
    """What a coarse run of a batch needs."""

    steps: int
    """k, coarse steps."""

    timestep: int
    """Noise level at which it ends, in [1, 998]."""

    scale: float
    """Guidance scale of the coarse steps."""

    plain: tuple[str, Condition]
    """What the undefended run has for its unconditional text, and its name among queries."""

    positive: Condition
    signal: torch.Tensor
    """Alpha-bar of every timestep that the model was trained on, (1000,)."""

    @classmethod
    def of(cls, prompts: Prompts, steps: int, timestep: int, scale: float | None) -> "CoarseRun":
        """Return the coarse run of a batch; a scale of None is the run's own.

        Raises:
            IneError: The model has few steps, or noise levels or predictions of another kind.
        """
        check_model(prompts.parts)
        return cls(
            steps=steps,
            timestep=timestep,
            scale=prompts.scale if scale is None else scale,
            plain=prompts.plain(),
            positive=prompts.positive(),
            signal=signal_powers(prompts.parts),
        )

    def end(self, step: Step, query_unet: QueryUNet) -> Step:
        """Return the place where the run from a first step ends, with all B pictures."""
        timesteps = coarse_timesteps(float(step.t), self.timestep, self.steps, len(self.signal))
        return coarse_run(
            step, timesteps, self.signal, lambda place, number: self.ask(place, number, query_unet)
        )

    def ask(self, place: Step, number: int, query_unet: QueryUNet) -> torch.Tensor:
        """Return the guided output at a place of the run, by its number, (B, C, H, W)."""
        # The first place is the run's own: its predictions are known already.
        at = Point(x_t=place.x_t, t=place.t) if number else None
        mark = f":ahead:{number}" if number else ""
        return plainly(query_unet, self.plain, self.positive, self.scale, at, mark)


def plainly(
    query_unet: QueryUNet,
    plain: tuple[str, Condition],
    positive: Condition,
    scale: float,
    at: Point | None = None,
    mark: str = "",
) -> torch.Tensor:
    """Return what plain guidance predicts, (B, C, H, W).

    Args:
        query_unet: Runs the U-Net.
        plain: (name, condition) of the unconditional text.
        positive: Of the prompts, B rows.
        scale: Guidance scale; without guidance, at 1, the prompts alone are asked.
        at: Where, if not at the step's own latents.
        mark: What tells these queries from others of the step.
    """
    name, condition = plain
    asked = [UNetQuery(f"positive{mark}", positive, None, at)]
    if scale != 1:
        # In the order of plain guidance.
        asked.insert(0, UNetQuery(f"{name}{mark}", condition, None, at))
    out = query_unet(asked)
    if scale == 1:
        return out[asked[0].name]
    return classifier_free(out[asked[0].name], out[asked[1].name], scale)
