"""Concept embeddings: token vectors with their origin, and the files that hold them.

`write_embedding` writes the layout that every examined UI loads (docs/embedding-format.md): a
`.safetensors` with a single float32 tensor `emb_params` (or exactly `clip_l` and `clip_g`), all
else as strings in its header. The layouts of other programs are in `ine.embeddings.layouts`.

Shape letters: N vectors, D width of a text encoder's token table.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ine import __version__
from ine.embeddings.layouts import PAIR
from ine.embeddings.names import check_trigger
from ine.embeddings.reading import NEGATIVE, check_vectors, read_file
from ine.families import Family, family_of
from ine.files import check_free, check_suffix, sha256_of, write_bytes
from ine.weights.files import write_safetensors

log = logging.getLogger("ine")


@dataclass(frozen=True, eq=False)
class ConceptEmbedding:
    """Token vectors that stand for a concept, with all data needed to use and reproduce them."""

    vectors: tuple[torch.Tensor, ...]
    """One (N, D) float32 tensor per text encoder; SDXL has two, clip_l then clip_g."""

    trigger: str
    """The word that stands for the vectors in a prompt."""

    concept: str
    """The inverted concept: a recipe's name. The trigger if another program's file states none."""

    metadata: dict[str, str] = field(default_factory=dict)
    """Everything else, under the keys of the file header ("ine.base", "modelspec.date", ...)."""

    negative: bool = True
    """Whether it belongs into the negative prompt; for a file that was read: whether it says so."""

    @property
    def count(self) -> int:
        """Number of vectors, N."""
        return len(self.vectors[0])

    @property
    def width(self) -> int:
        """Width of the text states they belong to: 768 SD 1.x, 1024 SD 2.x, 2048 SDXL."""
        return sum(v.shape[1] for v in self.vectors)

    @property
    def digest(self) -> str:
        """Return 16 hex digits of the numbers."""
        return sha256_of(*(v.numpy().tobytes() for v in self.vectors))[:16]

    @property
    def family_info(self) -> Family:
        """Return the `Family` of the width."""
        return family_of(self.width)

    @property
    def family(self) -> str:
        """Return "mini", "sd1", "sd2", "sdxl", or "width-N", as `DiffusionParts.family`."""
        return self.family_info.name


def new_embedding(
    vectors: torch.Tensor | Sequence[torch.Tensor],
    trigger: str,
    concept: str,
    metadata: Mapping[str, object] | None = None,
) -> ConceptEmbedding:
    """Return a `ConceptEmbedding` of copies on the CPU in float32.

    Args:
        vectors: (N, D) or (D,), or one such tensor per text encoder.
        trigger: The word that stands for the vectors.
        concept: What was inverted.
        metadata: Header keys and values; values become strings, None is left out.
    """
    given = vectors if isinstance(vectors, tuple | list) else (vectors,)
    texts = {k: str(v) for k, v in (metadata or {}).items() if v is not None}
    return ConceptEmbedding(tuple(_plain(v) for v in given), trigger, concept, texts)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().to("cpu", torch.float32, copy=True)
    return (copy if copy.dim() > 1 else copy.reshape(1, -1)).contiguous()


def write_embedding(embedding: ConceptEmbedding, path: str | Path, force: bool = False) -> None:
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
    check_vectors(embedding.trigger, tuple(v.numpy() for v in vectors))
    names = ("emb_params",) if len(vectors) == 1 else PAIR
    write_bytes(path, serialise(dict(zip(names, vectors, strict=True)), header_of(embedding)))


def header_of(embedding: ConceptEmbedding) -> dict[str, str]:
    """Return the metadata to write: the embedding's own, and the keys that follow from it."""
    architecture, resolution = embedding.family_info.modelspec(
        embedding.metadata.get("modelspec.prediction_type")
    )
    kind = "negative embedding" if embedding.negative else "textual inversion"
    place = "the negative prompt" if embedding.negative else "the prompt or the negative prompt"
    header: dict[str, str] = {
        "ine.version": __version__,
        "modelspec.title": f"{embedding.concept} ({kind})",
        **embedding.metadata,
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        **({NEGATIVE: "true"} if embedding.negative else {}),
        "modelspec.trigger_phrase": embedding.trigger,
        "modelspec.usage_hint": f"put {embedding.trigger} in {place}",
        "ine.concept": embedding.concept,
        "ine.trigger": embedding.trigger,
        "ine.vectors": str(embedding.count),
    }
    if architecture and resolution:
        header["modelspec.architecture"] = f"{architecture}/textual-inversion"
        header["modelspec.implementation"] = "https://github.com/Stability-AI/generative-models"
        header["modelspec.resolution"] = resolution
    wrong = [k for k, v in header.items() if not isinstance(v, str)]
    if wrong:
        raise ValueError(f"metadata must be strings, these are not: {', '.join(wrong)}")
    return header


def serialise(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file, with a digest of its data in the header."""
    data = [tensors[name].numpy().astype("<f4").tobytes() for name in sorted(tensors)]
    buffer = io.BytesIO()
    stated = {**metadata, "modelspec.hash_sha256": f"0x{sha256_of(*data)}"}
    write_safetensors(buffer, tensors, stated, torch.float32)
    return buffer.getvalue()


def read_embedding(path: str | Path) -> ConceptEmbedding:
    """Return the embedding in a file, ours or another tool's.

    It reads the rows of `ine.embeddings.layouts.LAYOUTS`: `emb_params` and its relatives,
    diffusers' `{token: tensor}` (`learned_embeds`), the pair `clip_l` and `clip_g`, each as
    safetensors or torch file; A1111's `string_to_param` and its pictures with an embedding
    inside; a bare tensor. The layout is recognised by the file's bytes. Torch files are read
    without running any code in them.

    Returns:
        ConceptEmbedding: Float32 on the CPU. The trigger is the header's, else the name in the
        file, else the file's stem; the metadata is the whole header.

    Raises:
        EmbeddingError: It cannot be read, or is not one embedding.
    """
    found = read_file(path)
    vectors = tuple(torch.from_numpy(v) for v in found.vectors)
    return ConceptEmbedding(
        vectors, found.trigger, found.concept, found.metadata, negative=found.negative
    )
