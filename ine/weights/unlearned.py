"""Unlearned weights as values: what was recognised, and what changed once applied to a base."""

from dataclasses import dataclass, field
from pathlib import Path

from ine.weights.fit import guess_method
from ine.weights.lowrank import LowRank, Value
from ine.weights.source import Source
from ine.weights.stack import WeightStack

NO_UNET = "leaves the UNet as it is"


@dataclass(frozen=True, kw_only=True)
class UnlearnedWeights:
    """What a file or folder of unlearned weights holds, recognised without a base."""

    source: Source = field(repr=False)
    """The opened file, without its wrappers; `apply_weights` continues from here."""

    layout: str
    """What holds the weights, such as "diffusers UNet (key 'unet')"."""

    @property
    def path(self) -> Path:
        """What the user named."""
        return self.source.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def tensors(self) -> dict[str, Value]:
        """{name: tensor in the file's dtype, on the CPU} of the UNet; of LoRAs the differences.

        CompVis and kohya names stay as they are in the file.
        """
        return self.source.entries

    @property
    def text_encoder(self) -> dict[str, Value] | None:
        """Likewise for text encoders, or None without any.

        Names start with "text_encoder." or "text_encoder_2.".
        """
        found = {
            f"{folder}.{name}": value
            for folder, state in self.source.encoders.items()
            for name, value in state.items()
        }
        return found or None

    @property
    def metadata(self) -> dict[str, str]:
        """The file's text metadata."""
        return self.source.metadata

    @property
    def whole(self) -> bool:
        """Whether the file has a VAE and text encoders too, and so could be a base itself."""
        return self.source.whole

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file is not used or not known."""
        return self.source.notes

    @property
    def replaced(self) -> int:
        """Number of UNet tensors that the file replaces."""
        return len(self.tensors) - self.added

    @property
    def added(self) -> int:
        """Number of UNet tensors that the file adds a low-rank difference to."""
        return sum(isinstance(value, LowRank) for value in self.tensors.values())

    @property
    def method(self) -> str:
        """The eraser: from the file's metadata if it says so, else the likely one."""
        stated = self.metadata.get("ine.method")
        return stated or guess_method(self.tensors, self.tensors, self.text_encoder is not None)

    def describe(self) -> str:
        """Return one sentence: what the file was recognised as, and what it replaces."""
        return f"{self._recognised()}; {self._touched() or NO_UNET}."

    def _recognised(self) -> str:
        text = f"{self.name}: {self.layout}"
        if self.method:
            stated = self.metadata.get("ine.method")
            text += f", {self.method} by its metadata" if stated else f", likely {self.method}"
        concept = self.metadata.get("ine.concept")
        return text + (f", concept {concept!r}" if concept else "")

    def _touched(self, total: str = "") -> str:
        counts = [("replaces", self.replaced), ("adds to", self.added)]
        return " and ".join(
            f"{verb} {count}{total} UNet tensors" for verb, count in counts if count
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """How many tensors of a base differ once weights are applied to it."""

    total: int
    """Number of UNet tensors of the base."""

    differing: tuple[str, ...]
    """Names of the UNet tensors that differ from the base by more than rounding."""

    encoder_changed: int
    """Number of tensors of the text encoders that differ."""

    @property
    def changed(self) -> int:
        """Number of UNet tensors that differ from the base by more than rounding."""
        return len(self.differing)

    @property
    def is_base(self) -> bool:
        """Whether no value differs from the base's."""
        return not self.changed and not self.encoder_changed


@dataclass(frozen=True, kw_only=True)
class AppliedWeights(Change, UnlearnedWeights):
    """Weights applied to a base: names are the base's, `text_encoder` has only what differs."""

    @property
    def method(self) -> str:
        """The eraser: from the file's metadata if it says so, else the likely one.

        It is guessed from the changed tensors of a full file, from all tensors of a partial one;
        "" for a full file that equals the base.
        """
        telling = self.differing if self.replaced == self.total else self.tensors
        guess = guess_method(self.tensors, telling, self.encoder_changed > 0)
        return self.metadata.get("ine.method") or guess

    def describe(self) -> str:
        """Return one sentence: what was recognised, what it replaces and really changes."""
        touched = self._touched(f" of {self.total}")
        text = f"{self._recognised()}; {touched or NO_UNET}"
        if touched:
            text += f", {self.changed} of them differ from the base"
        if self.encoder_changed:
            text += f", and {self.encoder_changed} of the text encoder differ"
            text += " too" if touched else ""
        return text + ("; nothing differs, so nothing was unlearned." if self.is_base else ".")


@dataclass(frozen=True, kw_only=True)
class StackedWeights:
    """Several files of unlearned weights, recognised without a base."""

    stack: WeightStack
    layers: tuple[UnlearnedWeights, ...]

    @property
    def name(self) -> str:
        """The files with their weights, joined."""
        return self.stack.name

    @property
    def metadata(self) -> dict[str, str]:
        """The text metadata of all files; of a key that several have the first counts."""
        return {k: v for layer in reversed(self.layers) for k, v in layer.metadata.items()}

    @property
    def method(self) -> str:
        """The erasers, joined."""
        return " + ".join(dict.fromkeys(layer.method for layer in self.layers if layer.method))

    def describe(self) -> str:
        """Return a sentence for each file."""
        return " ".join(layer.describe() for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class AppliedStack(Change, StackedWeights):
    """Several files applied to a base, in order: what differs after the last one."""

    layers: tuple[AppliedWeights, ...]

    def describe(self) -> str:
        """Return a sentence for each file, and one for what they do together."""
        text = f"{super().describe()} Together ({self.name}): {self.changed} of {self.total} UNet"
        text += " tensors"
        if self.encoder_changed:
            text += f" and {self.encoder_changed} of the text encoder"
        text += " differ from the base"
        return text + ("; so nothing was unlearned." if self.is_base else ".")
