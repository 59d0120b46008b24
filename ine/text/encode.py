"""Prompts into text states, with learned vectors spliced in where a trigger stands.

Shape letters: B prompts, L tokens of the context (77; mini 32), D text width, N vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.finite import check_finite
from ine.models.parts import DiffusionParts
from ine.text.condition import Condition, silenced
from ine.text.splicing import check_heard, splice
from ine.text.tokens import tokenize

Vectors = Mapping[str, torch.Tensor | Sequence[torch.Tensor]]
"""{trigger: one (N, D) tensor per text encoder, or a single tensor}."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How prompts are read; by default without prompt weights, from the last encoder layer."""

    weights: bool = False
    """Whether "(words:1.2)", "(words)", "[words]" and escapes are understood, as UIs do; see
    `ine.text.syntax`."""

    clip_skip: int = 1
    """Text encoder layer to use, counted from the last as A1111 does: 1 is the last, 2 the one
    before it. diffusers' `clip_skip` is one less (its 1 is 2 here)."""


PLAIN_TEXT = TextOptions()
"""Default: no prompt weights, last encoder layer; only `ine generate` overrides it."""


def weigh_states(states: torch.Tensor, empty: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return empty + w (states - empty), token by token.

    ComfyUI's form (comfy/sd1_clip.py): a weight says how far a token's state goes from that of
    the empty prompt at the same place, beyond it with w > 1. A1111 multiplies the states and
    restores their mean over the prompt instead; means of CLIP states are near zero on some
    models (on mini a fiftieth of their spread), and a quotient of two such means is arbitrary.

    In both a weight acts behind the encoder, so w = 0 removes the tokens' own states, but not their
    influence on later tokens and on the end of the text. On mini that is nearly everything: w = 0
    leaves 98 % of the effect of a trigger between other words, w = 1.5 makes it 107 %.

    Args:
        states: Text states, (B, L, D).
        empty: Those of the empty prompt, (1, L, D).
        weights: (B, L). Tokens of weight 1 keep their states bit by bit.
    """
    w = weights[..., None].to(states.device, states.dtype)
    return torch.where(w == 1, states, empty + w * (states - empty))


def layer_states(
    encoder: Any, ids: torch.Tensor, clip_skip: int = 1, *, alone: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (text states (B, L, D), pooled states or None) of token ids.

    Args:
        encoder: A CLIP text model.
        ids: (B, L).
        clip_skip: See `TextOptions`.
        alone: Whether it is the model's only encoder. Such a layer goes through the final layer
            norm, as in A1111 and diffusers. Models of two encoders were trained on the layer
            before the last without that norm, so 1 and 2 mean that layer.
    """
    ids = ids.to(encoder.get_input_embeddings().weight.device)
    if alone and clip_skip == 1:
        return encoder(ids).last_hidden_state, None
    layers = encoder.config.num_hidden_layers
    if not 1 <= clip_skip <= layers:
        raise IneError(
            f"clip skip {clip_skip}: the text encoder has {layers} layers; give 1 (the last) to "
            f"{layers} (the first)"
        )
    out = encoder(ids, output_hidden_states=True)
    if not alone:
        return out.hidden_states[-max(2, clip_skip)], getattr(out, "text_embeds", None)
    # Where the norm lives depends on the version of transformers.
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    return norm(out.hidden_states[-clip_skip]), None


def encode(
    parts: DiffusionParts,
    prompts: Sequence[str],
    vectors: Vectors | None = None,
    reading: TextOptions = PLAIN_TEXT,
) -> Condition:
    """Return the condition of prompts; gradients flow into `vectors` that require them.

    Args:
        parts: The model.
        prompts: B texts; the empty text is the unconditional one.
        vectors: Of the learned words in the prompts.
        reading: How prompts are read.

    Returns:
        Condition: states (B, L, D). Weights act on these; pooled states (SDXL) have none.

    Raises:
        IneError: The text encoder has fewer layers than `reading` skips.
        PromptError: A learned vector would be cut off.
    """
    states, pooled = encode_text(parts.tokenizers, parts.text_encoders, prompts, vectors, reading)
    inpainting_input = None if parts.inpainting_input is None else parts.inpainting_input[None]
    fixed = (
        ("time_ids", parts.time_ids),
        ("timestep_cond", parts.timestep_cond),
        ("inpainting_input", inpainting_input),
    )
    # One row for all prompts; expanding it takes no memory.
    rest = {n: x.expand(len(states), *x.shape[1:]) for n, x in fixed if x is not None}
    return Condition(states=states, pooled=pooled, **rest)


def encode_nothing(parts: DiffusionParts, reading: TextOptions = PLAIN_TEXT) -> Condition:
    """Return the condition of no text, one row, as the model was trained on it."""
    return as_nothing(parts, encode(parts, [""], reading=reading))


def as_nothing(parts: DiffusionParts, empty: Condition) -> Condition:
    """Return the condition of no text, given that of the empty text."""
    return silenced(empty) if parts.zeros_for_nothing else empty


def encode_text(
    tokenizers: Sequence[Any],
    text_encoders: Sequence[Any],
    prompts: Sequence[str],
    vectors: Vectors | None = None,
    reading: TextOptions = PLAIN_TEXT,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (states (B, L, D), pooled states (B, P) or None) of prompts; see `encode`."""
    given = {t: v if isinstance(v, tuple | list) else (v,) for t, v in (vectors or {}).items()}
    states, pooled = [], None
    for number, (tokenizer, encoder) in enumerate(zip(tokenizers, text_encoders, strict=True)):
        own = {trigger: v[number] for trigger, v in given.items()}
        found, own_pooled = _encode_by(
            tokenizer, encoder, prompts, own, reading, alone=len(text_encoders) == 1
        )
        states.append(found)
        pooled = pooled if own_pooled is None else own_pooled
    return torch.cat(states, dim=-1), pooled


def _encode_by(
    tokenizer: Any,
    encoder: Any,
    prompts: Sequence[str],
    vectors: Mapping[str, torch.Tensor],
    reading: TextOptions,
    *,
    alone: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (states (B, L, D), pooled states or None) of one of a model's encoders.

    Args:
        tokenizer: Its tokenizer.
        encoder: The encoder.
        prompts: B texts.
        vectors: {trigger: vectors of this encoder, (N, D)}.
        reading: How prompts are read.
        alone: See `layer_states`.
    """
    counts = {trigger: len(v) for trigger, v in vectors.items()}
    tokens = tokenize(tokenizer, prompts, counts, reading.weights)
    rows = [p[0] for p in tokens.places]
    positions = [p[1] for p in tokens.places]
    device = encoder.get_input_embeddings().weight.device
    values = [vectors[t][k].to(device) for _, _, t, k in tokens.places]
    stacked = torch.stack(values) if values else None
    read = partial(layer_states, encoder, tokens.ids, reading.clip_skip, alone=alone)
    with splice(encoder, rows, positions, stacked) as spliced:
        found, pooled = read()
    check_finite(found, "text encoder")
    check_heard(encoder, list(vectors.values()), spliced, found, read)
    if tokens.weights is not None:
        nothing = tokenize(tokenizer, [""]).ids
        empty, _ = layer_states(encoder, nothing, reading.clip_skip, alone=alone)
        found = weigh_states(found, empty, tokens.weights)
        check_finite(found, "text encoder")
    return found, pooled


@torch.no_grad()
def negative_prompt_embeds(
    parts: Any,
    embedding: ConceptEmbedding,
    text: str | None = None,
    reading: TextOptions = PLAIN_TEXT,
) -> torch.Tensor:
    """Return states to pass as `negative_prompt_embeds` to a diffusers pipeline, (1, L, D).

    Args:
        parts: The base's `DiffusionParts`, or a diffusers `StableDiffusionPipeline`.
        embedding: What the trigger stands for.
        text: Text with the trigger in it, as a UI user types it; by default the trigger alone.
        reading: For weights in the text or another layer than the last.

    Raises:
        IneError: A model of two text encoders.
    """
    own = hasattr(parts, "text_encoders")
    tokenizers = parts.tokenizers if own else (parts.tokenizer,)
    encoders = parts.text_encoders if own else (parts.text_encoder,)
    if len(embedding.vectors) > 1 or hasattr(parts, "text_encoder_2"):
        raise IneError(
            "negative_prompt_embeds: SDXL also needs pooled states, which this does not return; "
            "use ine.protect(pipe, embedding), or load the file that `ine embedding convert --to "
            "diffusers` writes"
        )
    prompt = text if text is not None else embedding.trigger
    vectors = {embedding.trigger: embedding.vectors}
    return encode_text(tokenizers, encoders, [prompt], vectors, reading)[0]
