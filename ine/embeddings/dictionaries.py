"""Read embeddings in nested dictionaries, as torch files and A1111's pictures have them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ine.embeddings.content import Content
from ine.errors import EmbeddingError

if TYPE_CHECKING:
    import torch

KEPT = ("step", "sd_checkpoint", "sd_checkpoint_name")
"""Keys of an A1111 dictionary that are kept as metadata."""

MOST_IN_A_LIST = 16
"""Longest list of dictionaries; the vectors of more do not fit into a prompt."""


def content_of(path: Path, tree: object) -> Content:
    """Return the `Content` of what `torch.save` was given: a tensor or nested dictionaries.

    Args:
        path: For messages.
        tree: A tensor, a dictionary of tensors, A1111's dictionary, one with a `state_dict`, or
            ComfyUI's list of dictionaries. Tensors are torch's or numpy's.

    Raises:
        EmbeddingError: It is something else.
    """
    if _is_tensor(tree):
        tree = {"*": tree}
    if isinstance(tree, list | tuple):
        tree = _joined(path, tree)
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise EmbeddingError(f"{path}: holds a {kind}, not an embedding; expected named tensors")
    name, metadata, tensors = None, {}, tree
    vectors = tree.get("string_to_param")
    if isinstance(vectors, dict):
        tensors = vectors
        name = tree.get("name")
        name = name if isinstance(name, str) and name else None
        metadata = {k: str(tree[k]) for k in KEPT if _is_plain(tree.get(k))}
    elif isinstance(tree.get("state_dict"), dict):
        tensors = tree["state_dict"]
    tensors = {str(k): t for k, t in tensors.items() if _is_tensor(t)}
    shapes = {k: tuple(t.shape) if _is_floating(t) else None for k, t in tensors.items()}
    return Content(shapes, lambda key: _numbers(tensors[key]), name, metadata)


def _joined(path: Path, found: list[Any] | tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Return one dictionary for ComfyUI's list of dictionaries: vectors by width, in order.

    ComfyUI joins all tensors of an encoder's width, whatever their names.
    """
    tables = [part for part in found if isinstance(part, dict)]
    if len(tables) != len(found) or not 1 <= len(found) <= MOST_IN_A_LIST:
        kinds = sorted({type(part).__name__ for part in found}) or ["nothing"]
        raise EmbeddingError(
            f"{path}: holds a list, not an embedding ({len(found)} of {', '.join(kinds[:3])}); "
            f"expected 1 to {MOST_IN_A_LIST} dictionaries of named tensors"
        )
    rows: dict[int, list[np.ndarray]] = {}
    for tensor in (t for table in tables for t in table.values() if _is_tensor(t)):
        if _is_floating(tensor) and 1 <= len(tensor.shape) <= 2 and tensor.shape[-1]:
            numbers = _numbers(tensor)
            rows.setdefault(numbers.shape[-1], []).append(numbers.reshape(-1, numbers.shape[-1]))
    joined = {width: np.concatenate(parts) for width, parts in rows.items()}
    if set(joined) == {768, 1280}:
        return {"clip_l": joined[768], "clip_g": joined[1280]}
    if len(joined) == 1:
        return {"*": next(iter(joined.values()))}
    return {f"of width {width}": numbers for width, numbers in joined.items()}


def _is_tensor(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_floating(tensor: np.ndarray | torch.Tensor) -> bool:
    if isinstance(tensor, np.ndarray):
        return tensor.dtype.kind == "f"
    from ine.weights.torch_pickles import FLOATS

    return tensor.dtype in FLOATS.values()


def _numbers(tensor: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return the numbers of a tensor of torch or numpy, in a type that represents them exactly."""
    if isinstance(tensor, np.ndarray):
        return np.asarray(tensor)
    import torch

    wide = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(wide).contiguous().numpy()


def _is_plain(value: object) -> bool:
    """Return whether a value is a text or a number of usual size."""
    return isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63)
