"""The layouts in which unlearned weights are published, as one table in order of decision.

Each row recognises one layout and takes one wrapper off; what is left is recognised again,
until tensors of a UNet or of text encoders remain, or what a LoRA adds to them. A new layout is
a new row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from ine.errors import CheckpointError
from ine.models.compvis import is_compvis, open_compvis
from ine.models.encoders import open_encoder, open_encoder_folder, open_encoder_key
from ine.models.lora import is_lora_folder, open_lora, open_lora_folder
from ine.models.sources import ENCODER_FOLDERS, Source, folder_state, once_each, read_json

PLAIN = "diffusers UNet"
PREFIXED = "wrapper's prefix"
PREFIXES = ("module.", "unet.", "model.")
UNET_MODULES = (
    *("conv_in.", "time_embedding.", "class_embedding.", "add_embedding.", "encoder_hid_proj."),
    *("down_blocks.", "mid_block.", "up_blocks.", "conv_norm_out.", "conv_out."),
)
"""What names of a diffusers UNet start with."""

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
    """Takes the wrapper off, or raises CheckpointError; None for the plain state dict.

    A source that comes back `done` is not looked at again."""

    example: str = ""
    """A typical key, by which a file that fits no row is told which row is nearest."""


def recognise(source):
    """Return (names of the layouts found, outermost first; the source without its wrappers).

    Raises:
        CheckpointError: It is something else, or nothing known.
    """
    names = []
    # A dict may hold itself, so the number of wrappers is limited.
    while len(names) < 8:
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


def unknown(source, why="is no known layout of unlearned weights"):
    """Return the error for a file that fits nothing: three of its keys, the nearest layout."""
    if source.folder:
        return CheckpointError(
            f"{source.path}: is a folder with neither model_index.json nor the config.json of a "
            "UNet or text encoder, and no LoRA; give one of these, or the weights file itself"
        )
    keys = [source.prefix + key for key in source.entries][:3] or ["(none)"]

    def closeness(row):
        return max(SequenceMatcher(None, row.example, key).ratio() for key in keys)

    near = max((row for row in LAYOUTS if row.example), key=closeness)
    return CheckpointError(
        f"{source.path}: {why}; its keys are like {', '.join(keys)}; "
        f"the nearest known layout is {near.name!r}, with keys like {near.example}"
    )


def _starts(*prefixes):
    return lambda source: any(key.startswith(prefixes) for key in source.entries)


def _contains(*parts):
    return lambda source: any(part in key for key in source.entries for part in parts)


def _holds_dict(name):
    return lambda source: isinstance(source.entries.get(name), dict) and not source.folder


def _folder_is(*classes):
    def test(source):
        config = read_json(source.folder) if source.folder else {}
        return bool(
            {config.get("_class_name"), *(config.get("architectures") or [])} & set(classes)
        )

    return test


def _is_pipeline(source):
    return bool(source.folder) and (source.folder / "model_index.json").is_file()


def _open_pipeline(source):
    folder = source.folder
    encoders = {n: folder_state(folder / n) for n in ENCODER_FOLDERS if (folder / n).is_dir()}
    scheduler = read_json(folder / "scheduler", "scheduler_config.json")
    return replace(
        source,
        folder=None,
        entries=folder_state(folder / "unet"),
        config=read_json(folder / "unet"),
        encoders=encoders,
        prediction_type=scheduler.get("prediction_type"),
    )


def _open_unet_folder(source):
    config = read_json(source.folder)
    return replace(source, folder=None, entries=folder_state(source.folder), config=config)


def _is_nested(source):
    """Return whether entries are {module path: {"weight": ..., "bias": ...}}."""
    return bool(source.entries) and all(
        isinstance(value, dict)
        and value.keys() <= {"weight", "bias"}
        and key.removeprefix("unet.").startswith(tuple(m[:-1] for m in UNET_MODULES))
        for key, value in source.entries.items()
    )


def _flatten(source):
    pairs = [
        (f"{module.removeprefix('unet.')}.{leaf}", tensor)
        for module, leaves in source.entries.items()
        for leaf, tensor in leaves.items()
        # A layer without a bias is written as {"weight": ..., "bias": None}.
        if tensor is not None
    ]
    return replace(source, entries=once_each(source.path, pairs))


def _open_unet_key(source):
    encoder = source.entries.get("text_encoder")
    encoders = open_encoder_key(source).encoders if isinstance(encoder, dict) else {}
    return replace(source, entries=_named(source.entries["unet"]), encoders=encoders)


def _open_state_dict(source):
    return replace(source, entries=_named(source.entries["state_dict"]))


def _named(entries):
    return {str(name): value for name, value in entries.items()}


def _common_prefix(source):
    return next((p for p in PREFIXES if all(k.startswith(p) for k in source.entries)), "")


def _is_wrapped(source):
    return bool(source.entries) and not source.prefix and bool(_common_prefix(source))


def _strip(source):
    prefix = _common_prefix(source)
    entries = {key.removeprefix(prefix): value for key, value in source.entries.items()}
    return replace(source, entries=entries, prefix=prefix)


def _is_embedding(source):
    one = len(source.entries) == 1 and getattr(next(iter(source.entries.values())), "ndim", 9) <= 2
    bare = one and not any("." in key for key in source.entries)
    return bare or bool(EMBEDDING_KEYS & set(source.entries))


def _is_receler(source):
    """Return whether entries are {block: {"down.weight": ..., "up.weight": ...}}."""
    return bool(source.entries) and all(
        isinstance(value, dict)
        and value
        and all(str(key).startswith(("down", "up")) for key in value)
        for value in source.entries.values()
    )


def _refuse(what, instead):
    def refuse(source):
        keys = f" (keys like {', '.join(list(source.entries)[:3])})" if source.entries else ""
        raise CheckpointError(
            f"{source.path}: this is {what}{keys}, expected UNet weights; {instead}"
        )

    return refuse


_receler = _refuse(
    "a Receler adapter",
    "it is a module of its own with a nonlinearity and cannot be merged into weights; there is no "
    "way to lay it",
)
_embedding = _refuse(
    "a token embedding", "embeddings are negatives: pass it with --negative-embedding"
)

LAYOUTS = (
    Layout("pipeline folder", _is_pipeline, _open_pipeline),
    Layout("UNet folder", _folder_is("UNet2DConditionModel"), _open_unet_folder),
    Layout(
        "text encoder folder",
        _folder_is("CLIPTextModel", "CLIPTextModelWithProjection"),
        open_encoder_folder,
    ),
    Layout("LoRA folder", is_lora_folder, open_lora_folder),
    Layout("key 'state_dict'", _holds_dict("state_dict"), _open_state_dict),
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
    Layout(
        "CompVis checkpoint",
        is_compvis,
        open_compvis,
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    ),
    Layout("key 'unet'", _holds_dict("unet"), _open_unet_key),
    Layout("key 'text_encoder'", _holds_dict("text_encoder"), open_encoder_key),
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
    Layout(PREFIXED, _is_wrapped, _strip),
)
"""The decision list; order matters: a LoRA's keys may also start as a UNet's do."""
