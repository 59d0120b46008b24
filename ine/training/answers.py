"""Answers of a causal language model, drawn in batches, each with random numbers of its own.

Shape letters: B prompts, Q tokens of the longest prompt, T of the longest answer, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from ine.errors import ModelError, PromptError
from ine.yaml_files import Section


class Drawing(Section):
    """How an answer's tokens are drawn; the defaults are POSI's."""

    temperature: Annotated[float, Field(ge=0)] = 0.95
    """Divides the logits; 0 takes the likeliest token."""

    top_k: Annotated[int, Field(ge=0)] = 50
    """Only so many likeliest tokens; 0 is all."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Only the likeliest tokens that reach this probability together; 1 is all."""

    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of an answer, end of text included; POSI's release takes 512 in training."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Prompts with their answers as tokens."""

    tokens: torch.Tensor
    """Prompt, padded on the left, and answer, padded on the right; int64 (B, Q + T)."""

    mask: torch.Tensor
    """1 where `tokens` is no padding, (B, Q + T)."""

    start: int
    """Q, where the answers begin."""

    texts: tuple[str, ...]
    """The answers in words, without special tokens and without blanks at both ends."""

    ended: tuple[bool, ...]
    """Which answers ended by themselves, not at `Drawing.max_tokens`."""

    @property
    def answer_mask(self) -> torch.Tensor:
        """Return 1 where an answer has a token, its end of text included, float32 (B, T)."""
        return self.mask[:, self.start :].float()

    @property
    def answer_tokens(self) -> torch.Tensor:
        """Return the answers' tokens, (B, T)."""
        return self.tokens[:, self.start :]


def end_of_text(tokenizer: Any) -> int:
    """Return the token that ends an answer.

    Raises:
        ModelError: The tokenizer has none, so that no answer would ever end.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{getattr(tokenizer, 'name_or_path', '') or 'the tokenizer'}: has no end of text "
            "(eos_token), so no answer would end; set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def check_lengths(model: Any, tokenizer: Any, prompts: Sequence[str], drawing: Drawing) -> None:
    """Raise where a prompt and its answer do not fit into a model's context.

    Raises:
        PromptError: Some do not; the first is named by its number, counted from 1.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None:
        return
    room = context - drawing.max_tokens
    lengths = [
        len(ids)
        for ids in tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids
    ]
    long = [number for number, length in enumerate(lengths, start=1) if length > room]
    if long:
        raise PromptError(
            f"{len(long)} of {len(prompts)} prompts do not fit: prompt {long[0]} has "
            f"{lengths[long[0] - 1]} tokens with its instruction, and an answer may have "
            f"{drawing.max_tokens}, but the model reads {context}; shorten or leave out such "
            "prompts, or allow shorter answers"
        )


def padded_prompts(tokenizer: Any, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (tokens int64 (B, Q), mask (B, Q)), padded on the left with end of text."""
    end = end_of_text(tokenizer)
    rows = [
        list(ids)
        for ids in tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids
    ]
    width = max(map(len, rows))
    tokens = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


def filtered(logits: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    """Return the probabilities of the next token that are drawn from, float32 (B, V).

    Args:
        logits: (B, V).
        drawing: Temperature first, then top-k, then top-p (Holtzman et al. 2020).
    """
    logits = logits.float()
    if drawing.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    logits = logits / drawing.temperature
    if 0 < drawing.top_k < logits.shape[-1]:
        least = logits.topk(drawing.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if drawing.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        # The likeliest token stays, whatever its probability.
        drop = before >= drawing.top_p
        drop[:, 0] = False
        logits = logits.masked_fill(drop.scatter(-1, places, drop), -torch.inf)
    return logits.softmax(-1)


def draw(probabilities: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Return one token per row of probabilities (B, V), by a generator per row; int64 (B,)."""
    summed = probabilities.double().cpu().cumsum(-1)
    levels = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    # The sum may end below 1 by rounding; the first token whose sum exceeds the level is never
    # one of probability 0.
    found = torch.searchsorted(summed, levels * summed[:, -1:], right=True)
    return found.clamp(max=summed.shape[-1] - 1)[:, 0]


@torch.no_grad()
def draw_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    drawing: Drawing | None = None,
) -> Answers:
    """Return one answer per prompt.

    Args:
        model: A causal language model of transformers, or one with a LoRA of peft.
        tokenizer: The model's.
        prompts: Whole prompts with instruction and template, B texts; what the tokenizer would put
            before a text is a part of them.
        generators: On the CPU, one per prompt: an answer does not depend on its neighbours, except
            for what another batch shape does to the last bits.
        drawing: By default POSI's.

    Raises:
        ModelError: The tokenizer has no end of text.
        PromptError: A prompt does not fit into the context.
    """
    drawing = drawing or Drawing()
    end = end_of_text(tokenizer)
    check_lengths(model, tokenizer, prompts, drawing)
    tokens, mask = padded_prompts(tokenizer, prompts)
    start, past, fresh = tokens.shape[1], None, tokens
    alive = torch.ones(len(prompts), dtype=torch.bool)
    with evaluating(model):
        for _ in range(drawing.max_tokens):
            done = model(
                input_ids=fresh.to(model.device),
                attention_mask=mask.to(model.device),
                position_ids=positions(mask)[:, -fresh.shape[1] :].to(model.device),
                past_key_values=past,
                use_cache=True,
            )
            past = done.past_key_values
            new = draw(filtered(done.logits[:, -1].cpu(), drawing), generators)
            new = torch.where(alive, new, end)
            fresh = new[:, None]
            tokens = torch.cat([tokens, fresh], dim=1)
            mask = torch.cat([mask, alive.long()[:, None]], dim=1)
            alive = alive & (new != end)
            if not alive.any():
                break
    texts = tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
    return Answers(
        tokens=tokens,
        mask=mask,
        start=start,
        texts=tuple(text.strip() for text in texts),
        ended=tuple((~alive).tolist()),
    )


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return each token's position in its text, counted without the padding on the left."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off inside the context."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
