"""Weights in a repository of the Hugging Face hub: found in the cache, or fetched once."""

import os
import re
from pathlib import Path

from ine.errors import CheckpointError
from ine.files import user_path

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of files of weights."""

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
UNUSED = ("vae/*", "safety_checker/*", "feature_extractor/*", "image_encoder/*", "*.non_ema.*")
"""Files that are not needed from a repository that is applied to a base."""

SETTINGS = ("*.json", "*.txt")


def snapshot(
    name: str, wanted: tuple[str, ...], unused: tuple[str, ...] = (), fetch: bool = True
) -> Path:
    """Return the folder of a repository, from the cache or fetched.

    Args:
        name: "OWNER/NAME".
        wanted: Patterns of its files, in which "*" also matches "/".
        unused: Patterns of files that are left out.
        fetch: Whether to ask the network; otherwise only the cache is looked at.

    Raises:
        Exception: Of any kind, by the hub's library, if the repository is not available.
    """
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            allow_patterns=list(wanted),
            ignore_patterns=list(unused) or None,
            local_files_only=not fetch,
        )
    )


def local_weights(path: str | Path) -> Path:
    """Return the file or folder that `--unet` names; a path that does not exist may be a hub id.

    "OWNER/NAME" is a repository, "OWNER/NAME/FILE" a file of one. Text that begins with an
    existing folder, or ends like a file and has only one "/", is a path.

    Raises:
        CheckpointError: It is a hub id that can neither be found in the cache nor fetched.
    """
    if not is_hub_id(path):
        return user_path(path)
    parts = Path(path).parts
    name, file = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        return _file_of(name, file) if file else _folder_of(name)
    except Exception as error:
        raise CheckpointError(
            f"{path}: no such file or folder; as a repository of the hub it is not on this machine "
            f"and could not be fetched ({type(error).__name__}). Give the path of the weights, or "
            f"get them once with network access: `hf download {name}{f' {file}' * bool(file)}`"
        ) from error


def is_hub_id(path: str | Path) -> bool:
    """Return whether `local_weights` takes a path for the name of a repository of the hub."""
    text, parts = str(path), Path(path).parts
    plain = len(parts) >= 2 and all(NAME.fullmatch(part) for part in parts) and "\\" not in text
    if not plain or os.path.lexists(parts[0]):
        return False
    return Path(text).suffix.lower() in ENDINGS if len(parts) > 2 else not text.endswith(ENDINGS)


def _file_of(name: str, file: str) -> Path:
    """Return one file of a repository; an adapter's settings beside it are fetched too."""
    beside = (str(Path(file).parent / "adapter_config.json"),)
    found = snapshot(name, (file, *beside)) / file
    if not found.is_file():
        raise FileNotFoundError(file)
    return found


def _folder_of(name: str) -> Path:
    """Return the folder of a repository; torch files are fetched only without safetensors."""
    folder = snapshot(name, (*SETTINGS, "*.safetensors"), UNUSED)
    if next(folder.rglob("*.safetensors"), None) is None:
        folder = snapshot(name, (*SETTINGS, *(f"*{ending}" for ending in ENDINGS)), UNUSED)
    return folder
