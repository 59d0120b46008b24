"""What stands in a negative slot: text, embeddings, or both in one string."""

import re
from dataclasses import dataclass

from ine.embedding import ConceptEmbedding


@dataclass(frozen=True)
class Negative:
    """A negative as a UI user types it, e.g. "blurry, fire-neg"."""

    text: str = ""
    embeddings: tuple[ConceptEmbedding, ...] = ()

    def prompt(self):
        """Return the text with the trigger of every embedding in it."""
        text = self.text.strip()
        for embedding in self.embeddings:
            found = re.search(rf"(?<![\w-]){re.escape(embedding.trigger)}(?![\w-])", text, re.I)
            if not found:
                text = f"{text}, {embedding.trigger}" if text else embedding.trigger
        return text

    def vectors(self):
        """Return {trigger: vectors per text encoder}."""
        return {e.trigger: e.vectors for e in self.embeddings}

    def condition(self, prompts):
        """Return the negative's condition, one row; the empty text when there is nothing."""
        return prompts.encode([self.prompt()], self.vectors())
