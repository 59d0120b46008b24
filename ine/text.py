"""Prompts into text states, with learned vectors spliced in where a trigger stands.

Shape letters: B prompts, L tokens of the context (77; mini 32), D text width, N vectors.
"""

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch

from ine.errors import IneError, PromptError
from ine.weights_in_prompts import Piece, read_weights

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

    scale_input: torch.Tensor | None = None
    """Embedding of the guidance scale (LCM), (B, G)."""

    beside: torch.Tensor | None = None
    """What stands beside the latents (inpainting), (B, C', H, W)."""

    def rows(self, index):
        """Return the condition of some prompts; `index` is a list, mask or slice."""
        return self._each(lambda tensor: tensor[index])

    def _each(self, change):
        """Return the condition with all tensors that there are changed."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{n: None if x is None else change(x) for n, x in given.items()})

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
    rows = {f.name: [getattr(c, f.name) for c in conditions] for f in fields(Condition)}
    return Condition(**{n: None if xs[0] is None else torch.cat(xs) for n, xs in rows.items()})


def silenced(condition):
    """Return a condition whose text is zeros, what SDXL takes for no text at all."""
    blank = {"states": torch.zeros_like(condition.states)}
    if condition.pooled is not None:
        blank["pooled"] = torch.zeros_like(condition.pooled)
    return replace(condition, **blank)


@dataclass(frozen=True)
class Tokens:
    """Token ids of prompts and where learned vectors replace the token table's rows."""

    ids: torch.Tensor
    """(B, L) int64; a placeholder holds an ordinary id that is never looked at."""

    places: tuple[tuple[int, int, str, int], ...]
    """(row, position, trigger, index of the vector)."""

    weights: torch.Tensor | None = None
    """(B, L) float32; None where every token weighs 1."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How prompts are read; by default to the letter and to the last layer."""

    weights: bool = False
    """Whether "(words:1.2)", "(words)", "[words]" and escapes are understood, as UIs do; see
    `ine.weights_in_prompts`."""

    clip_skip: int = 1
    """Which layer of the text encoder speaks, counted from the last, as A1111 counts: 1 is the
    last, 2 the one before it. diffusers' `clip_skip` is one less (its 1 is 2 here)."""


LITERAL = Reading()
"""Brackets are letters, the last layer speaks: the way of everything but `ine generate`."""


def trigger_pattern(triggers):
    """Return a pattern that finds triggers as whole words, in any case; "-" is within a word."""
    names = "|".join(re.escape(t) for t in sorted(triggers, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])({names})(?![\w-])", re.IGNORECASE)


def tokenize(tokenizer, prompts, vectors=None, weighted=False):
    """Return the tokens of prompts, triggers expanded to their vectors.

    A trigger is found as a whole word, in any case. Text too long for the context is cut as
    everywhere in this field, with a warning that counts the tokens lost.

    Args:
        prompts: B texts.
        vectors: {trigger: number of vectors}.
        weighted: Whether weights and escapes in the prompts are understood.

    Raises:
        PromptError: A learned vector would be cut off, or a prompt is not text in Unicode.
    """
    counts = dict(vectors or {})
    pattern = trigger_pattern(counts) if counts else None
    room = tokenizer.model_max_length - 2
    filler = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))[0]
    rows, places, weights = [], [], []
    for row, prompt in enumerate(prompts):
        _check_unicode(prompt)
        ids, marks, weigh = [], [], []
        for piece in read_weights(prompt) if weighted else (Piece(prompt),):
            cuts = pattern.split(piece.text) if pattern else [piece.text]
            for number, cut in enumerate(cuts):
                if number % 2:
                    trigger = next(t for t in counts if trigger_pattern([t]).fullmatch(cut))
                    marks += [(len(ids) + k, trigger, k) for k in range(counts[trigger])]
                    ids += [filler] * counts[trigger]
                elif cut.strip():
                    # Not verbose: what is too long is said below, with numbers.
                    ids += tokenizer(cut, add_special_tokens=False, verbose=False).input_ids
            weigh += [piece.weight] * (len(ids) - len(weigh))
        lost = len(ids) - room
        if lost > 0:
            losing = sorted({t for at, t, _ in marks if at >= room})
            if losing:
                raise PromptError(
                    f"prompt {prompt[:60]!r} has {len(ids)} tokens, {lost} more than the "
                    f"{room} of this model, and would cut off vectors of {', '.join(losing)}; "
                    "shorten the text or move the trigger forward"
                )
            log.warning("prompt %r is cut: %d of %d tokens lost", prompt[:60], lost, len(ids))
        body = ids[:room]
        padding = [tokenizer.pad_token_id] * (room - len(body))
        rows.append([tokenizer.bos_token_id, *body, tokenizer.eos_token_id, *padding])
        weights.append([1.0, *weigh[:room], 1.0, *[1.0] * len(padding)])
        places += [(row, at + 1, trigger, k) for at, trigger, k in marks]
    weights = torch.tensor(weights)
    plain = bool((weights == 1).all())
    return Tokens(torch.tensor(rows), tuple(places), None if plain else weights)


def _check_unicode(prompt):
    """Refuse halves of characters, which a terminal of another encoding leaves in what is typed."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"prompt {prompt[:60]!a}: {prompt[error.start]!a} is no character; type it "
            "in UTF-8, or give a file in UTF-8 with --prompts"
        ) from None


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


def weigh_states(states, empty, weights):
    """Return empty + w (states - empty), token by token.

    ComfyUI's form (comfy/sd1_clip.py): a weight says how far a token's state goes from that of
    the empty prompt at the same place, beyond it with w > 1. A1111 multiplies the states and
    restores their mean over the prompt instead; means of CLIP states are near zero on some
    models (on mini a fiftieth of their spread), and a quotient of two such means is arbitrary.

    In both a weight acts behind the encoder, so w = 0 takes away the tokens' own states, not what
    later tokens and the end of the text have heard of them. On mini that echo is nearly all of
    it: w = 0 leaves 98 % of what a trigger does between other words, w = 1.5 makes it 107 %.

    Args:
        states: Text states, (B, L, D).
        empty: Those of the empty prompt, (1, L, D).
        weights: (B, L). Tokens of weight 1 keep their states bit by bit.
    """
    w = weights[..., None].to(states.device, states.dtype)
    return torch.where(w == 1, states, empty + w * (states - empty))


def layer_states(encoder, ids, clip_skip=1, *, alone):
    """Return (text states (B, L, D), pooled states or None) of token ids.

    Args:
        encoder: A CLIP text model.
        ids: (B, L).
        clip_skip: See `Reading`.
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


def encode(parts, prompts, vectors=None, reading=LITERAL):
    """Return the condition of prompts; gradients flow into `vectors` where they want them.

    Args:
        parts: A `DiffusionParts`.
        prompts: B texts; the empty text is the unconditional one.
        vectors: {trigger: one (N, D) tensor per text encoder, or a single tensor}.
        reading: A `Reading`.

    Returns:
        Condition: states (B, L, D). Weights act on these; pooled states (SDXL) have none.

    Raises:
        IneError: The text encoder has fewer layers than `reading` skips.
        PromptError: A learned vector would be cut off.
    """
    states, pooled = encode_text(parts.tokenizers, parts.text_encoders, prompts, vectors, reading)
    beside = None if parts.beside is None else parts.beside[None]
    fixed = (("time_ids", parts.time_ids), ("scale_input", parts.scale_input), ("beside", beside))
    # One row for all prompts; expanding it takes no memory.
    told = {n: x.expand(len(states), *x.shape[1:]) for n, x in fixed if x is not None}
    return Condition(states=states, pooled=pooled, **told)


def encode_nothing(parts, reading=LITERAL):
    """Return the condition of no text at all, one row: what a model was trained to take for it."""
    return as_nothing(parts, encode(parts, [""], reading=reading))


def as_nothing(parts, empty):
    """Return what stands for no text, given the condition of the empty text."""
    return silenced(empty) if parts.zeros_for_nothing else empty


def encode_text(tokenizers, text_encoders, prompts, vectors=None, reading=LITERAL):
    """Return (states (B, L, D), pooled states (B, P) or None) of prompts; see `encode`."""
    given = {t: v if isinstance(v, tuple | list) else (v,) for t, v in (vectors or {}).items()}
    counts = {t: len(v[0]) for t, v in given.items()}
    alone = len(text_encoders) == 1
    states, pooled = [], None
    for number, (tokenizer, encoder) in enumerate(zip(tokenizers, text_encoders, strict=True)):
        tokens = tokenize(tokenizer, prompts, counts, reading.weights)
        rows = [p[0] for p in tokens.places]
        positions = [p[1] for p in tokens.places]
        device = encoder.get_input_embeddings().weight.device
        values = [given[t][number][k].to(device) for _, _, t, k in tokens.places]
        values = torch.stack(values) if values else None
        with splice(encoder, rows, positions, values):
            found, own_pooled = layer_states(encoder, tokens.ids, reading.clip_skip, alone=alone)
        if tokens.weights is not None:
            nothing = tokenize(tokenizer, [""]).ids
            empty, _ = layer_states(encoder, nothing, reading.clip_skip, alone=alone)
            found = weigh_states(found, empty, tokens.weights)
        states.append(found)
        pooled = pooled if own_pooled is None else own_pooled
    return torch.cat(states, dim=-1), pooled


@torch.no_grad()
def negative_prompt_embeds(parts, embedding, text=None, reading=LITERAL):
    """Return states to pass as `negative_prompt_embeds` to a diffusers pipeline, (1, L, D).

    Args:
        parts: The base's parts, or a diffusers `StableDiffusionPipeline`.
        embedding: A `ConceptEmbedding`.
        text: Text with the trigger in it, as a UI user types it; by default the trigger alone.
        reading: A `Reading`, for weights in the text or another layer than the last.

    Raises:
        IneError: A model of two text encoders.
    """
    own = hasattr(parts, "text_encoders")
    tokenizers = parts.tokenizers if own else (parts.tokenizer,)
    encoders = parts.text_encoders if own else (parts.text_encoder,)
    if len(embedding.vectors) > 1 or hasattr(parts, "text_encoder_2"):
        raise IneError(
            "negative_prompt_embeds: SDXL is told pooled states as well, which this does not "
            "give; use ine.protect(pipe, embedding), or load the file that `ine embedding convert "
            "--to diffusers` writes"
        )
    prompt = text if text is not None else embedding.trigger
    vectors = {embedding.trigger: embedding.vectors}
    return encode_text(tokenizers, encoders, [prompt], vectors, reading)[0]
