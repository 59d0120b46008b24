"""Recognise a file or folder of unlearned weights, before any base is known."""

from dataclasses import replace
from pathlib import Path
from typing import overload

import torch

from ine.errors import CheckpointError
from ine.weights import files as weight_files
from ine.weights.layouts import recognise
from ine.weights.lowrank import LowRank
from ine.weights.source import open_source
from ine.weights.stack import Layer, WeightStack, layers_of
from ine.weights.torch_pickles import FLOATS
from ine.weights.unlearned import StackedWeights, UnlearnedWeights
from ine.weights.wrappers import PREFIXED


@overload
def read_weights(path: WeightStack) -> StackedWeights: ...
@overload
def read_weights(path: str | Path | Layer) -> UnlearnedWeights: ...
def read_weights(
    path: str | Path | Layer | WeightStack,
) -> UnlearnedWeights | StackedWeights:
    """Recognise a file or folder of unlearned weights, without a base.

    Args:
        path: Any layout of `ine.weights.layouts.LAYOUTS`: a state dict of a UNet, full or
            partial, under diffusers or CompVis names, in .safetensors or torch format; a LoRA; a
            text encoder; a folder of any of these, or a pipeline folder. Or a `WeightStack`.

    Raises:
        CheckpointError: It cannot be read, is something else, or no layout is recognised.
    """
    if isinstance(path, WeightStack):
        layers = tuple(_read(layer.path) for layer in path.layers)
        return StackedWeights(stack=path, layers=layers)
    return _read(layers_of(path)[0].path)


def weights_metadata(path: str | Path | WeightStack) -> dict[str, str]:
    """Return the text metadata of a safetensors file; {} for folders and torch files.

    For a `WeightStack` the metadata of all its files; of a key that several have the first counts.

    Raises:
        CheckpointError: A file is missing, empty, truncated, or not weights.
    """
    found = [weight_files.weights_metadata(layer.path) for layer in layers_of(path)]
    return {key: value for one in reversed(found) for key, value in one.items()}


def _read(path: str | Path) -> UnlearnedWeights:
    names, source = recognise(open_source(path))
    named = [(source.prefix + name, value) for name, value in source.entries.items()]
    for folder, state in source.encoders.items():
        named += [(f"{folder}.{name}", value) for name, value in state.items()]
    if not named:
        raise CheckpointError(f"{source.path}: holds no tensors of a UNet or a text encoder")
    for name, value in named:
        if not _is_weight(name, value):
            found = getattr(value, "dtype", type(value).__name__)
            raise CheckpointError(
                f"{source.path}: {name} is {found}, expected floating-point weights; quantised "
                "checkpoints must be converted back first"
            )
    wrappers = dict.fromkeys(
        f"prefix {source.prefix!r}" if name == PREFIXED else name for name in names[:-1]
    )
    entries = {
        name: value if isinstance(value, LowRank) else value.detach()
        for name, value in source.entries.items()
    }
    layout = names[-1] + (f" ({', '.join(wrappers)})" if wrappers else "")
    return UnlearnedWeights(source=replace(source, entries=entries), layout=layout)


def _is_weight(name: str, value: object) -> bool:
    """Return whether a value is a floating-point weight, or the constant positions of old files."""
    floating = isinstance(value, torch.Tensor) and value.dtype in FLOATS.values()
    positions = isinstance(value, torch.Tensor) and name.endswith("position_ids")
    return floating or positions or isinstance(value, LowRank)
