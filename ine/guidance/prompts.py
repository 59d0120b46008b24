"""The prompts of a batch, and how text is encoded for it.

Shape letter: B pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ine.models.parts import DiffusionParts
from ine.text.condition import Condition
from ine.text.encode import PLAIN_TEXT, TextOptions, as_nothing, encode
from ine.text.syntax import plain_text

OWN = "own"
"""Name among queries of a negative of the user's own."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a batch, and how to encode text for it."""

    parts: DiffusionParts
    """The model that is guided."""

    texts: Sequence[str]
    """B prompts."""

    scale: float
    """Classifier-free guidance scale w."""

    reading: TextOptions = PLAIN_TEXT
    """How prompts and negatives are read: weights, layer of the text encoder."""

    vectors: Mapping[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    """{trigger: vectors per text encoder} of the learned words in the prompts; a negative brings
    its own."""

    found: tuple[frozenset[str], ...] | None = None
    """Per picture, the concepts that earlier attempts found in it; None in a first attempt."""

    own: Condition | None = None
    """What the undefended run has for its unconditional text, B rows; None is no text."""

    def encode(
        self,
        texts: Sequence[str],
        vectors: Mapping[str, tuple[torch.Tensor, ...]] | None = None,
    ) -> Condition:
        """Return the condition of texts; see `ine.text.encode.encode`."""
        return encode(self.parts, list(texts), vectors, self.reading)

    def shown(self) -> tuple[str, ...]:
        """Return the prompts as an observer may read them, "" where one is not known."""
        return tuple(self.texts)

    def words(self) -> Sequence[str]:
        """Return the prompts as they are tokenised: without the marks of prompt weights."""
        return tuple(map(plain_text, self.texts)) if self.reading.weights else self.texts

    def positive(self) -> Condition:
        """Return the condition of the prompts, B rows."""
        return self.encode(self.texts, self.vectors)

    def empty(self) -> Condition:
        """Return the condition of no text, B rows."""
        return self.nothing().repeat(len(self.texts))

    def plain(self) -> tuple[str, Condition]:
        """Return (name among queries, condition) of the undefended run's unconditional text."""
        return ("empty", self.empty()) if self.own is None else (OWN, self.own)

    def nothing(self) -> Condition:
        """Return the condition of no text, one row; see `ine.text.encode.encode_nothing`."""
        return as_nothing(self.parts, self.encode([""]))
