"""How a model is asked about a prompt and its picture.

The same conversation is used to ask and to train: a model that was trained by it is asked by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ine.observers.asking import Asker, Reply
from ine.observers.question import Conversation, Turn
from ine.refining.settings import RefineSettings


class Rewriter(Protocol):
    """Answers prompts and their pictures with keep or with a rewritten prompt."""

    @property
    def name(self) -> str:
        """Return what tells its answers from those of others; holds no key."""

    def __call__(self, prompts: Sequence[str], pictures: np.ndarray) -> list[Reply]:
        """Return one reply per prompt; none depends on the others.

        Args:
            prompts: B texts.
            pictures: The pictures, uint8 RGB (B, H, W, 3).
        """


def conversation_of(
    prompt: str, picture: np.ndarray | None, settings: RefineSettings | None = None
) -> Conversation:
    """Return what a model is sent about a prompt and its picture.

    Args:
        prompt: The text, which is put into the user message as it stands.
        picture: uint8 RGB (H, W, 3); None shows none.
        settings: The messages, and how long the answer may be.
    """
    settings = settings or RefineSettings()
    system = [Turn(role="system", text=settings.system)] if settings.system else []
    said = settings.user.replace("{prompt}", prompt)
    user = Turn(role="user", text=said, picture=picture if settings.picture else None)
    return Conversation(turns=(*system, user), max_tokens=settings.max_tokens)


@dataclass(frozen=True)
class AskingRewriter:
    """A model that is asked; see `ine.observers.asking.Asker`."""

    asker: Asker
    settings: RefineSettings

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.asker.name

    def __call__(self, prompts: Sequence[str], pictures: np.ndarray) -> list[Reply]:
        """Return one reply per prompt, see `Rewriter`."""
        asked = [
            conversation_of(prompt, picture, self.settings)
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        return self.asker.ask(asked) if asked else []
