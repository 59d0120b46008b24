"""From a file to vectors: the container is opened, the layout recognised, halves joined."""

import logging
from pathlib import Path

from ine.errors import EmbeddingError
from ine.formats.containers import open_container
from ine.formats.layouts import choose

log = logging.getLogger("ine")

HALVES = (768, 1280)
"""Widths of SDXL's two text encoders, in order."""

SECOND = "_2"
"""What diffusers' training script for SDXL puts behind the stem of the second half's file."""


def read_vectors(path):
    """Return (vectors per text encoder, name or None, metadata) of one embedding file.

    The halves of an SDXL embedding as diffusers' training script leaves them, `STEM.safetensors`
    of width 768 and `STEM_2.safetensors` of width 1280 under the same key, are read as one when
    either is given.

    Raises:
        EmbeddingError: It cannot be read, or is not one embedding.
    """
    path = Path(path)
    content = open_container(path)
    choice = choose(path, content)
    vectors = tuple(content.get(key) for key in choice.keys)
    if choice.name and len(vectors) == 1:
        vectors = _with_other_half(path, choice.name, vectors[0])
    return vectors, content.name or choice.name, content.metadata


def _with_other_half(path, name, vectors):
    """Return the vectors, and those of the file beside it where the two belong together."""
    if vectors.dim() != 2 or vectors.shape[1] not in HALVES:
        return (vectors,)
    second = vectors.shape[1] == HALVES[1]
    if second != path.stem.endswith(SECOND):
        return (vectors,)
    stem = path.stem.removesuffix(SECOND) if second else path.stem + SECOND
    beside = path.with_name(stem + path.suffix)
    if not beside.is_file():
        return (vectors,)
    try:
        content = open_container(beside)
        choice = choose(beside, content)
    except EmbeddingError as error:
        log.debug("%s: is not the other half of %s: %s", beside, path, error)
        return (vectors,)
    wanted = (len(vectors), HALVES[0] if second else HALVES[1])
    if (choice.name, content.shapes[choice.keys[0]]) != (name, wanted):
        return (vectors,)
    log.info("%s: read with %s, the other half of an SDXL embedding", path, beside.name)
    other = content.get(choice.keys[0])
    return (other, vectors) if second else (vectors, other)
