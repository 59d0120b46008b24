"""Do weights fit a base, which of them differ from it, and which eraser made them?"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol, Self

import torch

from ine.errors import CheckpointError
from ine.families import family_of
from ine.weights.layouts import unknown
from ine.weights.lowrank import LowRank, Value
from ine.weights.source import Source

SHAPELESS = (
    *("attention_head_dim", "num_attention_heads", "norm_num_groups", "act_fn"),
    *("center_input_sample", "flip_sin_to_cos", "freq_shift"),
)
"""Settings of a UNet that change what it computes but not the shape of any tensor."""

PIECE = 1 << 20
"""Number of values cast at once to compare tensors, a few megabytes."""


class BaseModel(Protocol):
    """A base that weights are compared with: `DiffusionParts` or `StoredParts`."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def width(self) -> int:
        """Width of the text states that its UNet reads."""

    @property
    def family(self) -> str:
        """Name of the family that the width belongs to."""

    @property
    def prediction_type(self) -> str:
        """Return "epsilon" or "v_prediction"."""

    @property
    def unet(self) -> Any:
        """A module with `config` and `state_dict()`."""

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        """Likewise, one or two."""


class BaseParts(BaseModel, Protocol):
    """A base that weights can be applied to; in practice `DiffusionParts`."""

    def with_unet(self, unet: Any, name: str) -> Self:
        """Return the same parts with another UNet."""

    def with_text_encoders(self, encoders: Any) -> Self:
        """Return the same parts with other text encoders."""


def text_widths(entries: Mapping[str, Value]) -> set[int]:
    """Return the widths of the text states that a file's cross-attention reads."""
    # kohya's names have underscores until the base gives them theirs.
    keys = [n for n in entries if n.endswith(("attn2.to_k.weight", "attn2_to_k"))]
    shapes = [entries[n].shape for n in keys]
    return {shape[1] for shape in shapes if len(shape) == 2 or tuple(shape[2:]) == (1, 1)}


def check_family(parts: BaseModel, source: Source) -> None:
    """Refuse weights whose cross-attention reads text states of another width."""
    widths = text_widths(source.entries)
    if source.config.get("cross_attention_dim"):
        widths.add(source.config["cross_attention_dim"])
    foreign = [width for width in widths if width != parts.width]
    if foreign:
        theirs = family_of(foreign[0]).name
        raise CheckpointError(
            f"{source.path}: is made for {theirs} (cross-attention width {foreign[0]}), the base "
            f"{parts.name!r} is {parts.family} (width {parts.width}); "
            "choose a base of the same family with --model"
        )


def check_settings(parts: BaseModel, source: Source) -> None:
    """Refuse a UNet folder whose settings differ from the base's in what the UNet computes."""
    pairs = [
        (k, source.config[k], parts.unet.config.get(k)) for k in SHAPELESS if k in source.config
    ]
    if source.prediction_type:
        pairs.append(("prediction_type", source.prediction_type, parts.prediction_type))
    for name, theirs, ours in pairs:
        if not _same_setting(theirs, ours):
            raise CheckpointError(
                f"{source.path}: its {name} is {theirs}, that of the base {parts.name!r} is "
                f"{ours}; choose the base that it was made from with --model"
            )


def _same_setting(one: Any, other: Any) -> bool:
    """Return whether settings agree; one number stands for the same number in every block."""
    as_sets = [set(v) if isinstance(v, list | tuple) else {v} for v in (one, other)]
    both_lists = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    return list(one) == list(other) if both_lists else as_sets[0] == as_sets[1]


def check_tensors(
    module: Any, values: Mapping[str, Value], source: Source, what: str = "UNet"
) -> None:
    """Refuse names that a module lacks, and other shapes than its own; reads no values.

    Args:
        module: The base's UNet or a text encoder of it.
        values: {name: tensor or `LowRank`}.
        source: Where they come from, for error messages.
        what: What the module is, for error messages.
    """
    base = module.state_dict()
    alien = [source.prefix + name for name in values if name not in base]
    if len(alien) == len(values):
        raise unknown(source, f"has no key of the base's {what}")
    if alien:
        raise CheckpointError(
            f"{source.path}: {len(alien)} of {len(values)} keys are unknown to the base's {what}: "
            f"{', '.join(alien[:3])}; choose the base that it was made from with --model"
        )
    shapes = [
        f"{name} is {tuple(value.shape)}, in the base {tuple(base[name].shape)}"
        for name, value in values.items()
        if not _fits(value, base[name].shape)
    ]
    if shapes:
        raise CheckpointError(
            f"{source.path}: {len(shapes)} tensors of the {what} have another shape: "
            f"{'; '.join(shapes[:3])}; choose the base that it was made from with --model"
        )


def _fits(value: Value, shape: torch.Size) -> bool:
    return value.fits(shape) if isinstance(value, LowRank) else value.shape == shape


def changed_names(
    module: Any, values: Mapping[str, Value], source: Source, what: str = "UNet"
) -> list[str]:
    """Return the names of tensors that differ from a module's, after checking that all fit."""
    check_tensors(module, values, source, what)
    base: dict[str, torch.Tensor] = module.state_dict()
    changed = []
    for name, value in values.items():
        here = base[name].cpu()
        added = isinstance(value, LowRank)
        # A sum is exact until it is cast, so with a LoRA any change of a value counts.
        new = value.difference(here.shape).add_(here).to(here.dtype) if added else value
        if not all_finite(new, here.dtype):
            raise CheckpointError(
                f"{source.path}: {name} holds NaN or infinite values in {here.dtype}; the file "
                "is damaged, or its values need --dtype float32"
            )
        if not (torch.equal(new, here) if added else same_values(new, here)):
            changed.append(name)
    return changed


def all_finite(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Return whether no value is NaN or infinite, once cast to `dtype` where it is given."""
    return all(part.to(dtype or part.dtype).isfinite().all() for part in _pieces(tensor))


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal after casting to the coarser of their dtypes.

    float16 and bfloat16 are each finer somewhere, and a value rounded to one and then to the
    other may end one step away, so these two are compared within a step of bfloat16.
    """
    coarse = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    near = {one.dtype, other.dtype} == {torch.float16, torch.bfloat16}
    for left, right in zip(_pieces(one), _pieces(other), strict=True):
        a, b = left.to(coarse), right.to(coarse)
        if not (
            torch.allclose(a.float(), b.float(), rtol=2**-7, atol=2**-24)
            if near
            else torch.equal(a, b)
        ):
            return False
    return True


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return views of a tensor along its first dimension, so that casts of them stay small."""
    if tensor.dim() == 0 or tensor.numel() <= PIECE:
        return (tensor,)
    return tensor.split(max(1, PIECE * len(tensor) // tensor.numel()))


def guess_method(
    tensors: Mapping[str, Value], telling: Collection[str], encoder: bool = False
) -> str:
    """Return the likely eraser, by which tensors the file touches and by their dtype.

    Args:
        tensors: All values of the file's UNet.
        telling: Names to guess from: the changed ones of a full file, else all.
        encoder: Whether the file changes a text encoder.

    Sources:
        Counts for SD 1.x: 80 tensors of attn2 for ESD-x, 32 of its K and V for ESD-x-strict
        (bfloat16) and UCE (float32), 388 for ESD-u, 468 for ESD-all, 686 for a full UNet.
    """
    if any(isinstance(value, LowRank) for value in tensors.values()):
        return _guess_lora(tensors)
    if not telling:
        return "AdvUnlearn or another on the text encoder" if encoder else ""
    cross = [name for name in telling if ".attn2." in name]
    if cross and len(cross) == len(telling):
        if {name.split(".attn2.")[1].split(".")[0] for name in cross} - {"to_k", "to_v"}:
            return "ESD-x"
        if tensors[cross[0]].dtype == torch.bfloat16:
            return "ESD-x-strict"
        return "UCE, RECE or Concept Ablation"
    if all(".attn1." in name for name in telling):
        return "merged DUO or ESD on self-attention"
    if not cross:
        return "ESD-u"
    # ESD trains linear and convolution layers only, a full fine-tuning norms as well.
    if not any("norm" in name for name in tensors):
        return "ESD-all"
    return "full fine-tuning"


def _guess_lora(values: Mapping[str, Value]) -> str:
    """Return the likely eraser of a LoRA.

    Sources:
        SPM (Lyu et al. 2024) trains rank 1 on every layer of the transformers, DUO (Park et al.
        2024) self-attention only.
    """
    added = {name: value for name, value in values.items() if isinstance(value, LowRank)}
    if all(value.rank == 1 for value in added.values()):
        return "SPM"
    if all(".attn1." in name or "_attn1_" in name for name in added):
        return "DUO"
    return "LoRA"
