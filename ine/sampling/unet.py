"""Calls of the U-Net, with everything that a model's condition brings.

Shape letters: B pictures of a unit, C latent channels, H W latent size.
"""

from collections.abc import Sequence

import torch

from ine.guidance.step import UNetQuery, point_of
from ine.text.condition import Condition, join_conditions


def answer_queries(
    unet: torch.nn.Module, x_t: torch.Tensor, t: torch.Tensor, queries: Sequence[UNetQuery]
) -> dict[str, torch.Tensor]:
    """Return the U-Net's outputs for all queries of a step, by name, in one call.

    Args:
        unet: The U-Net.
        x_t: Latents of the batch as the U-Net sees them, (B, C, H, W).
        t: The timestep, a scalar.
        queries: What to run it on; where they name a place of their own, it is run there.
    """
    point = point_of(queries)
    if point is not None:
        x_t, t = point.x_t, point.t
    inputs = [x_t if q.pictures is None else x_t[list(q.pictures)] for q in queries]
    conditions = [q.condition.repeat(len(x)) for q, x in zip(queries, inputs, strict=True)]
    outputs = run_unet(unet, torch.cat(inputs), t, join_conditions(conditions))
    counts = [len(x) for x in inputs]
    return dict(zip([q.name for q in queries], outputs.split(counts), strict=True))


def run_unet(
    unet: torch.nn.Module, x_t: torch.Tensor, t: torch.Tensor, condition: Condition
) -> torch.Tensor:
    """Return the U-Net's output for latents and conditions of equal row count."""
    extra = None
    if condition.pooled is not None and condition.time_ids is not None:
        extra = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
    states = condition.states.to(x_t.dtype)
    if condition.inpainting_input is not None:
        x_t = torch.cat([x_t, condition.inpainting_input.to(x_t)], dim=1)
    return unet(
        x_t,
        t,
        encoder_hidden_states=states,
        timestep_cond=condition.timestep_cond,
        added_cond_kwargs=extra,
    ).sample
