"""A vision-language model on this machine, through transformers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ine.observers.asking import Reply
from ine.observers.question import Conversation, Turn
from ine.pictures import as_image

Padding = Literal["left", "right"]


class LocalAsker:
    """Answers greedily, several conversations at a time.

    Shorter ones are padded on the left: with padding on the right a model would continue after the
    padding, so that only the longest conversation of a batch is answered as it would be alone.
    """

    def __init__(
        self, name: str, model: Any, processor: Any, batch: int = 8, padding: Padding = "left"
    ) -> None:
        """Take a model and its processor; see `ine.observers.vlm_loading.load_vlm`.

        `padding` may be "right" to repeat published runs that padded so.
        """
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.batch = batch
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = padding
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def ask(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Return one reply per conversation."""
        replies: list[Reply] = []
        for start in range(0, len(conversations), self.batch):
            texts = self._generate(conversations[start : start + self.batch])
            replies += [Reply(text=text) for text in texts]
        return replies

    @torch.inference_mode()
    def _generate(self, conversations: Sequence[Conversation]) -> list[str]:
        inputs = self._inputs(conversations)
        limits = [one.max_tokens for one in conversations]
        made = self.model.generate(**inputs, generation_config=self._greedy(max(limits)))
        new = made[:, inputs["input_ids"].shape[1] :]
        return [
            self.tokenizer.decode(row[:limit], skip_special_tokens=True).strip()
            for row, limit in zip(new, limits, strict=True)
        ]

    def _inputs(self, conversations: Sequence[Conversation]) -> Any:
        """Return the model's inputs, padded on the chosen side, on its device."""
        texts = [
            self.processor.apply_chat_template(
                [message_of(turn) for turn in one.turns], add_generation_prompt=True, tokenize=False
            )
            for one in conversations
        ]
        images = [
            [as_image(turn.picture) for turn in one.turns if turn.picture is not None]
            for one in conversations
        ]
        # A processor that is given no picture at all wants none, not a row of empty lists.
        shown = images if any(images) else None
        inputs = self.processor(text=texts, images=shown, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _greedy(self, max_tokens: int) -> Any:
        """Return settings without sampling, whatever the model's own are."""
        from transformers import GenerationConfig

        own = self.model.generation_config
        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id if pad is None else pad,
        )


def message_of(turn: Turn) -> dict[str, Any]:
    """Return a turn as chat templates take it."""
    shown = [] if turn.picture is None else [{"type": "image"}]
    return {"role": turn.role, "content": [*shown, {"type": "text", "text": turn.text}]}
