"""Fingerprints of weights that survive a change of dtype.

A hash changes with one rounded bit, so a float16 copy of a float32 model would look foreign.
A fingerprint is a short list of numbers: evenly chosen weight matrices, each projected on a
fixed pattern of signs and divided by its norm. Rounding to bfloat16 moves such a number by
1.6e-3 (one standard deviation), to float16 by an eighth of that. An eraser that changes a matrix
by 2 % of its norm, which is little, moves it by 2e-2.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")

TENSORS = 16
TOLERANCE = 7e-3
PIECE = 2**20


def fingerprint(module: Any) -> str:
    """Return the fingerprint of a module's matrices, as text "v1:+0.123456,..."."""
    names = [n for n, p in module.state_dict().items() if p.dim() >= 2 and p.is_floating_point()]
    # Erasers change cross-attention, so half of the matrices come from there.
    attention = [n for n in names if "attn2.to_k" in n or "attn2.to_v" in n]
    chosen = spread(attention, TENSORS // 2) + spread(names, TENSORS // 2)
    state = module.state_dict()
    numbers = [projection(state[name]) for name in chosen]
    return "v1:" + ",".join(f"{x:+.6f}" for x in numbers)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` items, evenly spaced, first and last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def projection(tensor: torch.Tensor) -> float:
    """Return sum(signs * x) / |x| for a fixed pattern of signs; of the order of 1."""
    flat = tensor.detach().flatten()
    total, square, at = 0.0, 0.0, 0
    # In pieces: a token table in float64, with its positions, would take a gigabyte.
    for piece in flat.split(PIECE):
        piece = piece.double().cpu()
        # A hash of the position (splitmix64's mixing): the same everywhere, no generator involved.
        mixed = torch.arange(at, at + len(piece), dtype=torch.int64) * -7046029254386353131
        mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
        signs = ((mixed >> 33) & 1).double() * 2 - 1
        total += (piece @ signs).item()
        square += piece.square().sum().item()
        at += len(piece)
    return total / max(math.sqrt(square), 1e-12)


def same_weights(one: str | None, other: str | None) -> bool:
    """Return whether two fingerprints belong to the same weights, up to rounding."""
    if not one or not other or one[:3] != other[:3]:
        return False
    left, right = ([float(x) for x in text[3:].split(",")] for text in (one, other))
    return len(left) == len(right) and all(
        abs(a - b) <= TOLERANCE * max(1.0, abs(a)) for a, b in zip(left, right, strict=True)
    )


def exact_digest(modules: Iterable[Any]) -> str:
    """Return 16 hex digits that change with any bit of any weight, to check a resumed run."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
