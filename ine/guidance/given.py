"""An embedding that is given by its file, and the gate beside it."""

from dataclasses import dataclass
from pathlib import Path

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.files import sha256_of
from ine.guidance.gate_file import Calibration, gate_path, read_calibration
from ine.guidance.recommended import Recommendation, recommendation_of


@dataclass(frozen=True, kw_only=True)
class GivenEmbedding:
    """An embedding, the file it was read from, and what that recommends."""

    embedding: ConceptEmbedding
    file: Path | None = None
    """None for a value, beside which there is no gate."""

    recommendation: Recommendation | None = None

    @classmethod
    def of(cls, embedding: ConceptEmbedding, file: Path | None = None) -> "GivenEmbedding":
        """Return an embedding with what its header recommends.

        Raises:
            EmbeddingError: It recommends what makes no sense.
        """
        return cls(embedding=embedding, file=file, recommendation=recommendation_of(embedding))

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.file) if self.file else f"embedding {self.embedding.trigger!r}"


def recommends_gate(one: GivenEmbedding) -> bool:
    """Return whether an embedding's file recommends a look-ahead."""
    return one.recommendation is not None and one.recommendation.look_ahead is not None


def recommended_gate(one: GivenEmbedding) -> Calibration:
    """Return the gate beside an embedding's file.

    Raises:
        IneError: It is not there, or is another one.
    """
    instead = (
        "give one with --gate FILE (in Python gate=...), or --no-gate to steer every picture (in "
        "Python gate=None)"
    )
    if one.file is None:
        raise IneError(
            f"{one.name} recommends a look-ahead, whose gate is beside its file, and a value has "
            f"no file: give its path, {instead}"
        )
    path = gate_path([one.file])
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise IneError(
            f"{one.file}: recommends a look-ahead, and its gate {path} is not there; copy it "
            f"beside the embedding (ine defend writes both), {instead}"
        ) from error
    except OSError as error:
        raise IneError(f"{path}: cannot be read ({error}); {instead}") from error
    assert one.recommendation is not None
    wanted = one.recommendation.gate_hash
    if wanted and sha256_of(data)[:16] != wanted:
        raise IneError(
            f"{path}: is not the gate that {one.file} recommends, but one of another run, model or "
            f"concept; make both again with ine defend, {instead}"
        )
    found = read_calibration(path)
    if found.look_ahead is None:
        raise IneError(f"{path}: has no look-ahead, which {one.file} recommends; {instead}")
    return found
