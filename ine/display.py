"""Pictures as they are shown: smaller, blurred, or side by side with labels."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ine.pictures import as_image

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
GAP = 4
LABEL_WIDTH = 200

Rows = Sequence[Sequence[np.ndarray | None]]
"""Pictures, uint8 (H, W, 3) and all of one size; None is an empty cell."""


def contact_sheet(
    rows: Rows,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Return pictures side by side on white, with labels.

    Args:
        rows: The pictures; a row may be shorter than others.
        row_labels: One text per row, left of it; longer ones are cut with "...".
        column_labels: One text per column, above it; cut likewise.
        scale: Whole factor by which pictures are enlarged.

    Returns:
        The sheet, uint8 (H', W', 3).

    Raises:
        ValueError: There is no picture, sizes differ, or labels do not match their number.
    """
    height, width = (side * scale for side in _one_size(rows))
    columns = max(len(row) for row in rows)
    _check_labels("row", row_labels, len(rows))
    _check_labels("column", column_labels, columns)
    font = ImageFont.load_default()
    line = int(font.getbbox("Agjp")[3])
    beside = [_shorten(label, font, LABEL_WIDTH) for label in row_labels or []]
    above = [_shorten(label, font, width) for label in column_labels or []]
    left = GAP + (max(_width(t, font) for t in beside) + GAP if beside else 0)
    top = GAP + (line + GAP if above else 0)
    across, down = width + GAP, height + GAP
    sheet = Image.new("RGB", (left + columns * across, top + len(rows) * down), "white")
    write = partial(ImageDraw.Draw(sheet).text, fill="black", font=font)
    for index, label in enumerate(above):
        write((left + index * across, GAP), label)
    for index, label in enumerate(beside):
        write((GAP, top + index * down + (height - line) // 2), label)
    for r, c, picture in _cells(rows):
        image = as_image(picture).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(image, (left + c * across, top + r * down))
    return np.array(sheet)


def _cells(rows: Rows) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (row, column, picture) of the cells that are not empty."""
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            if picture is not None:
                yield r, c, picture


def _check_labels(what: str, labels: Sequence[str] | None, count: int) -> None:
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} {what} labels for {count} {what}s")


def _one_size(rows: Rows) -> tuple[int, int]:
    """Return the height and width of all pictures."""
    sizes = {picture.shape for row in rows for picture in row if picture is not None}
    if len(sizes) != 1:
        raise ValueError(f"a sheet needs pictures of one size, not {sorted(sizes)}")
    height, width, _ = sizes.pop()
    return height, width


def _width(text: str, font: Font) -> int:
    return int(np.ceil(font.getlength(text)))


def _shorten(text: str, font: Font, width: int) -> str:
    """Return a text on one line, cut with "..." until it fits."""
    text = " ".join(str(text).split())
    if _width(text, font) <= width:
        return text
    while text and _width(text + "...", font) > width:
        text = text[:-1]
    return text + "..."


BLUR_CELLS = 4
"""Cells along the shorter side of a blurred picture, whatever its size."""


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture whose longer side has at most `side` pixels, uint8 (H', W', 3).

    Args:
        picture: uint8 (H, W, 3); one that is small enough is returned unchanged.
        side: Pixels.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(as_image(picture).resize(size, Image.Resampling.LANCZOS))


def blur(picture: np.ndarray) -> np.ndarray:
    """Return a picture as a coarse mosaic in which nothing can be recognised.

    Only the mean colours of `BLUR_CELLS` cells along the shorter side remain, whatever the size of
    the picture, so no filter can restore detail.

    Args:
        picture: uint8 (H, W, 3).
    """
    image = as_image(picture)
    cell = min(image.size) / BLUR_CELLS
    cells = (max(1, round(image.width / cell)), max(1, round(image.height / cell)))
    mosaic = image.resize(cells, Image.Resampling.BOX)
    return np.array(mosaic.resize(image.size, Image.Resampling.NEAREST))
