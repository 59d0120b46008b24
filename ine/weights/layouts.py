"""The layouts in which unlearned weights are published, as one table in order of decision.

Each row recognises one layout and removes one wrapper; the rest is recognised again, until only
tensors of a UNet or of text encoders remain, or the differences of a LoRA. A new layout is a new
row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import NoReturn

from ine.errors import CheckpointError
from ine.weights.compvis import is_compvis, open_compvis
from ine.weights.encoders import open_encoder, open_encoder_folder, open_encoder_key
from ine.weights.folders import (
    folder_is,
    is_parts,
    is_pipeline,
    listed,
    open_only_file,
    open_parts,
    open_pipeline,
    open_unet_folder,
    weight_files_of,
)
from ine.weights.foreign import foreign_of, refuse_foreign
from ine.weights.lora import is_lora_folder, open_lora, open_lora_folder
from ine.weights.source import Source, once_each
from ine.weights.wrappers import (
    AVERAGES,
    KEYS,
    PREFIXED,
    PREFIXES,
    holds_dict,
    is_average,
    is_compiled,
    is_prefixed,
    open_key,
    open_unet_key,
    refuse_average,
    strip,
    strip_compiled,
    without_counters,
)

PLAIN = "diffusers UNet"
UNET_MODULES = (
    *("conv_in.", "time_embedding.", "class_embedding.", "add_embedding.", "encoder_hid_proj."),
    *("down_blocks.", "mid_block.", "up_blocks.", "conv_norm_out.", "conv_out."),
)
"""Prefixes of the names in a diffusers UNet."""

TEXT_MODULES = (
    *("text_model.", "text_encoder.", "embeddings.token_embedding.", "encoder.layers."),
    "cond_stage_model.transformer.",
)
LORA_PARTS = (
    *(".lora.", ".lora_A.", ".lora_B.", "_lora.down.", "_lora.up.", ".lora_down."),
    *(".lora_linear_layer.", ".hada_w", ".lokr_w"),
)
EMBEDDING_KEYS = {"emb_params", "string_to_param", "clip_l", "clip_g"}


@dataclass(frozen=True)
class Layout:
    """One row of the table."""

    name: str
    test: Callable[[Source], bool]
    unwrap: Callable[[Source], Source] | None
    """Removes the wrapper, or raises CheckpointError; None for the plain state dict.

    A source that is returned `done` is not recognised again."""

    example: str = ""
    """A typical key; the error for an unknown file names the layout with the nearest one."""


def recognise(source: Source) -> tuple[list[str], Source]:
    """Return (names of the layouts found, outermost first; the source without its wrappers).

    Raises:
        CheckpointError: It is another model, or no layout fits.
    """
    names: list[str] = []
    # A dict may hold itself, so the number of wrappers is limited.
    while len(names) < 8:
        source = without_counters(source)
        layout = next((row for row in LAYOUTS if row.test(source)), None)
        if layout is None:
            break
        names.append(layout.name)
        if layout.unwrap is None:
            return names, source
        source = layout.unwrap(source)
        if source.done:
            return names, source
    raise unknown(source)


def unknown(
    source: Source, why: str = "is no known layout of unlearned weights"
) -> CheckpointError:
    """Return the error for a file of no layout: three of its keys, and the nearest layout."""
    if source.folder:
        return CheckpointError(
            f"{source.path}: is a folder with neither model_index.json nor the config.json of a "
            "UNet or text encoder, no LoRA, and not one file of weights (found: "
            f"{', '.join(listed(source.folder)) or 'nothing'}); give one of these"
        )
    keys = [source.prefix + key for key in source.entries][:3] or ["(none)"]

    def closeness(row: Layout) -> float:
        return max(SequenceMatcher(None, row.example, key).ratio() for key in keys)

    near = max((row for row in LAYOUTS if row.example), key=closeness)
    return CheckpointError(
        f"{source.path}: {why}; its keys are like {', '.join(keys)}; "
        f"the nearest known layout is {near.name!r}, with keys like {near.example}"
    )


def _starts(*prefixes: str) -> Callable[[Source], bool]:
    return lambda source: any(key.startswith(prefixes) for key in source.entries)


def _contains(*parts: str) -> Callable[[Source], bool]:
    return lambda source: any(part in key for key in source.entries for part in parts)


def _is_nested(source: Source) -> bool:
    """Return whether entries are {module path: {"weight": ..., "bias": ...}}."""
    return bool(source.entries) and all(
        isinstance(value, dict)
        and value.keys() <= {"weight", "bias"}
        and key.removeprefix("unet.").startswith(tuple(m[:-1] for m in UNET_MODULES))
        for key, value in source.entries.items()
    )


def _flatten(source: Source) -> Source:
    pairs = [
        (f"{module.removeprefix('unet.')}.{leaf}", tensor)
        for module, leaves in source.entries.items()
        for leaf, tensor in leaves.items()
        # A layer without a bias is written as {"weight": ..., "bias": None}.
        if tensor is not None
    ]
    return replace(source, entries=once_each(source.path, pairs))


def _is_embedding(source: Source) -> bool:
    one = len(source.entries) == 1 and getattr(next(iter(source.entries.values())), "ndim", 9) <= 2
    bare = one and not any("." in key for key in source.entries)
    return bare or bool(EMBEDDING_KEYS & set(source.entries))


def _is_receler(source: Source) -> bool:
    """Return whether entries are {block: {"down.weight": ..., "up.weight": ...}}."""
    return bool(source.entries) and all(
        isinstance(value, dict)
        and value
        and all(str(key).startswith(("down", "up")) for key in value)
        for value in source.entries.values()
    )


def _refuse(what: str, instead: str) -> Callable[[Source], Source]:
    def refuse(source: Source) -> NoReturn:
        keys = f" (keys like {', '.join(list(source.entries)[:3])})" if source.entries else ""
        raise CheckpointError(
            f"{source.path}: this is {what}{keys}, expected UNet weights; {instead}"
        )

    return refuse


_receler = _refuse(
    "a Receler adapter",
    "it is an extra module with a nonlinearity and cannot be merged into weights or applied",
)
_embedding = _refuse(
    "a token embedding", "embeddings are negatives: pass it with --negative-embedding"
)

LAYOUTS = (
    Layout("another model", lambda source: bool(foreign_of(source)), refuse_foreign),
    Layout("pipeline folder", is_pipeline, open_pipeline),
    Layout("UNet folder", folder_is("UNet2DConditionModel"), open_unet_folder),
    Layout(
        "text encoder folder",
        folder_is("CLIPTextModel", "CLIPTextModelWithProjection"),
        open_encoder_folder,
    ),
    Layout("LoRA folder", is_lora_folder, open_lora_folder),
    Layout("folder of a UNet or text encoders", is_parts, open_parts),
    Layout("folder of one file", lambda source: len(weight_files_of(source)) == 1, open_only_file),
    Layout("compiled module", is_compiled, strip_compiled),
    *(Layout(f"key {key!r}", holds_dict(key), open_key(key)) for key in KEYS),
    Layout(PREFIXED, is_prefixed("module."), strip("module.")),
    Layout(
        "kohya LoRA",
        _starts("lora_unet_", "lora_te"),
        open_lora,
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    ),
    Layout(
        "diffusers or PEFT LoRA",
        _contains(*LORA_PARTS),
        open_lora,
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
    ),
    Layout("averages", is_average, refuse_average),
    Layout(
        "CompVis checkpoint",
        is_compvis,
        open_compvis,
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    ),
    Layout("key 'unet'", holds_dict("unet"), open_unet_key),
    Layout("key 'text_encoder'", holds_dict("text_encoder"), open_encoder_key),
    *(Layout(f"key {key!r}", holds_dict(key), open_key(key)) for key in AVERAGES),
    Layout("alt-ESD nesting", _is_nested, _flatten),
    Layout("Receler adapter", _is_receler, _receler),
    Layout(
        PLAIN,
        _starts(*UNET_MODULES),
        None,
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ),
    Layout(
        "text encoder",
        _starts(*TEXT_MODULES),
        open_encoder,
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
    ),
    Layout("token embedding", _is_embedding, _embedding, "emb_params"),
    Layout(PREFIXED, is_prefixed(*PREFIXES), strip(*PREFIXES)),
)
"""The decision list. Order matters: the keys of a LoRA may start like those of a UNet."""
