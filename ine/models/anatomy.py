"""Where in a UNet weights were changed, and by how much."""

import torch

from ine.models.families import family_of as family_of_width
from ine.models.fit import text_widths

KINDS = {
    ".attn2.": "cross-attention",
    ".attn1.": "self-attention",
    ".ff.": "feed-forward",
    ".resnets.": "resnets",
}


def block_of(name):
    """Return the block of a tensor by its name: "down_blocks.0", "mid_block", "conv_in", ..."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("down_blocks", "up_blocks") else parts[0]


def kind_of(name):
    """Return the kind of layer that a tensor belongs to; "other" for the rest."""
    return next((kind for part, kind in KINDS.items() if part in name), "other")


def change_sizes(base, laid, names, group):
    """Return {group: |W' - W| / |W|}, Frobenius norms over all tensors of the group.

    Args:
        base: A UNet.
        laid: The same UNet with other weights.
        names: Tensors that differ by more than rounding; only these count as changed.
        group: Function from a tensor's name to its group.

    Returns:
        Groups in the model's order; 0.0 where nothing changed.
    """
    before, after, names = base.state_dict(), laid.state_dict(), set(names)
    sums = {}
    for name, tensor in before.items():
        moved, whole = sums.get(group(name), (0.0, 0.0))
        ours = tensor.float()
        if name in names:
            moved += (after[name].float() - ours).square().sum(dtype=torch.float64).item()
        sums[group(name)] = (moved, whole + ours.square().sum(dtype=torch.float64).item())
    return {g: (moved / whole) ** 0.5 if whole else 0.0 for g, (moved, whole) in sums.items()}


def family_of(weights):
    """Return the family that a file's own tensors tell, or "" where they tell none."""
    widths = text_widths(weights.tensors)
    if not widths:
        tables = [
            tensor.shape[-1]
            for name, tensor in (weights.text_encoder or {}).items()
            if name.startswith("text_encoder.") and name.endswith("token_embedding.weight")
        ]
        widths = set(tables)
    return ", ".join(family_of_width(width).name for width in sorted(widths))


def dtypes_of(weights):
    """Return {dtype: number of tensors} of a file, UNet and text encoders together."""
    counts = {}
    for value in [*weights.tensors.values(), *(weights.text_encoder or {}).values()]:
        name = str(value.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + 1
    return counts
