"""Read embeddings in A1111's pictures: a text chunk of a PNG, or the low bits of pixels.

The text chunk `sd-ti-embedding` is base64 of the JSON below. In pixels, that JSON is compressed
with zlib and split: a block of columns at the left edge has the low four bits of each byte, one
at the right edge the high four, each in the low four bits of a colour value, row by row, mixed by
XOR with `noise`. A column of zeros separates each block from the picture between them. Only
PNG and lossless WebP preserve this.

The JSON is A1111's dictionary (`string_to_param`, `name`, ...), a tensor being
`{"TORCHTENSOR": nested lists}`.
"""

import base64
import binascii
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ine.errors import EmbeddingError
from ine.files import parse_json

CHUNK = "sd-ti-embedding"
SIGNS = {
    "PNG": (0, b"\x89PNG\r\n\x1a\n"),
    "WEBP": (8, b"WEBP"),
    "AVIF": (4, b"ftypavif"),
    "JPEG": (0, b"\xff\xd8\xff"),
    "GIF": (0, b"GIF8"),
    "JPEG XL": (0, b"\x00\x00\x00\x0cJXL "),
}
"""Kind of picture -> (position, bytes) of its signature."""

CARRIERS = ("PNG", "WEBP", "AVIF")
"""Kinds that keep every bit and that Pillow can read."""

PIXEL_LIMIT = 2**23
"""Pixels; 75 vectors for both encoders of SDXL need an eighth of them."""

JSON_LIMIT = 2**22
"""Bytes of JSON; these vectors need four fifths of it."""

NOISE_BLOCK = 2**16


def is_picture(path: Path, head: bytes) -> bool:
    """Return whether a file that begins with `head` is a picture that may carry an embedding.

    Raises:
        EmbeddingError: It is a picture of a kind that cannot.
    """
    kinds = [kind for kind, (at, sign) in SIGNS.items() if head[at : at + len(sign)] == sign]
    if kinds and kinds[0] not in CARRIERS:
        raise EmbeddingError(
            f"{path}: is a {kinds[0]} picture, which cannot carry an embedding for ine; give the "
            "PNG or lossless WebP that A1111 wrote, or a .safetensors file"
        )
    return bool(kinds)


def read_picture_data(path: Path) -> dict[str, Any]:
    """Return A1111's dictionary from a picture, with its tensors rebuilt.

    Raises:
        EmbeddingError: The picture is damaged or too large, or has no embedding or a damaged one.
    """
    try:
        _check_chunks(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=CARRIERS) as image:
                across, down = image.size
                if across * down > PIXEL_LIMIT:
                    raise _too_large(path, f"{across} x {down} pixels")
                image.load()
                text = getattr(image, "text", {}).get(CHUNK)
                data = _from_text(path, text) if text else _from_pixels(path, image)
    except EmbeddingError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more pixels than any screen") from error
    # Pillow's readers raise many kinds of errors: OSError for a truncated file, SyntaxError for a
    # broken PNG, RuntimeError for an AVIF, also EOFError, struct.error ...
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, UnidentifiedImageError):  # whose text is the path again
            reason = "it cannot be opened"
        raise EmbeddingError(
            f"{path}: is a picture that is damaged or cut short ({reason}); download it again"
        ) from error
    return {key: _rebuilt(path, value) for key, value in _parsed(path, data).items()}


def _too_large(path: Path, size: str) -> EmbeddingError:
    return EmbeddingError(
        f"{path}: is a picture of {size}, too large for one with an embedding in it; give the "
        "picture that A1111 wrote"
    )


def _check_chunks(path: Path) -> None:
    """Raise `ValueError` if a chunk of a PNG claims more bytes than follow it.

    Pillow reserves the claimed memory of some chunks before it reads them.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(8) != SIGNS["PNG"][1]:
            return
        at = 8
        while at + 12 <= size:
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            at += 12 + length
            if at > size:
                raise ValueError(f"its chunk {kind!a} claims {length} bytes")
            if kind == b"IEND":
                return


def _from_text(path: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_whole(path) from error


def _from_pixels(path: Path, image: Image.Image) -> bytes:
    """Return the JSON in the pixels of a picture."""
    pixels: Any = np.asarray(image.convert("RGB"))
    used = (pixels > 0).all(axis=2)
    columns, rows = used.any(axis=0).nonzero()[0], used.any(axis=1).nonzero()[0]
    nothing = EmbeddingError(
        f"{path}: is a picture with no embedding in it; a preview is not enough, give the file "
        "beside it (.safetensors, .pt)"
    )
    if not len(columns):
        raise nothing
    low_bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 15
    zeros = (~low_bits.any(axis=(0, 2))).nonzero()[0]
    if len(zeros) < 2:
        raise nothing
    low, high = low_bits[:, : zeros[0]], low_bits[:, zeros[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        raise nothing
    mask = noise(low.size).reshape(low.shape) & 15
    packed = ((high ^ mask) << 4 | (low ^ mask)).tobytes()
    if packed[0] & 15 != 8:  # the start of every zlib stream
        raise nothing
    try:
        stream = zlib.decompressobj()
        found = stream.decompress(packed, JSON_LIMIT)
    except zlib.error as error:
        raise _not_whole(path) from error
    if not stream.eof:
        raise _not_whole(path)
    return found


def noise(count: int) -> np.ndarray:
    """Return the first bytes of A1111's mask: x = 1664525 x + 1013904223 mod 2^32 from 0, mod 255.

    The generator is the one of Press et al., Numerical Recipes (1992), ch. 7.1.
    """
    factor, step = 1664525, 1013904223
    states, size = np.array([step], dtype=np.uint64), min(count, NOISE_BLOCK)
    while len(states) < size:  # m steps at once have the form a x + c too
        states = np.concatenate([states, (states * np.uint64(factor) + np.uint64(step)) % 2**32])
        step = (factor * step + step) % 2**32
        factor = factor * factor % 2**32
    made = np.empty(count, np.uint8)
    for start in range(0, count, len(states)):  # in blocks, since states take 8 bytes
        made[start : start + len(states)] = (states % 255)[: count - start]
        states = (states * np.uint64(factor) + np.uint64(step)) % 2**32
    return made


def _not_whole(path: Path) -> EmbeddingError:
    return EmbeddingError(
        f"{path}: the embedding in this picture is not whole, as after resizing or saving it "
        "again (sites and chats do that); get the original picture or a .safetensors copy"
    )


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    if len(data) > JSON_LIMIT:
        raise EmbeddingError(
            f"{path}: has {len(data) / 2**20:.0f} MiB of data in it, more than any embedding; do "
            "not trust this picture, get a .safetensors copy"
        )
    try:
        found = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise _not_whole(path) from error
    if not isinstance(found, dict):
        raise _not_whole(path)
    return found


def _rebuilt(path: Path, value: Any, depth: int = 0) -> Any:
    """Return a value of the JSON with its tensors rebuilt; they are at most two levels deep."""
    if not isinstance(value, dict) or depth > 2:
        return value
    if "TORCHTENSOR" not in value:
        return {key: _rebuilt(path, item, depth + 1) for key, item in value.items()}
    try:
        return np.array(value["TORCHTENSOR"], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise EmbeddingError(
            f"{path}: has a tensor that is no table of numbers ({error}); get a .safetensors copy"
        ) from error
