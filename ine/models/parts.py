"""The components of a text-to-image pipeline, loaded once and never changed."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ine.errors import ModelError
from ine.families import Family, family_of
from ine.files import JSON_LIMIT, parse_json, read_within, user_path
from ine.models.few_steps import FewSteps, few_steps_of
from ine.weights.hub import SETTINGS, snapshot

MINI = "mini"
MINI_FOLDER = Path(__file__).parent / "mini"


@dataclass(frozen=True, kw_only=True)
class DiffusionParts:
    """The components of a text-to-image model. Text encoders are tuples: SDXL has two."""

    name: str
    """The name given by the user: "mini", a hub id, a folder, or a file."""

    tokenizers: tuple[Any, ...]
    text_encoders: tuple[nn.Module, ...]
    unet: nn.Module
    vae: nn.Module
    scheduler_config: dict[str, Any]
    """The pipeline's own scheduler configuration; `ine.sampling.SCHEDULERS` build from it."""

    unet_name: str = "base"
    """ "base", or the weights applied to it (file name and method)."""

    zeros_for_nothing: bool = False
    """Whether zeros stand for the empty text (SDXL); other models encode the empty text."""

    embedded_scale: float = 8.5
    """Guidance scale that is an input of an LCM's U-Net; other models ignore it."""

    inpainting_input: torch.Tensor | None = None
    """Input of an inpainting U-Net beside the latents, (C', H, W), see `ine.models.inpainting`;
    None for other models."""

    latent_size: tuple[int, int] | None = None
    """Height and width of latents if not the model's default, see `of_size`."""

    @property
    def width(self) -> int:
        """Width of the text states that the U-Net reads (128 mini, 768 SD 1.x, 1024 SD 2.x)."""
        return self.unet.config.cross_attention_dim

    @property
    def family_info(self) -> Family:
        """Return the `Family` of the width."""
        return family_of(self.width)

    @property
    def family(self) -> str:
        """Return "mini", "sd1", "sd2", "sdxl", or "width-N" for anything else."""
        return self.family_info.name

    @property
    def prediction_type(self) -> str:
        """Return "epsilon" or "v_prediction"."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def device(self) -> torch.device:
        """Device of the U-Net."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the U-Net."""
        return next(self.unet.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent, (C, H, W)."""
        size = self.latent_size or self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        # An inpainting model's input has the mask too, its output only the latent.
        return (self.unet.config.out_channels, height, width)

    @property
    def picture_size(self) -> int:
        """Side of a picture in pixels."""
        return self.latent_shape[1] * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along one side of a latent element: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def time_ids(self) -> torch.Tensor | None:
        """Size and crop inputs of SDXL, (1, 6): original, corner, target; None for other models.

        Podell et al. 2023, section 2.2; as its pipeline sets them for an uncropped picture.
        """
        if self.unet.config.get("addition_embed_type") != "text_time":
            return None
        height, width = (side * self.pixels_per_latent for side in self.latent_shape[1:])
        sides = [height, width, 0, 0, height, width]
        return torch.tensor([sides], device=self.device, dtype=self.dtype)

    @property
    def timestep_cond(self) -> torch.Tensor | None:
        """Embedding of the guidance scale that an LCM's U-Net reads, (1, G); None for others.

        Luo et al. 2023, section 4.1: sines and cosines of 1000 (w - 1).
        """
        width = self.unet.config.get("time_cond_proj_dim")
        if not width:
            return None
        # Imported here, since finding a model needs no diffusers.
        from diffusers.models.embeddings import get_timestep_embedding

        scale = torch.tensor([1000 * (self.embedded_scale - 1)], device=self.device)
        return get_timestep_embedding(scale, width, flip_sin_to_cos=False).to(self.dtype)

    @property
    def few_steps(self) -> FewSteps | None:
        """Return the `FewSteps` that a model distilled to few steps is sampled with, or None."""
        return few_steps_of(self.unet.config, self.scheduler_config)

    def with_unet(self, unet: nn.Module, name: str) -> "DiffusionParts":
        """Return the same parts with another U-Net."""
        return replace(self, unet=unet, unet_name=name)

    def of_size(self, width: int | None = None, height: int | None = None) -> "DiffusionParts":
        """Return the same parts for another picture size in pixels; None is the model's default.

        Raises:
            ModelError: A side is no multiple of the VAE's factor, or the model has one size only.
        """
        own = (self.latent_shape[1], self.latent_shape[2])
        factor = self.pixels_per_latent
        wanted = tuple(
            side if pixels is None else pixels / factor
            for pixels, side in zip((height, width), own, strict=True)
        )
        if wanted == own:
            return self
        if any(side != int(side) or side < 1 for side in wanted):
            raise ModelError(
                f"{self.name}: pictures of {width} x {height} pixels cannot be made; sides must be "
                f"multiples of {factor}"
            )
        if self.inpainting_input is not None:
            raise ModelError(f"{self.name}: an inpainting model makes no pictures of other sizes")
        return replace(self, latent_size=(int(wanted[0]), int(wanted[1])))

    def with_text_encoders(self, encoders: Iterable[nn.Module]) -> "DiffusionParts":
        """Return the same parts with other text encoders."""
        return replace(self, text_encoders=tuple(encoders))


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a VAE whose activations overflow in float16 (SDXL's), else the dtype."""
    return torch.float32 if config.get("force_upcast") and dtype == torch.float16 else dtype


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a model's JSON file.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    try:
        found = parse_json(read_within(path, JSON_LIMIT))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); get the model again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


def find_model(model: str | Path, index: str = "model_index.json", fetch: bool = True) -> Path:
    """Return the local folder or file of a model; hub ids are looked up in the cache, then fetched.

    Args:
        model: "mini", a folder, a file or a hub id.
        index: The file that a model's folder must have. Only a pipeline, the default, may be a
            single file.
        fetch: Whether a hub id may be downloaded; otherwise only the cache is used.

    Raises:
        ModelError: It is neither a pipeline folder nor an available hub id.
    """
    if str(model) == MINI:
        return MINI_FOLDER
    folder = user_path(model)
    if os.path.isfile(folder / index):
        return folder
    if os.path.isfile(folder) and index == "model_index.json":
        return folder
    if os.path.exists(folder):
        raise ModelError(
            f"{model}: is not a diffusers pipeline folder (no {index}); give the folder "
            "that holds unet/, vae/ and text_encoder/, a model's single file, a hub id, or 'mini'"
        )
    if str(model).startswith((".", "/", "~")) or str(model).count("/") != 1:
        raise ModelError(
            f"{model}: no such folder or file; give a pipeline folder, a model's single file, a "
            "hub id, or 'mini'"
        )
    return _from_hub(str(model), index, fetch)


def _from_hub(model: str, index: str, fetch: bool) -> Path:
    # Weights at the top level belong to a model that is no pipeline.
    wanted = (*SETTINGS, "*/*.safetensors", "model.safetensors")
    try:
        folder = snapshot(model, wanted, fetch=fetch)
        if index == "model_index.json" and not any(folder.glob("unet/*.safetensors")):
            # Older repositories have torch files alone.
            folder = snapshot(model, (*SETTINGS, "*/*.bin"), fetch=fetch)
        return folder
    except Exception as error:
        raise ModelError(
            f"{model}: is not on this machine and could not be fetched "
            f"({type(error).__name__}). Get it once with network access: "
            f"`hf download {model} {' '.join(f'--include {w!r}' for w in wanted)}`, or give "
            "its folder or single file with --model DIR|FILE; "
            "for a try without any download use --model mini"
        ) from error
