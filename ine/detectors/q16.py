"""Q16: whether a picture is inappropriate, by two learned prompts in CLIP's space.

Schramowski, Tauchmann and Kersting 2022 (FAccT), section 3: the softmax over 100 times the
cosines of the picture with the two prompts; the second stands for "inappropriate".
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ine.detectors.base import CUT, RESIZE
from ine.detectors.clip import ClipJudge
from ine.detectors.clip_weights import CLIP_B, CLIP_L, find_clip
from ine.detectors.q16_prompts import LABEL, read_q16_prompts
from ine.errors import MissingDependency, ModelError
from ine.files import sha256_of

VARIABLE = "INE_Q16_PROMPTS"
"""Environment variable with the path of the prompts file."""

SCALE = 100.0
CLIP_OF = {768: CLIP_L, 512: CLIP_B}
"""Width of the prompts -> the CLIP that they were learned with: ViT-L/14, or ViT-B/16 of the
paper's first variant."""


class Q16:
    """Scores {"inappropriate": probability} with the user's own prompts file."""

    def __init__(self, prompts: str | Path | None = None, clip: str | Path | None = None) -> None:
        """Load prompts and CLIP.

        Args:
            prompts: The prompts file; by default the one in `INE_Q16_PROMPTS`.
            clip: A CLIPModel folder; by default OpenAI's model for the prompts' width.

        Raises:
            MissingDependency: The prompts file or its CLIP is not on this machine.
            ModelError: The file holds something else, or does not fit the CLIP.
        """
        path = find_prompts(prompts)
        found = read_q16_prompts(path)
        self.prompts = functional.normalize(torch.from_numpy(found), dim=-1)
        self.digest = sha256_of(found.tobytes())
        self.clip = ClipJudge(clip or find_clip(CLIP_OF[found.shape[1]], "q16"))
        width = self.clip.model.config.projection_dim
        if width != found.shape[1]:
            raise ModelError(
                f"{path}: has prompts of width {found.shape[1]}, but {clip} gives features of "
                f"width {width}; give the CLIP that they were learned with, "
                f"{CLIP_OF[found.shape[1]]}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the raw output, as plain values."""
        return {"prompts_sha256": self.digest, "clip": self.clip.folder.name, RESIZE: CUT}

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Return unit CLIP features of pictures, (B, F) float32."""
        return self.clip.features(pictures)

    def scores_of(self, features: np.ndarray) -> list[dict[str, float]]:
        """Return {"inappropriate": score} per row of unit features, (B, F)."""
        logits = SCALE * torch.from_numpy(features) @ self.prompts.T
        return [{LABEL: score} for score in logits.softmax(1)[:, 1].tolist()]

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {"inappropriate": score} per picture of (B, H, W, 3) uint8 RGB."""
        return self.scores_of(self.features(pictures))


def find_prompts(path: str | Path | None = None) -> Path:
    """Return the path of the prompts file.

    Raises:
        MissingDependency: No file is named, or the named one does not exist.
    """
    named = path or os.environ.get(VARIABLE)
    if named and Path(named).expanduser().is_file():
        return Path(named).expanduser()
    reason = f"{named}: no such file" if named else f"{VARIABLE} is not set"
    raise MissingDependency(
        f"detector 'q16' needs its learned prompts, which do not ship with ine ({reason}). Get "
        "prompts.p of the variant ViT-L/14 from the folder data/ of the repository "
        f"ml-research/Q16 (MIT), then set {VARIABLE}=prompts.p or give --q16-prompts prompts.p; "
        "it is read without running code that a pickle may hold"
    )


def check_q16(path: str | Path | None = None) -> None:
    """Raise if prompts or CLIP are not on this machine; nothing is loaded or fetched."""
    width = read_q16_prompts(find_prompts(path)).shape[1]
    find_clip(CLIP_OF[width], "q16", fetch=False)
