"""Embeddings in the layouts that other programs ask for; the rules are in docs/embedding-format.md.

A further layout is one function and one row of TARGETS.
"""

import io
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ine.embedding import header_of, read_embedding, serialise, write_embedding
from ine.errors import EmbeddingError, OutputError
from ine.files import check_free, check_suffix, write_bytes
from ine.formats.names import check_name
from ine.formats.reading import SECOND

log = logging.getLogger("ine")

LEARNED = "learned_embeds.safetensors"
"""The file that diffusers looks for in a folder."""

PLAIN_WORD = 265
"""What A1111 writes as the token of its placeholder "*"; nobody reads it."""

STAMP = (1980, 1, 1, 0, 0, 0)
"""Time of every member of a zip, the earliest there is; equal embeddings give equal bytes."""


def write_universal(embedding, path, force):
    """Write what every program loads: `emb_params`, or `clip_l` and `clip_g`."""
    write_embedding(embedding, path, force)
    return [path]


def write_sdxl(embedding, path, force):
    """Write `clip_l` and `clip_g`, and refuse what has not both."""
    if embedding.family != "sdxl":
        widths = " + ".join(str(v.shape[1]) for v in embedding.vectors)
        raise EmbeddingError(
            f"embedding {embedding.trigger!r} has vectors of width {widths} (family "
            f"{embedding.family}), SDXL needs 768 + 1280; they mean nothing to its encoders, and "
            "no conversion helps: invert again on an SDXL model"
        )
    return write_universal(embedding, path, force)


def write_a1111(embedding, path, force):
    """Write A1111's own dictionary as a torch file, for what takes no safetensors.

    The zip has only the members that A1111's check of such files knows: it refuses what later
    versions of torch add (its issues 10179 and 15214).
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


def _only_needed_members(saved):
    """Return a torch zip reduced to `data.pkl`, `version` and `data/N`, uncompressed."""
    reduced = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(reduced, "w") as new:
        for name in old.namelist():
            inner = name.partition("/")[2]
            if inner in ("data.pkl", "version") or inner.removeprefix("data/").isdecimal():
                new.writestr(zipfile.ZipInfo(f"archive/{inner}", STAMP), old.read(name))
    return reduced.getvalue()


def write_diffusers(embedding, path, force):
    """Write a folder for `load_textual_inversion`; the token is the key, so none has to be given.

    SDXL becomes two files, as diffusers' training script writes them: no one file is loaded by
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
    """A layout that can be asked for."""

    write: Callable
    """(embedding, path, force) -> the paths written, the one to read first."""

    suffix: str
    """Of the file; "" for a folder."""

    says: str
    """One line for people."""


TARGETS = {
    "universal": Target(write_universal, ".safetensors", "one file for every program"),
    "a1111-pt": Target(write_a1111, ".pt", "A1111's dictionary as a torch file"),
    "diffusers": Target(write_diffusers, "", "a folder for load_textual_inversion"),
    "sdxl": Target(write_sdxl, ".safetensors", "clip_l and clip_g, for SDXL only"),
}


def convert_embedding(file, to="universal", name=None, out=None, force=False, author=None):
    """Write an embedding in another layout, read it back, and compare.

    Args:
        file: Any file that `read_embedding` reads.
        to: A key of TARGETS.
        name: The new trigger; default the file's own.
        out: Path to write; default the trigger with the layout's extension, in the current
            folder.
        force: Replace what is there.
        author: For the header; default what the file states.

    Returns:
        tuple: The paths written, and the `ConceptEmbedding` that is in them.

    Raises:
        EmbeddingError: The file is no embedding, the name cannot be a trigger, or the layout
            has no place for these vectors.
        OutputError: It exists, cannot be written, or did not read back equal.
    """
    target = TARGETS[to]
    found = read_embedding(file)
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
    if not found.traits.uis and to != "universal":
        log.warning(
            "%s: no program but ine runs models of family %s, to which these vectors belong",
            file,
            found.family,
        )
    embedding = _described(replace(found, trigger=name), author)
    path = Path(out) if out else Path(name + target.suffix)
    written = target.write(embedding, path, force)
    again = read_embedding(written[0])
    if len(again.vectors) != len(found.vectors) or not all(
        map(torch.equal, again.vectors, found.vectors)
    ):
        raise OutputError(f"{written[0]}: did not read back as written; check the disk, try again")
    return written, embedding


def _described(embedding, author):
    """Return the embedding with what UIs show: a description, and the author where one is known."""
    about = embedding.metadata
    made = [about[f"ine.{key}"] for key in ("unet", "base") if about.get(f"ine.{key}")]
    description = (
        f"Negative embedding of {embedding.concept}"
        + (f", found on {' over '.join(made)}" if made else "")
        + ". For the negative prompt only: as a prompt it brings the concept back."
    )
    metadata = {"modelspec.description": description, **about}
    if author:
        metadata["modelspec.author"] = author
    return replace(embedding, metadata=metadata)
