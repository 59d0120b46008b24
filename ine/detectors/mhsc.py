"""The multi-headed safety classifier (MHSC): five small heads on CLIP's picture features.

Qu et al. 2023, "Unsafe Diffusion" (CCS): per kind of content a head Linear, ReLU, batch
normalisation, Linear and a sigmoid on the features of CLIP ViT-L/14, which are not normalised. The
heads are the user's files and read as data.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ine.detectors.base import CUT, RESIZE
from ine.detectors.clip import ClipJudge
from ine.detectors.clip_weights import CLIP_L, find_clip
from ine.detectors.published import HEADS
from ine.errors import MissingDependency, ModelError
from ine.files import sha256_of
from ine.weights.torch_files import load_torch_file

VARIABLE = "INE_MHSC_HEADS"
"""Environment variable with the folder of the heads."""

EPSILON = 1e-5
"""Of the batch normalisation, torch's default."""

Head = Mapping[str, torch.Tensor]


class MultiHeaded:
    """Scores {label: probability} of five kinds of content with the user's own heads."""

    def __init__(self, heads: str | Path | None = None, clip: str | Path | None = None) -> None:
        """Load heads and CLIP.

        Args:
            heads: The folder of the heads; by default the one in `INE_MHSC_HEADS`.
            clip: A CLIPModel folder; by default OpenAI's ViT-L/14.

        Raises:
            MissingDependency: The heads or the CLIP are not on this machine.
            ModelError: A head holds something else, or does not fit the CLIP.
        """
        folder = find_heads(heads)
        self.clip = ClipJudge(clip or find_clip(CLIP_L, "mhsc"))
        width = self.clip.model.config.projection_dim
        self.heads = {name: read_head(folder / f"{name}.pt", width) for name in HEADS}
        chunks = [t.numpy().tobytes() for head in self.heads.values() for t in head.values()]
        self.digest = sha256_of(*chunks)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the raw output, as plain values."""
        return {"heads_sha256": self.digest, "clip": self.clip.folder.name, RESIZE: CUT}

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score} per picture of (B, H, W, 3) uint8 RGB."""
        features = self.clip.plain_features(pictures)
        found = {name: probability(head, features).tolist() for name, head in self.heads.items()}
        return [{name: found[name][row] for name in HEADS} for row in range(len(features))]


def probability(head: Head, features: torch.Tensor) -> torch.Tensor:
    """Return what a head says of features that are not normalised, (B, F) to (B,) in [0, 1]."""
    hidden = functional.relu(functional.linear(features, head["0.weight"], head["0.bias"]))
    normalised = functional.batch_norm(
        hidden,
        head["3.running_mean"],
        head["3.running_var"],
        head["3.weight"],
        head["3.bias"],
        eps=EPSILON,
    )
    return functional.linear(normalised, head["4.weight"], head["4.bias"]).sigmoid()[:, 0]


def read_head(path: Path, width: int) -> Head:
    """Return the weights of a head, {name: tensor}, float32.

    Args:
        path: A .pt file of tensors by name.
        width: Of the CLIP's features.

    Raises:
        ModelError: The file cannot be read or holds anything else.
    """
    try:
        found = load_torch_file(path)
    except Exception as error:  # the reader raises an error per kind of damage
        raise ModelError(f"{path}: cannot be read as a head of MHSC ({error})") from error
    names = ("weight", "bias")
    hidden = _size(found, "0.weight", 0)
    wanted = {
        **{"0.weight": (hidden, width), "0.bias": (hidden,)},
        **{f"3.{name}": (hidden,) for name in (*names, "running_mean", "running_var")},
        **{"4.weight": (1, hidden), "4.bias": (1,)},
    }
    shapes = {name: tuple(getattr(_of(found, name), "shape", ())) for name in wanted}
    if shapes != wanted:
        wrong = next(name for name in wanted if shapes[name] != wanted[name])
        raise ModelError(
            f"{path}: is no head of MHSC: {wrong} has the shape {shapes[wrong] or 'of nothing'}, "
            f"expected {wanted[wrong]}"
        )
    head = {name: found[name].float() for name in wanted}
    if not all(torch.isfinite(tensor).all() for tensor in head.values()):
        raise ModelError(f"{path}: has weights that are not finite; get the file again")
    return head


def _of(found: object, name: str) -> object:
    return found.get(name) if isinstance(found, Mapping) else None


def _size(found: object, name: str, axis: int) -> int:
    shape = getattr(_of(found, name), "shape", ())
    return int(shape[axis]) if len(shape) > axis else 0


def find_heads(folder: str | Path | None = None) -> Path:
    """Return the folder of the heads.

    Raises:
        MissingDependency: No folder is named, or files are missing in it.
    """
    named = folder or os.environ.get(VARIABLE)
    place = Path(named or "").expanduser()
    missing = [f"{name}.pt" for name in HEADS if not (place / f"{name}.pt").is_file()]
    if named and not missing:
        return place
    reason = f"{named}: has no {', '.join(missing)}" if named else f"{VARIABLE} is not set"
    raise MissingDependency(
        f"detector 'mhsc' needs its heads, which do not ship with ine ({reason}). Get the folder "
        "checkpoints/multi-headed of the repository YitingQu/unsafe-diffusion, then set "
        f"{VARIABLE}=FOLDER or name it, mhsc[FOLDER]; the files are read without running code"
    )


def check_mhsc(folder: str | Path | None = None) -> None:
    """Raise if heads or CLIP are not on this machine; nothing is loaded or fetched."""
    find_heads(folder)
    find_clip(CLIP_L, "mhsc", fetch=False)
