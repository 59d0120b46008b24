"""Does an embedding fit a model, and was it made with these weights?"""

import logging
from collections.abc import Callable, Iterable

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import EmbeddingError
from ine.models.parts import DiffusionParts
from ine.weights.fingerprint import fingerprint, same_weights

log = logging.getLogger("ine")


def fingerprints(parts: DiffusionParts) -> dict[str, str]:
    """Return header entries that identify the weights an embedding was made with.

    Args:
        parts: A `DiffusionParts`, the U-Net being the one inverted against.

    Returns:
        "ine.base_fingerprint" of the text encoders, ";" between two, and
        "ine.unet_fingerprint".
    """
    return {
        "ine.base_fingerprint": _encoders_print(parts),
        "ine.unet_fingerprint": fingerprint(parts.unet),
    }


def _encoders_print(parts: DiffusionParts) -> str:
    return ";".join(fingerprint(encoder) for encoder in parts.text_encoders)


def check_fits(embedding: ConceptEmbedding, parts: DiffusionParts) -> list[str]:
    """Return notes on how the model differs from the one the embedding was made with.

    Vectors only have a meaning for the text encoder they were found with. Another U-Net is
    allowed, since embeddings are made to be transferred, and gets a note.

    Args:
        embedding: A `ConceptEmbedding`.
        parts: The `DiffusionParts` to use it on.

    Returns:
        Sentences for the log; empty if all is the same or the file states no fingerprints.

    Raises:
        EmbeddingError: Width or number of text encoders differ, or there are more vectors than
            the model's context has room for.
    """
    stated = embedding.metadata.get("ine.base")
    made_for = stated or f"a model of family {embedding.family}"
    name = repr(embedding.trigger)
    have = [v.shape[1] for v in embedding.vectors]
    want = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    if have != want:
        raise EmbeddingError(
            f"embedding {name} was made for {made_for} ({_encoders(have)}), {parts.name} has "
            f"{_encoders(want)}; use it with {f'--model {stated}' if stated else made_for}, or "
            f"invert again with --model {parts.name}"
        )
    room = min(t.model_max_length for t in parts.tokenizers) - 2
    if embedding.count > room:
        raise EmbeddingError(
            f"embedding {name} has {embedding.count} vectors, the context of {parts.name} has "
            f"room for {room}; invert again with fewer vectors"
        )
    return _notes(embedding, parts, made_for)


def _notes(embedding: ConceptEmbedding, parts: DiffusionParts, made_for: str) -> list[str]:
    """Return sentences on weights that differ from those the embedding was made with."""
    name, notes = repr(embedding.trigger), []
    if _differs(embedding, "ine.base_fingerprint", lambda: _encoders_print(parts)):
        notes.append(
            f"embedding {name} was made for {made_for}; the text encoder of {parts.name} has "
            "other weights, so the vectors may mean something else there"
        )
    if _differs(embedding, "ine.unet_fingerprint", lambda: fingerprint(parts.unet)):
        notes.append(
            f"embedding {name} was inverted against the U-Net {_unet(embedding)!r}, here it is "
            f"used on {parts.unet_name!r}; this works, but its effect must be measured again"
        )
    return notes


def check_fits_and_log(embeddings: Iterable[ConceptEmbedding], parts: DiffusionParts) -> None:
    """Log how the model differs from those that embeddings were made with; see `check_fits`."""
    for embedding in embeddings:
        for note in check_fits(embedding, parts):
            log.info("note: %s", note)


def _unet(embedding: ConceptEmbedding) -> str:
    return embedding.metadata.get("ine.unet", "not stated")


def _encoders(widths: list[int]) -> str:
    kind = "text encoder" if len(widths) == 1 else f"{len(widths)} text encoders"
    return f"{kind} of width {' + '.join(str(w) for w in widths)}"


def _differs(embedding: ConceptEmbedding, key: str, now: Callable[[], str]) -> bool:
    """Return whether a stated fingerprint is not that of these weights."""
    stated = embedding.metadata.get(key)
    if not stated:
        return False
    one, other = stated.split(";"), now().split(";")
    try:
        same = len(one) == len(other) and all(map(same_weights, one, other))
    except ValueError:  # not numbers: written by hand or by a later version
        return True
    return not same
