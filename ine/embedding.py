"""Concept embeddings: token vectors with where they come from, and the files that hold them.

Written is the layout that every UI examined loads (docs/embedding-format.md): a `.safetensors`
with a single float32 tensor `emb_params` (or exactly `clip_l` and `clip_g`), all else as strings
in its header. The layouts of other programs are in `ine.formats`.

Shape letters: N vectors, D width of a text encoder's token table.
"""

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ine import __version__
from ine.errors import EmbeddingError
from ine.files import check_free, check_suffix, sha256_of, write_bytes
from ine.formats.layouts import PAIR, check_shape
from ine.formats.reading import read_vectors
from ine.models.families import family_of
from ine.models.fingerprint import fingerprint, same_weights

log = logging.getLogger("ine")

TRIGGER = re.compile(r"[a-z][a-z0-9_-]*[a-z]")


@dataclass(frozen=True, eq=False)
class ConceptEmbedding:
    """Token vectors that stand for a concept, with all that is needed to use and repeat them."""

    vectors: tuple[torch.Tensor, ...]
    """One (N, D) float32 tensor per text encoder; SDXL has two, clip_l then clip_g."""

    trigger: str
    """The word that stands for the vectors in a prompt."""

    concept: str
    """What was inverted: a recipe's name. The trigger where a foreign file does not say."""

    metadata: dict[str, str] = field(default_factory=dict)
    """Everything else, under the keys of the file header ("ine.base", "modelspec.date", ...)."""

    @property
    def count(self):
        """Number of vectors, N."""
        return len(self.vectors[0])

    @property
    def width(self):
        """Width of the text states they belong to: 768 SD 1.x, 1024 SD 2.x, 2048 SDXL."""
        return sum(v.shape[1] for v in self.vectors)

    @property
    def digest(self):
        """Return 16 hex digits of the numbers."""
        return sha256_of(*(v.numpy().tobytes() for v in self.vectors))[:16]

    @property
    def traits(self):
        """Return the `Family` that the width tells."""
        return family_of(self.width)

    @property
    def family(self):
        """Return "mini", "sd1", "sd2", "sdxl", or "width-N", as `DiffusionParts.family`."""
        return self.traits.name


def new_embedding(vectors, trigger, concept, metadata=None):
    """Return a `ConceptEmbedding` of copies on the CPU in float32.

    Args:
        vectors: (N, D) or (D,), or one such tensor per text encoder.
        trigger: The word that stands for the vectors.
        concept: What was inverted.
        metadata: Header keys and values; values become strings, None is left out.
    """
    given = vectors if isinstance(vectors, tuple | list) else (vectors,)
    metadata = {k: str(v) for k, v in (metadata or {}).items() if v is not None}
    return ConceptEmbedding(tuple(_plain(v) for v in given), trigger, concept, metadata)


def _plain(tensor):
    copy = tensor.detach().to("cpu", torch.float32, copy=True)
    return (copy if copy.dim() > 1 else copy.reshape(1, -1)).contiguous()


def check_trigger(name, tokenizer=None):
    """Raise `EmbeddingError` for a trigger that some UI would misread.

    Args:
        name: Lower-case letters, digits, `_` and `-`; begins and ends with a letter.
        tokenizer: Where given, the name may not be one of its tokens: a UI would then replace
            that word in every prompt, or refuse the file.
    """
    if not TRIGGER.fullmatch(name):
        slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower())
        slug = re.sub(r"^[^a-z]+|[^a-z]+$", "", slug)
        example = slug if TRIGGER.fullmatch(slug) else "my-negative"
        raise EmbeddingError(
            f"trigger {name!r}: must be lower-case letters, digits, '_' and '-', and begin and "
            f"end with a letter, or some UIs will not find it; for example {example!r}"
        )
    if tokenizer is not None:
        check_outside(name, tokenizer.get_vocab().keys())


def check_outside(name, vocabulary):
    """Raise `EmbeddingError` for a trigger that is one of a set of tokens or words."""
    if {name, f"{name}</w>"} & vocabulary:
        raise EmbeddingError(
            f"trigger {name!r}: is a token of the model's vocabulary, so it would replace that "
            f"word in every prompt; for example 'ine-{name}'"
        )


def write_embedding(embedding, path, force=False):
    """Write the universal layout; the same embedding gives the same bytes.

    Args:
        embedding: A `ConceptEmbedding`; its trigger should be the file's stem, since that is
            the name that UIs use.
        path: A `.safetensors` file.
        force: Replace an existing file.

    Raises:
        EmbeddingError: Vectors or trigger cannot be used.
        OutputError: The file exists, has another extension, or cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    check_trigger(embedding.trigger)
    check_free(path, force)
    if path.stem != embedding.trigger:
        log.warning(
            "%s: UIs take the file's name for the trigger, which is %r; rename it %s.safetensors",
            path,
            embedding.trigger,
            embedding.trigger,
        )
    vectors = tuple(_plain(v) for v in embedding.vectors)
    _check_vectors(embedding.trigger, vectors)
    names = ("emb_params",) if len(vectors) == 1 else PAIR
    write_bytes(path, serialise(dict(zip(names, vectors, strict=True)), header_of(embedding)))


def header_of(embedding):
    """Return the metadata to write: the embedding's own, and over it what follows from it."""
    architecture, resolution = embedding.traits.modelspec(
        embedding.metadata.get("modelspec.prediction_type")
    )
    header = {
        "ine.version": __version__,
        "modelspec.title": f"{embedding.concept} (negative embedding)",
        **embedding.metadata,
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.is_negative_embedding": "true",
        "modelspec.trigger_phrase": embedding.trigger,
        "modelspec.usage_hint": f"put {embedding.trigger} in the negative prompt",
        "ine.concept": embedding.concept,
        "ine.trigger": embedding.trigger,
        "ine.vectors": str(embedding.count),
    }
    if architecture:
        header["modelspec.architecture"] = f"{architecture}/textual-inversion"
        header["modelspec.implementation"] = "https://github.com/Stability-AI/generative-models"
        header["modelspec.resolution"] = resolution
    wrong = [k for k, v in header.items() if not isinstance(v, str)]
    if wrong:
        raise ValueError(f"metadata must be strings, these are not: {', '.join(wrong)}")
    return header


def serialise(tensors, metadata):
    """Return the bytes of a safetensors file.

    Not `safetensors.torch.save`: it puts metadata in a random order (safetensors 0.8).
    """
    chunks, entries, end = [], {}, 0
    for name in sorted(tensors):
        chunks.append(tensors[name].numpy().astype("<f4").tobytes())
        start, end = end, end + len(chunks[-1])
        entries[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    metadata = {**metadata, "modelspec.hash_sha256": f"0x{sha256_of(*chunks)}"}
    header = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **entries},
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(chunks)


def read_embedding(path):
    """Return the embedding in a file, ours or another tool's.

    Known are the rows of `ine.formats.layouts.LAYOUTS`: `emb_params` and its relatives, diffusers'
    `{token: tensor}` (`learned_embeds`), the pair `clip_l` and `clip_g`, each as safetensors or
    torch file; A1111's `string_to_param` and its pictures with an embedding inside; a bare
    tensor. What a file is, is told from its bytes. Torch files are read without running any
    code in them.

    Returns:
        ConceptEmbedding: Float32 on the CPU. The trigger is the header's, else the name in the
        file, else the file's stem; the metadata is the whole header.

    Raises:
        EmbeddingError: It cannot be read, or is not one embedding.
    """
    path = Path(path)
    found, name, metadata = read_vectors(path)
    vectors = tuple(_plain(v) for v in found)
    _check_vectors(path, vectors)
    stated = metadata.get("ine.trigger") or metadata.get("modelspec.trigger_phrase")
    trigger = stated or name or path.stem
    _check_texts(path, trigger, metadata)
    return ConceptEmbedding(vectors, trigger, metadata.get("ine.concept") or trigger, metadata)


def _check_texts(path, trigger, metadata):
    """Refuse halves of characters, which could be neither written nor shown."""
    for text in (trigger, *metadata, *metadata.values()):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EmbeddingError(
                f"{path}: {text[:80]!a} in it, or its own name, is no text in Unicode; rename the "
                "file, or get a .safetensors copy"
            ) from error


def _check_vectors(where, vectors):
    """Raise `EmbeddingError` unless there are 1 to 75 finite vectors, as many per encoder."""
    if len(vectors) not in (1, 2):
        raise EmbeddingError(f"{where}: has vectors for {len(vectors)} text encoders; 1 or 2 work")
    for v in vectors:
        check_shape(where, v.shape)
        bad = int((~torch.isfinite(v)).any(dim=1).sum())
        if bad:
            raise EmbeddingError(
                f"{where}: {bad} of {len(v)} vectors have values that are not finite (NaN or "
                "infinite); the run that made it diverged, use an earlier or a new one"
            )
    counts = [len(v) for v in vectors]
    if len(set(counts)) > 1:
        raise EmbeddingError(
            f"{where}: has {counts[0]} vectors in clip_l and {counts[1]} in clip_g, expected as "
            "many in both; no UI reads uneven pairs alike"
        )


def fingerprints(parts):
    """Return header entries that tell which weights an embedding was made with.

    Args:
        parts: A `DiffusionParts`, the U-Net being the one inverted against.

    Returns:
        dict: "ine.base_fingerprint" of the text encoders, ";" between two, and
        "ine.unet_fingerprint".
    """
    return {
        "ine.base_fingerprint": _encoders_print(parts),
        "ine.unet_fingerprint": fingerprint(parts.unet),
    }


def _encoders_print(parts):
    return ";".join(fingerprint(encoder) for encoder in parts.text_encoders)


def check_fits(embedding, parts):
    """Return notes on how the model differs from the one the embedding was made with.

    Vectors only make sense to the text encoder they were found with. Another U-Net is allowed,
    transfer is what embeddings are for, and worth a note.

    Args:
        embedding: A `ConceptEmbedding`.
        parts: The `DiffusionParts` it shall be used on.

    Returns:
        list[str]: Sentences for the log; empty where all is the same or the file does not say.

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
    notes = []
    if _differs(embedding, "ine.base_fingerprint", lambda: _encoders_print(parts)):
        notes.append(
            f"embedding {name} was made for {made_for}; the text encoder of {parts.name} has "
            "other weights, so the vectors may mean something else there"
        )
    if _differs(embedding, "ine.unet_fingerprint", lambda: fingerprint(parts.unet)):
        notes.append(
            f"embedding {name} was inverted against the U-Net {_unet(embedding)!r}, here it is "
            f"used on {parts.unet_name!r}; this works, but its effect has to be measured anew"
        )
    return notes


def tell_fits(embeddings, parts):
    """Log how the model differs from those that embeddings were made with; see `check_fits`."""
    for embedding in embeddings:
        for note in check_fits(embedding, parts):
            log.info("note: %s", note)


def _unet(embedding):
    return embedding.metadata.get("ine.unet", "not stated")


def _encoders(widths):
    kind = "text encoder" if len(widths) == 1 else f"{len(widths)} text encoders"
    return f"{kind} of width {' + '.join(str(w) for w in widths)}"


def _differs(embedding, key, now):
    """Return whether a stated fingerprint is not that of the weights here."""
    stated = embedding.metadata.get(key)
    if not stated:
        return False
    one, other = stated.split(";"), now().split(";")
    try:
        same = len(one) == len(other) and all(map(same_weights, one, other))
    except ValueError:  # not numbers: written by hand or by a later version
        return True
    return not same
