"""Supervised fine-tuning of a low-rank adapter, by trl and peft."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ine.errors import PromptError
from ine.observers.adapters import needs_training_packages
from ine.store.units import key_of
from ine.training.bases import Base, load_base
from ine.training.batches import collator_of, dataset_of
from ine.training.examples import Example
from ine.training.lora import with_lora
from ine.training.running import OnStep, quiet
from ine.training.settings import SftSettings
from ine.training.stage import key_of_adapter, shared_arguments, train_adapter


@dataclass(frozen=True, kw_only=True)
class SftResult:
    """A finished fine-tuning."""

    out: Path
    """The adapter, in PEFT's layout."""

    losses: tuple[float, ...]
    """Mean cross-entropy of the learned tokens in nats, of every step."""

    rows: int


def fine_tune(
    base: Path | Base,
    rows: Sequence[Example],
    settings: SftSettings,
    out: Path,
    *,
    adapter: Path | None = None,
    device: str = "auto",
    force: bool = False,
    on_step: OnStep | None = None,
    asked: dict[str, Any] | None = None,
) -> SftResult:
    """Train an adapter on a base model and write it; a killed run goes on where it was.

    The base's weights stay as they are. The same call gives the same losses, resumed or not.

    Args:
        base: The folder of a vision-language model or a language model, or one that is loaded.
        rows: What it learns; they may be read on demand.
        settings: How.
        out: Folder of the result: adapter, `training.json` with settings and losses.
        adapter: An adapter to go on from, whose rank and targets count.
        device: See `ine.runtime.pick_device`.
        force: Replace a finished or unfinished training with other settings.
        on_step: Called after every step.
        asked: What the rows ask, written beside the adapter; see `ine.refining.trained`.

    Raises:
        CheckpointError: `adapter` is damaged, or of another base model.
        IneError: The loss or its gradient is not finite.
        MissingDependency: peft or trl is not installed.
        ModelError: The base cannot be loaded, or its tokenizer has no end of text.
        OutputError: `out` holds another training or cannot be written.
        PromptError: The rows cannot teach anything: no row is given, all answers are the same, or
            one is empty or too long.
    """
    needs_training_packages()
    out = Path(out)
    check_rows(rows)
    loaded = base if isinstance(base, Base) else load_base(base, device)
    key = key_of(
        rows=[row.key for row in rows],
        settings=settings.model_dump(mode="json"),
        base=loaded.digest,
        adapter=key_of_adapter(adapter),
    )
    about = train_adapter(
        *("sft", key, loaded, settings, out, force),
        lambda folder: _trainer(loaded, rows, settings, folder, adapter),
        on_step,
        more={"asked": asked} if asked else None,
    )
    return SftResult(out=out, losses=tuple(about["losses"]), rows=len(rows))


def check_rows(rows: Sequence[Example]) -> None:
    """Raise unless rows can teach something.

    Raises:
        PromptError: No row is given, an answer is empty, or all of several are the same.
    """
    if not rows:
        raise PromptError("the training set has no rows")
    answers = [row.answer.strip() for row in rows]
    if empty := [number for number, text in enumerate(answers, 1) if not text]:
        raise PromptError(
            f"the training set: {len(empty)} of {len(rows)} answers are empty, the first in row "
            f"{empty[0]}; fill them in or remove the rows"
        )
    if len(rows) > 1 and len(set(answers)) == 1:
        raise PromptError(
            f"the training set: all {len(rows)} answers are {answers[0][:40]!r}, so a model would "
            "learn to say that always; add rows with other answers"
        )


def _trainer(
    base: Base, rows: Sequence[Example], settings: SftSettings, folder: Path, adapter: Path | None
) -> Any:
    """Return trl's trainer, ready to run."""
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(settings.seed)
    model = with_lora(base, settings.lora, adapter)
    arguments = SFTConfig(
        **shared_arguments(folder, base, settings),
        warmup_steps=settings.warmup,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        completion_only_loss=settings.completion_only,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return quiet(SFTTrainer)(
        model=model,
        args=arguments,
        train_dataset=dataset_of(base, rows),
        data_collator=collator_of(base, settings),
        processing_class=base.processor,
    )
