"""Concept pictures: a folder, or pictures just made, to the moments of their latents.

The VAE is run once per picture. What is kept is the posterior's mean and deviation, not one
sample of it, so every training step sees a fresh latent at no further cost.
"""

import csv
import io
import json
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ine.errors import PicturesError
from ine.files import JSON_LIMIT, parse_json, read_within, user_path, write_bytes
from ine.pictures import read_picture

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
UNREAD = (
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif", ".svg", ".psd", ".tga"),
    *(".dng", ".cr2", ".nef", ".arw"),
)
"""Pictures by their ending that are not read; a user may take them for used."""

TABLES = ("captions.csv", "metadata.jsonl")
FORMAT = "ine-pictures-1"


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptPictures:
    """Moments of the VAE posterior of P pictures, already times the VAE's scaling factor."""

    mean: torch.Tensor
    """Posterior means, float32 on the CPU, (P, C, H, W)."""

    std: torch.Tensor
    """Posterior standard deviations, float32 on the CPU, (P, C, H, W)."""

    captions: tuple[str, ...] | None
    """The subject named in each picture, such as "dog"; None if unknown."""

    names: tuple[str, ...]
    """Where each picture comes from: its file name, or what its maker calls it."""

    @property
    def count(self):
        """Number of pictures P."""
        return len(self.names)

    def of(self, index):
        """Return some of the pictures, by a list of their numbers."""
        index = list(index)
        return ConceptPictures(
            mean=self.mean[index],
            std=self.std[index],
            captions=None if self.captions is None else tuple(self.captions[i] for i in index),
            names=tuple(self.names[i] for i in index),
        )


def draw_latents(pictures, index, generator):
    """Return fresh samples of the posterior, mean + std * noise.

    Args:
        pictures: The moments.
        index: Which pictures: a number for one latent (C, H, W), or a list or tensor of B
            numbers, repeats allowed, for (B, C, H, W).
        generator: A CPU `torch.Generator`; noise is drawn on the CPU on every machine.
    """
    mean, std = pictures.mean[index], pictures.std[index]
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)


def list_pictures(folder):
    """Return the picture files right in a folder, sorted by name; hidden ones are ignored.

    Raises:
        PicturesError: The folder is missing, is a file, or holds no picture.
    """
    folder = user_path(folder)
    if not os.path.exists(folder):
        raise PicturesError(f"{folder}: no such folder; give a folder of pictures")
    if not folder.is_dir():
        raise PicturesError(f"{folder}: is a file; give the folder that holds the pictures")
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        unread = unread_pictures(folder)
        advice = f"; it holds {_listed(unread)}, convert them to PNG or JPEG" if unread else ""
        raise PicturesError(f"{folder}: no pictures found; looked for {' '.join(SUFFIXES)}{advice}")
    return sorted(found, key=lambda path: path.name)


def unread_pictures(folder):
    """Return the names of files that are pictures of a kind that is not read, sorted."""
    return sorted(
        path.name
        for path in Path(folder).iterdir()
        if path.suffix.lower() in UNREAD and not path.name.startswith(".") and path.is_file()
    )


def _listed(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_folder(parts, folder, skip_bad=False, batch=8):
    """Return the moments of a folder's pictures, with captions where there are any.

    Captions come from one place: `NAME.txt` beside each picture `NAME.png`, or a table
    `captions.csv` or `metadata.jsonl` with `file_name` and `text`.

    Pictures of a kind that is not read are passed over with a logged warning.

    Args:
        parts: The base model, whose VAE encodes.
        folder: The user's pictures; subfolders are not looked into.
        skip_bad: Leave out pictures that cannot be read, with a logged warning each.
        batch: Pictures per run of the VAE.

    Raises:
        PicturesError: No picture is found or left; pictures cannot be read (all are named);
            captions are broken, come from two places, or are there for some pictures only.
    """
    paths = list_pictures(folder)
    if unread := unread_pictures(paths[0].parent):
        log.warning(
            "%s: passed over %s; to use them, convert them to PNG or JPEG", folder, _listed(unread)
        )
    good, arrays, bad = [], [], []
    for path in paths:
        try:
            arrays.append(read_picture(path, parts.picture_size))
            good.append(path)
        except PicturesError as error:
            bad.append(str(error))
    if bad and not skip_bad:
        raise PicturesError(
            f"{folder}: {len(bad)} of {len(paths)} pictures cannot be used; mend or remove "
            "them, or give --skip-bad to leave them out:\n  " + "\n  ".join(bad)
        )
    for reason in bad:
        log.warning("skipped %s", reason)
    if not good:
        raise PicturesError(
            f"{folder}: none of {len(paths)} pictures can be used:\n  " + "\n  ".join(bad)
        )
    names = tuple(path.name for path in good)
    return encode_pictures(parts, np.stack(arrays), read_captions(good), names, batch)


def encode_pictures(parts, arrays, captions, names, batch=8):
    """Return the moments of pictures.

    The VAE always sees `batch` pictures, the last run filled up by repeating, so a picture's
    moments do not change with how many others there are. It runs in float32: at float16 some
    VAEs overflow, and this is done once.

    Args:
        parts: The base model.
        arrays: uint8 (P, S, S, 3), S being `parts.picture_size`.
        captions: The subject of each picture, P texts, or None.
        names: P texts.
        batch: Pictures per run of the VAE.

    Raises:
        ValueError: Shapes or numbers do not fit together.
    """
    arrays, size = np.asarray(arrays), parts.picture_size
    count = len(arrays)
    if arrays.dtype != np.uint8 or arrays.shape != (count, size, size, 3) or not count:
        raise ValueError(
            f"expected uint8 pictures (P, {size}, {size}, 3), found {arrays.dtype} {arrays.shape}"
        )
    if len(names) != count or (captions is not None and len(captions) != count):
        raise ValueError(f"{count} pictures need as many names, and as many captions or None")
    scaling = parts.vae.config.scaling_factor
    means, stds = [], []
    with torch.no_grad(), _in_float32(parts.vae) as vae:
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            pixels = torch.from_numpy(arrays[rows]).permute(0, 3, 1, 2).to(vae.device)
            posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
            kept = min(batch, count - start)
            means.append(posterior.mean[:kept].cpu() * scaling)
            stds.append(posterior.std[:kept].cpu() * scaling)
    # Channels come last in what this VAE run returns. In a cache file they do not, and the U-Net's
    # last bits depend on that order, so a resumed run would end with other vectors.
    return ConceptPictures(
        mean=torch.cat(means).contiguous(),
        std=torch.cat(stds).contiguous(),
        captions=None if captions is None else tuple(captions),
        names=tuple(names),
    )


@contextmanager
def _in_float32(module):
    """Lend a module in float32; widening and narrowing back are exact."""
    dtype = module.dtype
    if dtype == torch.float32:
        yield module
        return
    try:
        yield module.to(torch.float32)
    finally:
        module.to(dtype)


def read_captions(paths):
    """Return one caption per picture of a folder, or None if there are none at all.

    Args:
        paths: Pictures of one folder, at least one.

    Raises:
        PicturesError: Captions are broken, come from two places, or are missing for some.
    """
    folder = paths[0].parent
    sources = {name: _read_table(folder / name) for name in TABLES if (folder / name).is_file()}
    beside = {path.name: path.with_suffix(".txt") for path in paths}
    texts = {name: _read_text(txt) for name, txt in beside.items() if txt.is_file()}
    if texts:
        sources["the .txt files"] = texts
    if not sources:
        return None
    if len(sources) > 1:
        raise PicturesError(
            f"{folder}: captions come from {' and '.join(sources)}; keep one of them"
        )
    source, found = sources.popitem()
    missing = [path.name for path in paths if not " ".join(found.get(path.name, "").split())]
    if missing:
        raise PicturesError(
            f"{folder}: {source} caption some pictures only; missing or empty for "
            f"{', '.join(missing)}; give all pictures a caption, or none"
        )
    return tuple(" ".join(found[path.name].split()) for path in paths)


def _read_text(path):
    try:
        return read_within(path, JSON_LIMIT).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise PicturesError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _read_table(path):
    """Return file name -> caption of a CSV or JSON-lines table."""
    text = _read_text(path)
    try:
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    except (csv.Error, ValueError, RecursionError) as error:
        raise PicturesError(f"{path}: cannot be read as {path.suffix[1:]} ({error})") from error
    captions = {}
    for number, row in enumerate(rows, 1):
        pair = [row.get(k) for k in ("file_name", "text")] if isinstance(row, dict) else [None]
        if not all(isinstance(value, str) for value in pair):
            raise PicturesError(
                f"{path}: entry {number} has no text for 'file_name' and 'text': {str(row)[:200]}"
            )
        if pair[0] in captions:
            raise PicturesError(f"{path}: {pair[0]} is named twice; keep one of them")
        captions[pair[0]] = pair[1]
    return captions


def save_pictures(pictures, path, key):
    """Write moments to a cache file, atomically; the same input gives the same bytes.

    Args:
        pictures: The moments; kept in float32, so that a resumed run sees the same bits.
        path: A `.safetensors` file.
        key: What the moments depend on, such as a hash of recipe and VAE.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors = {"mean": pictures.mean, "std": pictures.std}
    about = {"format": FORMAT, "key": key, "names": pictures.names, "captions": pictures.captions}
    # One entry of metadata only: safetensors does not promise the order of several.
    write_bytes(
        path,
        save(
            {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={"pictures": json.dumps(about, ensure_ascii=False)},
        ),
    )


def load_pictures(path, key):
    """Return cached moments, or None if there are none or they were kept under another key.

    Raises:
        PicturesError: The file is no cache of pictures.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["pictures"])
            if (about["format"], about["key"]) != (FORMAT, key):
                return None
            pictures = ConceptPictures(
                mean=file.get_tensor("mean"),
                std=file.get_tensor("std"),
                captions=None if about["captions"] is None else tuple(about["captions"]),
                names=tuple(about["names"]),
            )
        _check_pictures(pictures)
        return pictures
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise PicturesError(
            f"{path}: is not a cache of pictures, or is broken; delete it and run again"
        ) from error


def _check_pictures(pictures):
    """Raise `ValueError` where moments, names and captions are not of the same pictures."""
    mean, std, captions = pictures.mean, pictures.std, pictures.captions
    texts = [*pictures.names, *(captions or ())]
    if mean.dim() != 4 or mean.shape != std.shape or {mean.dtype, std.dtype} != {torch.float32}:
        raise ValueError("mean and std are not of float32 (P, C, H, W)")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names and captions are not texts")
    if len(mean) != pictures.count or len(captions or mean) != pictures.count:
        raise ValueError("there are not as many names and captions as pictures")
