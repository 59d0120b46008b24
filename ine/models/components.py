"""A component's folder, looked through before diffusers or transformers load it.

Both build what a configuration says and only then look at the weights: one number makes a model
of terabytes or of a billion layers. Some settings name other files, other classes, or code to get
from the hub. Weights in a torch file go through the same guard as everywhere
(`ine.models.torch_files`), lists of shards may name files of their own folder only.
"""

import inspect
import math
import os

import torch

from ine.errors import ModelError
from ine.models.sources import WEIGHT_NAMES, read_json, shard_names
from ine.models.torch_files import check_torch_file
from ine.models.weight_files import check_safetensors

MOST_LAYERS = 100
"""Of one kind; SDXL's U-Net has ten transformer layers in a block."""

MOST_ITEMS = 100
"""Of a list in a configuration; they have one entry per block."""

LARGEST = 2**31
"""Number in a configuration."""

COUNTS = (
    *("num_hidden_layers", "layers_per_block", "transformer_layers_per_block"),
    "reverse_transformer_layers_per_block",
)
"""Settings that say how many modules are made."""

REFUSED = ("quantization_config",)
"""Settings for which the libraries load code or other weights."""

ENCODER = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
    *("initializer_range", "initializer_factor", "attention_dropout"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""What is read of a text encoder's configuration."""

SPARE = 1_000_000
"""Values that a model may have beyond half as many again as its file stores."""


def load_component(kind, folder, dtype):
    """Return (module, what the library says about missing weights) of a component's folder.

    Args:
        kind: A model class of diffusers or transformers.
        folder: Its folder.
        dtype: Floating type of the weights.

    Raises:
        ModelError: It is missing, damaged, claims more than it stores, or asks for more than
            weights.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: is missing; get the model again")
    try:
        config = _configuration(folder)
        safe, stored = _checked_weights(folder)
        options = {"use_safetensors": safe, "torch_dtype": dtype, "output_loading_info": True}
        if hasattr(kind, "config_class") and kind.config_class is not None:
            known = {name: config[name] for name in ENCODER if name in config}
            options["config"] = kind.config_class(**known)
        else:
            _check_kinds(kind, config)
        _check_size(kind, options.get("config", config), stored)
        return kind.from_pretrained(folder, **options)
    except Exception as error:  # damaged files raise nearly anything, SafetensorError among it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); get the model again") from error


def _configuration(folder):
    """Return config.json, after refusing what would make the libraries do more than build."""
    if not (folder / "config.json").is_file():
        raise ValueError("it has no config.json")
    if (folder / "adapter_config.json").is_file():
        raise ValueError("it has an adapter beside it; merge it, or lay it with --unet")
    config = read_json(folder)
    asked = [name for name in REFUSED if config.get(name) is not None]
    if asked:
        raise ValueError(f"its configuration asks for {asked[0]}; give ordinary weights")
    for name, value in config.items():
        _check_setting(name, value)
    return config


def _check_kinds(kind, config):
    """Refuse settings of another type than the class says, of which some fail only in use."""
    stated = inspect.signature(kind.__init__).parameters
    wrong = [
        name
        for name, value in config.items()
        if name in stated and not _is_of(value, str(stated[name].annotation).lower())
    ]
    if wrong:
        raise ValueError(f"its {wrong[0]} is {str(config[wrong[0]])[:80]}")


def _is_of(value, annotation):
    """Return whether a value is as an annotation says, which may be "int | tuple[int]"."""
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


def _check_setting(name, value, depth=0):
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


def _checked_weights(folder):
    """Return (whether they are safetensors, values stored) of the weights that would be loaded.

    All files are looked through that the libraries may choose from, and they are told to take
    torch files only where there is nothing else.
    """
    for safe, ending in ((True, ".safetensors"), (False, ".bin")):
        files = []
        for name in (f"{stem}{ending}" for stem in WEIGHT_NAMES):
            if (folder / name).is_file():
                files.append(name)
            if (folder / f"{name}.index.json").is_file():
                files += shard_names(folder, f"{name}.index.json")
        if files:
            return safe, sum(_values(folder / name, safe) for name in dict.fromkeys(files))
    raise ValueError("it has no weights")


def _values(path, safe):
    """Return how many values a file of weights stores, at most; it is looked through for that."""
    if not safe:
        check_torch_file(path)
        return os.path.getsize(path) // 2
    header = check_safetensors(path)
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)


def _check_size(kind, config, stored):
    """Refuse a configuration of a model that is much larger than its weights."""
    with torch.device("meta"):
        module = kind.from_config(config) if isinstance(config, dict) else kind(config)
    claimed = sum(p.numel() for p in module.parameters())
    if claimed > 1.5 * stored + SPARE:
        raise ValueError(
            f"its configuration is that of a model of {claimed} values, its weights are {stored}"
        )
