"""Load a whole model from one file, as UIs use them: all components under CompVis names.

Its kind is recognised here; `ine.models.building` makes the components.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ine.errors import CheckpointError, ModelError
from ine.models.building import build_modules
from ine.models.clip_tokenizer import clip_tokenizer
from ine.models.inpainting import everything_masked
from ine.models.parts import DiffusionParts, find_model, read_model_json
from ine.models.tokenizers import load_tokenizer
from ine.models.variants import check_known, prediction_of, stated_prediction, variants_of
from ine.schedules import check_schedule
from ine.weights.compvis import ENCODERS, UNET, VAE
from ine.weights.files import read_file
from ine.weights.layouts import recognise
from ine.weights.source import ENCODER_FOLDERS, Source
from ine.weights.wrappers import ONLY_AVERAGES, is_average

log = logging.getLogger("ine")

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Settings of a scheduler for models with zero terminal SNR (Lin et al. 2023)."""


@dataclass(frozen=True)
class Opened:
    """A file that holds a whole model, before a model is made of it."""

    path: Path
    entries: dict[str, Any]
    """{name: tensor}, without what wraps them."""

    metadata: dict[str, str]


def load_single_file(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
) -> DiffusionParts:
    """Load a base model from one file, frozen and in evaluation mode.

    Averaged weights (`model_ema.*`) are not used. The recognised kind of model is logged.

    Args:
        path: A .safetensors or .ckpt file with UNet, VAE and text encoders.
        device: Device of the weights.
        dtype: Floating type of the weights.
        config: A pipeline folder or its name: its configurations and tokenizers replace the
            shipped ones, and the file may be a model of any size.

    Raises:
        ModelError: It cannot be read, is something else, or lacks weights.
    """
    file = _open(Path(path).expanduser())
    folder = None if config is None else find_model(config)
    settings = _shipped_settings(file) if folder is None else _folder_settings(folder)
    if folder is not None:
        _compare_prediction(file, settings["scheduler"])
    modules = build_modules(file.path, file.entries, settings, device, dtype)
    encoders = [name for name in ENCODER_FOLDERS if name in modules]
    return DiffusionParts(
        name=str(path),
        tokenizers=tuple(_tokenizer_of(folder, n, settings, modules[n]) for n in encoders),
        text_encoders=tuple(modules[name] for name in encoders),
        unet=modules["unet"],
        vae=modules["vae"],
        scheduler_config=settings["scheduler"],
        zeros_for_nothing=settings["model_index"].get("force_zeros_for_empty_prompt") is True,
        inpainting_input=everything_masked(modules["unet"], modules["vae"]),
    )


def _tokenizer_of(folder: Path | None, name: str, settings: Mapping[str, Any], encoder: Any) -> Any:
    """Return the tokenizer of a text encoder: that of a pipeline folder, else CLIP's."""
    tokenizer = name.replace("text_encoder", "tokenizer")
    if folder is None:
        return clip_tokenizer(settings[tokenizer]["pad_token"])
    rows = len(encoder.get_input_embeddings().weight)
    return load_tokenizer(folder / tokenizer, encoder.config.max_position_embeddings, rows)


def _open(path: Path) -> Opened:
    """Read a file and check that it holds a whole model.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    try:
        entries, metadata = read_file(path)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    inner = entries.get("state_dict")
    if isinstance(inner, dict):
        steps = {"global_step": entries["global_step"]} if "global_step" in entries else {}
        entries = steps | {str(name): value for name, value in inner.items()}
    check_known(path, entries)
    file = Opened(path, entries, metadata)
    _check_whole(file)
    return file


def _shipped_settings(file: Opened) -> dict[str, Any]:
    """Return the shipped configurations for the variant in a file."""
    rows = variants_of(file.path, file.entries)
    prediction, why = prediction_of(file.path, file.entries, file.metadata, rows[0])
    row = next((row for row in rows if row.prediction == prediction), rows[0])
    log.info("%s: %s, predicts %s (%s)", file.path.name, row.title, prediction, why)
    settings = row.settings()
    settings["scheduler"]["prediction_type"] = prediction
    if "ztsnr" in file.entries:
        settings["scheduler"] |= ZERO_SNR
    return settings


def _folder_settings(folder: Path) -> dict[str, Any]:
    """Return the configurations of a pipeline folder, in the form of `Variant.settings`."""
    names = [n for n in ENCODER_FOLDERS if (folder / n / "config.json").is_file()]
    schedule = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_model_json(schedule)
    check_schedule(schedule, scheduler)
    return {
        **{n: read_model_json(folder / n / "config.json") for n in ("unet", "vae", *names)},
        "scheduler": scheduler,
        "model_index": read_model_json(folder / "model_index.json"),
    }


def _compare_prediction(file: Opened, scheduler: Mapping[str, Any]) -> None:
    """Warn if a file states another prediction type than a scheduler's configuration."""
    stated, why = stated_prediction(file.path, file.entries, file.metadata)
    used = scheduler.get("prediction_type", "epsilon")
    if stated and stated != used:
        log.warning(
            "%s: predicts %s (%s), the configuration says %s, which is used",
            file.path.name,
            stated,
            why,
            used,
        )


def _check_whole(file: Opened) -> None:
    """Refuse a file that holds only a part of a model, or something else; the error says what."""
    path, entries = file.path, file.entries
    if any(name.startswith(UNET) for name in entries):
        if not any(name.startswith((VAE, *ENCODERS)) for name in entries):
            raise _partial(path, "a UNet under CompVis names")
        return
    source = Source(path=path, entries=entries, metadata=file.metadata)
    if is_average(source):
        raise ModelError(f"{path}: {ONLY_AVERAGES}")
    try:
        names, _ = recognise(source)
    except CheckpointError as error:
        keys = ", ".join(list(entries)[:3]) or "(none)"
        raise ModelError(
            f"{path}: is no Stable Diffusion model in one file; its keys are like {keys}, "
            f"expected {UNET}*, {VAE}* and text encoders"
        ) from error
    raise _partial(path, f"weights that are applied to a model ({names[-1]})")


def _partial(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: holds {what}, no whole model; apply it to the base that it was made from: "
        f"`ine generate --model BASE --unet {path}`"
    )
