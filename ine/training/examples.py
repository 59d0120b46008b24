"""What a model learns from: what it is asked, and the answer it should give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ine.files import sha256_of
from ine.observers.question import Turn
from ine.observers.vlm import message_of
from ine.pictures import as_image
from ine.store.units import key_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One row of a training set."""

    asked: str | tuple[Turn, ...]
    """A text, which the model reads as it is, or the turns of a conversation, which go through the
    model's chat template."""

    answer: str
    """The text that it should continue with; the end of text is added."""

    @property
    def pictures(self) -> tuple[np.ndarray, ...]:
        """Return the pictures of its turns, uint8 RGB (H, W, 3), in order."""
        if isinstance(self.asked, str):
            return ()
        return tuple(turn.picture for turn in self.asked if turn.picture is not None)

    @property
    def key(self) -> str:
        """Return 64 hex digits of all of it, the pictures' pixels included."""
        said = (
            self.asked
            if isinstance(self.asked, str)
            else [[turn.role, turn.text, turn.picture is not None] for turn in self.asked]
        )
        shown = [sha256_of(str(p.shape).encode(), p.tobytes()) for p in self.pictures]
        return key_of(asked=said, answer=self.answer, pictures=shown)


def asked_text(processor: Any, asked: str | Sequence[Turn]) -> str:
    """Return what a model reads before its answer, as it reads it when it is used.

    Args:
        processor: Of a vision-language model, or a tokenizer.
        asked: See `Example`.

    Returns:
        The text, to be tokenized without special tokens: what the tokenizer would put before it is
        part of it.
    """
    text = (
        asked
        if isinstance(asked, str)
        else processor.apply_chat_template(
            [_message(processor, turn) for turn in asked],
            add_generation_prompt=True,
            tokenize=False,
        )
    )
    return first_token(getattr(processor, "tokenizer", processor), text) + text


def _message(processor: Any, turn: Turn) -> dict[str, Any]:
    """Return a turn as a chat template takes it: templates of text models join plain strings."""
    if hasattr(processor, "tokenizer"):
        return message_of(turn)
    return {"role": turn.role, "content": turn.text}


def first_token(tokenizer: Any, text: str) -> str:
    """Return the token that a tokenizer puts before a text, "" if it puts none."""
    bos = tokenizer.bos_token
    if bos is None or text.startswith(bos):
        return ""
    return bos if tokenizer(text)["input_ids"][:1] == [tokenizer.bos_token_id] else ""


def pillow_images(example: Example) -> list[Any]:
    """Return the pictures of an example as Pillow's images."""
    return [as_image(picture) for picture in example.pictures]
