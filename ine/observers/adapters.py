"""LoRA adapters in PEFT's layout: checked against a model and put onto it.

PEFT itself only warns when an adapter's matrices have no place in a model, and the model then runs
as if it had not been trained.
"""

import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ine.errors import CheckpointError, MissingDependency
from ine.files import parse_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ABOUT = "training.json"
"""What `ine` writes beside an adapter: base, settings, losses."""


def needs_training_packages() -> None:
    """Raise unless peft and trl are installed.

    Raises:
        MissingDependency: One is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("peft", "trl", "datasets") if find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f'training needs the packages {" and ".join(missing)}; run: pip install "ine[train]"'
        )


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """Return the folder or hub id of the model that an adapter was trained on, as it says.

    Raises:
        CheckpointError: It does not say.
    """
    try:
        named = parse_json((folder / CONFIG).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: is damaged ({error})") from error
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{folder / CONFIG}: names no base model; write its folder or hub id into "
            "base_model_name_or_path"
        )
    return named


def add_adapter(model: Any, folder: Path, *, digest: str = "", trainable: bool = False) -> Any:
    """Return a model with an adapter on it.

    Args:
        model: Of transformers; it becomes a part of the result.
        folder: In PEFT's layout, made by `ine` or by others.
        digest: The model's, compared with the one that the adapter was trained on, if it says so.
        trainable: Whether the adapter's matrices can be trained.

    Raises:
        CheckpointError: There is no adapter, it is damaged, or it is of another base model.
        MissingDependency: peft is not installed.
    """
    needs_training_packages()
    from peft import PeftModel

    check_base(folder, digest)
    shapes = _shapes(folder)
    try:
        with warnings.catch_warnings():
            # That matrices have no place, or places no matrix: checked below, as an error.
            warnings.simplefilter("ignore", UserWarning)
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: does not fit the model ({why}); give the base model it was trained on"
        ) from error
    _check_filled(folder, adapted, shapes)
    return adapted


def check_base(folder: Path, digest: str) -> None:
    """Raise if an adapter says that it was trained on another model.

    Raises:
        CheckpointError: It says so, or there is no adapter.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: holds no adapter; expected {CONFIG} and {WEIGHTS}, as PEFT writes them"
        )
    about = read_about(folder)
    if digest and about and about["base"]["digest"] != digest:
        raise CheckpointError(
            f"{folder}: was trained on {about['base']['folder']} (weights "
            f"{about['base']['digest']}), not on this model (weights {digest}); give that one"
        )


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return what `ine` wrote beside an adapter, None for an adapter made by others.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / ABOUT
    if not path.is_file():
        return None
    try:
        about = parse_json(path.read_bytes())
        _ = about["key"], about["base"]["folder"], about["base"]["digest"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); train again") from error
    return about


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of an adapter's matrices."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {
                name: tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: is damaged ({error}); get or train the adapter again"
        ) from error


def _check_filled(folder: Path, adapted: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise unless every matrix of a file is in the model, and every one of the model in the file.

    Raises:
        CheckpointError: One is not.
    """
    from peft import get_peft_model_state_dict

    have = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(adapted).items()}
    if have != shapes:
        lost, empty = sorted(set(shapes) - set(have)), sorted(set(have) - set(shapes))
        raise CheckpointError(
            f"{folder}: does not fit the model: {len(lost)} of its {len(shapes)} matrices have no "
            f"place there{f' ({lost[0]})' if lost else ''}, and {len(empty)} places stay empty; "
            "give the base model it was trained on"
        )
