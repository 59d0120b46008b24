"""Read picture files of any kind, write PNG files with their settings inside.

Between parts of `ine` a picture is a uint8 array (H, W, 3) in RGB; Pillow is used only here.
"""

import base64
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ine.errors import PicturesError
from ine.files import write_bytes

log = logging.getLogger(__name__)

try:
    from PIL.AvifImagePlugin import SUPPORTED as AVIF
except ImportError:  # Pillow before 11.3
    AVIF = False

# Pillow's other readers are never used: one of them runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", *(("AVIF",) if AVIF else ()))
MIN_SIDE = 8
"""Smallest shorter side of a picture in pixels; less shows nothing to learn from."""

MAX_PIXELS = 100_000_000
"""Pixels above which a file is refused before it is decoded (100 megapixels, 300 MB as RGB)."""


def read_picture(path: str | Path, size: int) -> np.ndarray:
    """Return a picture file as an upright RGB square.

    EXIF rotation is applied; CMYK, palette, grey and 16-bit pixels become 8-bit RGB (16-bit
    ones by their high byte); transparency is composited on white. The middle square is kept and
    resized, with Lanczos if it shrinks and bicubic if it grows. Colour profiles are not applied.

    Args:
        path: A PNG, JPEG, WebP, BMP, GIF or (if Pillow can) AVIF file; of an animation the first
            frame is used, and a warning logged.
        size: Side of the result in pixels.

    Returns:
        The picture, uint8 (size, size, 3).

    Raises:
        PicturesError: The file is missing, broken, truncated or not a picture, has a side below
            `MIN_SIDE`, or has more than `MAX_PIXELS` pixels.
    """
    image = _first_frame(Path(path))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crop before resizing: with `resize(box=...)` pixels outside the box leak in.
    image = _as_rgb(image.crop((left, top, left + side, top + side)))
    if side != size:
        resampling = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
        image = image.resize((size, size), resampling)
    return np.array(image)


def read_whole(path: str | Path) -> np.ndarray:
    """Return a picture file as upright RGB in its original size, uint8 (H, W, 3).

    Colours and errors as `read_picture`; nothing is cropped or resized.
    """
    return np.array(_as_rgb(_first_frame(Path(path))))


def decoded(data: bytes, name: str) -> np.ndarray:
    """Return the picture in a file's content, as `read_whole`; `name` is for messages."""
    return np.array(_as_rgb(_first_frame(Path(name), data)))


def _first_frame(path: Path, data: bytes | None = None) -> Image.Image:
    """Return the first frame of a file or its content, decoded and upright, in its own mode."""
    try:
        with warnings.catch_warnings():
            # Pillow warns a little below MAX_PIXELS, which `_check_size` checks, and raises above.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = path if data is None else io.BytesIO(data)
            with Image.open(source, formats=FORMATS) as image:
                _check_size(path, image)
                # An MPO is a JPEG followed by a preview or a stereo view: not an animation.
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    log.warning("%s: is animated; its first frame is used", path)
                return ImageOps.exif_transpose(image)
    except PicturesError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        raise PicturesError(
            f"{path}: is not a picture that can be read; expected {', '.join(FORMATS)}; "
            "convert it or remove it"
        ) from error
    except FileNotFoundError as error:
        raise PicturesError(f"{path}: no such picture") from error
    # Pillow's readers raise many types: OSError for a truncated file, SyntaxError for a broken
    # PNG, also ValueError, EOFError, struct.error, zlib.error ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PicturesError(
            f"{path}: is broken or truncated ({reason}); replace it or remove it"
        ) from error


def _check_size(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")
    if min(image.size) < MIN_SIDE:
        what = "a 1-pixel picture" if image.size == (1, 1) else f"{image.width} x {image.height}"
        raise PicturesError(
            f"{path}: is {what}; at least {MIN_SIDE} pixels on each side are needed; "
            "use a larger picture or remove it"
        )


def _too_large(path: Path, found: str) -> PicturesError:
    return PicturesError(
        f"{path}: is too large ({found}); at most {MAX_PIXELS // 1_000_000} megapixels are read; "
        "make it smaller first or remove it"
    )


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as 8-bit RGB, transparency composited on white."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which makes 16-bit pictures white.
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def write_png(path: str | Path, picture: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write a picture as PNG, atomically; the same input gives the same bytes.

    Args:
        path: Where to write; an existing file is replaced.
        picture: uint8 (H, W, 3).
        text: Keyword -> text kept inside the file, such as `parameters`; Latin-1 texts become
            tEXt chunks and others iTXt, in the order of the dict.

    Raises:
        OutputError: The file cannot be written.
        ValueError: The picture has another shape or dtype, or a keyword is not 1 to 79
            printable Latin-1 characters, as PNG asks.
    """
    write_bytes(path, png_bytes(picture, text))


def read_png_text(path: str | Path) -> dict[str, str]:
    """Return the texts inside a PNG, keyword -> text.

    Raises:
        PicturesError: The file is missing, broken or not a PNG.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            # Chunks may also follow the pixels; `load` reads to the end.
            image.load()
            assert isinstance(image, PngImagePlugin.PngImageFile)
            return {str(key): str(value) for key, value in image.text.items()}
    except FileNotFoundError as error:
        raise PicturesError(f"{path}: no such picture") from error
    except Exception as error:
        raise PicturesError(f"{path}: cannot be read as a PNG; give a PNG file") from error


def png_data_uri(picture: np.ndarray) -> str:
    """Return a picture, uint8 (H, W, 3), as a `data:` URI for an HTML page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def png_bytes(picture: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of `write_png`."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        if not (0 < len(key) < 80 and key.isprintable() and ord(max(key)) < 256):
            raise ValueError(f"{key!r} is not a PNG keyword: 1 to 79 printable Latin-1 characters")
        info.add_text(key, value)
    data = io.BytesIO()
    as_image(picture).save(data, format="PNG", compress_level=6, pnginfo=info)
    return data.getvalue()


def as_image(picture: np.ndarray) -> Image.Image:
    """Return a picture, uint8 (H, W, 3), as Pillow's image.

    Raises:
        ValueError: It has another shape or dtype.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    return Image.fromarray(np.ascontiguousarray(picture))


def png_picture(data: bytes) -> np.ndarray:
    """Return the picture in bytes from `png_bytes`, uint8 (H, W, 3).

    Raises:
        PicturesError: The bytes are not such a PNG.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(_as_rgb(image))
    except Exception as error:  # as in `_first_frame`
        raise PicturesError(f"a stored picture cannot be read ({error})") from error


def is_blank(pictures: np.ndarray) -> np.ndarray:
    """Return whether each picture is one colour throughout, (B,) bool.

    Args:
        pictures: uint8 (B, H, W, 3).
    """
    flat = np.asarray(pictures).reshape(len(pictures), -1, 3)
    return (flat == flat[:, :1]).all(axis=(1, 2))


def blank_line(blank: int, count: int) -> str:
    """Return a note that `blank` of `count` pictures are blank, "" for 0."""
    return f"{blank} of {count} pictures are blank (wholly one colour)" if blank else ""
