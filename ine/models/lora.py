"""LoRA files: the differences they hold, under whichever names their trainers write.

Three spellings of one idea, told apart by their keys: diffusers (`X.lora.down.weight`), PEFT
(`X.lora_A.weight`) and kohya (`lora_unet_X_with_underscores.lora_down.weight` with `.alpha`,
which SPM writes too).
"""

import re
from dataclasses import replace

import torch

from ine.errors import CheckpointError
from ine.files import parse_json
from ine.models.compvis import unet_names
from ine.models.lowrank import LowRank
from ine.models.sources import once_each, read_json
from ine.models.torch_files import FLOATS
from ine.models.weight_files import read_file

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
MOST_ALPHA = 1e9
FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers (DUO among its users) and PEFT call the file in a folder."""


def open_lora(source):
    """Take a LoRA file apart into `LowRank` differences of UNet and text encoders.

    Raises:
        CheckpointError: Half of a pair is missing, ranks disagree, or it is another kind of
            adapter (LoHa, LoKr, DoRA), whose formula is not W + up down.
    """
    pairs, alphas = _collect(source)
    adapter = _adapter_settings(source)
    found = {}
    for module, sides in pairs.items():
        component, name = _place(module, source)
        made = _difference(source, module, sides)
        if name in found.get(component, {}):
            raise CheckpointError(
                f"{source.path}: has two differences for {name} of the {component}, one of them "
                f"under {module}; the file was merged wrongly, get it from its source"
            )
        scale = _scale(made.rank, alphas.pop(module, None), adapter.get(component, {}), name)
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
    )


def open_lora_folder(source):
    """Read the one LoRA file of a folder, with PEFT's settings where they lie beside it."""
    name = next(n for n in FOLDER_FILES if (source.folder / n).is_file())
    entries, metadata = read_file(source.folder / name)
    config = read_json(source.folder, "adapter_config.json")
    return replace(source, folder=None, entries=entries, metadata=metadata, config=config)


def is_lora_folder(source):
    """Return whether a folder holds a LoRA file under the name that diffusers or PEFT gives it."""
    return bool(source.folder) and any((source.folder / n).is_file() for n in FOLDER_FILES)


def _collect(source):
    """Return ({module: {"down", "up", "mid": tensor}}, {module: alpha})."""
    pairs, alphas = {}, {}
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
                    "one LoRA in one spelling, save the one you want in a file of its own"
                )
            sides[side] = tensor
        else:
            raise CheckpointError(
                f"{source.path}: {key} is no part of a plain LoRA (LoHa, LoKr, DoRA and biases "
                "are not supported); merge it into a UNet with the tool that made it, and give that"
            )
    return pairs, alphas


def _number(source, key, value):
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise CheckpointError(f"{source.path}: {key} is not one number") from None


def _difference(source, module, sides):
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


def _place(module, source):
    """Return (component, name of the weight); kohya's names stay as they are until laid."""
    for prefix, component in KOHYA.items():
        if module.startswith(prefix):
            return component, module
    name = module.removeprefix("base_model.model.")
    component = "unet"
    for prefix in ("unet", "text_encoder_2", "text_encoder"):
        if name.startswith(f"{prefix}."):
            component, name = prefix, name.removeprefix(f"{prefix}.")
            break
    else:
        if name.startswith(("text_model.", "encoder.layers.")):
            component = "text_encoder"
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    return component, re.sub(r"\.to_out$", ".to_out.0", name) + ".weight"


def _scale(rank, alpha, settings, name):
    """Return alpha / rank; 1 where neither the file nor its adapter settings state an alpha."""
    if alpha is not None:
        return alpha / rank
    module = name.removesuffix(".weight")
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = value
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _adapter_settings(source):
    """Return {component: PEFT's settings} from adapter_config.json or diffusers' metadata."""
    if source.config:
        found = {"unet": source.config}
    else:
        try:
            flat = parse_json(source.metadata.get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError):
            flat = None
        if not isinstance(flat, dict):
            raise CheckpointError(
                f"{source.path}: its lora_adapter_metadata, which holds the alpha, cannot be read; "
                "download or save it again"
            )
        found = {}
        for key, value in flat.items():
            component, _, setting = key.partition(".")
            found.setdefault(component, {})[setting] = value
    for settings in found.values():
        pattern = settings.get("alpha_pattern") or {}
        plain = isinstance(pattern, dict) and not settings.get("use_dora")
        alphas = [*pattern.values()] if plain else []
        if settings.get("lora_alpha") is not None:
            alphas.append(settings["lora_alpha"])
        if not plain or not all(type(n) in (int, float) and abs(n) < MOST_ALPHA for n in alphas):
            raise CheckpointError(
                f"{source.path}: its adapter settings are not those of a plain LoRA; merge it "
                "into a UNet with the tool that made it, and give that"
            )
    return found


def _rename(parts, source):
    """Give kohya's names, whose dots are underscores, the names that this base uses."""
    unet = {name.replace(".", "_"): name for name in _modules(parts.unet)}
    unet |= {old.replace(".", "_"): unet_ for old, unet_ in _compvis_modules(parts.unet).items()}
    encoders = {}
    for (folder, values), encoder in _paired(source, parts):
        table = {}
        for name in _modules(encoder) if encoder is not None else ():
            bare = name.removeprefix("text_model.")
            table |= {form.replace(".", "_"): name for form in (bare, f"text_model.{bare}")}
        encoders[folder] = _renamed(source, values, table)
    return replace(source, entries=_renamed(source, source.entries, unet), encoders=encoders)


def _paired(source, parts):
    own = dict(zip(("text_encoder", "text_encoder_2"), parts.text_encoders, strict=False))
    return [((folder, values), own.get(folder)) for folder, values in source.encoders.items()]


def _modules(module):
    return [n.removesuffix(".weight") for n in module.state_dict() if n.endswith(".weight")]


def _compvis_modules(unet):
    return {
        old.removesuffix(".weight"): new.removesuffix(".weight")
        for old, new in unet_names(unet).items()
        if old.endswith(".weight")
    }


def _renamed(source, values, table):
    pairs = []
    for name, value in values.items():
        prefix = next((p for p in KOHYA if name.startswith(p)), "")
        known = table.get(name.removeprefix(prefix)) if prefix else None
        pairs.append((f"{known}.weight" if known else name, value))
    return once_each(source.path, pairs)
