"""An observer that asks a model: one question per concept and picture, in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ine.observers.base import Answer, Observation, Unknown
from ine.observers.parsing import parse_reply
from ine.observers.question import Conversation, Question


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The next message of a conversation, or why the model gave no message."""

    text: str = ""
    failed: Unknown | None = None
    """None if the model replied, whatever it said."""

    why: str = ""
    """The error, if it failed; it never holds a key."""


class Asker(Protocol):
    """A model that takes part in conversations."""

    @property
    def name(self) -> str:
        """Return what tells this model from others; holds no key."""

    def ask(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Return one reply per conversation; none depends on the others."""


class AskingObserver:
    """Asks a model about each concept and reads its replies."""

    def __init__(self, asker: Asker, questions: Sequence[Question]) -> None:
        """Take the model and one question per concept."""
        self.asker = asker
        self.questions = tuple(questions)

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.asker.name

    def __call__(self, pictures: np.ndarray, prompts: Sequence[str]) -> list[Observation]:
        """Return one observation per picture, see `ine.observers.base.Observer`."""
        asked = [
            question.conversation(picture, prompt)
            for picture, prompt in zip(pictures, prompts, strict=True)
            for question in self.questions
        ]
        replies = iter(self.asker.ask(asked) if asked else [])
        return [
            Observation(
                answers={q.concept: _answer(next(replies), q) for q in self.questions},
            )
            for _ in pictures
        ]


def _answer(reply: Reply, question: Question) -> Answer:
    if reply.failed:
        return Answer(found=None, unknown=reply.failed, raw=reply.text, why=reply.why)
    return parse_reply(reply.text, question.vocabulary)
