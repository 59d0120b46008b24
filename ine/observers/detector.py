"""An observer as a detector: any concept gets a rule, `vlm@SPEC:CONCEPT`."""

from typing import Any

import numpy as np

from ine.detectors.base import check_pictures
from ine.detectors.observed import UNKNOWN, split_name
from ine.errors import ObserverError
from ine.observers.base import Answer, Observer
from ine.observers.question import Question, question_of
from ine.observers.table import load_observer, parse_spec
from ine.recipe import load_recipe


class ObserverDetector:
    """Scores pictures by what an observer says of them; see `ine.detectors.observed`."""

    def __init__(self, observer: Observer, question: Question, label: str) -> None:
        """Take the observer, the question that it was loaded with, and the label of yes."""
        self.observer = observer
        self.question = question
        self.label = label

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the scores: the model and what it is asked."""
        example = self.question.conversation(np.zeros((1, 1, 3), np.uint8))
        return {"observer": self.observer.name, "question": example.key[:16]}

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score} per picture; no prompt is shown to the observer.

        Raises:
            ObserverError: The observer did not answer in time, or failed. Scores are stored, and
                another try may succeed, so nothing is returned.
        """
        check_pictures(pictures)
        seen = self.observer(pictures, [""] * len(pictures))
        return [self._scores(one.answers[self.question.concept]) for one in seen]

    def _scores(self, answer: Answer) -> dict[str, float]:
        if answer.unknown in ("time-out", "error"):
            raise ObserverError(
                f"observer {self.observer.name}: gave no answer ({answer.unknown}: {answer.why}); "
                "no score is kept for these pictures; repair the observer and run again, which "
                "resumes"
            )
        if answer.unknown:
            return {UNKNOWN: 1.0, f"{UNKNOWN}: {answer.unknown}": 1.0}
        return {self.label: float(answer.found or 0) if answer.score is None else answer.score}


def load(name: str) -> ObserverDetector:
    """Return the detector of a name, `vlm@SPEC:CONCEPT`.

    Raises:
        IneError: The observer or the concept is unknown, or cannot be used.
    """
    spec, concept = split_name(name)
    question = question_of(load_recipe(concept))
    return ObserverDetector(load_observer(spec, [question]), question, concept)


def check(name: str) -> None:
    """Raise what `load` would where that shows without loading a model or asking a server.

    Raises:
        IneError: The observer's name or the concept is unknown.
    """
    spec, concept = split_name(name)
    parse_spec(spec)
    question_of(load_recipe(concept))
