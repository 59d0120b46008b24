"""Check a component's folder before diffusers or transformers load it.

Both libraries build what a configuration says and read the weights afterwards: one number makes a
model of terabytes or of a billion layers. Some settings name other files, other classes, or code
on the hub. Torch files are checked as everywhere (`ine.weights.torch_files`); an index of shards
may only name files in its own folder.
"""

import inspect
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ine.errors import ModelError
from ine.weights.files import check_safetensors
from ine.weights.source import StoredWeights, read_json, stored_weights
from ine.weights.torch_files import check_torch_file

log = logging.getLogger("ine")

MOST_LAYERS = 100
"""Largest number of layers; SDXL's U-Net has ten transformer layers in a block."""

MOST_ITEMS = 100
"""Longest list in a configuration; lists have one entry per block."""

LARGEST = 2**31
"""Largest number in a configuration."""

COUNTS = (
    *("num_hidden_layers", "layers_per_block", "transformer_layers_per_block"),
    "reverse_transformer_layers_per_block",
)
"""Settings that are a number of modules."""

REFUSED = ("quantization_config",)
"""Settings that make the libraries load code or other weights."""

ENCODER = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
    *("initializer_range", "initializer_factor", "attention_dropout"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""Settings that are read from a text encoder's configuration."""

SPARE = 1_000_000
"""Values that a model may have in addition to 1.5 times those that its file stores."""


def load_component(
    kind: Any, folder: Path, dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load a component; return (module, the library's report of missing weights).

    Args:
        kind: A model class of diffusers or transformers.
        folder: Its folder.
        dtype: Floating type of the weights.

    Raises:
        ModelError: It is missing or damaged, its configuration claims more weights than are
            stored, or it needs more than weights.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: is missing; get the model again")
    try:
        config = read_configuration(folder)
        files, values = _checked_weights(folder)
        options = {
            "use_safetensors": files.safe,
            "variant": files.variant or None,
            "torch_dtype": dtype,
            "output_loading_info": True,
        }
        if hasattr(kind, "config_class") and kind.config_class is not None:
            known = {name: config[name] for name in ENCODER if name in config}
            options["config"] = kind.config_class(**known)
        else:
            _check_kinds(kind, config)
        _check_size(kind, options.get("config", config), values)
        if files.variant:
            log.info("%s: has weights of the variant %s alone", folder, files.variant)
        return kind.from_pretrained(folder, **options)
    except Exception as error:  # damaged files raise nearly anything, SafetensorError among it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); get the model again") from error


def read_configuration(folder: Path) -> dict[str, Any]:
    """Return config.json, without settings that make the libraries do more than build a model.

    Raises:
        ValueError: It is missing, or has a setting that no model needs.
        CheckpointError: It cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ValueError("it has no config.json")
    if (folder / "adapter_config.json").is_file():
        raise ValueError("it has an adapter beside it; merge it, or apply it with --unet")
    config = read_json(folder)
    asked = [name for name in REFUSED if config.get(name) is not None]
    if asked:
        raise ValueError(f"its configuration asks for {asked[0]}; give ordinary weights")
    for name, value in config.items():
        _check_setting(name, value)
    return config


def _check_kinds(kind: Any, config: Mapping[str, Any]) -> None:
    """Refuse settings of another type than the class declares; some would only fail in use."""
    stated = inspect.signature(kind.__init__).parameters
    wrong = [
        name
        for name, value in config.items()
        if name in stated and not _is_of(value, str(stated[name].annotation).lower())
    ]
    if wrong:
        raise ValueError(f"its {wrong[0]} is {str(config[wrong[0]])[:80]}")


def _is_of(value: Any, annotation: str) -> bool:
    """Return whether a value fits an annotation, such as "int | tuple[int]"."""
    if isinstance(value, list):
        listed = "tuple" in annotation or "list" in annotation
        return listed and all(_is_of(item, annotation) for item in value)
    if value is None:  # published configurations have null for some that are true or false
        return any(word in annotation for word in ("none", "optional", "bool"))
    if isinstance(value, bool):  # diffusers long called the VAE's force_upcast a float
        return "bool" in annotation or "float" in annotation
    if isinstance(value, int | float):
        return "int" in annotation or "float" in annotation
    return "str" in annotation if isinstance(value, str) else False


def _check_setting(name: str, value: Any, depth: int = 0) -> None:
    items = [value]
    if isinstance(value, list | dict):
        items = list(value.values() if isinstance(value, dict) else value)
        if len(items) > MOST_ITEMS or depth > 3:
            raise ValueError(f"its {name} has {len(items)} entries")
    for item in items:
        if isinstance(item, list | dict):
            _check_setting(name, item, depth + 1)
        elif isinstance(item, int | float):
            most = MOST_LAYERS if name in COUNTS else LARGEST
            if not math.isfinite(item) or abs(item) > most:
                raise ValueError(f"its {name} is {str(item)[:80]}")


def _checked_weights(folder: Path) -> tuple[StoredWeights, int]:
    """Return (the `StoredWeights` that will be loaded, their number of values).

    All files that the libraries may choose are checked. The libraries get the option to load
    torch files, or a variant, only if the folder has no others.
    """
    stored = stored_weights(folder)
    names = dict.fromkeys(name for group in stored.candidates for name in group)
    if not names:
        found = sorted(file.name for file in folder.iterdir() if file.suffix != ".json")[:5]
        raise ValueError(
            "it has no weights named diffusion_pytorch_model, model or pytorch_model, alone or "
            f"with .fp16 or .bf16 behind it; found {', '.join(found) or 'none'}"
        )
    return stored, sum(_values(folder / name, stored.safe) for name in names)


def _values(path: Path, safe: bool) -> int:
    """Check a file of weights; return the largest number of values that it can store."""
    if not safe:
        check_torch_file(path)
        return os.path.getsize(path) // 2
    header = check_safetensors(path)
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)


def _check_size(kind: Any, config: Any, stored: int) -> None:
    """Refuse a configuration of a model that is much larger than its weights."""
    with torch.device("meta"):
        module = kind.from_config(config) if isinstance(config, dict) else kind(config)
    claimed = sum(p.numel() for p in module.parameters())
    if claimed > 1.5 * stored + SPARE:
        raise ValueError(
            f"its configuration is that of a model of {claimed} values, its weights are {stored}"
        )
