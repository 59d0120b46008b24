"""An observer with the concepts that it watches a run for, loaded when it is first asked.

A guidance names its observer before any model is loaded, in a plan as well, so that the name has
to say what decides the answers while nothing is loaded yet.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ine.errors import IneError, ObserverError
from ine.observers.base import Answer, Observation, Observer
from ine.observers.question import Question, question_of
from ine.observers.table import ObserverSettings, load_observer, parse_spec
from ine.recipe import ConceptRecipe
from ine.store.units import key_of

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class Sought:
    """A concept that a run is watched for, in words."""

    concept: str
    words: str
    """What stands in a negative where the concept is found and no word of it is named."""

    vocabulary: tuple[str, ...] = ()
    """The words by which an observer may name it; none of a judge, whose labels are no words."""


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """An observer, what it is asked about, and how it is loaded."""

    name: str
    """What tells its answers from those of others: the observer, its model and questions."""

    sought: tuple[Sought, ...]
    load: Callable[[], Observer] = field(repr=False, compare=False)
    calls: int = 1
    """Calls of the observer's model for one picture."""

    @cached_property
    def observer(self) -> Observer:
        """The observer, loaded once.

        Raises:
            IneError: It cannot be loaded or reached.
        """
        return self.load()

    @property
    def concepts(self) -> tuple[str, ...]:
        """The names of the concepts."""
        return tuple(one.concept for one in self.sought)

    def look(self, pictures: np.ndarray, prompts: Sequence[str]) -> list[Observation]:
        """Return one observation per picture, with an answer for every concept.

        An observer that fails gives unknown answers of the kind "error".

        Args:
            pictures: uint8 RGB, (B, H, W, 3).
            prompts: B texts; "" where one is not known.

        Raises:
            IneError: It cannot be loaded or reached.
            ObserverError: It gave another number of observations, or none of some concept.
        """
        observer = self.observer
        try:
            seen = list(observer(pictures, prompts))
        except IneError:
            raise
        except Exception as error:  # a model's own code raises any kind
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            log.warning("observer %s failed: %s", observer.name, why)
            failed = Answer(found=None, unknown="error", why=why)
            return [Observation(answers=dict.fromkeys(self.concepts, failed)) for _ in pictures]
        if len(seen) != len(pictures):
            raise ObserverError(
                f"observer {observer.name}: gave {len(seen)} observations of {len(pictures)} "
                "pictures; it has to give one each"
            )
        for one in seen:
            if left_out := [name for name in self.concepts if name not in one.answers]:
                raise ObserverError(
                    f"observer {observer.name}: says nothing about {', '.join(left_out)} (of "
                    f"{', '.join(one.answers) or 'nothing'} it does); ask it about each concept"
                )
        return seen


def watcher_of(
    spec: str,
    recipes: Sequence[ConceptRecipe],
    settings: ObserverSettings | None = None,
    plain: bool = False,
) -> Watcher:
    """Return an observer that watches for the concepts of recipes; nothing is loaded.

    Args:
        spec: The observer's name, see `ine.observers.table`.
        recipes: One per concept.
        settings: How it runs.
        plain: Ask for text instead of JSON, also where a server could give that.

    Raises:
        ObserverError: The name has another form.
        PicturesError: A demonstration's picture is missing or broken.
    """
    kind, _ = parse_spec(spec)
    questions = [question_of(recipe) for recipe in recipes]
    if plain:
        questions = [replace(question, structured=False) for question in questions]
    judge = kind == "judge"
    return Watcher(
        name=f"{_identity(spec)} asked {_asked(questions, judge)}",
        sought=tuple(
            Sought(
                concept=recipe.name,
                words=recipe.words.negative_text(),
                vocabulary=() if judge else question.vocabulary.words,
            )
            for recipe, question in zip(recipes, questions, strict=True)
        ),
        load=lambda: load_observer(spec, questions, settings),
        calls=1 if judge else len(questions),
    )


def _identity(spec: str) -> str:
    """Return an observer's name; that of a model in a folder by its files."""
    kind, what = parse_spec(spec)
    if kind != "vlm":
        return spec
    from ine.observers.vlm_loading import BUNDLED, digest_of

    folder = BUNDLED.get(what, Path(what).expanduser())
    return f"vlm:{digest_of(folder)}" if folder.is_dir() else spec


def _asked(questions: Sequence[Question], judge: bool) -> str:
    """Return 16 hex digits of what is asked, and how answers are read."""
    if judge:
        return key_of(rules=[[one.concept, one.rule] for one in questions])[:16]
    blank = np.zeros((1, 1, 3), np.uint8)
    asked = [[q.concept, q.conversation(blank).key, repr(q.vocabulary)] for q in questions]
    return key_of(asked=asked)[:16]
