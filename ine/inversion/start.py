"""The vectors that an inversion starts from.

Shape letters: N vectors, D text width.
"""

import torch

from ine.errors import EmbeddingError, IneError
from ine.models.parts import DiffusionParts
from ine.recipe import InversionSettings
from ine.runtime import generator_for


def start_vectors(parts: DiffusionParts, spec: InversionSettings, seed: int) -> list[torch.Tensor]:
    """Return the vectors that inversion starts from, one (N, D) tensor per text encoder.

    `spec.init` is "mean" (of the token table), words whose vectors are taken in turn, or the
    path of an embedding file with as many vectors.
    """
    starts = []
    given = None
    if spec.init.endswith((".safetensors", ".pt", ".bin")):
        from ine.embeddings.embedding import read_embedding

        given = read_embedding(spec.init).vectors
        if len(given) != len(parts.text_encoders) or len(given[0]) != spec.vectors:
            raise EmbeddingError(
                f"{spec.init}: has {len(given[0])} vectors, inversion.vectors is {spec.vectors}"
            )
    for number, (tokenizer, encoder) in enumerate(
        zip(parts.tokenizers, parts.text_encoders, strict=True)
    ):
        table = encoder.get_input_embeddings().weight.detach().float().cpu()
        if given:
            base = given[number]
            if base.shape[1] != table.shape[1]:
                raise EmbeddingError(
                    f"{spec.init}: has vectors of width {base.shape[1]}, the token table of "
                    f"{parts.name} has {table.shape[1]}; give an embedding of the same family"
                )
        elif spec.init == "mean":
            base = table.mean(0, keepdim=True).repeat(spec.vectors, 1)
        else:
            ids = tokenizer(spec.init, add_special_tokens=False).input_ids
            if not ids:
                raise IneError(f"inversion.init {spec.init!r} has no tokens; give a word or 'mean'")
            base = table[[ids[i % len(ids)] for i in range(spec.vectors)]]
        noise = torch.randn(base.shape, generator=generator_for(seed, "start", number))
        starts.append(base + spec.init_noise * noise)
    return starts
