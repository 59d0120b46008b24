"""Apply unlearned weights to a base model, which stays as it is; or only compare them with it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ine.errors import CheckpointError
from ine.weights.encoders import as_named_by
from ine.weights.fit import BaseModel, BaseParts, changed_names, check_family, check_settings
from ine.weights.lowrank import LowRank, Value
from ine.weights.merge import Step, apply_to_module, apply_to_tensor
from ine.weights.read import read_weights
from ine.weights.source import ENCODER_FOLDERS, Source
from ine.weights.stack import Layer, WeightStack, layers_of
from ine.weights.unlearned import AppliedStack, AppliedWeights, StackedWeights, UnlearnedWeights

log = logging.getLogger("ine")

Values = dict[str, dict[str, Value]]
"""{"unet", "text_encoder" or "text_encoder_2": {name: tensor or `LowRank`}}."""


Parts = TypeVar("Parts", bound=BaseParts)
Given = str | Path | WeightStack | UnlearnedWeights | StackedWeights
"""What names unlearned weights, or what reading them returned."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One layer that fits a base: what it is, and the values for each module."""

    weights: AppliedWeights
    factor: float | None
    """The layer's weight."""

    values: Values
    changed: dict[str, list[str]]
    """{module as in `Values`: names of the tensors that differ from the base}."""


def apply_weights(
    parts: Parts,
    path: Given,
    keep_base: bool = True,
) -> tuple[Parts, AppliedWeights | AppliedStack]:
    """Apply unlearned weights to a base; return the new parts and what the weights change.

    A warning is logged if no value differs from the base.

    Args:
        parts: The base, a `DiffusionParts`.
        path: As for `read_weights`, or what it returned, which saves reading again.
        keep_base: Leave the base as it is, and share with it the tensors that stay. Otherwise
            its own UNet and text encoders take the values, so that memory holds one model; for
            callers that do not need the base afterwards.

    Raises:
        CheckpointError: As for `read_weights`; the weights do not fit this base; or of several
            files one would undo all that an earlier one changes.
    """
    layers, found = _opened(path)
    fitted = [_fit(parts, one, layer.weight) for one, layer in zip(found, layers, strict=True)]
    _check_order(fitted, layers)
    unet, changed = _applied(parts.unet, fitted, "unet", keep_base)
    encoders = [
        _applied(encoder, fitted, folder, keep_base)
        for folder, encoder in zip(ENCODER_FOLDERS, parts.text_encoders, strict=False)
    ]
    weights = _applied_weights(fitted, path, changed, sum(len(names) for _, names in encoders))
    if weights.is_base:
        log.warning("%s", weights.describe())
    made = parts.with_unet(unet, f"{weights.name} ({weights.method or 'equals the base'})")
    return made.with_text_encoders([encoder for encoder, _ in encoders]), weights


def _applied_weights(
    fitted: Sequence[Fitted], given: Given, changed: Iterable[str], encoders: int
) -> AppliedWeights | AppliedStack:
    """Return what one file or a stack changes: these UNet tensors, so many of the encoders."""
    stack = given.stack if isinstance(given, StackedWeights) else given
    if not isinstance(stack, WeightStack):
        return fitted[0].weights
    return AppliedStack(
        stack=stack,
        layers=tuple(one.weights for one in fitted),
        total=fitted[0].weights.total,
        differing=tuple(changed),
        encoder_changed=encoders,
    )


def compare_weights(
    parts: BaseModel, path: str | Path | UnlearnedWeights
) -> tuple[AppliedWeights, dict[str, torch.Tensor]]:
    """Compare weights with a base; return what they change, and the changed UNet tensors.

    As `apply_weights`, but no model is made.

    Args:
        parts: `DiffusionParts` or `StoredParts`; of its modules configuration and tensors are read.
        path: A file or folder, as for `read_weights`, or what it returned.

    Returns:
        (`AppliedWeights`; {name: the tensor with the weights applied}).

    Raises:
        CheckpointError: As for `apply_weights`.
    """
    fitted = _fit(parts, path if isinstance(path, UnlearnedWeights) else read_weights(path), None)
    base, values = parts.unet.state_dict(), fitted.values["unet"]
    names = fitted.changed["unet"]
    return fitted.weights, {
        name: apply_to_tensor(base[name], [(values[name], None)]) for name in names
    }


def _opened(given: Given) -> tuple[tuple[Layer, ...], tuple[UnlearnedWeights, ...]]:
    """Return the layers, and what each was recognised as; files are read unless they were."""
    if isinstance(given, UnlearnedWeights):
        return (Layer(given.path),), (given,)
    if isinstance(given, StackedWeights):
        return given.stack.layers, given.layers
    layers = layers_of(given)
    return layers, tuple(read_weights(layer.path) for layer in layers)


def _fit(parts: BaseModel, weights: UnlearnedWeights, factor: float | None) -> Fitted:
    """Check one file against a base, and find what differs.

    Raises:
        CheckpointError: It does not fit.
    """
    source = weights.source
    check_family(parts, source)
    check_settings(parts, source)
    if source.rename:
        source = source.rename(parts, source)
    values: Values = {"unet": source.entries}
    changed: dict[str, list[str]] = {"unet": []}
    if source.entries:
        changed["unet"] = changed_names(parts.unet, source.entries, source)
    for folder, encoder in zip(ENCODER_FOLDERS, parts.text_encoders, strict=False):
        found = as_named_by(encoder, source.encoders.get(folder, {}), source.path)
        theirs = replace(source, entries=found, prefix="")
        if names := changed_names(encoder, found, theirs, folder) if found else []:
            values[folder], changed[folder] = found, names
    encoders = {
        folder: {name: values[folder][name] for name in names}
        for folder, names in changed.items()
        if folder != "unet"
    }
    _check_encoders(parts, source)
    for note in source.notes:
        log.warning("%s: %s", source.path.name, note)
    total, layout = len(parts.unet.state_dict()), weights.layout
    if weights.replaced:
        layout = f"{'full' if weights.replaced == total else 'partial'} {layout}"
    applied = AppliedWeights(
        source=replace(source, encoders=encoders),
        layout=layout,
        total=total,
        differing=tuple(changed["unet"]),
        encoder_changed=sum(map(len, encoders.values())),
    )
    return Fitted(weights=applied, factor=factor, values=values, changed=changed)


def _check_encoders(parts: BaseModel, source: Source) -> None:
    """Refuse a file that is all about a text encoder which the base does not have."""
    missing = sorted(set(source.encoders) - set(ENCODER_FOLDERS[: len(parts.text_encoders)]))
    if missing and not source.entries:
        raise CheckpointError(
            f"{source.path}: holds weights of {missing[0]}, which the base {parts.name!r} "
            f"({parts.family}) does not have; choose the base that it was made from with --model"
        )


def _check_order(fitted: list[Fitted], layers: tuple[Layer, ...]) -> None:
    """Refuse a file that replaces all that an earlier one changes; the earlier has no effect."""
    for number, (later, layer) in enumerate(zip(fitted, layers, strict=True)):
        given = _replaced(later.values) if later.factor is None else set()
        for earlier, before in zip(fitted[:number], layers, strict=False):
            changed = {(k, n) for k, names in earlier.changed.items() for n in names}
            if changed and changed <= given:
                raise CheckpointError(
                    f"{layer.path}: replaces all {len(changed)} tensors that {before.path} "
                    "changes, which would have no effect. To mix them give each a weight: "
                    f"--unet {before.path}:0.5 --unet {layer.path}:0.5; otherwise leave one out, "
                    "or give it last"
                )
            if changed & given:
                log.warning(
                    "%s replaces %d of the %d tensors that %s changes; weights would mix them",
                    layer.name,
                    len(changed & given),
                    len(changed),
                    before.name,
                )


def _replaced(values: Values) -> set[tuple[str, str]]:
    """Return {(module, name)} of the tensors that are replaced, not added to."""
    return {
        (module, name)
        for module, found in values.items()
        for name, value in found.items()
        if not isinstance(value, LowRank)
    }


def _applied(module: Any, fitted: list[Fitted], which: str, keep: bool) -> tuple[Any, list[str]]:
    """Return one module with all layers applied, and the names of its tensors that differ."""
    steps: dict[str, list[Step]] = {}
    for one in fitted:
        changed = set(one.changed.get(which, ()))
        for name, value in one.values.get(which, {}).items():
            # Where only rounding differs, a weighted difference would be noise.
            if one.factor is None or name in changed:
                steps.setdefault(name, []).append((value, one.factor))
    if not steps and which != "unet":
        return module, []
    alone = len(fitted) == 1 and fitted[0].factor is None
    try:
        made, differing = apply_to_module(module, steps, keep, compare=not alone)
    except OverflowError as error:
        raise CheckpointError(
            f"{' + '.join(str(one.weights.path) for one in fitted)}: with these weights {error} "
            f"leaves the range of {next(module.parameters()).dtype}; give smaller weights or "
            "--dtype float32"
        ) from None
    return made, fitted[0].changed.get(which, []) if alone else differing
