"""Rows to batches of tokens and labels."""

from collections.abc import Callable, Sequence
from typing import Any

from ine.errors import PromptError
from ine.training.bases import Base
from ine.training.examples import Example, asked_text, pillow_images
from ine.training.settings import SftSettings

IGNORED = -100
"""Label of a token that is not learned."""

Batch = dict[str, Any]


def dataset_of(base: Base, rows: Sequence[Example]) -> Any:
    """Return rows as a dataset of Hugging Face's, each read when it is needed."""
    from datasets import Dataset

    make = _seen if base.sees else _read

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [make(base, rows[number]) for number in batch["row"]]
        return {name: [one[name] for one in made] for name in made[0]}

    return Dataset.from_dict({"row": list(range(len(rows)))}).with_transform(read)


def collator_of(base: Base, settings: SftSettings) -> Callable[[list[Batch]], Batch]:
    """Return a function from rows to a padded batch with labels.

    It raises `PromptError` at a row that is longer than `settings.max_tokens`.
    """
    from trl.trainer.sft_trainer import (
        DataCollatorForLanguageModeling,
        DataCollatorForVisionLanguageModeling,
    )

    if base.sees:
        collate: Any = DataCollatorForVisionLanguageModeling(
            processor=base.processor, completion_only_loss=settings.completion_only
        )
    else:
        collate = DataCollatorForLanguageModeling(pad_token_id=base.tokenizer.pad_token_id)
    config = base.model.config
    image = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)

    def batch_of(rows: list[Batch]) -> Batch:
        batch = collate(rows)
        if not base.sees and settings.completion_only:
            for labels, row in zip(batch["labels"], rows, strict=True):
                labels[: row["start"]] = IGNORED
        if image is not None:
            batch["labels"][batch["input_ids"] == image] = IGNORED
        _check_length(batch["attention_mask"].shape[1], settings.max_tokens)
        return batch

    return batch_of


def _seen(base: Base, row: Example) -> Batch:
    """Return a row for a vision-language model."""
    return {
        "prompt": asked_text(base.processor, row.asked),
        "completion": row.answer + base.tokenizer.eos_token,
        "images": pillow_images(row),
    }


def _read(base: Base, row: Example) -> Batch:
    """Return a row for a text model; its answer starts at token `start`.

    Raises:
        PromptError: The row has a picture.
    """
    if row.pictures:
        raise PromptError(
            f"the training set has pictures, and {base.folder} takes text alone; give a "
            "vision-language model"
        )
    asked, answer = (
        base.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (
            asked_text(base.processor, row.asked),
            row.answer + base.tokenizer.eos_token,
        )
    )
    return {"input_ids": asked + answer, "start": len(asked)}


def _check_length(found: int, most: int | None) -> None:
    if most is not None and found > most:
        raise PromptError(
            f"the training set: a row has {found} tokens, max_tokens allows {most}; shorten the "
            "row, show a smaller picture, or raise max_tokens"
        )
