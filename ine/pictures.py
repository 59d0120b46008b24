"""Pictures at the file border: any picture file in, PNG with its settings out.

Between parts of `ine` a picture is a uint8 array (H, W, 3) in RGB; Pillow is used only here.
"""

import base64
import io
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from ine.errors import PicturesError
from ine.files import write_bytes

log = logging.getLogger(__name__)

# Only these readers are let loose on a file: Pillow's others include one that runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MIN_SIDE = 8
"""Pixels that the shorter side of a picture must have; less shows nothing to learn from."""

MAX_PIXELS = 100_000_000
"""Pixels above which a file is refused before it is decoded (100 megapixels, 300 MB as RGB)."""

BLUR_CELLS = 4
"""Cells along the shorter side that are left of a blurred picture, whatever its size."""

GAP = 4
LABEL_WIDTH = 200


def read_picture(path, size):
    """Return a picture file as an upright RGB square.

    EXIF rotation is applied; CMYK, palette, grey and 16-bit pixels become 8-bit RGB (16-bit
    ones by their high byte); transparency is laid on white. The middle square is kept and resized
    with Lanczos when it shrinks and bicubic when it grows. Colour profiles are not applied.

    Args:
        path: A PNG, JPEG, WebP, BMP or GIF file; of an animation the first frame is used,
            and a warning logged.
        size: Side of the result in pixels.

    Returns:
        The picture, uint8 (size, size, 3).

    Raises:
        PicturesError: The file is missing, broken, truncated or no picture, has a side below
            `MIN_SIDE`, or has more than `MAX_PIXELS` pixels.
    """
    image = _first_frame(Path(path))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped before it is resized: `resize(box=...)` lets pixels outside the box leak in.
    image = _as_rgb(image.crop((left, top, left + side, top + side)))
    if side != size:
        resampling = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
        image = image.resize((size, size), resampling)
    return np.array(image)


def read_whole(path):
    """Return a picture file as upright RGB in its own size, uint8 (H, W, 3).

    Colours and errors as `read_picture`; nothing is cropped or resized.
    """
    return np.array(_as_rgb(_first_frame(Path(path))))


def _first_frame(path):
    """Return the first frame of a file, decoded and upright, in the file's own mode."""
    try:
        with warnings.catch_warnings():
            # Pillow warns somewhat below MAX_PIXELS, which is checked here, and raises above.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image)
                # An MPO is a JPEG with a preview or a second eye behind it: nothing moves.
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
    # Pillow's readers raise whatever their parsing stumbles on: OSError for a truncated file,
    # SyntaxError for a broken PNG, also ValueError, EOFError, struct.error, zlib.error ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PicturesError(
            f"{path}: is broken or truncated ({reason}); replace it or remove it"
        ) from error


def _check_size(path, image):
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")
    if min(image.size) < MIN_SIDE:
        what = "a 1-pixel picture" if image.size == (1, 1) else f"{image.width} x {image.height}"
        raise PicturesError(
            f"{path}: is {what}; at least {MIN_SIDE} pixels on each side are needed; "
            "use a larger picture or remove it"
        )


def _too_large(path, found):
    return PicturesError(
        f"{path}: is too large ({found}); at most {MAX_PIXELS // 1_000_000} megapixels are read; "
        "make it smaller first or remove it"
    )


def _as_rgb(image):
    """Return an image of any mode as 8-bit RGB, transparency laid on white."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which makes 16-bit pictures white.
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def write_png(path, picture, text=None):
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


def read_png_text(path):
    """Return the texts kept inside a PNG, keyword -> text.

    Raises:
        PicturesError: The file is missing, broken or not a PNG.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            # Chunks may also come after the pixels; loading reads on to the end.
            image.load()
            return {str(key): str(value) for key, value in image.text.items()}
    except FileNotFoundError as error:
        raise PicturesError(f"{path}: no such picture") from error
    except Exception as error:
        raise PicturesError(f"{path}: cannot be read as a PNG; give a PNG file") from error


def png_data_uri(picture):
    """Return a picture, uint8 (H, W, 3), as a `data:` URI for an HTML page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def png_bytes(picture, text=None):
    """Return the bytes of `write_png`."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        if not (0 < len(key) < 80 and key.isprintable() and ord(max(key)) < 256):
            raise ValueError(f"{key!r} is not a PNG keyword: 1 to 79 printable Latin-1 characters")
        info.add_text(key, value)
    data = io.BytesIO()
    _as_image(picture).save(data, format="PNG", compress_level=6, pnginfo=info)
    return data.getvalue()


def _as_image(picture):
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    return Image.fromarray(np.ascontiguousarray(picture))


def png_picture(data):
    """Return the picture of PNG bytes that `png_bytes` made, uint8 (H, W, 3).

    Raises:
        PicturesError: They are none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(_as_rgb(image))
    except Exception as error:  # as in `_first_frame`
        raise PicturesError(f"a stored picture cannot be read ({error})") from error


def shrunk(picture, side):
    """Return a picture whose longer side has at most `side` pixels, uint8 (H', W', 3).

    Args:
        picture: uint8 (H, W, 3); one that is small enough comes back as it is.
        side: Pixels.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(_as_image(picture).resize(size, Image.Resampling.LANCZOS))


def blur(picture):
    """Return a picture as a coarse mosaic in which nothing can be recognised.

    All that is left are the mean colours of `BLUR_CELLS` cells along the shorter side, however
    large the picture is, so no filter can bring detail back.

    Args:
        picture: uint8 (H, W, 3).
    """
    image = _as_image(picture)
    cell = min(image.size) / BLUR_CELLS
    cells = (max(1, round(image.width / cell)), max(1, round(image.height / cell)))
    mosaic = image.resize(cells, Image.Resampling.BOX)
    return np.array(mosaic.resize(image.size, Image.Resampling.NEAREST))


def contact_sheet(rows, row_labels=None, column_labels=None, scale=1):
    """Return pictures side by side on white, with labels.

    Args:
        rows: Lists of pictures, uint8 (H, W, 3) and all of one size; a row may be shorter than
            others, and None leaves a cell empty.
        row_labels: One text per row, left of it; longer ones are cut with "...".
        column_labels: One text per column, above it; cut likewise.
        scale: Whole factor by which pictures are enlarged.

    Returns:
        The sheet, uint8 (H', W', 3).

    Raises:
        ValueError: There is no picture, sizes differ, or labels do not match their number.
    """
    sizes = {picture.shape for row in rows for picture in row if picture is not None}
    if len(sizes) != 1:
        raise ValueError(f"a sheet needs pictures of one size, not {sorted(sizes)}")
    height, width = (side * scale for side in sizes.pop()[:2])
    columns = max(len(row) for row in rows)
    for what, labels, count in (("row", row_labels, len(rows)), ("column", column_labels, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{len(labels)} {what} labels for {count} {what}s")

    font = ImageFont.load_default()
    line = int(font.getbbox("Agjp")[3])
    row_labels = [_shorten(label, font, LABEL_WIDTH) for label in row_labels or []]
    column_labels = [_shorten(label, font, width) for label in column_labels or []]
    left = GAP + (max(_width(t, font) for t in row_labels) + GAP if row_labels else 0)
    top = GAP + (line + GAP if column_labels else 0)
    across, down = width + GAP, height + GAP
    sheet = Image.new("RGB", (left + columns * across, top + len(rows) * down), "white")

    draw = ImageDraw.Draw(sheet)
    for index, label in enumerate(column_labels):
        draw.text((left + index * across, GAP), label, fill="black", font=font)
    for index, label in enumerate(row_labels):
        draw.text((GAP, top + index * down + (height - line) // 2), label, fill="black", font=font)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            if picture is not None:
                image = _as_image(picture).resize((width, height), Image.Resampling.NEAREST)
                sheet.paste(image, (left + c * across, top + r * down))
    return np.array(sheet)


def _width(text, font):
    return int(np.ceil(font.getlength(text)))


def _shorten(text, font, width):
    """Return a text on one line, cut with "..." until it fits."""
    text = " ".join(str(text).split())
    if _width(text, font) <= width:
        return text
    while text and _width(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
