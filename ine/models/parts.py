"""The pieces of a text-to-image pipeline, loaded once and never changed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ine.errors import ModelError

MINI = "mini"
MINI_FOLDER = Path(__file__).parent / "mini"
FAMILIES = {128: "mini", 768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the states that cross-attention reads -> family."""


@dataclass(frozen=True, kw_only=True)
class DiffusionParts:
    """What a text-to-image model is made of. Text encoders are tuples: SDXL has two."""

    name: str
    """What the user called it: "mini", a hub id, or a folder."""

    tokenizers: tuple
    text_encoders: tuple[nn.Module, ...]
    unet: nn.Module
    vae: nn.Module
    scheduler_config: dict
    """The pipeline's own scheduler configuration; `ine.sampling.SCHEDULERS` build from it."""

    unet_name: str = "base"
    """ "base", or what was laid over it (file name and method)."""

    @property
    def width(self):
        """Width of the text states that the U-Net reads (128 mini, 768 SD 1.x, 1024 SD 2.x)."""
        return self.unet.config.cross_attention_dim

    @property
    def family(self):
        """Return "mini", "sd1", "sd2", "sdxl", or "width-N" for anything else."""
        return FAMILIES.get(self.width, f"width-{self.width}")

    @property
    def prediction_type(self):
        """Return "epsilon" or "v_prediction"."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def device(self):
        """Device of the U-Net."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self):
        """Dtype of the U-Net."""
        return next(self.unet.parameters()).dtype

    @property
    def latent_shape(self):
        """Shape of one latent, (C, H, W)."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.unet.config.in_channels, height, width)

    @property
    def picture_size(self):
        """Side of a picture in pixels."""
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def with_unet(self, unet, name):
        """Return the same parts with another U-Net."""
        return replace(self, unet=unet, unet_name=name)

    def with_text_encoders(self, encoders):
        """Return the same parts with other text encoders."""
        return replace(self, text_encoders=tuple(encoders))


def load_parts(model=MINI, device="cpu", dtype=torch.float32):
    """Load a base model, frozen and in evaluation mode.

    Args:
        model: "mini" (bundled), a diffusers pipeline folder, or a hub id.
        device: Where the weights go.
        dtype: Floating type of the weights; mini and CPU runs want float32.

    Raises:
        ModelError: The folder or id is not a Stable Diffusion pipeline, or is not on this
            machine and cannot be fetched.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = find_model(model)
    index = _read_json(folder / "model_index.json")
    tokenizers, encoders = [], []
    for suffix in ("", "_2"):
        # [library, class], or twice null where there is none.
        found = (index.get(f"text_encoder{suffix}") or [None])[-1]
        if found is None:
            continue
        if found not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            raise ModelError(
                f"{model}: has a text encoder of class {found}, expected a CLIPTextModel; give a "
                "Stable Diffusion model"
            )
        kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
        tokenizers.append(_load_tokenizer(CLIPTokenizer, folder / f"tokenizer{suffix}"))
        encoders.append(_load(kind, folder / f"text_encoder{suffix}", device, dtype))
    if not encoders:
        raise ModelError(f"{model}: has no CLIP text encoder; ine needs a Stable Diffusion model")
    return DiffusionParts(
        name=str(model),
        tokenizers=tuple(tokenizers),
        text_encoders=tuple(encoders),
        unet=_load(UNet2DConditionModel, folder / "unet", device, dtype),
        vae=_load(AutoencoderKL, folder / "vae", device, dtype),
        scheduler_config=_read_json(folder / "scheduler" / "scheduler_config.json"),
    )


def _read_json(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); get the model again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


def _load_tokenizer(kind, folder):
    # Given a folder that is not there, transformers looks for it on the hub.
    if not folder.is_dir():
        raise ModelError(f"{folder}: is missing; get the model again")
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # whatever the parsing of its files stumbles on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); get the model again") from error


def _load(kind, folder, device, dtype):
    if not folder.is_dir():
        raise ModelError(f"{folder}: is missing; get the model again")
    try:
        module, info = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except Exception as error:  # damaged files raise nearly anything, SafetensorError among it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); get the model again") from error
    # The libraries fill gaps with random numbers and go on.
    if gaps := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder}: lacks {len(gaps)} weights of a {kind.__name__}, {gaps[0]} the first; get "
            "the model again"
        )
    module = module.to(device).eval().requires_grad_(False)
    for parameter in module.parameters():
        # Mapped tensors are not aligned like ordinary ones, and a copy of such a model would
        # predict differently in the last bits.
        parameter.data = parameter.data.clone()
    return module


def find_model(model, index="model_index.json", fetch=True):
    """Return the local folder of a model; hub ids are looked up in the cache, then fetched.

    Args:
        model: "mini", a folder or a hub id.
        index: The file that makes a folder one.
        fetch: Whether a hub id may be downloaded; otherwise only the cache is looked at.

    Raises:
        ModelError: It is neither a pipeline folder nor a hub id that can be had here.
    """
    if str(model) == MINI:
        return MINI_FOLDER
    folder = Path(model).expanduser()
    if (folder / index).is_file():
        return folder
    if folder.exists():
        raise ModelError(
            f"{model}: is not a diffusers pipeline folder (no {index}); give the folder "
            "that holds unet/, vae/ and text_encoder/, a hub id, or 'mini'"
        )
    if str(model).startswith((".", "/", "~")) or str(model).count("/") != 1:
        raise ModelError(f"{model}: no such folder; give a pipeline folder, a hub id, or 'mini'")
    from huggingface_hub import snapshot_download

    # "*" also matches "/". Weights at the top are those of a model that is no pipeline.
    wanted = ["*.json", "*.txt", "*/*.safetensors", "model.safetensors"]
    try:
        return Path(
            snapshot_download(str(model), allow_patterns=wanted, local_files_only=not fetch)
        )
    except Exception as error:
        raise ModelError(
            f"{model}: is not on this machine and could not be fetched "
            f"({type(error).__name__}). Get it once with network access: "
            f"`hf download {model} {' '.join(f'--include {w!r}' for w in wanted)}`, or give "
            "its folder with --model DIR; "
            "for a try without any download use --model mini"
        ) from error
