"""What `ine unet show` says of a weights file: its facts as plain values, and as lines."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ine.cli.printing import printable

if TYPE_CHECKING:
    import torch

    from ine.models.parts import DiffusionParts
    from ine.models.stored import StoredParts
    from ine.weights.unlearned import AppliedWeights, UnlearnedWeights


BAR = 40
"""Width of the longest bar in characters."""


def describe(
    weights: "UnlearnedWeights",
    base: "DiffusionParts | StoredParts | None" = None,
    applied: "Mapping[str, torch.Tensor]" = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the facts of `UnlearnedWeights` as plain values for JSON.

    Args:
        weights: As read, or as compared if there is a base.
        base: The parts that it was compared with.
        applied: {name: tensor of the U-Net with the weights applied}.
    """
    from ine.weights.inspect import dtypes_of, family_of
    from ine.weights.lowrank import LowRank
    from ine.weights.unlearned import AppliedWeights

    values = [*weights.tensors.values(), *(weights.text_encoder or {}).values()]
    compared = weights if isinstance(weights, AppliedWeights) else None
    return {
        "file": str(weights.path),
        "layout": weights.layout,
        "family": base.family if base else family_of(weights) or None,
        "method": weights.method or None,
        "declared": "ine.method" in weights.metadata,
        "concept": weights.metadata.get("ine.concept"),
        "base": base.name if base else None,
        "whole": weights.whole,
        "tensors": _tensor_counts(weights, compared),
        "ranks": sorted({value.rank for value in values if isinstance(value, LowRank)}),
        "scales": sorted({value.scale for value in values if isinstance(value, LowRank)}),
        "notes": list(weights.notes),
        "parameters": sum(value.numel() for value in values),
        "dtypes": dtypes_of(weights),
        "metadata": dict(sorted(weights.metadata.items())),
        "change": _change(base, compared, applied) if base and compared else {},
    }


def _tensor_counts(
    weights: "UnlearnedWeights", compared: "AppliedWeights | None"
) -> dict[str, int | None]:
    """Return how many tensors there are and differ, None without a base."""
    return {
        "replaced": weights.replaced,
        "added": weights.added,
        "total": compared.total if compared else None,
        "differing": compared.changed if compared else None,
        "text_encoder": len(weights.text_encoder or {}),
        "text_encoder_differing": compared.encoder_changed if compared else None,
    }


def _change(
    base: "DiffusionParts | StoredParts",
    compared: "AppliedWeights",
    applied: "Mapping[str, torch.Tensor]",
) -> dict[str, dict[str, float]]:
    """Return {"block" or "kind": {name: how much it changed}}."""
    from ine.weights.inspect import block_of, grouped, kind_of, square_sums

    sums = square_sums(base.unet, applied, compared.differing)
    return {
        title: {name: float(f"{size:.4g}") for name, size in grouped(sums, group).items()}
        for title, group in (("block", block_of), ("kind", kind_of))
    }


def as_lines(facts: dict[str, Any]) -> list[str]:
    """Return the facts as lines for a person."""
    counts = facts["tensors"]
    source = "by its metadata" if facts["declared"] else "likely"
    rows = {
        "file": facts["file"],
        "layout": facts["layout"],
        "family": facts["family"] or "not clear from these tensors",
        "method": f"{facts['method']} ({source})" if facts["method"] else "not known",
        "concept": facts["concept"] or "not stated",
        "base": facts["base"] or "none to compare with; give --model",
        "whole": "a model by itself: --model takes it too" if facts["whole"] else "",
        "UNet": _counted(counts),
        "encoder": _encoders(counts, facts["base"]),
        "rank": ", ".join(map(str, facts["ranks"])),
        "scale": ", ".join(f"{scale:.4g}" for scale in facts["scales"]),
        "dtype": ", ".join(f"{n} x {name}" for name, n in facts["dtypes"].items()),
        "size": f"{facts['parameters']:,} parameters",
    }
    lines = [f"{name:<10}{printable(value)}" for name, value in rows.items() if value]
    lines += [f"{'note':<10}{printable(note)}" for note in facts["notes"]]
    lines += [f"{'metadata':<10}{printable(f'{k}: {v}')}" for k, v in facts["metadata"].items()]
    for title, sizes in facts["change"].items():
        lines += ["", f"change by {title}, |new - base| / |base|", *bars(sizes)]
    return lines


def _counted(counts: dict[str, int | None]) -> str:
    verbs = [(counts["replaced"], "replaced"), (counts["added"], "added to")]
    text = ", ".join(f"{n} {verb}" for n, verb in verbs if n) or "no tensors"
    if counts["differing"] is None:
        return text
    return f"{text}, of {counts['total']}; {counts['differing']} really differ"


def _encoders(counts: dict[str, int | None], base: str | None) -> str:
    if base:
        n = counts["text_encoder_differing"]
        return f"{n} tensors really differ" if n else ""
    return f"{counts['text_encoder']} tensors" if counts["text_encoder"] else ""


def bars(sizes: Mapping[str, float]) -> list[str]:
    """Return one line for each name: a bar in proportion to the largest size, and the size."""
    widest = max(map(len, sizes), default=0)
    most = max(sizes.values(), default=0) or 1
    return [
        f"{name:<{widest}}  {'#' * _length(size / most):<{BAR}}  {size:.4f}"
        for name, size in sizes.items()
    ]


def _length(share: float) -> int:
    """Return a bar's length, at least 1 for a share above zero."""
    return max(round(share * BAR), 1) if share > 0 else 0
