"""What a user named with --unet, before it is recognised: a file's entries, or a folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ine.errors import CheckpointError
from ine.files import JSON_LIMIT, parse_json, read_within, user_path
from ine.models.weight_files import read_file

ENCODER_FOLDERS = ("text_encoder", "text_encoder_2")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")

SETTINGS = {
    "_class_name": (str, False),
    "architectures": (str, True),
    "prediction_type": (str, False),
    "act_fn": (str, False),
    "cross_attention_dim": (int, False),
    "attention_head_dim": (int, True),
    "num_attention_heads": (int, True),
    "norm_num_groups": (int, False),
    "center_input_sample": (int, False),
    "flip_sin_to_cos": (int, False),
    "freq_shift": (int | float, False),
}
"""What is read of a model's configuration -> (its type, whether it may be a list)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is still to be recognised: a folder, or the entries of a file."""

    path: Path
    """What the user named; errors start with it."""

    folder: Path | None = None
    entries: dict = field(default_factory=dict)
    """{name: tensor}; a file may nest dicts, and a LoRA ends as {name: `LowRank`}."""

    metadata: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    """A UNet folder's config.json, or PEFT's settings of a LoRA."""

    prediction_type: str | None = None
    """What a pipeline folder's scheduler says, if it says so."""

    encoders: dict = field(default_factory=dict)
    """{"text_encoder" or "text_encoder_2": {name: tensor or `LowRank`}}."""

    prefix: str = ""
    """The prefix that was stripped from every name."""

    rename: Callable | None = None
    """(parts, source) -> the source under the names of that base, where a file has others."""

    done: bool = False
    """Whether nothing is left to unwrap."""

    notes: tuple[str, ...] = ()
    """What of the file is not used, to be told once it is laid."""


def open_source(path):
    """Return a file or folder, ready to be recognised."""
    path = user_path(path)
    if os.path.isdir(path):
        return Source(path=path, folder=path)
    entries, metadata = read_file(path)
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors; expected weights of a UNet")
    return Source(path=path, entries=entries, metadata=metadata)


def read_json(folder, name="config.json"):
    """Return a folder's JSON file, {} where there is none."""
    path = folder / name
    try:
        value = parse_json(read_within(path, JSON_LIMIT)) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    wrong = [name for name in value if name in SETTINGS and not _is_setting(name, value[name])]
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong[0]} is {str(value[wrong[0]])[:80]}, which is no setting of a model; "
            "download or copy it again"
        )
    return value


def _is_setting(name, value):
    """Return whether a setting is plain: a text, a number, or where usual a list of them."""
    kinds, listed = SETTINGS[name]
    items = value if listed and isinstance(value, list) else [value]
    return value is None or all(isinstance(item, kinds) for item in items)


def once_each(path, pairs):
    """Return {name: value} of pairs, after refusing names that stand for two different values.

    A file may spell a tensor in two ways, or have it in two shards. Which one counts would depend
    on the order; copies of the same numbers do no harm.

    Args:
        path: Where they come from, for errors.
        pairs: (name, tensor or anything else).

    Raises:
        CheckpointError: Two values of a name differ.
    """
    made = {}
    for name, value in pairs:
        if name in made and not _same_bits(made[name], value):
            raise CheckpointError(
                f"{path}: holds two different values for {name}, in two spellings or files; "
                "expected one, save the one you want in a file of its own"
            )
        made[name] = value
    return made


def _same_bits(one, other):
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if not tensors or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    # As bytes, since NaN differs from itself and some dtypes cannot be compared.
    return torch.equal(*(t.detach().reshape(-1, 1).view(torch.uint8) for t in (one, other)))


def folder_state(folder):
    """Return the state dict of a component's folder, in one file or in shards."""
    for ending in (".safetensors", ".bin"):
        for name in WEIGHT_NAMES:
            if (folder / f"{name}{ending}.index.json").is_file():
                shards = shard_names(folder, f"{name}{ending}.index.json")
                files = (read_file(folder / shard)[0] for shard in shards)
                return once_each(folder, [pair for found in files for pair in found.items()])
            if (folder / f"{name}{ending}").is_file():
                return read_file(folder / f"{name}{ending}")[0]
    files = (
        sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder.is_dir() else []
    )
    if len(files) == 1:
        return read_file(files[0])[0]
    found = ", ".join(file.name for file in files) or "none"
    raise CheckpointError(
        f"{folder}: expected one file of weights (diffusion_pytorch_model.safetensors or .bin), "
        f"found {found}; give the file itself"
    )


def shard_names(folder, name):
    """Return the names of the files that an index lists, all of them right in its folder."""
    listed = read_json(folder, name).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
        raise CheckpointError(
            f"{folder / name}: has no weight_map of file names; download or copy it again"
        )
    shards = sorted(set(listed.values()))
    # Links are followed, since the hub's cache is made of them; a name that leads out is not one.
    outside = [
        n for n in shards if n in ("", ".", "..") or set(n) & set("/\\:") or not n.isprintable()
    ]
    if outside:
        raise CheckpointError(
            f"{folder / name}: lists {outside[0][:80]!a}, expected names of files in its own "
            "folder; do not trust this model"
        )
    return shards
