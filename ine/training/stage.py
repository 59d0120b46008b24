"""Train an adapter with a trainer of trl, from its key to the finished folder, for every method."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ine.errors import OutputError
from ine.locks import sole_writer
from ine.observers.adapters import read_about
from ine.training.adapters import write_adapter
from ine.training.bases import Base
from ine.training.running import Kept, OnStep, own_randomness, quiet_arguments, run_trainer
from ine.training.settings import GroupSettings, SftSettings

CHECKPOINTS = "checkpoints"
"""Folder of the states of an unfinished training, removed at its end."""

METHODS = {"sft": "fine-tuning", "grpo": "GRPO"}
"""Stage -> what messages call it."""


def train_adapter(
    stage: str,
    key: str,
    base: Base,
    settings: SftSettings | GroupSettings,
    out: Path,
    force: bool,
    trainer_in: Callable[[Path], Any],
    on_step: OnStep | None,
    kept: Kept | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is known of a training in `out`: it is made, resumed, or there already.

    Args:
        stage: A name of `METHODS`.
        key: What the result depends on.
        base: The model that is adapted.
        settings: Of the method.
        out: Folder of the adapter.
        force: Replace a training of another key.
        trainer_in: `folder of checkpoints -> trainer of trl`.
        on_step: Called after every step.
        kept: What else belongs to the state of a run.
        more: What else is written beside the adapter, as JSON values.

    Raises:
        IneError: The loss or its gradient is not finite.
        OutputError: `out` holds another training or cannot be written.
    """
    folder = out / CHECKPOINTS
    with sole_writer(out, "ine refine train", folder=True):
        if (about := finished(out, key, force)) is not None:
            return about
        with own_randomness():
            trainer = trainer_in(folder)
            steps = run_trainer(trainer, folder, key, METHODS[stage], on_step, kept)
        about = about_training(stage, key, base, settings, [one["loss"] for one in steps])
        about |= more or {}
        if stage == "grpo":
            about["rewards"] = [one["reward"] for one in steps]
        write_adapter(trainer.model, out, about)
        shutil.rmtree(folder)
    return about


def finished(out: Path, key: str, force: bool) -> dict[str, Any] | None:
    """Return what is known of a finished training; with `force` remove one of another key.

    Raises:
        OutputError: There is one of another key.
    """
    about = read_about(out)
    if about is not None and about["key"] == key:
        return about
    if force:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    elif about is not None:
        raise OutputError(
            f"{out}: holds a training with other settings, data or base; choose another folder or "
            "give --force to replace it"
        )
    return None


def about_training(
    stage: str, key: str, base: Base, settings: Any, losses: Sequence[float]
) -> dict[str, Any]:
    """Return what is written beside an adapter."""
    return {
        "stage": stage,
        "key": key,
        "base": {"folder": str(base.folder), "digest": base.digest},
        "settings": settings.model_dump(mode="json"),
        "losses": list(losses),
    }


def key_of_adapter(adapter: Path | None) -> str | None:
    """Return what tells an adapter from others: its training's key, else its folder."""
    return None if adapter is None else (read_about(adapter) or {"key": str(adapter)})["key"]


def shared_arguments(
    folder: Path, base: Base, settings: SftSettings | GroupSettings
) -> dict[str, Any]:
    """Return those arguments of trl's settings that every method has."""
    return quiet_arguments(folder, base.model.device, base.model.dtype) | {
        "per_device_train_batch_size": settings.batch,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "save_steps": settings.save_every,
        "gradient_checkpointing": settings.checkpointing,
    }
