"""Where in a UNet weights were changed, and by how much."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ine.families import family_of as family_of_width
from ine.weights.fit import text_widths
from ine.weights.unlearned import UnlearnedWeights

KINDS = {
    ".attn2.": "cross-attention",
    ".attn1.": "self-attention",
    ".ff.": "feed-forward",
    ".resnets.": "resnets",
}


def block_of(name: str) -> str:
    """Return the block of a tensor by its name: "down_blocks.0", "mid_block", "conv_in", ..."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("down_blocks", "up_blocks") else parts[0]


def kind_of(name: str) -> str:
    """Return the kind of layer that a tensor belongs to; "other" for the rest."""
    return next((kind for part, kind in KINDS.items() if part in name), "other")


def square_sums(
    base: Any, values: Mapping[str, torch.Tensor], names: Collection[str]
) -> dict[str, tuple[float, float]]:
    """Return {name: (sum of squares of W' - W, of W)} of all tensors, for `grouped`.

    Args:
        base: A UNet.
        values: {name: tensor} of the same UNet with other weights.
        names: Names of the tensors that differ by more than rounding; only these count.
    """
    names, sums = set(names), dict[str, tuple[float, float]]()
    for name, tensor in base.state_dict().items():
        ours, moved = tensor.float(), 0.0
        if name in names:
            moved = (values[name].float() - ours).square().sum(dtype=torch.float64).item()
        sums[name] = (moved, ours.square().sum(dtype=torch.float64).item())
    return sums


def grouped(
    sums: Mapping[str, tuple[float, float]], group: Callable[[str], str]
) -> dict[str, float]:
    """Return {group: |W' - W| / |W|} of `square_sums`, Frobenius norms over a group's tensors.

    Groups are in the model's order; 0.0 where nothing changed.
    """
    totals: dict[str, tuple[float, float]] = {}
    for name, (moved, whole) in sums.items():
        before = totals.get(group(name), (0.0, 0.0))
        totals[group(name)] = (before[0] + moved, before[1] + whole)
    return {g: (moved / whole) ** 0.5 if whole else 0.0 for g, (moved, whole) in totals.items()}


def family_of(weights: UnlearnedWeights) -> str:
    """Return the family that the shapes of a file's tensors show, or "" if they show none."""
    widths = text_widths(weights.tensors)
    if not widths:
        tables = [
            tensor.shape[-1]
            for name, tensor in (weights.text_encoder or {}).items()
            if name.startswith("text_encoder.") and name.endswith("token_embedding.weight")
        ]
        widths = set(tables)
    return ", ".join(family_of_width(width).name for width in sorted(widths))


def dtypes_of(weights: UnlearnedWeights) -> dict[str, int]:
    """Return {dtype: number of tensors} of a file, UNet and text encoders together."""
    counts: dict[str, int] = {}
    for value in [*weights.tensors.values(), *(weights.text_encoder or {}).values()]:
        name = str(value.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + 1
    return counts
