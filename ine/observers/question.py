"""What a model is asked about a picture: the recipe's words as a conversation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ine.files import sha256_of, user_path
from ine.observers.parsing import FOUND, WORDS, Vocabulary
from ine.pictures import read_whole
from ine.recipe import ConceptRecipe
from ine.store.units import key_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    picture: np.ndarray | None = None
    """uint8 RGB, (H, W, 3); stands before the text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversation:
    """What is sent to a model about one picture; it gives the next message."""

    turns: tuple[Turn, ...]
    max_tokens: int
    """Longest reply, in the model's tokens."""

    schema: Mapping[str, Any] | None = None
    """JSON schema of the reply, for servers that can keep to one."""

    @property
    def key(self) -> str:
        """Return 64 hex digits of all of it, the pictures' pixels included."""
        turns = [[turn.role, turn.text, _digest(turn.picture)] for turn in self.turns]
        return key_of(turns=turns, max_tokens=self.max_tokens, schema=self.schema)


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """How it is asked whether a picture shows a concept, and how the reply is read."""

    concept: str
    text: str
    """ "{prompt}" is replaced by the prompt of the picture."""

    vocabulary: Vocabulary
    rule: str
    """Named rule by which detectors answer it, see `ine.detectors.rules`."""

    system: str = ""
    demonstrations: tuple[tuple[np.ndarray, str], ...] = ()
    """Pictures, uint8 RGB (H, W, 3), with their right answers."""

    max_tokens: int = 64
    structured: bool = True
    """Ask servers that can for JSON."""

    def conversation(self, picture: np.ndarray, prompt: str = "") -> Conversation:
        """Return what is sent about a picture, uint8 RGB (H, W, 3), generated for a prompt."""
        turns = [Turn(role="system", text=self.system)] if self.system else []
        for shown, answer in self.demonstrations:
            turns += [
                Turn(role="user", text=self.text.replace("{prompt}", ""), picture=shown),
                Turn(role="assistant", text=answer),
            ]
        asked = self.text.replace("{prompt}", prompt)
        turns.append(Turn(role="user", text=asked, picture=picture))
        schema = _schema(self.vocabulary.words) if self.structured else None
        return Conversation(turns=tuple(turns), max_tokens=self.max_tokens, schema=schema)


def question_of(recipe: ConceptRecipe) -> Question:
    """Return the question of a concept recipe; the pictures of its demonstrations are read.

    Raises:
        PicturesError: A demonstration's picture is missing or broken.
    """
    observe = recipe.observe
    said = (*recipe.words.explicit, *recipe.words.synonyms)
    words = observe.words or tuple(re.sub("^(an?|the) ", "", one) for one in said)
    shown = [(read_whole(user_path(one.picture)), one.answer) for one in observe.demonstrations]
    return Question(
        concept=recipe.name,
        text=observe.question.replace("{words}", ", ".join(words)),
        vocabulary=Vocabulary(
            words=words, yes=observe.yes, no=observe.no, refusals=observe.refusals
        ),
        rule=recipe.pictures.rule,
        system=observe.system,
        demonstrations=tuple(shown),
        max_tokens=observe.max_tokens,
        structured=observe.structured,
    )


def _digest(picture: np.ndarray | None) -> str | None:
    if picture is None:
        return None
    return sha256_of(str(picture.shape).encode(), np.ascontiguousarray(picture).tobytes())


def _schema(words: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON schema of an answer, as strict servers ask for it."""
    listed = {"type": "array", "items": {"type": "string", "enum": list(words)}}
    return {
        "type": "object",
        "properties": {FOUND: {"type": "boolean"}, WORDS: listed},
        "required": [FOUND, WORDS],
        "additionalProperties": False,
    }
