"""Remove what training scripts put around weights: keys, prefixes, counters, averages."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from ine.errors import CheckpointError
from ine.weights.encoders import open_encoder_key
from ine.weights.source import Source, once_each

log = logging.getLogger("ine")

PREFIXED = "wrapper's prefix"
PREFIXES = ("module.", "unet.", "model.")
"""torch's data parallelism, pipelines, and trainers."""

COMPILED = ("_orig_mod.", "_orig_mod_")
"""Prefix that `torch.compile` adds to the names of a module; in kohya's names with `_`."""

KEYS = ("state_dict", "model_state_dict", "unet_state_dict", "model", "params")
"""Keys of a dict that hold the trained weights."""

AVERAGES = ("ema", "params_ema", "ema_state_dict", "model_ema", "unet_ema")
"""Keys of a dict that hold the average of the weights over training."""

COUNTERS = {
    *("num_updates", "decay", "min_decay", "initted", "step", "steps", "global_step"),
    *("optimization_step", "epoch", "iteration", "num_batches_tracked"),
}
"""Last parts of the names of counters and settings, which are no weights."""

ONLY_AVERAGES = (
    "holds only the averages that training kept (model_ema.*), whose names have lost their dots; "
    "take the model's pruned or 'emaonly' file, where the averages bear the ordinary names, or "
    "convert it with --extract_ema of diffusers' convert_original_stable_diffusion_to_diffusers.py"
)


def without_counters(source: Source) -> Source:
    """Return a source without the counters that trainers save beside the weights."""
    found = {name for name, value in source.entries.items() if _is_counter(name, value)}
    kept = {name: value for name, value in source.entries.items() if name not in found}
    if not found or not any(isinstance(value, torch.Tensor) for value in kept.values()):
        return source
    log.debug("%s: %s: counters of a training, not used", source.path, ", ".join(sorted(found)))
    return replace(source, entries=kept)


def _is_counter(name: str, value: object) -> bool:
    single = value.numel() == 1 if isinstance(value, torch.Tensor) else type(value) in (int, float)
    return single and name.rpartition(".")[2] in COUNTERS


def holds_dict(*names: str) -> Callable[[Source], bool]:
    """Return a test for entries that are a dict under one of these keys."""
    return lambda source: _dict_key(source, names) is not None and not source.folder


def _dict_key(source: Source, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(source.entries.get(name), dict)), None)


def open_key(*names: str) -> Callable[[Source], Source]:
    """Return a function that takes the dict under the first of these keys; others are noted."""

    def unwrap(source: Source) -> Source:
        name = next(name for name in names if isinstance(source.entries.get(name), dict))
        others = [n for n in AVERAGES if n != name and isinstance(source.entries.get(n), dict)]
        notes = tuple(f"averages under the key {n!r} are not used" for n in others)
        inner = {str(key): value for key, value in source.entries[name].items()}
        return replace(source, entries=inner, notes=source.notes + notes)

    return unwrap


def open_unet_key(source: Source) -> Source:
    """Take the dict under "unet", and the text encoder beside it."""
    encoder = source.entries.get("text_encoder")
    encoders = open_encoder_key(source).encoders if isinstance(encoder, dict) else {}
    return replace(open_key("unet")(source), encoders=encoders)


def is_compiled(source: Source) -> bool:
    """Return whether names are those of a compiled module."""
    return any(mark in key for key in source.entries for mark in COMPILED)


def strip_compiled(source: Source) -> Source:
    """Return the source under the names of the module before it was compiled."""

    def plain(key: str) -> str:
        for mark in COMPILED:
            key = key.replace(mark, "")
        return key

    pairs = [(plain(key), value) for key, value in source.entries.items()]
    return replace(source, entries=once_each(source.path, pairs))


def is_prefixed(*prefixes: str) -> Callable[[Source], bool]:
    """Return a test for entries that all start with one of these prefixes."""
    return lambda source: bool(source.entries) and bool(_common(source, prefixes))


def strip(*prefixes: str) -> Callable[[Source], Source]:
    """Return a function that removes a common prefix and records it in `Source.prefix`."""

    def unwrap(source: Source) -> Source:
        prefix = _common(source, prefixes)
        entries = {key.removeprefix(prefix): value for key, value in source.entries.items()}
        return replace(source, entries=entries, prefix=source.prefix + prefix)

    return unwrap


def _common(source: Source, prefixes: tuple[str, ...]) -> str:
    return next((p for p in prefixes if all(k.startswith(p) for k in source.entries)), "")


def is_average(source: Source) -> bool:
    """Return whether a source has only averages that cannot be read by name."""
    keys = source.entries
    alone = any(k.startswith("model_ema.") for k in keys) and not any(
        k.startswith("model.diffusion_model.") for k in keys
    )
    return alone or isinstance(keys.get("shadow_params"), list)


def refuse_average(source: Source) -> Source:
    """Raise `CheckpointError` that says what to do with averages."""
    if "shadow_params" in source.entries:
        raise CheckpointError(
            f"{source.path}: holds averages as a list without names (shadow_params); load them "
            "into the UNet with copy_to of diffusers' EMAModel, and save that with save_pretrained"
        )
    raise CheckpointError(f"{source.path}: {ONLY_AVERAGES}")
