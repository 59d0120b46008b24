"""What stands in a negative slot: text, embeddings, or both in one string."""

from dataclasses import dataclass

from ine.embedding import ConceptEmbedding
from ine.errors import EmbeddingError
from ine.text import trigger_pattern


@dataclass(frozen=True)
class Negative:
    """A negative as a UI user types it, e.g. "blurry, fire-neg"."""

    text: str = ""
    embeddings: tuple[ConceptEmbedding, ...] = ()

    def __post_init__(self):
        """Raise `EmbeddingError` where two embeddings answer to one trigger."""
        triggers = [e.trigger for e in self.embeddings]
        twice = [t for i, t in enumerate(triggers) if t.lower() in map(str.lower, triggers[:i])]
        if twice:
            raise EmbeddingError(
                f"two embeddings have the trigger {twice[0]!r}; give one of them, or rename one"
            )

    def prompt(self):
        """Return the text with the trigger of every embedding in it."""
        text = self.text.strip()
        for embedding in self.embeddings:
            if not trigger_pattern([embedding.trigger]).search(text):
                text = f"{text}, {embedding.trigger}" if text else embedding.trigger
        return text

    def vectors(self):
        """Return {trigger: vectors per text encoder}."""
        return {e.trigger: e.vectors for e in self.embeddings}

    def condition(self, prompts):
        """Return the negative's condition, one row; the empty text when there is nothing."""
        return prompts.encode([self.prompt()], self.vectors())
