"""What a user named with --unet, before it is recognised: a file's entries, or a folder."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ine.errors import CheckpointError
from ine.files import JSON_LIMIT, parse_json, read_within
from ine.weights.files import read_file
from ine.weights.hub import is_hub_id, local_weights

ENCODER_FOLDERS = ("text_encoder", "text_encoder_2")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".fp16", ".bf16")
"""Endings of the stems of weights in lower precision; many folders have only those."""

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
"""Settings that are read from a model's configuration -> (type, whether a list is allowed)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder, or the entries of a file, from which wrappers are removed one by one."""

    path: Path
    """What the user named; errors start with it."""

    folder: Path | None = None
    beside: Path | None = None
    """The folder that a file is in, where an adapter's settings may be."""

    entries: dict[str, Any] = field(default_factory=dict)
    """{name: tensor}; a file may nest dicts, and a LoRA ends as {name: `LowRank`}."""

    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """A UNet folder's config.json, or PEFT's settings of a LoRA."""

    prediction_type: str | None = None
    """Stated by the scheduler of a pipeline folder."""

    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{"text_encoder" or "text_encoder_2": {name: tensor or `LowRank`}}."""

    prefix: str = ""
    """The prefix that was stripped from every name."""

    rename: Callable[[Any, "Source"], "Source"] | None = None
    """(parts, source) -> the source under the names of that base; None if names are the base's."""

    done: bool = False
    """Whether nothing is left to unwrap."""

    whole: bool = False
    """Whether it holds a VAE and text encoders too, and so is a model by itself."""

    notes: tuple[str, ...] = ()
    """What of the file is not used, for the log once it is applied."""

    @property
    def directory(self) -> Path:
        """The folder of a source that is one."""
        if self.folder is None:
            raise ValueError(f"{self.path}: is no folder")
        return self.folder


def open_source(path: str | Path) -> Source:
    """Return a file or folder, or what a hub id names, ready to be recognised."""
    here = local_weights(path)
    path = Path(path) if is_hub_id(path) else here
    if os.path.isdir(here):
        return Source(path=path, folder=here)
    entries, metadata = read_file(here)
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors; expected weights of a UNet")
    return Source(path=path, entries=entries, metadata=metadata, beside=here.parent)


def read_json(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the content of a JSON file in a folder, {} without one.

    Raises:
        CheckpointError: It cannot be read, or has settings of the wrong kind.
    """
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


def _is_setting(name: str, value: object) -> bool:
    """Return whether a setting has its type of `SETTINGS`, or is a list of it if allowed."""
    kinds, listed = SETTINGS[name]
    items = value if listed and isinstance(value, list) else [value]
    return value is None or all(isinstance(item, kinds) for item in items)


def once_each(path: str | Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return {name: value} of pairs; refuse a name with two different values.

    A file may spell a tensor in two ways, or have it in two shards. Which one counts would depend
    on the order; copies of the same numbers do no harm.

    Args:
        path: Where they come from, for error messages.
        pairs: (name, tensor or anything else).

    Raises:
        CheckpointError: Two values of a name differ.
    """
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made and not _same_bits(made[name], value):
            raise CheckpointError(
                f"{path}: holds two different values for {name}, in two spellings or files; "
                "expected one, save the one you want to a separate file"
            )
        made[name] = value
    return made


def _same_bits(one: Any, other: Any) -> bool:
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if not tensors or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    # As bytes, since NaN differs from itself and some dtypes cannot be compared.
    return torch.equal(*(t.detach().reshape(-1, 1).view(torch.uint8) for t in (one, other)))


def folder_state(folder: Path) -> dict[str, Any]:
    """Return the state dict of a component's folder, in one file or in shards.

    Weights of full precision are preferred to those of a variant (`VARIANTS`).
    """
    stored = stored_weights(folder)
    if stored.candidates:
        shards = (read_file(folder / name)[0] for name in stored.candidates[0])
        return once_each(folder, [pair for entries in shards for pair in entries.items()])
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


@dataclass(frozen=True)
class StoredWeights:
    """Which files of a component's folder hold its weights, by the names of the libraries."""

    candidates: tuple[tuple[str, ...], ...] = ()
    """Sets of file names; each set holds all weights, and the first is read."""

    safe: bool = True
    """Whether they are safetensors."""

    variant: str = ""
    """ "fp16" or "bf16" if the folder has no others."""


def stored_weights(folder: Path) -> StoredWeights:
    """Return the weights in a component's folder: safetensors first, then by precision.

    Raises:
        CheckpointError: A list of shards cannot be read or leads out of the folder.
    """
    for ending in (".safetensors", ".bin"):
        for variant in VARIANTS:
            found: list[tuple[str, ...]] = []
            for stem in WEIGHT_NAMES:
                for index in _index_names(stem, ending, variant):
                    if (folder / index).is_file():
                        found.append(tuple(shard_names(folder, index)))
                if (folder / f"{stem}{variant}{ending}").is_file():
                    found.append((f"{stem}{variant}{ending}",))
            if found:
                safe = ending == ".safetensors"
                return StoredWeights(tuple(found), safe, variant.removeprefix("."))
    return StoredWeights()


def _index_names(stem: str, ending: str, variant: str) -> Iterable[str]:
    """Return the names of shard indices; older diffusers put the variant elsewhere."""
    names = (f"{stem}{ending}.index{variant}.json", f"{stem}{ending}{variant}.index.json")
    return dict.fromkeys(names)


def shard_names(folder: Path, name: str) -> list[str]:
    """Return the names of the files that an index lists, all of them directly in its folder."""
    listed = read_json(folder, name).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
        raise CheckpointError(
            f"{folder / name}: has no weight_map of file names; download or copy it again"
        )
    shards = sorted(set(listed.values()))
    # Links are followed, since the hub's cache consists of links; names must stay in the folder.
    outside = [
        n for n in shards if n in ("", ".", "..") or set(n) & set("/\\:") or not n.isprintable()
    ]
    if outside:
        raise CheckpointError(
            f"{folder / name}: lists {outside[0][:80]!a}, expected names of files in its own "
            "folder; do not trust this model"
        )
    return shards
