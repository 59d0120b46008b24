"""Read files of weights without running code, and write them.

A file is recognised by its first bytes, not by its ending: checkpoints are often renamed, and a
download that failed leaves a web page under the right name.
"""

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from ine.errors import CheckpointError
from ine.files import JSON_LIMIT, atomic_path, is_lfs_pointer, is_web_page
from ine.weights.hub import local_weights
from ine.weights.torch_files import load_torch_file

HEADER_LIMIT = JSON_LIMIT
"""Largest safetensors header in bytes: that of 80,000 tensors. The format allows ten times as
much, which takes gigabytes to parse."""

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def read_file(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a weights file holds, as (entries, metadata); tensors are mapped lazily.

    Args:
        path: A safetensors file, or one that `torch.save` wrote.

    Returns:
        Entries as nested in the file, on the CPU, and its text metadata ({} for torch files).

    Raises:
        CheckpointError: The file is missing, empty, truncated, not weights, or holds code.
    """
    kind = _kind(path)
    if kind == "torch":
        return _read_torch(path), {}
    metadata = check_safetensors(path).get("__metadata__") or {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    # A dtype that torch lacks, or numbers that do not fit one, fail in other ways.
    except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: is a damaged safetensors file ({error})") from error


def weights_metadata(path: str | Path) -> dict[str, str]:
    """Return the text metadata of a safetensors file; {} for folders and torch files.

    Raises:
        CheckpointError: The file is missing, empty, truncated, or not weights.
    """
    path = local_weights(path)
    if os.path.isdir(path) or _kind(path) != "safetensors":
        return {}
    return check_safetensors(path).get("__metadata__") or {}


def write_unet_weights(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors as a safetensors file, atomically; equal input gives equal bytes.

    Args:
        path: Where to write.
        tensors: {name in the UNet's state dict: floating-point tensor}.
        metadata: {name: text}; `ine.method` and `ine.concept` say what was unlearned and how.
        dtype: As for `write_safetensors`.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_path(path) as part, part.open("wb") as file:
        write_safetensors(file, tensors, metadata, dtype)


def write_safetensors(
    file: IO[bytes],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors in the safetensors format; equal input gives equal bytes.

    The safetensors library orders metadata by a hash that changes from call to call, so the
    header is written here: names sorted, padded to 8 bytes, data in the same order.

    Args:
        file: Opened for writing bytes.
        tensors: {name: floating-point tensor}.
        metadata: {name: text}.
        dtype: Each tensor is cast to it while it is written; by default it keeps its own.
    """
    if not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata of a safetensors file must be text")
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    # The widest dtype first keeps each tensor aligned to its item size, as the format asks.
    dtypes = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    for name in names:
        tensor = tensors[name]
        size = tensor.numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": DTYPE_CODES[dtypes[name]],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        flat = tensors[name].detach().cpu().to(dtypes[name]).contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().tobytes())


def _kind(path: str | Path) -> str:
    """Return "safetensors" or "torch" by the first bytes of a file."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give the unlearned UNet's weights") from None
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        reason = getattr(error, "strerror", error)
        raise CheckpointError(f"{path}: cannot be read ({reason})") from error
    if not start:
        raise CheckpointError(f"{path}: is empty; download or copy it again")
    if is_lfs_pointer(start):
        raise CheckpointError(
            f"{path}: is a git-lfs pointer, not the weights; run `git lfs pull` in its repository"
        )
    if is_web_page(start):
        raise CheckpointError(
            f"{path}: is a web page saved under this name, not weights; "
            "open the link in a browser, log in where it asks to, and download the file itself"
        )
    # A safetensors header of 128 bytes and a pickle both start with 0x80, so this comes first.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= HEADER_LIMIT:
        return "safetensors"
    # A zip archive is today's torch.save; 0x80 opens a bare pickle, the format before 1.6.
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    return "safetensors"


def check_safetensors(path: str | Path) -> dict[str, Any]:
    """Return a safetensors header, after checking that the file holds all that it lists.

    Raises:
        CheckpointError: The file is cut short, or has another kind of header.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        brace = file.read(1)
        if size < 10 or brace != b"{" or length > HEADER_LIMIT:
            raise CheckpointError(
                f"{path}: is neither a safetensors file nor one written by torch.save; "
                "expected .safetensors, .pt, .pth, .bin or .ckpt weights of a UNet"
            )
        text = brace + file.read(length - 1)
    if size < 8 + length:
        raise _truncated(path, size, 8 + length)
    try:
        header = json.loads(text.decode())  # of bytes, json would guess
        ends = [_end(v) for k, v in header.items() if k != "__metadata__"]
        _check_metadata(header.get("__metadata__"))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: its safetensors header cannot be read ({reason}); download or copy it again"
        ) from error
    if size < 8 + length + max(ends, default=0):
        raise _truncated(path, size, 8 + length + max(ends))
    return header


def _end(entry: Mapping[str, Any]) -> int:
    """Return where a tensor's bytes end, after the header; its shape is checked too."""
    if not all(type(n) is int and 0 <= n < 2**63 for n in entry["shape"]):
        raise ValueError(f"shape {str(entry['shape'])[:80]}")
    start, end = entry["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end:
        raise ValueError(f"data_offsets {str(entry['data_offsets'])[:80]}")
    return end


def _check_metadata(metadata: object) -> None:
    texts = metadata.values() if isinstance(metadata, dict) else [metadata or ""]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("__metadata__ is not a table of texts")


def _truncated(path: str | Path, found: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: is truncated, {found} of at least {expected} bytes; download or copy it again"
    )


def _read_torch(path: str | Path) -> dict[str, Any]:
    # torch.load looks at this ending, and a file named .safetensors should be one.
    if Path(path).suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: is no safetensors file but a pickle as torch.save writes them; it was "
            "refused and not executed. If that is what you expected, rename it to .pt"
        )
    try:
        loaded = load_torch_file(path, mapped=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"code or classes ({name[1]})" if name else "more than plain tensors"
        raise CheckpointError(
            f"{path}: its pickle holds {what}; it was refused and not executed. Use the "
            ".safetensors of the same model, or where it was made save its tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything inside the unpickler
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise CheckpointError(
            f"{path}: is a truncated or damaged torch file ({reason}); download or copy it again"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path}: holds a {type(loaded).__name__}, expected a state dict of named tensors"
        )
    return {str(name): value for name, value in loaded.items()}
