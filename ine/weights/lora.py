"""LoRA files: the differences in them, under the names of each trainer.

Three spellings of one idea, distinguished by their keys: diffusers (`X.lora.down.weight`), PEFT
(`X.lora_A.weight`) and kohya (`lora_unet_X_with_underscores.lora_down.weight` with `.alpha`,
which SPM writes too).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch

from ine.errors import CheckpointError
from ine.weights.adapter_settings import CONFIG, RAW, adapter_settings, is_raw
from ine.weights.compvis import unet_names
from ine.weights.files import read_file
from ine.weights.lowrank import LowRank, Value
from ine.weights.source import ENCODER_FOLDERS, Source, once_each, read_json
from ine.weights.torch_pickles import FLOATS

PART = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<short>down|up|mid|A|B)(?:\.[\w-]+)?|[._]lora(?:_linear_layer)?\.(?P<long>down|up))"
    r"\.weight"
)
SIDES = {"A": "down", "B": "up"}
KOHYA = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
}
FOLDER_FILES = (
    *("pytorch_lora_weights.safetensors", "adapter_model.safetensors"),
    *("pytorch_lora_weights.bin", "adapter_model.bin"),
)
"""File names in a folder by diffusers (also DUO's) and PEFT; the first that exists counts."""

NO_SETTINGS = (
    f"no {CONFIG} is beside it, so its alpha is not known and was taken to equal its rank; put "
    "the file of its publisher there, or state the factor alpha / rank as a weight: --unet FILE:2"
)
OTHERS = (
    (("dora_scale", "lora_magnitude_vector"), "belongs to a DoRA"),
    (("hada_w",), "belongs to a LoHa"),
    (("lokr_w",), "belongs to a LoKr"),
)
"""(parts of keys, what a key with one of them shows)."""


Sides = dict[str, torch.Tensor]
"""{"down", "up" and perhaps "mid": tensor} of one module."""


def open_lora(source: Source) -> Source:
    """Split a LoRA file into `LowRank` differences of UNet and text encoders.

    Raises:
        CheckpointError: Half of a pair is missing, ranks disagree, or it is another kind of
            adapter (LoHa, LoKr, DoRA), whose formula is not W + up down.
    """
    pairs, alphas = _collect(source)
    settings, notes = adapter_settings(source), source.notes
    if is_raw(source.entries) and not settings:
        notes += (NO_SETTINGS,)
    found: dict[str, dict[str, LowRank]] = {}
    for module, sides in pairs.items():
        made = _difference(source, module, sides)
        component, own = _place(module, made)
        name = own if own.startswith(tuple(KOHYA)) else _weight_name(own)
        if name in found.get(component, {}):
            raise CheckpointError(
                f"{source.path}: has two differences for {name} of the {component}, one of them "
                f"under {module}; the file was merged wrongly, get it from its source"
            )
        stated = settings.get(component) or settings.get("")
        scale = 1.0 if stated is None else stated.scale(own, made.rank)
        if module in alphas:
            scale = alphas.pop(module) / made.rank
        found.setdefault(component, {})[name] = replace(made, scale=scale)
    if alphas:
        raise CheckpointError(
            f"{source.path}: has .alpha but no weights for {', '.join(sorted(alphas)[:3])}; the "
            "file is incomplete, download or save it again"
        )
    return replace(
        source,
        entries=found.pop("unet", {}),
        encoders=found,
        config={},
        rename=_rename,
        done=True,
        notes=notes,
    )


def open_lora_folder(source: Source) -> Source:
    """Read the LoRA file of a folder, with PEFT's settings if they are beside it."""
    name = next(n for n in FOLDER_FILES if (source.directory / n).is_file())
    entries, metadata = read_file(source.directory / name)
    peft = name.startswith("adapter_model") or is_raw(entries)
    config = read_json(source.directory, CONFIG) if peft else {}
    return replace(source, folder=None, entries=entries, metadata=metadata, config=config)


def is_lora_folder(source: Source) -> bool:
    """Return whether a folder holds a LoRA file under diffusers' or PEFT's name."""
    return bool(source.folder) and any((source.directory / n).is_file() for n in FOLDER_FILES)


def _collect(source: Source) -> tuple[dict[str, Sides], dict[str, float]]:
    """Return ({module: its halves}, {module: alpha}).

    Raises:
        CheckpointError: A key is no part of a LoRA, or a half is there twice.
    """
    pairs: dict[str, Sides] = {}
    alphas: dict[str, float] = {}
    for key, tensor in source.entries.items():
        # Trainers write alpha as any kind of number.
        floating = isinstance(tensor, torch.Tensor) and tensor.dtype in FLOATS.values()
        if not floating and not key.endswith(".alpha"):
            found = getattr(tensor, "dtype", type(tensor).__name__)
            raise CheckpointError(
                f"{source.path}: {key} is {found}, expected floating-point weights"
            )
        if key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha")] = _number(source, key, tensor)
        elif part := PART.fullmatch(key):
            side = part["short"] or part["long"]
            sides = pairs.setdefault(part["module"], {})
            side = SIDES.get(side, side)
            if side in sides:
                raise CheckpointError(
                    f"{source.path}: {key} is a second {side!r} half of {part['module']}; expected "
                    "one LoRA in one spelling, save the one you want to a separate file"
                )
            sides[side] = tensor
        else:
            _refuse_key(source, key)
    return pairs, alphas


def _refuse_key(source: Source, key: str) -> NoReturn:
    what = next((what for signs, what in OTHERS if any(s in key for s in signs)), "")
    raise CheckpointError(
        f"{source.path}: {key} {what or 'is no part of a plain LoRA'} (LoHa, LoKr, DoRA, biases "
        "and whole modules beside a LoRA are not supported); merge it into a UNet with the tool "
        "that made it, and give that"
    )


def _number(source: Source, key: str, value: Any) -> float:
    try:
        # Python would take bytes for digits.
        if isinstance(value, bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise CheckpointError(f"{source.path}: {key} is not one number") from None


def _difference(source: Source, module: str, sides: Sides) -> LowRank:
    missing = [side for side in ("down", "up") if side not in sides]
    if missing:
        raise CheckpointError(
            f"{source.path}: {module} lacks its {missing[0]!r} half; the file is incomplete, "
            "download or save it again"
        )
    up, down, mid = sides["up"], sides["down"], sides.get("mid")
    rank = down.shape[0] if down.dim() else 0
    flat = up.dim() == 2 or (up.dim() == 4 and up.shape[2:] == (1, 1))
    tucker = mid is None or (
        mid.dim() == 4 and mid.shape[:2] == (rank, rank) and down.shape[2:] in ((), (1, 1))
    )
    if not flat or down.dim() not in (2, 4) or up.shape[1] != rank or not rank or not tucker:
        shapes = " and ".join(str(tuple(t.shape)) for t in (up, down, mid) if t is not None)
        raise CheckpointError(
            f"{source.path}: the halves of {module} do not multiply (up and down are {shapes}); "
            "expected [out, r] and [r, in]"
        )
    return LowRank(up.detach(), down.detach(), None if mid is None else mid.detach())


def _place(module: str, made: LowRank) -> tuple[str, str]:
    """Return (component, path in it as the trainer saw it); kohya's names stay as they are.

    Args:
        module: The part of the key before `.lora_A`.
        made: Its `LowRank`; a width of 1280 is that of SDXL's second text encoder.
    """
    for prefix, component in KOHYA.items():
        if module.startswith(prefix):
            return component, module
    name = module.removeprefix(RAW)
    for component in ("unet", "text_encoder_2", "text_encoder"):
        if name.startswith(f"{component}."):
            return component, name.removeprefix(f"{component}.").removeprefix(RAW)
    if not name.startswith(("text_model.", "encoder.layers.")):
        return "unet", name
    width = made.shape[0] if name.endswith(".fc2") else made.shape[1]
    return "text_encoder_2" if width == 1280 else "text_encoder", name


def _weight_name(path: str) -> str:
    """Return the name of a module's weight, without the level `.processor` of files of 2023."""
    return re.sub(r"\.to_out$", ".to_out.0", path.replace(".processor.", ".")) + ".weight"


def _rename(parts: Any, source: Source) -> Source:
    """Replace kohya's names, whose dots are underscores, by the names that this base uses."""
    unet = {name.replace(".", "_"): name for name in _modules(parts.unet)}
    unet |= {old.replace(".", "_"): unet_ for old, unet_ in _compvis_modules(parts.unet).items()}
    encoders = {}
    own = dict(zip(ENCODER_FOLDERS, parts.text_encoders, strict=False))
    for folder, values in source.encoders.items():
        encoder, table = own.get(folder), dict[str, str]()
        for name in _modules(encoder) if encoder is not None else ():
            bare = name.removeprefix("text_model.")
            table |= {form.replace(".", "_"): name for form in (bare, f"text_model.{bare}")}
        encoders[folder] = _renamed(source, values, table)
    return replace(source, entries=_renamed(source, source.entries, unet), encoders=encoders)


def _modules(module: Any) -> list[str]:
    return [n.removesuffix(".weight") for n in module.state_dict() if n.endswith(".weight")]


def _compvis_modules(unet: Any) -> dict[str, str]:
    return {
        old.removesuffix(".weight"): new.removesuffix(".weight")
        for old, new in unet_names(unet).items()
        if old.endswith(".weight")
    }


def _renamed(
    source: Source, values: Mapping[str, Value], table: Mapping[str, str]
) -> dict[str, Value]:
    pairs = []
    for name, value in values.items():
        prefix = next((p for p in KOHYA if name.startswith(p)), "")
        known = table.get(name.removeprefix(prefix)) if prefix else None
        pairs.append((f"{known}.weight" if known else name, value))
    return once_each(source.path, pairs)
