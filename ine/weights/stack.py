"""What `--unet` names: one file, or several with weights, applied in order.

No torch here: the command line parses its options with this.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ine.errors import CheckpointError
from ine.files import user_path


@dataclass(frozen=True)
class Layer:
    """One file or folder of unlearned weights and how strongly it is applied."""

    path: Path
    weight: float | None = None
    """Factor on the difference from the base; None applies the file as it is."""

    def __str__(self) -> str:
        return str(self.path) if self.weight is None else f"{self.path}:{self.weight:g}"

    @property
    def name(self) -> str:
        """The last part of the path, with the weight."""
        return self.path.name if self.weight is None else f"{self.path.name}:{self.weight:g}"


@dataclass(frozen=True)
class WeightStack:
    """Several files of unlearned weights, applied in this order."""

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        """As it is typed after `--unet`."""
        return " --unet ".join(str(layer) for layer in self.layers)

    @property
    def name(self) -> str:
        """The names of the files, joined."""
        return " + ".join(layer.name for layer in self.layers)


def parse_layer(text: str | Path) -> Layer:
    """Return the `Layer` of "FILE" or "FILE:WEIGHT"; a path that exists is never split.

    Raises:
        CheckpointError: What follows an existing file's name is not a finite number.
    """
    path = Path(text)
    if _exists(path):
        return Layer(path)
    name, colon, tail = str(text).rpartition(":")
    if not colon or not name:
        return Layer(path)
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if math.isfinite(weight):
        return Layer(Path(name), weight)
    if _exists(name):
        raise CheckpointError(
            f"{text}: {tail!r} is not a weight; give a number, such as {name}:0.5, or the file "
            "alone"
        )
    return Layer(path)


def _exists(path: str | Path) -> bool:
    # Unlike Path.exists this is False for text that is no valid path: too long, or with a NUL.
    return os.path.exists(user_path(path))


def as_unet(layers: Iterable[Layer]) -> Path | WeightStack | None:
    """Return what commands pass on: None, one path without a weight, or a `WeightStack`."""
    layers = tuple(layers)
    if not layers:
        return None
    if len(layers) == 1 and layers[0].weight is None:
        return layers[0].path
    return WeightStack(layers)


def layers_of(unet: str | Path | Layer | WeightStack) -> tuple[Layer, ...]:
    """Return the layers of a path, a `Layer` or a `WeightStack`."""
    if isinstance(unet, WeightStack):
        return unet.layers
    return (unet,) if isinstance(unet, Layer) else (Layer(Path(unet)),)
