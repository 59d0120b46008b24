"""Prompts into tokens, with places for learned vectors where a trigger stands.

Shape letters: B prompts, L tokens of the context (77; mini 32).
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ine.errors import PromptError
from ine.text.syntax import Piece, read_weights

log = logging.getLogger("ine")


@dataclass(frozen=True)
class Tokens:
    """Token ids of prompts and where learned vectors replace the token table's rows."""

    ids: torch.Tensor
    """(B, L) int64; a placeholder holds an ordinary id that is never looked at."""

    places: tuple[tuple[int, int, str, int], ...]
    """(row, position, trigger, index of the vector)."""

    weights: torch.Tensor | None = None
    """(B, L) float32; None where every token weighs 1."""


MISSING = re.compile(r"(?<![\w-])embedding:(?P<name>[\w-][\w./-]*)", re.IGNORECASE)
"""What ComfyUI takes for the name of an embedding."""


def trigger_pattern(triggers: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds triggers as whole words, in any case; "-" is within a word.

    What UIs have users type around a name belongs to it: "embedding:NAME" (ComfyUI, Fooocus),
    "<NAME>" (InvokeAI, diffusers), "<embed:NAME>" (SwarmUI).
    """
    names = "|".join(re.escape(t) for t in sorted(triggers, key=len, reverse=True))
    return re.compile(
        rf"<(?:embed(?:ding)?:)?(?:{names})>"
        rf"|(?<![\w-])embedding:\s?(?:[\w.-]{{1,80}}/){{0,4}}(?:{names})(?:\.(?:safetensors|pt|bin))?(?![\w-])"
        rf"|(?<![\w-])(?:{names})(?![\w-])",
        re.IGNORECASE,
    )


def cut_at_triggers(text: str, triggers: Iterable[str]) -> list[tuple[str, str | None]]:
    """Return a text's parts in order: (words, None), and (what stands for it, trigger)."""
    triggers = list(triggers)
    if not triggers:
        return [(text, None)]
    parts: list[tuple[str, str | None]] = []
    end = 0
    for found in trigger_pattern(triggers).finditer(text):
        trigger = next(t for t in triggers if trigger_pattern([t]).fullmatch(found[0]))
        parts += [(text[end : found.start()], None), (found[0], trigger)]
        end = found.end()
    return [*parts, (text[end:], None)]


def missing_embeddings(text: str, triggers: Iterable[str]) -> list[str]:
    """Return the names that "embedding:NAME" asks for in a text and that are not in `triggers`."""
    words = (part for part, trigger in cut_at_triggers(text, list(triggers)) if trigger is None)
    return [found["name"] for part in words for found in MISSING.finditer(part)]


def tokenize(
    tokenizer: Any,
    prompts: Sequence[str],
    vectors: Mapping[str, int] | None = None,
    weighted: bool = False,
) -> Tokens:
    """Return the tokens of prompts, triggers expanded to their vectors.

    A trigger is found as a whole word, in any case, and as UIs write it, see `trigger_pattern`;
    an "embedding:NAME" that is not given is read as words, with a warning. Text too long for the
    context is cut as everywhere in this field, with a warning that counts the tokens lost.

    Args:
        tokenizer: A CLIP tokenizer.
        prompts: B texts.
        vectors: {trigger: number of vectors}.
        weighted: Whether weights and escapes in the prompts are understood.

    Raises:
        PromptError: A learned vector would be cut off, or a prompt is not text in Unicode.
    """
    counts = dict(vectors or {})
    room = tokenizer.model_max_length - 2
    rows, places, weights = [], [], []
    for row, prompt in enumerate(prompts):
        found = _read(tokenizer, prompt, counts, weighted)
        _check_room(prompt, found, room)
        body = found.ids[:room]
        padding = [tokenizer.pad_token_id] * (room - len(body))
        rows.append([tokenizer.bos_token_id, *body, tokenizer.eos_token_id, *padding])
        weights.append([1.0, *found.weights[:room], 1.0, *[1.0] * len(padding)])
        places += [(row, at + 1, trigger, k) for at, trigger, k in found.places]
    weight = torch.tensor(weights)
    plain = bool((weight == 1).all())
    return Tokens(torch.tensor(rows), tuple(places), None if plain else weight)


@dataclass(frozen=True)
class _Read:
    """One prompt in tokens, of any length and without start and end."""

    ids: list[int]
    places: list[tuple[int, str, int]]
    """(position, trigger, index of the vector)."""

    weights: list[float]


def _read(tokenizer: Any, prompt: str, counts: Mapping[str, int], weighted: bool) -> _Read:
    _check_unicode(prompt)
    if missing := missing_embeddings(prompt, list(counts)):
        log.warning(
            "prompt %r: the embedding %s is not given; its name is read as words",
            *(prompt[:60], ", ".join(missing)),
        )
    filler = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))[0]
    found = _Read([], [], [])
    for piece in read_weights(prompt) if weighted else (Piece(prompt),):
        for cut, trigger in cut_at_triggers(piece.text, list(counts)):
            at = len(found.ids)
            if trigger:
                found.places.extend((at + k, trigger, k) for k in range(counts[trigger]))
                found.ids.extend([filler] * counts[trigger])
            elif cut.strip():
                # Not verbose: the tokenizer's warning about length has no numbers, ours does.
                found.ids.extend(tokenizer(cut, add_special_tokens=False, verbose=False).input_ids)
        found.weights.extend([piece.weight] * (len(found.ids) - len(found.weights)))
    return found


def _check_room(prompt: str, found: _Read, room: int) -> None:
    """Warn of a prompt that is too long, and refuse it if a learned vector would be cut off."""
    lost = len(found.ids) - room
    if lost <= 0:
        return
    losing = sorted({trigger for at, trigger, _ in found.places if at >= room})
    if losing:
        raise PromptError(
            f"prompt {prompt[:60]!r} has {len(found.ids)} tokens, {lost} more than the "
            f"{room} of this model, and would cut off vectors of {', '.join(losing)}; "
            "shorten the text or move the trigger forward"
        )
    log.warning("prompt %r is cut: %d of %d tokens lost", prompt[:60], lost, len(found.ids))


def _check_unicode(prompt: str) -> None:
    """Refuse halves of characters, which come from a terminal with another encoding."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"prompt {prompt[:60]!a}: {prompt[error.start]!a} is no character; type it "
            "in UTF-8, or give prompts in a file in UTF-8"
        ) from None
