"""Recognise unlearned weights and lay them over a base model, which stays as it is."""

import copy
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ine.errors import CheckpointError
from ine.models.fit import changed_names, check_family, check_settings, guess_method
from ine.models.layouts import ENCODER_FOLDERS, PLAIN, PREFIXED, recognise
from ine.models.sources import open_source
from ine.models.weight_files import weights_metadata, write_unet_weights

__all__ = [
    "UnlearnedWeights",
    "lay_weights",
    "read_weights",
    "weights_metadata",
    "write_unet_weights",
]

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class UnlearnedWeights:
    """What a checkpoint was recognised as, and what it replaces in which base."""

    path: Path
    layout: str
    """What holds the weights, such as "partial diffusers UNet (key 'unet')"."""

    method: str
    """The eraser: from the file's metadata if it says so, else the likely one; "" for a full
    file that equals the base."""

    tensors: dict[str, torch.Tensor]
    """{name in the UNet's state dict: tensor in the file's dtype, on the CPU}."""

    text_encoder: dict[str, torch.Tensor] | None = None
    """Likewise for text encoders; names start with "text_encoder." or "text_encoder_2.". Once
    laid, None unless it differs from the base."""

    metadata: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    """UNet tensors that the file gives."""

    total: int | None = None
    """UNet tensors of the base; None until laid."""

    changed: int | None = None
    """UNet tensors that differ from the base by more than rounding; None until laid."""

    encoder_changed: int = 0
    """Likewise for the text encoders; 0 until laid."""

    def describe(self):
        """Return one sentence: what it was recognised as, what it replaces and really changes."""
        declared = self.metadata.get("ine.method")
        concept = self.metadata.get("ine.concept")
        text = f"{self.path.name}: {self.layout}"
        if self.method:
            text += f", {self.method} by its metadata" if declared else f", likely {self.method}"
        text += f", concept {concept!r}" if concept else ""
        text += f"; replaces {self.replaced}"
        if self.changed is None:
            return f"{text} UNet tensors."
        text += f" of {self.total} UNet tensors, {self.changed} of them differ from the base"
        if self.encoder_changed:
            text += f", and {self.encoder_changed} of the text encoder differ too"
        if self.is_base:
            text += "; nothing differs, so nothing was unlearned"
        return text + "."

    @property
    def is_base(self):
        """Whether, once laid, no value differs from the base's."""
        return self.changed == 0 and self.encoder_changed == 0


def read_weights(path):
    """Return what a file or folder of unlearned weights holds, before any base is known.

    Args:
        path: A state dict of a UNet, full or partial, in .safetensors or torch format; a UNet
            folder; or a pipeline folder.

    Raises:
        CheckpointError: It cannot be read, is something else, or no layout is recognised.
    """
    return _read(path)[0]


def lay_weights(parts, path):
    """Return a base with unlearned weights laid over it, and what they were recognised as.

    The base is not changed: its UNet is copied, and the file's tensors are copied into that in
    the base's dtype. A warning is logged if no value differs from the base.

    Args:
        parts: The base, a `DiffusionParts`.
        path: As for `read_weights`.

    Raises:
        CheckpointError: As for `read_weights`, or the weights do not fit this base.
    """
    weights, source = _read(path)
    check_family(parts, source)
    check_settings(parts, source)
    changed = changed_names(parts.unet, weights.tensors, source)
    total = len(parts.unet.state_dict())
    extent = "full" if len(weights.tensors) == total else "partial"
    encoders, states = _lay_encoders(parts, source)
    method = weights.method
    if not weights.metadata.get("ine.method"):
        # A full file tells its eraser by what differs, a partial one by what it holds.
        telling = changed if extent == "full" else weights.tensors
        method = guess_method(weights.tensors, telling, bool(states))
    weights = replace(
        weights,
        method=method,
        layout=f"{extent} {weights.layout}",
        text_encoder=states or None,
        total=total,
        changed=len(changed),
        encoder_changed=len(states),
    )
    if weights.is_base:
        log.warning("%s", weights.describe())
    unet = _copy_with(parts.unet, weights.tensors)
    laid = parts.with_unet(unet, f"{weights.path.name} ({weights.method or 'equals the base'})")
    return laid.with_text_encoders(encoders), weights


def _read(path):
    names, source = recognise(open_source(path))
    encoder = {
        f"{folder}.{name}": tensor
        for folder, state in source.encoders.items()
        for name, tensor in state.items()
    }
    for name, tensor in [*source.entries.items(), *encoder.items()]:
        if not isinstance(tensor, torch.Tensor) or not (
            tensor.is_floating_point() or name.endswith("position_ids")
        ):
            found = getattr(tensor, "dtype", type(tensor).__name__)
            raise CheckpointError(
                f"{source.path}: {source.prefix}{name} is {found}, expected floating-point "
                "weights; quantised checkpoints must be converted back first"
            )
    wrappers = [f"prefix {source.prefix!r}" if name == PREFIXED else name for name in names[:-1]]
    weights = UnlearnedWeights(
        path=source.path,
        layout=PLAIN + (f" ({', '.join(wrappers)})" if wrappers else ""),
        method=source.metadata.get("ine.method") or guess_method(source.entries, source.entries),
        tensors={name: tensor.detach() for name, tensor in source.entries.items()},
        text_encoder=encoder or None,
        metadata=source.metadata,
        replaced=len(source.entries),
    )
    return weights, source


def _lay_encoders(parts, source):
    """Return the text encoders, replaced where they differ, and {full name: changed tensor}."""
    encoders, states = list(parts.text_encoders), {}
    for number, (folder, encoder) in enumerate(zip(ENCODER_FOLDERS, encoders, strict=False)):
        tensors = _as_named_by(encoder, source.encoders.get(folder, {}))
        theirs = replace(source, entries=tensors, prefix="")
        names = changed_names(encoder, tensors, theirs, folder) if tensors else []
        if names:
            encoders[number] = _copy_with(encoder, tensors)
            states |= {f"{folder}.{name}": tensors[name] for name in names}
    return encoders, states


def _as_named_by(encoder, state):
    """Return a text encoder's state dict under the names that this transformers version uses.

    Since 5.6 CLIPTextModel has no `text_model.` level; files have it. `position_ids` are a
    constant that older versions saved.
    """
    own = encoder.state_dict()
    named = {}
    for name, tensor in state.items():
        options = (name, name.removeprefix("text_model."), f"text_model.{name}")
        if not name.endswith("position_ids"):
            named[next((option for option in options if option in own), name)] = tensor
    return named


@torch.no_grad()
def _copy_with(module, tensors):
    """Return a frozen copy of a module with some tensors replaced, in the module's dtype."""
    made = copy.deepcopy(module).eval().requires_grad_(False)
    state = made.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
    return made
