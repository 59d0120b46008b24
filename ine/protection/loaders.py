"""Vectors into somebody's diffusers pipeline, all encoders at once."""

from diffusers import DiffusionPipeline

from ine.embeddings.embedding import ConceptEmbedding

ENCODERS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))


def load_into_pipeline(
    pipe: DiffusionPipeline, embedding: ConceptEmbedding, token: str | None = None
) -> str:
    """Teach a diffusers pipeline the trigger, also on SDXL, where no file does it in one call.

    Undo it with `pipe.unload_textual_inversion(token)`, on SDXL once per encoder.

    Args:
        pipe: A pipeline with `load_textual_inversion`.
        embedding: A `ConceptEmbedding`.
        token: The word that stands for it; default the trigger. Lower case: of other words
            diffusers uses the first vector only.

    Returns:
        The token, to be put into `negative_prompt`.
    """
    token = token or embedding.trigger
    for vectors, (encoder, tokenizer) in zip(embedding.vectors, ENCODERS, strict=False):
        pipe.load_textual_inversion(
            vectors.clone(),
            token=token,
            text_encoder=getattr(pipe, encoder),
            tokenizer=getattr(pipe, tokenizer),
        )
    return token
