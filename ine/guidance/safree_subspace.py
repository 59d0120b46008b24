"""The subspace that a concept spans in pooled text states, for SAFREE.

Formulas and sources: `ine.guidance.safree`. Shape letters: L tokens of the context, D text width,
n tokens of a prompt, K columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import EmbeddingError, IneError
from ine.models.parts import DiffusionParts
from ine.text.encode import layer_states
from ine.text.splicing import check_heard, splice
from ine.text.tokens import tokenize

Vectors = Mapping[str, torch.Tensor | Sequence[torch.Tensor]]
"""{trigger: (N, D) tensor, or one for each text encoder}."""

COLUMNS = ("pooled", "vectors")
"""What an embedding puts into C: one column, the pooled state of its whole string of vectors, or
one column per vector, the pooled state of a text of that vector alone."""

MASK = 0
"""Id that a masked token becomes. 0, as in SAFREE: the vocabulary of every CLIP tokenizer begins
with the bytes in order, so it is "!", a word that says next to nothing."""


def projector(columns: torch.Tensor, rtol: float | None = None) -> torch.Tensor:
    """Return the orthogonal projector on the span of columns, C (C^T C)^+ C^T, (D, D) float64.

    Args:
        columns: C, (D, K); K may be 0.
        rtol: Directions whose singular value is at most this share of the largest are rounding,
            not content; by default 10 times the precision of the columns' dtype, so that a
            phrase given twice counts once.
    """
    rtol = 10 * torch.finfo(columns.dtype).eps if rtol is None else rtol
    # The singular vectors rather than the inverse of C^T C, whose condition is squared.
    left, sizes, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    basis = left[:, sizes > rtol * sizes.max()] if len(sizes) else left
    return basis @ basis.T


def closing(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return the position of the end-of-text token that closes a prompt.

    It is the last one before the padding: a prompt may spell "<|endoftext|>", and cross-attention
    also reads the tokens after that.

    Args:
        tokenizer: Its end and padding ids count.
        ids: L numbers, a row of what `ine.text.tokens.tokenize` returns.
    """
    last = len(ids) - 1
    while last and ids[last] == tokenizer.pad_token_id:
        last -= 1
    # Where the padding is the end-of-text token itself, the walk went over the closing one.
    return last + 1 if tokenizer.pad_token_id == tokenizer.eos_token_id else last


def released_part(parts: DiffusionParts, as_released: bool) -> bool:
    """Return whether a model is to be treated as the released code treats SDXL.

    Raises:
        IneError: Its projected embeddings have another width than the states, so that they span no
            subspace of those.
    """
    if not as_released or len(parts.text_encoders) == 1:
        return False
    settings = parts.text_encoders[-1].config
    embedded = getattr(settings, "projection_dim", None)
    if embedded != settings.hidden_size:
        raise IneError(
            f"SAFREE: as_released projects text states by projected embeddings of equal width; "
            f"the second text encoder of {parts.name} has states of {settings.hidden_size} and "
            f"embeddings of {embedded}; leave as_released out"
        )
    return True


@torch.no_grad()
def pooled_states(
    parts: DiffusionParts,
    text: str,
    vectors: Vectors | None = None,
    masked: bool = False,
    as_released: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pooled state of a text, and of the text with each token masked in turn.

    Args:
        parts: The model.
        text: Cut where it is too long, as everywhere.
        vectors: {trigger: (N, D) tensor, or one for each text encoder}; a masked place gets the
            mask's token instead of its vector.
        masked: Whether to mask.
        as_released: Of a model of two encoders, the second one's projected embeddings instead.

    Returns:
        (states (1 + n, D), or (1, D) when not masked, the text itself first; ids (n,) int64).

    Raises:
        IneError: Two text encoders cut the text into different tokens.
    """
    given = {t: v if isinstance(v, tuple | list) else (v,) for t, v in (vectors or {}).items()}
    counts = {t: len(v[0]) for t, v in given.items()}
    projected = released_part(parts, as_released)
    found, read = [], []
    for number, (tokenizer, encoder) in enumerate(
        zip(parts.tokenizers, parts.text_encoders, strict=True)
    ):
        tokens = tokenize(tokenizer, [text], counts)
        end = closing(tokenizer, tokens.ids[0].tolist())
        # The encoder is causal: what follows the end does not reach it, so it is not computed.
        ids = tokens.ids[:, : end + 1].repeat(end if masked else 1, 1)
        hidden = range(1, len(ids))
        ids[list(hidden), list(hidden)] = MASK
        device = encoder.get_input_embeddings().weight.device
        rows = range(len(ids))
        places = [(r, at, t, k) for r in rows for _, at, t, k in tokens.places if at != r]
        values = [given[t][number][k].to(device) for *_, t, k in places]
        stacked = torch.stack(values) if values else None
        run = partial(layer_states, encoder, ids, alone=len(parts.text_encoders) == 1)
        with splice(encoder, [p[0] for p in places], [p[1] for p in places], stacked) as spliced:
            states, embeds = run()
        check_heard(encoder, [v[number] for v in given.values()], spliced, states, run)
        found.append(embeds if projected else states[:, end])
        read.append(tokens.ids[0, 1:end])
    if any(ids.tolist() != read[0].tolist() for ids in read):
        raise IneError(
            f"SAFREE: the text encoders of {parts.name} cut {text[:60]!r} into other tokens, so "
            "none can be told from the other's; use cfg, additive or sld with this model"
        )
    return (found[-1] if projected else torch.cat(found, dim=-1)), read[0]


def concept_columns(
    parts: DiffusionParts,
    phrases: Iterable[str] = (),
    embeddings: Iterable[ConceptEmbedding] = (),
    columns: str = "pooled",
    as_released: bool = False,
) -> torch.Tensor:
    """Return C, (D, K), phrases first.

    Args:
        parts: The model.
        phrases: Texts that span the concept, one column each.
        embeddings: What else spans it.
        columns: A name of `COLUMNS`.
        as_released: As in `pooled_states`.

    Raises:
        EmbeddingError: An embedding has another width than the model.
    """
    texts: list[tuple[str, Vectors | None]] = [(p, None) for p in phrases]
    widths = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    for embedding in embeddings:
        if [v.shape[1] for v in embedding.vectors] != widths:
            raise EmbeddingError(
                f"embedding {embedding.trigger!r} has width {embedding.width}, the model "
                f"{parts.name} {sum(widths)}; give one that was found on this kind of model"
            )
        chunks = [embedding.vectors]
        if columns == "vectors":
            chunks = list(zip(*(v.split(1) for v in embedding.vectors), strict=True))
        texts += [(embedding.trigger, {embedding.trigger: chunk}) for chunk in chunks]
    found = [pooled_states(parts, t, given, as_released=as_released)[0] for t, given in texts]
    return torch.cat(found).T
