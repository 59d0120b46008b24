"""The texts of a protected pipeline: its own prompts, already encoded, and our negative.

Shape letters: B pictures of a call.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import align_module_device
from diffusers import DiffusionPipeline

from ine.embeddings.embedding import ConceptEmbedding, read_embedding
from ine.embeddings.fit import check_fits_and_log
from ine.errors import IneError
from ine.guidance.contextual import direction_to
from ine.guidance.given import GivenEmbedding
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts
from ine.models.parts import DiffusionParts
from ine.protection.parts import parts_of
from ine.text.condition import Condition

log = logging.getLogger("ine")

Embeddings = ConceptEmbedding | str | Path | Iterable[ConceptEmbedding | str | Path] | None
"""One embedding or several, each a value or the path of its file."""


USER = "user"
"""Name among queries of the user's own negative prompt."""


class UnseenTexts(Sequence[str]):
    """Prompts of which only the number is known: the pipeline encoded them itself."""

    def __init__(self, count: int):
        """Stand for `count` prompts."""
        self._count = count

    def __len__(self) -> int:
        """Return the number of prompts."""
        return self._count

    def __getitem__(self, _index: Any) -> NoReturn:
        """Raise `IneError`: a guidance that reads prompts cannot work here."""
        raise rewrites_prompts("this guidance")


@dataclass(frozen=True, kw_only=True)
class PipelinePrompts(Prompts):
    """A batch as the pipeline has encoded it itself."""

    own_positive: Condition | None = None
    own_empty: Condition | None = None
    own_negative: Condition | None = None
    """What the pipeline passed for the user's negative prompt, B rows; None without one."""

    def encode(
        self,
        texts: Sequence[str],
        vectors: Mapping[str, tuple[torch.Tensor, ...]] | None = None,
    ) -> Condition:
        """Return the condition of texts by the pipeline's own encoders, wherever they are."""
        with ExitStack() as stack:
            for encoder in self.parts.text_encoders:
                # Offloaded layer by layer, a table has no values between two calls.
                stack.enter_context(align_module_device(encoder.get_input_embeddings()))
            return super().encode(texts, vectors)

    def of(self, pictures: Sequence[int], found: tuple[frozenset[str], ...]) -> "PipelinePrompts":
        """Return those of some pictures, with what earlier attempts found in them."""

        def some(condition: Condition | None) -> Condition | None:
            return condition and condition.rows(list(pictures))

        return replace(
            self,
            texts=UnseenTexts(len(pictures)),
            own_positive=some(self.own_positive),
            own_empty=some(self.own_empty),
            own_negative=some(self.own_negative),
            found=found,
        )

    def shown(self) -> tuple[str, ...]:
        """Return "" per picture: the pipeline encoded its prompts itself."""
        return ("",) * len(self.texts)

    def positive(self) -> Condition:
        """Return what the pipeline passed for the prompts, B rows."""
        assert self.own_positive is not None
        return self.own_positive

    def empty(self) -> Condition:
        """Return the condition of no negative at all, B rows."""
        assert self.own_empty is not None
        return self.own_empty

    def plain(self) -> tuple[str, Condition]:
        """Return (name among queries, condition) of the pipeline's own unconditional text."""
        return super().plain() if self.own_negative is None else (USER, self.own_negative)


@torch.no_grad()
def encode_negative(pipe: DiffusionPipeline, embeddings: Embeddings) -> tuple[Condition, Condition]:
    """Return (condition of the embeddings in one string, condition of no negative), a row each.

    Raises:
        IneError: No embedding is given.
        EmbeddingError: One cannot be read or is of another width.
    """
    parts = parts_of(pipe)
    given = read_all(embeddings)
    if not given:
        raise none_given()
    negative = Negative("", given)
    check_negative(parts, negative)
    prompts = PipelinePrompts(parts=parts, texts=(), scale=1.0)
    return negative.condition(prompts), prompts.nothing()


@torch.no_grad()
def encode_direction(pipe: DiffusionPipeline, embeddings: Embeddings) -> Condition:
    """Return what sets the embeddings in one string apart from the empty text, one row."""
    prompts = PipelinePrompts(parts=parts_of(pipe), texts=(), scale=1.0)
    return direction_to(Negative("", read_all(embeddings)), prompts)


def check_negative(parts: DiffusionParts, negative: Negative) -> None:
    """Raise if an embedding does not fit; log if one differs or does nothing."""
    check_fits_and_log([_comparable(embedding, parts) for embedding in negative.embeddings], parts)
    _warn_of_nothing(parts, negative)


def none_given() -> IneError:
    """Return the error for a call without an embedding."""
    return IneError("no embedding is given to steer away from; give embeddings=FILE, or several")


def read_all(embeddings: Embeddings) -> tuple[ConceptEmbedding, ...]:
    """Return the embeddings, files read."""
    return tuple(embedding for embedding, _ in _with_files(embeddings))


def read_given(embeddings: Embeddings) -> tuple[GivenEmbedding, ...]:
    """Return the embeddings with what their files recommend."""
    return tuple(GivenEmbedding.of(*pair) for pair in _with_files(embeddings))


def _with_files(embeddings: Embeddings) -> list[tuple[ConceptEmbedding, Path | None]]:
    if embeddings is None:
        return []
    if isinstance(embeddings, str | Path | ConceptEmbedding):
        embeddings = (embeddings,)
    return [
        (e, None) if isinstance(e, ConceptEmbedding) else (read_embedding(e), Path(e))
        for e in embeddings
    ]


def rewrites_prompts(who: str) -> IneError:
    """Return the error for a guidance that needs the prompts."""
    return IneError(
        f"{who} rewrites the prompts, and protect never sees them (the pipeline may have been "
        "given prompt_embeds); use it with `ine generate`, or protect with another guidance"
    )


def _comparable(embedding: ConceptEmbedding, parts: DiffusionParts) -> ConceptEmbedding:
    """Return the embedding, without fingerprints where offloading hides the weights."""
    modules = (parts.unet, *parts.text_encoders)
    if not any(p.is_meta for m in modules for p in m.parameters()):
        return embedding
    kept = {k: v for k, v in embedding.metadata.items() if not k.endswith("_fingerprint")}
    return replace(embedding, metadata=kept)


@torch.no_grad()
def _warn_of_nothing(parts: DiffusionParts, negative: Negative) -> None:
    prompts = PipelinePrompts(parts=parts, texts=(), scale=1.0)
    empty = prompts.encode([""])
    if same(negative.condition(prompts), empty):
        log.warning(
            "negative %r equals the empty prompt for %s: it will steer nothing",
            negative.name,
            parts.name,
        )


def same(one: Condition, other: Condition) -> bool:
    """Return whether two conditions say the same up to rounding; rows may be broadcast."""
    if one.states.shape[1:] != other.states.shape[1:]:
        return False
    first, second = one.states.float(), other.states.to(one.states.device).float()
    # A single other word changes some tenths; half precision and batch shape some thousandths.
    return bool((first - second).norm() <= 1e-2 * first.norm())
