"""Prompts into text states, with learned vectors spliced in where a trigger stands.

Shape letters: B prompts, L tokens of the context (77; mini 32), D text width, N vectors.
"""

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ine.errors import PromptError

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the U-Net is told about a batch of prompts."""

    states: torch.Tensor
    """Last hidden states, encoders side by side in D, (B, L, D)."""

    pooled: torch.Tensor | None = None
    """Pooled states of the last encoder (SDXL), (B, P)."""

    time_ids: torch.Tensor | None = None
    """Size and crop numbers (SDXL), (B, 6)."""

    def rows(self, index):
        """Return the condition of some prompts; `index` is a list, mask or slice."""
        pick = lambda x: None if x is None else x[index]  # noqa: E731
        return Condition(
            states=self.states[index], pooled=pick(self.pooled), time_ids=pick(self.time_ids)
        )

    def repeat(self, count):
        """Return the condition of one prompt for `count` pictures; of `count` prompts, itself."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise ValueError(f"a condition of {len(self)} rows cannot be asked of {count} pictures")
        return self.rows([0] * count)

    def __len__(self):
        """Return the number of prompts."""
        return len(self.states)


def join_conditions(conditions):
    """Stack conditions along the batch, in order."""
    join = lambda xs: None if xs[0] is None else torch.cat(xs)  # noqa: E731
    return Condition(
        states=torch.cat([c.states for c in conditions]),
        pooled=join([c.pooled for c in conditions]),
        time_ids=join([c.time_ids for c in conditions]),
    )


@dataclass(frozen=True)
class Tokens:
    """Token ids of prompts and where learned vectors replace the token table's rows."""

    ids: torch.Tensor
    """(B, L) int64; a placeholder holds an ordinary id that is never looked at."""

    places: tuple[tuple[int, int, str, int], ...]
    """(row, position, trigger, index of the vector)."""


def trigger_pattern(triggers):
    """Return a pattern that finds triggers as whole words, in any case; "-" is within a word."""
    names = "|".join(re.escape(t) for t in sorted(triggers, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])({names})(?![\w-])", re.IGNORECASE)


def tokenize(tokenizer, prompts, vectors=None):
    """Return the tokens of prompts, triggers expanded to their vectors.

    A trigger is found as a whole word, in any case. Text too long for the context is cut as
    everywhere in this field, with a warning that counts the tokens lost.

    Args:
        prompts: B texts.
        vectors: {trigger: number of vectors}.

    Raises:
        PromptError: A learned vector would be cut off.
    """
    counts = dict(vectors or {})
    pattern = trigger_pattern(counts) if counts else None
    room = tokenizer.model_max_length - 2
    filler = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))[0]
    rows, places = [], []
    for row, prompt in enumerate(prompts):
        ids, marks = [], []
        pieces = pattern.split(prompt) if pattern else [prompt]
        for number, piece in enumerate(pieces):
            if number % 2:
                trigger = next(t for t in counts if trigger_pattern([t]).fullmatch(piece))
                marks += [(len(ids) + k, trigger, k) for k in range(counts[trigger])]
                ids += [filler] * counts[trigger]
            elif piece.strip():
                # Not verbose: what is too long is said below, with numbers.
                ids += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        lost = len(ids) - room
        if lost > 0:
            cut = sorted({t for at, t, _ in marks if at >= room})
            if cut:
                raise PromptError(
                    f"prompt {prompt[:60]!r} has {len(ids)} tokens, {lost} more than the "
                    f"{room} of this model, and would cut off vectors of {', '.join(cut)}; "
                    "shorten the text or move the trigger forward"
                )
            log.warning("prompt %r is cut: %d of %d tokens lost", prompt[:60], lost, len(ids))
        body = ids[:room]
        padding = [tokenizer.pad_token_id] * (room - len(body))
        rows.append([tokenizer.bos_token_id, *body, tokenizer.eos_token_id, *padding])
        places += [(row, at + 1, trigger, k) for at, trigger, k in marks]
    return Tokens(torch.tensor(rows), tuple(places))


@contextmanager
def splice(text_encoder, rows, positions, values):
    """Replace rows of the token embeddings while the context lasts.

    A forward hook on the token table writes `values` over the looked-up rows; nothing of the
    encoder is resized or assigned, so it is bit-identical afterwards, also after an exception.
    Gradients reach `values` only.

    Args:
        text_encoder: A CLIP text model.
        rows: K batch rows.
        positions: K token positions, 0 is the start-of-text token.
        values: Vectors of the table's width, (K, D).
    """
    if not rows:
        yield
        return
    table = text_encoder.get_input_embeddings()

    def write(_module, _inputs, looked_up):
        device = looked_up.device
        index = (torch.tensor(rows, device=device), torch.tensor(positions, device=device))
        return looked_up.index_put(index, values.to(device, looked_up.dtype))

    handle = table.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


def encode(parts, prompts, vectors=None):
    """Return the condition of prompts; gradients flow into `vectors` where they want them.

    Args:
        parts: A `DiffusionParts`.
        prompts: B texts; the empty text is the unconditional one.
        vectors: {trigger: one (N, D) tensor per text encoder, or a single tensor}.

    Returns:
        Condition: states (B, L, D).
    """
    given = {t: v if isinstance(v, tuple | list) else (v,) for t, v in (vectors or {}).items()}
    states, pooled = [], None
    for number, (tokenizer, encoder) in enumerate(
        zip(parts.tokenizers, parts.text_encoders, strict=True)
    ):
        tokens = tokenize(tokenizer, prompts, {t: len(v[0]) for t, v in given.items()})
        rows = [p[0] for p in tokens.places]
        positions = [p[1] for p in tokens.places]
        device = encoder.get_input_embeddings().weight.device
        values = [given[t][number][k].to(device) for _, _, t, k in tokens.places]
        values = torch.stack(values) if values else None
        with splice(encoder, rows, positions, values):
            if len(parts.text_encoders) == 1:
                states.append(encoder(tokens.ids.to(device)).last_hidden_state)
            else:
                out = encoder(tokens.ids.to(device), output_hidden_states=True)
                states.append(out.hidden_states[-2])
                pooled = getattr(out, "text_embeds", pooled)
    return Condition(states=torch.cat(states, dim=-1), pooled=pooled)


@torch.no_grad()
def negative_prompt_embeds(parts, embedding, text=None):
    """Return states to pass as `negative_prompt_embeds` to a diffusers pipeline, (1, L, D).

    Args:
        parts: The base's parts, or a diffusers `StableDiffusionPipeline`.
        embedding: A `ConceptEmbedding`.
        text: Text with the trigger in it, as a UI user types it; by default the trigger alone.
    """
    if not hasattr(parts, "text_encoders"):
        from types import SimpleNamespace

        parts = SimpleNamespace(tokenizers=(parts.tokenizer,), text_encoders=(parts.text_encoder,))
    prompt = text if text is not None else embedding.trigger
    return encode(parts, [prompt], {embedding.trigger: embedding.vectors}).states
