"""A base read from its files without building it, to compare weights with it.

Building a model takes seconds, and importing the libraries more; a comparison needs only its
tensors, their names and a few settings.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ine.errors import IneError, ModelError
from ine.families import family_of
from ine.models.folder import read_configuration
from ine.weights.source import ENCODER_FOLDERS, folder_state, read_json

UNET_DEFAULTS = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "center_input_sample": False,
    "cross_attention_dim": 1280,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
"""diffusers' defaults of settings that an old configuration leaves out."""


class Settings(dict[str, Any]):
    """A configuration whose settings can be read as attributes too."""

    def __getattr__(self, name: str) -> Any:
        """Return a setting."""
        if name in self:
            return self[name]
        raise AttributeError(name)


@dataclass(frozen=True)
class StoredModule:
    """A component of a pipeline folder: its configuration, and its tensors, read on first use."""

    folder: Path
    config: Settings

    @cached_property
    def _state(self) -> dict[str, torch.Tensor]:
        stored = folder_state(self.folder)
        return {
            name: tensor.float()
            for name, tensor in stored.items()
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return {name: floating-point tensor, in float32}, as a module of torch does."""
        return self._state


@dataclass(frozen=True, kw_only=True)
class StoredParts:
    """The part of `DiffusionParts` that a comparison with unlearned weights needs."""

    name: str
    unet: StoredModule
    text_encoders: tuple[StoredModule, ...]
    prediction_type: str

    @property
    def width(self) -> int:
        """Width of the text states that the U-Net reads."""
        return self.unet.config["cross_attention_dim"]

    @property
    def family(self) -> str:
        """Name of the family of the width."""
        return family_of(self.width).name


def stored_parts(name: str, folder: Path) -> StoredParts:
    """Return the parts of a pipeline folder without building them.

    Args:
        name: The user's name of the model.
        folder: Its folder.

    Raises:
        ModelError: A configuration is missing or damaged. Weights are read and checked later.
    """
    try:
        scheduler = read_json(folder / "scheduler", "scheduler_config.json")
        unet = UNET_DEFAULTS | read_configuration(folder / "unet")
        encoders = [
            StoredModule(folder / part, Settings(read_configuration(folder / part)))
            for part in ENCODER_FOLDERS
            if (folder / part / "config.json").is_file()
        ]
    except (IneError, ValueError, OSError) as error:
        raise ModelError(f"{name}: cannot be read ({error}); get the model again") from error
    return StoredParts(
        name=name,
        unet=StoredModule(folder / "unet", Settings(unet)),
        text_encoders=tuple(encoders),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
    )
