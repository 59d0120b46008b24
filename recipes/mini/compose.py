"""Scenes as tensors: many pictures at once, on a CPU or on a GPU without a data loader.

A `Pool` holds scenes as indices into a table of icons and positions, and captions as token ids. A
batch is a choice of rows, so that composing one costs no Python per scene.

Shape letters: N scenes, B of a batch, L layers of a scene, I icons, S side of an icon, C captions
of a scene.
"""

from dataclasses import dataclass

import numpy as np
import torch

from world import MAIN_SIZE, SIZE, caption, place, sample_scene

LAYERS = 6


@dataclass(frozen=True)
class Icons:
    """Rendered icons in one tensor."""

    pixels: torch.Tensor
    """(I + 1, S, S, 4), float in [0, 1], premultiplied by alpha; the last one is empty."""

    index: dict
    """(set, icon, size) -> row."""

    @staticmethod
    def of(world, device="cpu"):
        """Return the icons of a world on a device."""
        table = np.zeros((len(world.icons) + 1, MAIN_SIZE, MAIN_SIZE, 4), np.float32)
        for row, icon in enumerate(world.icons.values()):
            table[row, : len(icon), : len(icon)] = icon / 255
        table[..., :3] *= table[..., 3:]
        index = {key: row for row, key in enumerate(world.icons)}
        return Icons(torch.from_numpy(table).to(device), index)


@dataclass(frozen=True)
class Pool:
    """Scenes that are ready to be composed, all on one device."""

    icons: Icons
    colours: torch.Tensor
    """Backgrounds, (N, 3) in [0, 1]."""

    layers: torch.Tensor
    """Icon, left and top of each layer, (N, L, 3) int64."""

    def compose(self, rows):
        """Return pictures of rows (B,) in [-1, 1], (B, 3, 64, 64)."""
        canvas = self.colours[rows][:, None, None].expand(-1, SIZE, SIZE, -1)
        layers = self.layers[rows]
        at = torch.arange(SIZE, device=canvas.device)
        for icon, left, top in (layer.unbind(1) for layer in layers.unbind(1)):
            if bool((icon == len(self.icons.index)).all()):
                continue
            y, x = at - top[:, None], at - left[:, None]
            inside = ((y >= 0) & (y < MAIN_SIZE))[:, :, None] & ((x >= 0) & (x < MAIN_SIZE))[
                :, None
            ]
            y, x = y.clamp(0, MAIN_SIZE - 1), x.clamp(0, MAIN_SIZE - 1)
            part = self.icons.pixels[icon[:, None, None], y[:, :, None], x[:, None]]
            part = part * inside[..., None]
            canvas = canvas * (1 - part[..., 3:]) + part[..., :3]
        # Whole levels of 8 bits, as a picture file has.
        return (canvas * 255).round().permute(0, 3, 1, 2) / 127.5 - 1


def pool_of(world, scenes, rng, icons, device="cpu"):
    """Return the pool of scenes, each placed once."""
    colours = np.zeros((len(scenes), 3), np.float32)
    layers = np.zeros((len(scenes), LAYERS, 3), np.int64)
    layers[..., 0] = len(icons.index)
    for row, scene in enumerate(scenes):
        shade, found = place(world, scene, rng)
        colours[row] = np.clip(shade, 0, 255) / 255
        for k, (key, left, top) in enumerate(found):
            layers[row, k] = icons.index[key], left, top
    return Pool(icons, torch.from_numpy(colours).to(device), torch.from_numpy(layers).to(device))


def draw(world, scenes, rng, icons=None):
    """Return the pictures of scenes, (n, 64, 64, 3) uint8."""
    pool = pool_of(world, scenes, rng, icons or Icons.of(world))
    found = [pool.compose(torch.arange(len(scenes))[k : k + 64]) for k in range(0, len(scenes), 64)]
    pixels = torch.cat(found).add(1).mul(127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).numpy()


def sample_scenes(world, rng, count, designers=None):
    """Return `count` scenes drawn with the probabilities of the world."""
    return [sample_scene(world, rng, designers) for _ in range(count)]


def captions_of(world, scenes, rng, each):
    """Return captions as a list of n lists of `each`."""
    return [[caption(world, scene, rng) for _ in range(each)] for scene in scenes]
