"""Find the CLIP models that detectors use on this machine, or fetch them."""

import json
from pathlib import Path

from ine.errors import MissingDependency, ModelError
from ine.models.parts import find_model

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_B = "openai/clip-vit-base-patch16"
SIZES = {CLIP_L: "1.7 GB", CLIP_B: "0.6 GB"}


def check_both_halves(folder: Path) -> None:
    """Raise unless a folder has a whole CLIP model and its tokenizer; nothing is loaded.

    Raises:
        ModelError: The text half or the tokenizer is missing.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds = config.get("architectures") or ["CLIPModel"]
        whole = config.get("model_type") == "clip" and "CLIPModel" in kinds
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder}: config.json cannot be read ({error})") from error
    if not whole:
        raise ModelError(f"{folder}: is not a CLIPModel with a picture and a text half")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"{folder}: has no tokenizer (tokenizer.json, or vocab.json), for prompts")


def find_clip(
    name: str | Path = CLIP_L, detector: str = "clip-violence", fetch: bool = True
) -> Path:
    """Return the local folder of a detector's CLIP model.

    Args:
        name: A folder or hub id.
        detector: Name of the detector, for the error.
        fetch: Whether it may be downloaded.

    Raises:
        MissingDependency: It is not on this machine, and was not or must not be downloaded.
    """
    try:
        folder = find_model(name, index="config.json", fetch=fetch)
    except ModelError as error:
        raise _no_clip(name, detector, type(error.__cause__ or error).__name__) from error
    if not any((folder / w).is_file() for w in ("model.safetensors", "pytorch_model.bin")):
        raise _no_clip(name, detector, f"no model.safetensors in {folder}")
    return folder


def _no_clip(name: str | Path, detector: str, reason: str) -> MissingDependency:
    files = "--include '*.json' --include '*.txt' --include model.safetensors"
    size = f" ({SIZES[str(name)]}, MIT)" if name in SIZES else ""
    return MissingDependency(
        f"detector {detector!r} needs the CLIP model {name}, which is not on this machine "
        f"({reason}). Get it once with network access: `hf download {name} {files}`{size}. "
        "It judges pictures and is not the base model, so --model does not help; another rule or "
        "detector is named in a grid's rules and metrics, elsewhere with --set pictures.rule=RULE"
    )
