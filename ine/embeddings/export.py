"""Write embeddings in the layouts of other programs; docs/embedding-format.md has the rules.

A new layout is one function and one row of TARGETS.
"""

import io
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ine.embeddings.embedding import (
    ConceptEmbedding,
    header_of,
    read_embedding,
    serialise,
    write_embedding,
)
from ine.embeddings.names import check_name
from ine.embeddings.reading import SECOND
from ine.errors import EmbeddingError, OutputError
from ine.files import check_free, check_suffix, write_bytes

log = logging.getLogger("ine")

LEARNED = "learned_embeds.safetensors"
"""The file that diffusers reads from a folder."""

PLAIN_WORD = 265
"""A1111's token for its placeholder "*"; no program reads it."""

STAMP = (1980, 1, 1, 0, 0, 0)
"""Time of every member of a zip, the earliest possible; equal embeddings give equal bytes."""


def write_universal(embedding: ConceptEmbedding, path: Path, force: bool) -> list[Path]:
    """Write the layout that every program loads: `emb_params`, or `clip_l` and `clip_g`."""
    write_embedding(embedding, path, force)
    return [path]


def write_sdxl(embedding: ConceptEmbedding, path: Path, force: bool) -> list[Path]:
    """Write `clip_l` and `clip_g`; refuse an embedding that does not have both."""
    if embedding.family != "sdxl":
        widths = " + ".join(str(v.shape[1]) for v in embedding.vectors)
        raise EmbeddingError(
            f"embedding {embedding.trigger!r} has vectors of width {widths} (family "
            f"{embedding.family}), SDXL needs 768 + 1280; they mean nothing to its encoders, and "
            "no conversion helps: invert again on an SDXL model"
        )
    return write_universal(embedding, path, force)


def write_a1111(embedding: ConceptEmbedding, path: Path, force: bool) -> list[Path]:
    """Write A1111's own dictionary as a torch file, for programs that cannot read safetensors.

    The zip has only the members that A1111's check of torch files knows: it refuses those added
    by later versions of torch (its issues 10179 and 15214).
    """
    check_suffix(path, ".pt")
    if len(embedding.vectors) > 1:
        raise EmbeddingError(
            f"embedding {embedding.trigger!r} is for the two text encoders of SDXL, A1111's .pt "
            "has room for one; use --to sdxl"
        )
    check_free(path, force)
    about = embedding.metadata
    steps = about.get("ine.kept_step") or about.get("ine.steps") or about.get("step") or ""
    content = {
        "string_to_token": {"*": PLAIN_WORD},
        "string_to_param": {"*": embedding.vectors[0].clone()},
        "name": embedding.trigger,
        "step": int(steps) if steps.isdecimal() and len(steps) < 10 else None,
        "sd_checkpoint": about.get("sd_checkpoint"),
        "sd_checkpoint_name": about.get("sd_checkpoint_name") or about.get("ine.base"),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, _only_needed_members(buffer))
    return [path]


def _only_needed_members(saved: io.BytesIO) -> bytes:
    """Return a torch zip reduced to `data.pkl`, `version` and `data/N`, uncompressed."""
    reduced = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(reduced, "w") as new:
        for name in old.namelist():
            inner = name.partition("/")[2]
            if inner in ("data.pkl", "version") or inner.removeprefix("data/").isdecimal():
                new.writestr(zipfile.ZipInfo(f"archive/{inner}", STAMP), old.read(name))
    return reduced.getvalue()


def write_diffusers(embedding: ConceptEmbedding, path: Path, force: bool) -> list[Path]:
    """Write a folder for `load_textual_inversion`; the key is the token, so it needs no `token=`.

    For SDXL two files, as diffusers' training script writes them: no single file is loaded by
    both encoders.
    """
    if path.suffix:
        raise OutputError(f"{path}: diffusers' layout is a folder with {LEARNED}; give --out DIR")
    second = Path(LEARNED).with_stem(Path(LEARNED).stem + SECOND)
    files = [path / name for name in (LEARNED, second)[: len(embedding.vectors)]]
    for file in files:
        check_free(file, force)
    for file, vectors in zip(files, embedding.vectors, strict=True):
        write_bytes(file, serialise({embedding.trigger: vectors}, header_of(embedding)))
    return files


@dataclass(frozen=True)
class Target:
    """A layout that `ine embedding convert` can write."""

    write: Callable[[ConceptEmbedding, Path, bool], list[Path]]
    """(embedding, path, force) -> the paths written; the first is the one to read."""

    suffix: str
    """Suffix of the file; "" for a folder."""

    says: str
    """Description in one line, for the help."""


TARGETS = {
    "universal": Target(write_universal, ".safetensors", "one file for every program"),
    "a1111-pt": Target(write_a1111, ".pt", "A1111's dictionary as a torch file"),
    "diffusers": Target(write_diffusers, "", "a folder for load_textual_inversion"),
    "sdxl": Target(write_sdxl, ".safetensors", "clip_l and clip_g, for SDXL only"),
}


def convert_embedding(
    file: str | Path,
    to: str = "universal",
    name: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    author: str | None = None,
    negative: bool = False,
) -> tuple[list[Path], ConceptEmbedding]:
    """Write an embedding in another layout, read it back, and compare.

    Args:
        file: Any file that `read_embedding` reads.
        to: A key of TARGETS.
        name: The new trigger; default the file's own.
        out: Path to write; default the trigger with the layout's extension, in the current
            folder.
        force: Replace an existing file.
        author: For the header; default the author in the file.
        negative: Mark it as one for the negative prompt; otherwise it is marked if the file is.

    Returns:
        The paths written, and the `ConceptEmbedding` in them.

    Raises:
        EmbeddingError: The file is no embedding, the name cannot be a trigger, or the layout
            cannot hold these vectors.
        OutputError: It exists, cannot be written, or did not read back equal.
    """
    target = TARGETS[to]
    found = read_embedding(file)
    name = _checked_name(name, found)
    if not found.family_info.uis and to != "universal":
        log.warning("%s: no program but ine runs models of family %s", file, found.family)
    negative = negative or found.negative
    embedding = _described(replace(found, trigger=name, negative=negative), author)
    path = Path(out) if out else Path(name + target.suffix)
    written = target.write(embedding, path, force)
    _check_written(written[0], found)
    return written, embedding


def _check_written(path: Path, found: ConceptEmbedding) -> None:
    """Raise `OutputError` unless a file holds an embedding's vectors."""
    again = read_embedding(path)
    if len(again.vectors) != len(found.vectors) or not all(
        map(torch.equal, again.vectors, found.vectors)
    ):
        raise OutputError(f"{path}: did not read back as written; check the disk, try again")


def _checked_name(name: str | None, found: ConceptEmbedding) -> str:
    """Return the trigger to write; the default is the file's own.

    Raises:
        EmbeddingError: Some program would misread it.
    """
    if name and name.isalpha():
        log.warning(
            "trigger %r is one word; programs replace it wherever it stands in a prompt, so take "
            "one that nobody writes by chance, such as '%s-neg'",
            name,
            name,
        )
    name = name or found.trigger
    try:
        check_name(name, found.family)
    except EmbeddingError as error:
        raise EmbeddingError(f"{error}; give another with --name") from error
    return name


def _described(embedding: ConceptEmbedding, author: str | None) -> ConceptEmbedding:
    """Return the embedding with the metadata that UIs show: a description and the author."""
    about = embedding.metadata
    made = [about[f"ine.{key}"] for key in ("unet", "base") if about.get(f"ine.{key}")]
    description = (
        f"Negative embedding of {embedding.concept}"
        + (f", found on {' over '.join(made)}" if made else "")
        + ". For the negative prompt only: as a prompt it brings the concept back."
    )
    metadata = {"modelspec.description": description, **about} if embedding.negative else {**about}
    if author:
        metadata["modelspec.author"] = author
    return replace(embedding, metadata=metadata)
