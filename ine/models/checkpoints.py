"""Recognise unlearned weights and lay them over a base model, which stays as it is."""

import logging
from dataclasses import dataclass, replace

import torch

from ine.errors import CheckpointError
from ine.models import weight_files
from ine.models.encoders import as_named_by
from ine.models.fit import changed_names, check_family, check_settings, guess_method
from ine.models.laying import laid_over
from ine.models.layouts import PREFIXED, recognise
from ine.models.lowrank import LowRank
from ine.models.sources import ENCODER_FOLDERS, open_source
from ine.models.stack import WeightStack, layers_of
from ine.models.torch_files import FLOATS
from ine.models.unlearned import StackedWeights, UnlearnedWeights
from ine.models.weight_files import write_unet_weights

__all__ = [
    "StackedWeights",
    "UnlearnedWeights",
    "lay_weights",
    "read_weights",
    "weights_metadata",
    "write_unet_weights",
]

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One layer that fits a base: what it is, and the values for each module."""

    weights: UnlearnedWeights
    factor: float | None
    """The layer's weight."""

    values: dict[str, dict]
    """{"unet", "text_encoder" or "text_encoder_2": {name: tensor or `LowRank`}}."""

    changed: dict[str, list]
    """{the same: names of those that differ from the base}."""


def read_weights(path):
    """Return what a file or folder of unlearned weights holds, before any base is known.

    Args:
        path: Any layout of `ine.models.layouts.LAYOUTS`: a state dict of a UNet, full or
            partial, under diffusers or CompVis names, in .safetensors or torch format; a LoRA; a
            text encoder; a folder of any of these, or a pipeline folder. Or a `WeightStack`.

    Raises:
        CheckpointError: It cannot be read, is something else, or no layout is recognised.
    """
    if not isinstance(path, WeightStack):
        return _read(path)[0]
    found = tuple(_read(layer.path)[0] for layer in path.layers)
    return StackedWeights(name=path.name, layers=found)


def weights_metadata(path):
    """Return the text metadata of a safetensors file; {} for folders and torch files.

    Of a `WeightStack` that of all files, of the same key the first.

    Raises:
        CheckpointError: A file is missing, empty, truncated, or not weights.
    """
    found = [weight_files.weights_metadata(layer.path) for layer in layers_of(path)]
    return {key: value for one in reversed(found) for key, value in one.items()}


def lay_weights(parts, path, keep_base=True):
    """Return a base with unlearned weights laid over it, and what they were recognised as.

    Values are laid in the base's dtype, one tensor after the other. A warning is logged if none
    differs from the base.

    Args:
        parts: The base, a `DiffusionParts`.
        path: As for `read_weights`.
        keep_base: Leave the base as it is, and share with it the tensors that stay. Otherwise
            its own UNet and text encoders take the values, so that memory holds one model: for
            who needs the base no more.

    Returns:
        (the parts; `UnlearnedWeights`, or `StackedWeights` for a `WeightStack`).

    Raises:
        CheckpointError: As for `read_weights`; the weights do not fit this base; or of several
            files one would undo all that an earlier one changes.
    """
    fitted = [_fit(parts, layer) for layer in layers_of(path)]
    _check_order(fitted, layers_of(path))
    unet, changed = _lay(parts.unet, fitted, "unet", keep_base)
    encoders, encoder_changed = [], 0
    for folder, encoder in zip(ENCODER_FOLDERS, parts.text_encoders, strict=False):
        made, names = _lay(encoder, fitted, folder, keep_base)
        encoders.append(made)
        encoder_changed += len(names)
    if isinstance(path, WeightStack):
        weights = StackedWeights(
            name=path.name,
            layers=tuple(one.weights for one in fitted),
            total=fitted[0].weights.total,
            changed=len(changed),
            encoder_changed=encoder_changed,
            differing=tuple(changed),
        )
        name = weights.name
    else:
        [weights] = [one.weights for one in fitted]
        name = weights.path.name
    if weights.is_base:
        log.warning("%s", weights.describe())
    laid = parts.with_unet(unet, f"{name} ({weights.method or 'equals the base'})")
    return laid.with_text_encoders(encoders), weights


def _read(path):
    names, source = recognise(open_source(path))
    encoder = {
        f"{folder}.{name}": tensor
        for folder, state in source.encoders.items()
        for name, tensor in state.items()
    }
    if not source.entries and not encoder:
        raise CheckpointError(f"{source.path}: holds no tensors of a UNet or a text encoder")
    for name, tensor in [*source.entries.items(), *encoder.items()]:
        if isinstance(tensor, LowRank) or (
            isinstance(tensor, torch.Tensor)
            and (tensor.dtype in FLOATS.values() or name.endswith("position_ids"))
        ):
            continue
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise CheckpointError(
            f"{source.path}: {source.prefix}{name} is {found}, expected floating-point "
            "weights; quantised checkpoints must be converted back first"
        )
    wrappers = [f"prefix {source.prefix!r}" if name == PREFIXED else name for name in names[:-1]]
    values = {
        name: value if isinstance(value, LowRank) else value.detach()
        for name, value in source.entries.items()
    }
    added = sum(isinstance(value, LowRank) for value in values.values())
    weights = UnlearnedWeights(
        path=source.path,
        layout=names[-1] + (f" ({', '.join(wrappers)})" if wrappers else ""),
        method=source.metadata.get("ine.method") or guess_method(values, values, bool(encoder)),
        tensors=values,
        text_encoder=encoder or None,
        metadata=source.metadata,
        replaced=len(values) - added,
        added=added,
    )
    return weights, source


def _fit(parts, layer):
    """Read one layer and check it against a base.

    Raises:
        CheckpointError: It cannot be read or does not fit.
    """
    weights, source = _read(layer.path)
    check_family(parts, source)
    check_settings(parts, source)
    if source.rename:
        source = source.rename(parts, source)
    values, changed = {"unet": source.entries}, {"unet": []}
    if source.entries:
        changed["unet"] = changed_names(parts.unet, source.entries, source)
    states = {}
    for folder, encoder in zip(ENCODER_FOLDERS, parts.text_encoders, strict=False):
        found = as_named_by(encoder, source.encoders.get(folder, {}), source.path)
        theirs = replace(source, entries=found, prefix="")
        names = changed_names(encoder, found, theirs, folder) if found else []
        if names:
            values[folder], changed[folder] = found, names
            states |= {f"{folder}.{name}": found[name] for name in names}
    _check_encoders(parts, source)
    for note in source.notes:
        log.warning("%s: %s", source.path.name, note)
    total = len(parts.unet.state_dict())
    layout = weights.layout
    if weights.replaced:
        layout = f"{'full' if weights.replaced == total else 'partial'} {layout}"
    method = weights.method
    if not weights.metadata.get("ine.method"):
        # A full file tells its eraser by what differs, a partial one by what it holds.
        telling = changed["unet"] if weights.replaced == total else source.entries
        method = guess_method(source.entries, telling, bool(states))
    weights = replace(
        weights,
        method=method,
        layout=layout,
        tensors=source.entries,
        text_encoder=states or None,
        total=total,
        changed=len(changed["unet"]),
        encoder_changed=len(states),
        differing=tuple(changed["unet"]),
    )
    return Fitted(weights=weights, factor=layer.weight, values=values, changed=changed)


def _check_encoders(parts, source):
    """Refuse a file that is all about a text encoder which the base does not have."""
    missing = sorted(set(source.encoders) - set(ENCODER_FOLDERS[: len(parts.text_encoders)]))
    if missing and not source.entries:
        raise CheckpointError(
            f"{source.path}: holds weights of {missing[0]}, which the base {parts.name!r} "
            f"({parts.family}) does not have; choose the base that it was made from with --model"
        )


def _check_order(fitted, layers):
    """Refuse a file that replaces all that an earlier one changes; it would have no effect."""
    for number, (later, layer) in enumerate(zip(fitted, layers, strict=True)):
        given = _tensors(later.values) if later.factor is None else set()
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


def _tensors(values):
    """Return {(module, name)} of what replaces."""
    return {
        (k, n)
        for k, found in values.items()
        for n, v in found.items()
        if not isinstance(v, LowRank)
    }


def _lay(module, fitted, which, keep):
    """Return one module with all layers over it, and the names of its tensors that differ."""
    steps = {}
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
        made, differing = laid_over(module, steps, keep, compare=not alone)
    except OverflowError as error:
        raise CheckpointError(
            f"{' + '.join(str(one.weights.path) for one in fitted)}: with these weights {error} "
            f"leaves the range of {next(module.parameters()).dtype}; give smaller weights or "
            "--dtype float32"
        ) from None
    return made, fitted[0].changed.get(which, []) if alone else differing
