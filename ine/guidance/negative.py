"""What stands in a negative: text, embeddings, or both in one string.

Shape letters: B pictures.
"""

from dataclasses import dataclass, replace

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import EmbeddingError, did_you_mean
from ine.guidance.prompts import Prompts
from ine.text.condition import Condition
from ine.text.tokens import missing_embeddings, trigger_pattern


@dataclass(frozen=True)
class Negative:
    """A negative as a UI user types it, e.g. "blurry, fire-neg"."""

    text: str = ""
    embeddings: tuple[ConceptEmbedding, ...] = ()

    def __post_init__(self) -> None:
        """Raise `EmbeddingError` if two embeddings have the same trigger, or one is missing."""
        triggers = [e.trigger for e in self.embeddings]
        twice = [t for i, t in enumerate(triggers) if t.lower() in map(str.lower, triggers[:i])]
        if twice:
            raise EmbeddingError(
                f"two embeddings have the trigger {twice[0]!r}; give one of them, or rename one"
            )
        # As words the name would defend nothing.
        if missing := missing_embeddings(self.text, triggers):
            raise EmbeddingError(
                f"negative {self.text[:60]!r}: the embedding {missing[0]!r} is not given"
                f"{did_you_mean(missing[0], triggers)} (given: {', '.join(triggers) or 'none'}); "
                "give its file too, or leave the name out"
            )

    @property
    def name(self) -> str:
        """Return what logs call it: its triggers, else its text."""
        return ", ".join(e.trigger for e in self.embeddings) or self.text

    def prompt(self) -> str:
        """Return the text with the trigger of every embedding in it."""
        text = self.text.strip()
        for embedding in self.embeddings:
            if not trigger_pattern([embedding.trigger]).search(text):
                text = f"{text}, {embedding.trigger}" if text else embedding.trigger
        return text

    def vectors(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Return {trigger: vectors per text encoder}."""
        return {e.trigger: e.vectors for e in self.embeddings}

    def joined(self, embedding: ConceptEmbedding) -> "Negative":
        """Return the negative with one more embedding in its string."""
        return replace(self, embeddings=(*self.embeddings, embedding))

    def condition(self, prompts: Prompts) -> Condition:
        """Return the negative's condition, one row; that of no text if the negative is empty."""
        text = self.prompt()
        return prompts.encode([text], self.vectors()) if text else prompts.nothing()


@dataclass(frozen=True)
class PerPicture:
    """One negative text per picture of a batch, such as what each picture showed."""

    texts: tuple[str, ...]
    """B texts."""

    @property
    def name(self) -> str:
        """Return what logs call it."""
        return "; ".join(dict.fromkeys(self.texts))

    def prompt(self) -> str:
        """Return a text that is empty only if there is nothing to steer away from."""
        return "; ".join(filter(None, dict.fromkeys(self.texts)))

    def condition(self, prompts: Prompts) -> Condition:
        """Return the condition of the texts, B rows.

        Raises:
            ValueError: The batch has another number of pictures.
        """
        if len(prompts.texts) != len(self.texts):
            raise ValueError(f"{len(self.texts)} negatives for {len(prompts.texts)} pictures")
        return prompts.encode(self.texts)
