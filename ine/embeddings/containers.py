"""Open the containers of embeddings without running anything in them.

A file is recognised by its bytes, not by its extension: embeddings are often renamed, and a
failed download leaves a web page under the right name.
"""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ine.embeddings.content import Content, cut_short
from ine.errors import EmbeddingError
from ine.files import JSON_LIMIT, is_lfs_pointer, is_web_page

NATIVE = {"F64", "F32", "F16"}
"""Codes in safetensors of the dtypes that numpy has."""

FLOATS = {*NATIVE, "BF16", "F8_E4M3", "F8_E5M2"}
"""Codes of dtypes that vectors may have."""


def open_container(path: Path) -> Content:
    """Return the `Content` of a safetensors file, a torch file, or an A1111 picture.

    Raises:
        EmbeddingError: It is missing, damaged, something else, or asks to run code.
    """
    return OPENERS[_kind(path)](path)


def _kind(path: Path) -> str:
    """Return a key of OPENERS, by the first bytes."""
    if not os.path.exists(path):
        raise EmbeddingError(f"{path}: no such file; give an embedding (.safetensors, .pt, .bin)")
    if os.path.isdir(path):
        raise EmbeddingError(f"{path}: is a folder; give the embedding file in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise EmbeddingError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise EmbeddingError(f"{path}: is empty; download or copy it again")
    if is_lfs_pointer(head):
        raise EmbeddingError(
            f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
        )
    if is_web_page(head):
        raise EmbeddingError(
            f"{path}: is a web page, not an embedding; the download went wrong, get the file "
            "itself (on a hub, the link 'download', not the page)"
        )
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= JSON_LIMIT:
        if size < 8 + length:
            raise cut_short(path, f"its header says {length} bytes, {size - 8} are there")
        return "safetensors"
    zipped = head.startswith(b"PK\x03\x04")
    if zipped or (head[0] == 0x80 and head[1:2] in b"\x02\x03\x04\x05"):
        return "torch"
    from ine.embeddings.pictures import is_picture

    if is_picture(path, head):
        return "picture"
    raise EmbeddingError(
        f"{path}: is neither safetensors nor a torch file (it begins with {head[:8]!r}); give an "
        "embedding (.safetensors, .pt, .bin, or a picture of A1111 with one inside)"
    )


def _open_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            codes = {key: s.get_dtype() for key, s in slices.items()}
            shapes = {
                key: tuple(s.get_shape()) if codes[key] in FLOATS else None
                for key, s in slices.items()
            }
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise cut_short(path, str(error).strip().splitlines()[0]) from error

    def get(key: str) -> np.ndarray:
        if codes[key] == "BF16":
            return _bfloat16(path, key).reshape(shapes[key])
        with safe_open(path, framework="np" if codes[key] in NATIVE else "pt") as file:
            found = file.get_tensor(key)
        return found if codes[key] in NATIVE else found.float().numpy()

    return Content(shapes, get, metadata=metadata)


def _bfloat16(path: Path, key: str) -> np.ndarray:
    """Return a tensor of bfloat16 as float32, (all its values,); numpy has no such type.

    safetensors has checked the header, its offsets among it, when the file was opened.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(length))[key]["data_offsets"]
        file.seek(8 + length + start)
        halves = np.frombuffer(file.read(end - start), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _open_torch(path: Path) -> Content:
    # Importing torch takes over a second, and most files do not need it.
    from ine.embeddings.torch_containers import open_torch

    return open_torch(path)


def _open_picture(path: Path) -> Content:
    from ine.embeddings.dictionaries import content_of
    from ine.embeddings.pictures import read_picture_data

    return content_of(path, read_picture_data(path))


OPENERS = {
    "safetensors": _open_safetensors,
    "torch": _open_torch,
    "picture": _open_picture,
}
