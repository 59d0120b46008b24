"""A row of a training set of refinement: a prompt, its picture, and the answer to both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ine.errors import PromptError
from ine.files import sha256_of
from ine.pictures import decoded, read_whole

COLUMNS = ("image", "query", "response")
"""Of ToxiClean-IT, Jeon et al. 2025."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What one rule says of a prompt or of a picture."""

    rule: str
    score: float
    """Compared with the rule's threshold, in [0, 1]."""

    unsafe: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A prompt, its picture, and the answer to both."""

    query: str
    response: str
    """A rewritten prompt, or keep."""

    image: bytes | Path
    """The picture's file, or its content."""

    textual: tuple[Signal, ...] = ()
    """What rules say of the prompt."""

    visual: tuple[Signal, ...] = ()
    """What rules say of the picture."""

    @property
    def picture(self) -> np.ndarray:
        """Return the picture, uint8 RGB (H, W, 3), read now.

        Raises:
            PicturesError: It is missing or broken.
        """
        if isinstance(self.image, bytes):
            return decoded(self.image, f"the picture of {self.query[:40]!r}")
        return read_whole(self.image)

    @property
    def unsafe(self) -> bool:
        """Return whether any rule found something."""
        return any(signal.unsafe for signal in (*self.textual, *self.visual))


@dataclass(frozen=True, kw_only=True, eq=False)
class RefiningSet:
    """The rows of a training set, and what screening left out."""

    name: str
    rows: tuple[Row, ...]
    refused: tuple[int, ...] = ()
    """Numbers of the rows that screening left out, counted from 1; their texts are not kept."""


RowData = Mapping[str, Any]
"""A row as plain values, under the names of `COLUMNS` and of what was seen."""


def row_of(data: RowData, where: str, folder: Path) -> Row:
    """Return the row in plain values.

    Args:
        data: `image` is the picture's bytes, or a path inside `folder`.
        where: What an error calls it.
        folder: Of its picture files.

    Raises:
        PromptError: A column is missing or of another kind, or a path leads out of the folder.
    """
    if missing := [name for name in COLUMNS if name not in data]:
        raise PromptError(
            f"{where}: has no {' and no '.join(missing)}; it has {', '.join(sorted(data))}, and "
            f"{', '.join(COLUMNS)} are expected, as ToxiClean-IT has them"
        )
    image, query, response = (data[name] for name in COLUMNS)
    for name, text in (("query", query), ("response", response)):
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"{where}: its {name} is {text!r}; expected a text")
    return Row(
        query=query.strip(),
        response=response.strip(),
        image=_image(image, where, folder),
        textual=_signals(data.get("textual"), where),
        visual=_signals(data.get("visual"), where),
    )


def row_data(row: Row) -> dict[str, Any]:
    """Return the texts and signals of a row as plain values."""
    return {
        "query": row.query,
        "response": row.response,
        "textual": [asdict(signal) for signal in row.textual],
        "visual": [asdict(signal) for signal in row.visual],
    }


def image_bytes(row: Row) -> bytes:
    """Return the content of a row's picture file.

    Raises:
        PromptError: The file cannot be read.
    """
    if isinstance(row.image, bytes):
        return row.image
    try:
        return row.image.read_bytes()
    except OSError as error:
        raise PromptError(f"{row.image}: cannot be read ({error.strerror or error})") from error


def key_of_row(row: Row) -> str:
    """Return 64 hex digits of a row's texts and the content of its picture file."""
    texts = f"{row.query}\0{row.response}\0".encode(errors="surrogatepass")
    return sha256_of(texts, image_bytes(row))


def _image(image: Any, where: str, folder: Path) -> bytes | Path:
    if isinstance(image, bytes) and image:
        return image
    if not isinstance(image, str) or not image:
        raise PromptError(f"{where}: its image is {type(image).__name__}; expected a picture")
    path = folder / image
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PromptError(
            f"{where}: its image {image!r} lies outside {folder}; put the pictures beside the file"
        )
    return path


def _signals(found: Any, where: str) -> tuple[Signal, ...]:
    """Return what was seen, nothing where a set does not say."""
    if found is None:
        return ()
    try:
        return tuple(
            Signal(rule=str(one["rule"]), score=float(one["score"]), unsafe=bool(one["unsafe"]))
            for one in found
        )
    except (LookupError, TypeError, ValueError) as error:
        raise PromptError(
            f"{where}: what was seen cannot be read ({error}); expected a list of rule, score and "
            "unsafe"
        ) from error
