"""What unlearned weights were recognised as, and what they replace or add to in which base."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ine.models.lowrank import LowRank


@dataclass(frozen=True, kw_only=True)
class UnlearnedWeights:
    """What a checkpoint was recognised as, and what it replaces or adds to in which base."""

    path: Path
    layout: str
    """What holds the weights, such as "partial diffusers UNet (key 'unet')"."""

    method: str
    """The eraser: from the file's metadata if it says so, else the likely one; "" for a full
    file that equals the base."""

    tensors: dict[str, torch.Tensor | LowRank]
    """{name in the UNet's state dict: tensor in the file's dtype, on the CPU}; of LoRAs the
    differences. Until laid, CompVis and kohya names stay as they are in the file."""

    text_encoder: dict[str, torch.Tensor | LowRank] | None = None
    """Likewise for text encoders; names start with "text_encoder." or "text_encoder_2.". Once
    laid, None unless it differs from the base."""

    metadata: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    """UNet tensors that the file gives."""

    added: int = 0
    """UNet tensors that the file adds a low-rank difference to."""

    total: int | None = None
    """UNet tensors of the base; None until laid."""

    changed: int | None = None
    """UNet tensors that differ from the base by more than rounding; None until laid."""

    encoder_changed: int = 0
    """Likewise for the text encoders; 0 until laid."""

    differing: tuple[str, ...] = ()
    """Names of the UNet tensors that differ; empty until laid."""

    def describe(self):
        """Return one sentence: what it was recognised as, what it replaces and really changes."""
        declared = self.metadata.get("ine.method")
        concept = self.metadata.get("ine.concept")
        text = f"{self.path.name}: {self.layout}"
        if self.method:
            text += f", {self.method} by its metadata" if declared else f", likely {self.method}"
        text += f", concept {concept!r}" if concept else ""
        counts = [("replaces", self.replaced), ("adds to", self.added)]
        total = "" if self.total is None else f" of {self.total}"
        touches = [f"{verb} {count}{total} UNet tensors" for verb, count in counts if count]
        text += "; " + (" and ".join(touches) or "leaves the UNet as it is")
        if self.changed is None:
            return f"{text}."
        if touches:
            text += f", {self.changed} of them differ from the base"
        if self.encoder_changed:
            text += f", and {self.encoder_changed} of the text encoder differ"
            text += " too" if touches else ""
        if self.is_base:
            text += "; nothing differs, so nothing was unlearned"
        return text + "."

    @property
    def is_base(self):
        """Whether, once laid, no value differs from the base's."""
        return self.changed == 0 and self.encoder_changed == 0


@dataclass(frozen=True, kw_only=True)
class StackedWeights:
    """Several checkpoints that are laid in order, each with its weight or as it is."""

    name: str
    """The files with their weights, joined."""

    layers: tuple[UnlearnedWeights, ...]
    total: int | None = None
    changed: int | None = None
    """UNet tensors that differ from the base once all are laid; None until then."""

    encoder_changed: int = 0
    differing: tuple[str, ...] = ()

    @property
    def metadata(self):
        """The text metadata of all; of the same key the first."""
        return {k: v for layer in reversed(self.layers) for k, v in layer.metadata.items()}

    @property
    def method(self):
        """The erasers, joined."""
        return " + ".join(dict.fromkeys(layer.method for layer in self.layers if layer.method))

    def describe(self):
        """Return a sentence for each file, and one for what they do together."""
        text = " ".join(layer.describe() for layer in self.layers)
        if self.changed is None:
            return text
        text += f" Together ({self.name}): {self.changed} of {self.total} UNet tensors"
        if self.encoder_changed:
            text += f" and {self.encoder_changed} of the text encoder"
        text += " differ from the base"
        return text + ("; so nothing was unlearned." if self.is_base else ".")

    @property
    def is_base(self):
        """Whether, once laid, no value differs from the base's."""
        return self.changed == 0 and self.encoder_changed == 0
