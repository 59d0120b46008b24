"""Vectors to compare an embedding with, and where its own lie in the token table."""

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.models.parts import DiffusionParts

Vectors = tuple[torch.Tensor, ...]
"""(N, D) per text encoder."""


def shuffled(vectors: Vectors, seed: int) -> Vectors:
    """Return the vectors, the elements of each shuffled: same norms, no meaning."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(
        torch.stack([row[torch.randperm(len(row), generator=draw)] for row in given])
        for given in vectors
    )


def random_vectors(vectors: Vectors, seed: int) -> Vectors:
    """Return Gaussian vectors of the same norms."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for given in vectors:
        noise = torch.randn(given.shape, generator=draw)
        found.append(noise / noise.norm(dim=1, keepdim=True) * given.norm(dim=1, keepdim=True))
    return tuple(found)


def relative_norms(
    parts: DiffusionParts, embedding: ConceptEmbedding
) -> tuple[tuple[float, ...], ...]:
    """Return norms of the vectors over the median of the token table's, per text encoder."""
    found = []
    for encoder, vectors in zip(parts.text_encoders, embedding.vectors, strict=True):
        usual = encoder.get_input_embeddings().weight.float().norm(dim=1).median()
        found.append(tuple((vectors.norm(dim=1) / usual.cpu()).tolist()))
    return tuple(found)


def nearest_words(
    parts: DiffusionParts, vectors: torch.Tensor, count: int = 3
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Return the tokens of the first text encoder nearest to each vector, with their cosines.

    Args:
        parts: The model.
        vectors: (N, D).
        count: Tokens per vector.
    """
    tokenizer = parts.tokenizers[0]
    table = parts.text_encoders[0].get_input_embeddings().weight.float().cpu()
    unit = torch.nn.functional.normalize
    alike = unit(vectors.float(), dim=1) @ unit(table, dim=1).T
    alike[:, [i for i in tokenizer.all_special_ids if i < len(table)]] = -1
    best = alike.topk(min(count, len(table)), dim=1)
    return tuple(
        tuple(
            (word.removesuffix("</w>"), round(cosine, 3))
            for word, cosine in zip(
                tokenizer.convert_ids_to_tokens(ids), cosines.tolist(), strict=True
            )
        )
        for ids, cosines in zip(best.indices.tolist(), best.values, strict=True)
    )
