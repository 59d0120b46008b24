"""Run a trainer of trl so that it can be killed at any moment, resumed, and followed.

A checkpoint counts once the file `MARK` is in it, which is written last. What trl does beside
training is switched off: prints, cards, reports to services.
"""

import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ine.errors import IneError, MissingDependency, OutputError
from ine.files import parse_json, write_json

MARK = "ine.json"
OnStep = Callable[[int, int, dict[str, float]], None]
"""Called with (finished steps, steps in all, figures of the last one)."""


def quiet(trainer: type) -> type:
    """Return a class of trl's that reports to nobody and writes no cards.

    trl has no setting for the first: `_send_telemetry` is a name of its own that may change.

    Raises:
        MissingDependency: This version has another name for it, and reports are not off already.
    """
    from huggingface_hub import constants

    off = constants.HF_HUB_DISABLE_TELEMETRY or constants.HF_HUB_OFFLINE
    if not off and not callable(getattr(trainer, "_send_telemetry", None)):
        raise MissingDependency(
            f"trl {version('trl')}: {trainer.__name__} has no _send_telemetry, by which reports to "
            "the hub are switched off; set HF_HUB_DISABLE_TELEMETRY=1 and run again, or install "
            'the version that is tested: pip install "trl==1.16.0"'
        )

    class Quiet(trainer):
        """Trains, and does nothing else."""

        def _send_telemetry(self) -> None:
            return

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            return

    return Quiet


def quiet_arguments(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return those arguments of trl's settings that do not depend on the method."""
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        # Else a loss that is not finite is shown as 0.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "use_cpu": device.type == "cpu",
        "bf16": dtype == torch.bfloat16,
        "fp16": False,
        "dataloader_pin_memory": device.type == "cuda",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "push_to_hub": False,
    }


class Kept(Protocol):
    """What belongs to a run's state beside what trl keeps."""

    def pack(self) -> dict[str, Any]:
        """Return it as JSON values."""

    def unpack(self, packed: dict[str, Any]) -> None:
        """Take over what `pack` returned."""


def run_trainer(
    trainer: Any,
    folder: Path,
    key: str,
    what: str,
    on_step: OnStep | None = None,
    kept: Kept | None = None,
) -> list[dict[str, float]]:
    """Train from the last whole checkpoint, or from the start; return the figures of every step.

    Args:
        trainer: Of trl.
        folder: Its checkpoints.
        key: What the result depends on.
        what: The method, for messages.
        on_step: Called after every step.
        kept: What else belongs to the state.

    Raises:
        IneError: A loss or gradient is not finite.
        OutputError: The checkpoints belong to a run with another key.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watcher(folder, key, what, on_step, kept))
    last = last_checkpoint(folder, key)
    if last is not None and kept is not None:
        kept.unpack((_mark_of(last) or {})["kept"])
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return figures_of(trainer.state.log_history)


def figures_of(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the figures of every step of a trainer's log, without its summary at the end."""
    return [one for one in history if "loss" in one]


def last_checkpoint(folder: Path, key: str) -> Path | None:
    """Return the last whole checkpoint; remove those that a kill left unfinished.

    Raises:
        OutputError: One belongs to a run with another key.
    """
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        mark = _mark_of(path)
        if mark is None:
            shutil.rmtree(path)
        elif mark["key"] != key:
            raise OutputError(
                f"{folder.parent}: holds an unfinished training with other settings, data or base; "
                "repeat those to resume it, or give --force to start over"
            )
        else:
            found.append((mark["step"], path))
    return max(found, default=(0, None))[1]


def _mark_of(path: Path) -> dict[str, Any] | None:
    """Return the mark of a checkpoint, None if it has none that can be read."""
    try:
        mark = parse_json((path / MARK).read_bytes())
        return mark if isinstance(mark["key"], str) and isinstance(mark["step"], int) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _watcher(folder: Path, key: str, what: str, on_step: OnStep | None, kept: Kept | None) -> Any:
    """Return a callback that marks checkpoints, stops at numbers that are not finite, reports."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        """Follows a run."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            figures = state.log_history[-1] if state.log_history else {}
            if "loss" not in figures:
                return
            for name in ("loss", "grad_norm"):
                if not math.isfinite(figures.get(name, 0.0)):
                    raise IneError(
                        f"{what}: {name} is {figures[name]} at step {state.global_step} of "
                        f"{state.max_steps}; lower the learning rate"
                    )
            if on_step:
                on_step(state.global_step, state.max_steps, figures)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            path = folder / f"checkpoint-{state.global_step}"
            more = {} if kept is None else {"kept": kept.pack()}
            write_json(path / MARK, {"key": key, "step": state.global_step, **more})

    return Watcher()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Let a trainer seed Python's, NumPy's and torch's generators; put their states back."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
