"""From a file to vectors: the container is opened, the layout recognised, halves joined.

Nothing here needs torch unless the file is a torch file, so that looking into one is quick.

Shape letters: N vectors, D width of a text encoder's token table.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.embeddings.containers import open_container
from ine.embeddings.layouts import check_shape, choose
from ine.errors import EmbeddingError

log = logging.getLogger("ine")

HALVES = (768, 1280)
"""Widths of SDXL's two text encoders, in order."""

SECOND = "_2"
"""End of the stem of the second half's file by diffusers' training script for SDXL."""

STEM = re.compile(rf"(?P<stem>.+?)(?P<second>{SECOND})?(?P<step>-steps-\d+)?", re.DOTALL)
"""A file's name without its suffix, as that script writes it: with a step while it trains."""

DIFFUSERS = "learned_embeds"
"""Stem of the files that diffusers' training scripts write."""

SDXL = "stable-diffusion-xl"
"""Start of ModelSpec's architectures of SDXL."""

NEGATIVE = "modelspec.is_negative_embedding"
"""Header key; "true" where an embedding belongs into the negative prompt."""


@dataclass(frozen=True, eq=False)
class FileEmbedding:
    """The checked content of one embedding file."""

    vectors: tuple[np.ndarray, ...]
    """One (N, D) float32 array per text encoder."""

    trigger: str
    """The header's, else the name in the file, else the file's stem."""

    concept: str
    """The header's, else the trigger."""

    metadata: dict[str, str]
    """The whole header."""

    @property
    def negative(self) -> bool:
        """Whether the file says that it belongs into the negative prompt."""
        return self.metadata.get(NEGATIVE) == "true"


def read_file(path: str | Path) -> FileEmbedding:
    """Return what is in an embedding file, ours or another tool's.

    The halves of an SDXL embedding as diffusers' training script writes them, `STEM.safetensors`
    of width 768 and `STEM_2.safetensors` of width 1280 under the same key, with or without a step
    in their names, are read as one when either is given.

    Raises:
        EmbeddingError: It cannot be read, or is not one embedding.
    """
    path = Path(path)
    content = open_container(path)
    choice = choose(path, content)
    metadata = content.metadata
    vectors = tuple(content.get(key) for key in choice.keys)
    if len(vectors) == 1:
        architecture = metadata.get("modelspec.architecture", "")
        vectors = _with_other_half(path, choice.name, vectors[0], architecture)
    vectors = tuple(_plain(v) for v in vectors)
    check_vectors(path, vectors)
    stated = metadata.get("ine.trigger") or metadata.get("modelspec.trigger_phrase")
    trigger = stated or content.name or choice.name or path.stem
    _check_texts(path, trigger, metadata)
    return FileEmbedding(vectors, trigger, metadata.get("ine.concept") or trigger, metadata)


def _plain(numbers: np.ndarray) -> np.ndarray:
    """Return a copy as (N, D) float32; values beyond float32 become infinite and are refused."""
    with np.errstate(over="ignore"):
        copy = np.array(numbers, dtype=np.float32, order="C")
    return copy if copy.ndim > 1 else copy.reshape(1, -1)


def check_vectors(where: str | Path, vectors: tuple[np.ndarray, ...]) -> None:
    """Raise `EmbeddingError` unless there are 1 to 75 finite vectors, as many per encoder."""
    if len(vectors) not in (1, 2):
        raise EmbeddingError(f"{where}: has vectors for {len(vectors)} text encoders; 1 or 2 work")
    for v in vectors:
        check_shape(where, v.shape)
        bad = int((~np.isfinite(v)).any(axis=1).sum())
        if bad:
            raise EmbeddingError(
                f"{where}: {bad} of {len(v)} vectors have values that are not finite (NaN or "
                "infinite); the run that made it diverged, use an earlier or a new one"
            )
    counts = [len(v) for v in vectors]
    if len(set(counts)) > 1:
        raise EmbeddingError(
            f"{where}: has {counts[0]} vectors in clip_l and {counts[1]} in clip_g, expected as "
            "many in both; no UI reads uneven pairs alike"
        )


def _check_texts(path: Path, trigger: str, metadata: Mapping[str, str]) -> None:
    """Refuse texts that are no valid Unicode, which cannot be written or shown."""
    for text in (trigger, *metadata, *metadata.values()):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EmbeddingError(
                f"{path}: {text[:80]!a} in it, or its own name, is no text in Unicode; rename the "
                "file, or get a .safetensors copy"
            ) from error


def _with_other_half(
    path: Path, name: str | None, vectors: np.ndarray, architecture: str
) -> tuple[np.ndarray, ...]:
    """Return the vectors, with those of the file beside it if the two belong together.

    Args:
        path: The file that was read.
        name: Its tensor's key, if that is a name.
        vectors: Its vectors.
        architecture: The architecture in its header, or "".
    """
    width, parts = vectors.shape[-1], STEM.fullmatch(path.stem)
    if width not in HALVES or parts is None:
        return (vectors,)
    second = width == HALVES[1]
    stem, step = parts["stem"], parts["step"] or ""
    beside = path.with_name(f"{stem}{'' if second else SECOND}{step}{path.suffix}")
    as_named = name is not None and vectors.ndim == 2 and second == bool(parts["second"])
    other = _alone(beside) if as_named else None
    if other is not None and other[:2] == (name, (len(vectors), HALVES[not second])):
        log.info("%s: read with %s, the other half of an SDXL embedding", path, beside.name)
        found = other[2]()
        return (found, vectors) if second else (vectors, found)
    mismatch = other is not None and other[1][-1] == HALVES[not second]
    if second or architecture.startswith(SDXL):
        why = f"{beside.name} is not beside it" if beside != path else "the other is not known"
        if beside != path and beside.exists():
            why = f"{beside.name} beside it has another key, width or number of vectors"
        log.warning("%s: is one half of an SDXL embedding, of width %d; %s", path, width, why)
    elif as_named and not architecture and (mismatch or stem == DIFFUSERS):
        _log_first_half(path, beside)
    return (vectors,)


def _alone(path: Path) -> tuple[str | None, tuple[int, ...], Callable[[], np.ndarray]] | None:
    """Return (key, shape, function that reads it) of the only tensor of a file, or None."""
    if not path.is_file():
        return None
    try:
        content = open_container(path)
        choice = choose(path, content)
    except EmbeddingError as error:
        log.debug("%s: is not the other half of a pair: %s", path, error)
        return None
    key = choice.keys[0]
    shape = content.shapes[key]
    return None if shape is None else (choice.name, shape, lambda: content.get(key))


def _log_first_half(path: Path, beside: Path) -> None:
    """Log that vectors of Stable Diffusion 1.x's width may be one half of an SDXL embedding."""
    names = [p.name for p in path.parent.iterdir() if p.name.startswith(DIFFUSERS + SECOND)]
    found = beside.name if beside.exists() else min(names, default=None)
    why = f"{beside.name} is not beside it"
    if found:
        why = f"{found} beside it is of another step, key, width or number of vectors"
    log.log(
        logging.WARNING if found else logging.INFO,
        "%s: is read as Stable Diffusion 1.x; if it is one half of an SDXL embedding: %s",
        path,
        why,
    )
