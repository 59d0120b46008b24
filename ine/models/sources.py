"""What a user named with --unet, before it is recognised: a file's entries, or a folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ine.errors import CheckpointError
from ine.models.weight_files import read_file

WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is still to be recognised: a folder, or the entries of a file."""

    path: Path
    """What the user named; errors start with it."""

    folder: Path | None = None
    entries: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    """A UNet folder's config.json."""

    prediction_type: str | None = None
    """What a pipeline folder's scheduler says, if it says so."""

    encoders: dict = field(default_factory=dict)
    """{"text_encoder" or "text_encoder_2": state dict}."""

    prefix: str = ""
    """The prefix that was stripped from every name."""


def open_source(path):
    """Return a file or folder, ready to be recognised."""
    path = Path(path).expanduser()
    if path.is_dir():
        return Source(path=path, folder=path)
    entries, metadata = read_file(path)
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors; expected weights of a UNet")
    return Source(path=path, entries=entries, metadata=metadata)


def read_json(folder, name="config.json"):
    """Return a folder's JSON file, {} where there is none."""
    path = folder / name
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def folder_state(folder):
    """Return the state dict of a component's folder, in one file or in shards."""
    for ending in (".safetensors", ".bin"):
        for name in WEIGHT_NAMES:
            if (folder / f"{name}{ending}.index.json").is_file():
                index = read_json(folder, f"{name}{ending}.index.json")
                shards = sorted(set(index.get("weight_map", {}).values()))
                return {k: v for shard in shards for k, v in read_file(folder / shard)[0].items()}
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
