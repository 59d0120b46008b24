"""Concept pictures as the moments of their latents.

The VAE is run once per picture. What is kept is the posterior's mean and deviation, not one
sample of it, so every training step sees a fresh latent at no further cost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ine.finite import check_finite, in_float32
from ine.models.parts import DiffusionParts
from ine.store.tensors import Notes, Tensors, UnitFiles

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
    def count(self) -> int:
        """Number of pictures P."""
        return len(self.names)

    def of(self, index: Iterable[int]) -> "ConceptPictures":
        """Return some of the pictures, by a list of their numbers."""
        index = list(index)
        return ConceptPictures(
            mean=self.mean[index],
            std=self.std[index],
            captions=None if self.captions is None else tuple(self.captions[i] for i in index),
            names=tuple(self.names[i] for i in index),
        )


def join_pictures(units: Sequence[ConceptPictures]) -> ConceptPictures:
    """Return the pictures of all units in one; they have captions if all units have."""
    captioned = all(unit.captions is not None for unit in units)
    return ConceptPictures(
        mean=torch.cat([unit.mean for unit in units]),
        std=torch.cat([unit.std for unit in units]),
        captions=tuple(c for unit in units for c in unit.captions or ()) if captioned else None,
        names=tuple(name for unit in units for name in unit.names),
    )


def draw_latents(
    pictures: ConceptPictures,
    index: int | Sequence[int] | torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return fresh samples of the posterior, mean + std * noise.

    Args:
        pictures: The moments.
        index: Which pictures: a number for one latent (C, H, W), or a list or tensor of B
            numbers, repeats allowed, for (B, C, H, W).
        generator: A CPU `torch.Generator`; noise is drawn on the CPU on every machine.
    """
    mean, std = pictures.mean[index], pictures.std[index]
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)


def encode_pictures(
    parts: DiffusionParts,
    arrays: np.ndarray,
    captions: Sequence[str] | None,
    names: Sequence[str],
    batch: int = 8,
) -> ConceptPictures:
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
    with torch.no_grad(), in_float32(parts.vae):
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            pixels = torch.from_numpy(arrays[rows]).permute(0, 3, 1, 2).to(parts.vae.device)
            posterior = parts.vae.encode(pixels.float() / 127.5 - 1).latent_dist
            check_finite(posterior.mean, "VAE")
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


def _pack(pictures: ConceptPictures) -> tuple[Tensors, Notes]:
    # In float32, so that a resumed run sees the same bits.
    tensors = {"mean": pictures.mean.float(), "std": pictures.std.float()}
    return tensors, {"names": pictures.names, "captions": pictures.captions}


def _unpack(tensors: Tensors, notes: Notes) -> ConceptPictures:
    pictures = ConceptPictures(
        mean=tensors["mean"],
        std=tensors["std"],
        captions=None if notes["captions"] is None else tuple(notes["captions"]),
        names=tuple(notes["names"]),
    )
    _check_pictures(pictures)
    return pictures


def _check_pictures(pictures: ConceptPictures) -> None:
    """Raise `ValueError` where moments, names and captions are not of the same pictures."""
    mean, std, captions = pictures.mean, pictures.std, pictures.captions
    texts = [*pictures.names, *(captions or ())]
    if mean.dim() != 4 or mean.shape != std.shape or {mean.dtype, std.dtype} != {torch.float32}:
        raise ValueError("mean and std are not of float32 (P, C, H, W)")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names and captions are not texts")
    if len(mean) != pictures.count or len(captions or mean) != pictures.count:
        raise ValueError("there are not as many names and captions as pictures")


PICTURES = UnitFiles(
    what="a cache of pictures", entry="pictures", format=FORMAT, pack=_pack, unpack=_unpack
)
"""Cache files of `ConceptPictures`."""
