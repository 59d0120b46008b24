"""A detector with its rule as an observer."""

from collections.abc import Mapping, Sequence

import numpy as np

from ine.detectors.base import Detection, detect
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.rules import find_rule
from ine.detectors.table import DETECTORS, SPEC, Detector, load_detector
from ine.errors import ObserverError
from ine.observers.base import Answer, Observation
from ine.observers.question import Question


class JudgeObserver:
    """Applies one rule per concept to what one detector found."""

    def __init__(self, name: str, detector: Detector, rules: Mapping[str, Rule | AnyOf]) -> None:
        """Take the name of the observer, the detector, and {concept: rule}."""
        self.name = name
        self.detector = detector
        self.rules = dict(rules)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[str]) -> list[Observation]:
        """Return one observation per picture, see `ine.observers.base.Observer`."""
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(prompts)} prompts for {len(pictures)} pictures")
        return [
            Observation(answers={name: _answer(rule, seen) for name, rule in self.rules.items()})
            for seen in (detect(self.detector, pictures) if len(pictures) else [])
        ]


def _answer(rule: Rule | AnyOf, seen: Sequence[Detection]) -> Answer:
    """Return what a rule says about the detections of a picture."""
    read = [(part, part.read(seen)) for part in rule.parts]
    labels = {label: scores for part, scores in read for label in part.labels}
    named = [label for label, scores in labels.items() if scores.get(label, 0.0) > 0]
    firing = any(part.fires(scores) for part, scores in read)
    score = max(part.score(scores) for part, scores in read)
    words = tuple(sorted(named, key=lambda label: -labels[label][label])) if firing else ()
    raw = ", ".join(f"{d.label} {d.score:.3f}" for d in sorted(seen, key=lambda d: -d.score)[:5])
    return Answer(found=firing, score=min(score, 1.0), words=words, raw=raw)


def load_judge(name: str, questions: Sequence[Question]) -> JudgeObserver:
    """Return a detector as an observer.

    Args:
        name: A rule, which answers for a single concept; or a detector, to which the rule of each
            concept's recipe is applied.
        questions: One per concept.

    Raises:
        ObserverError: One rule is to answer for several concepts.
        RecipeError: Neither a rule nor a detector has that name.
        MissingDependency: The detector's package or weights are missing.
    """
    rules: dict[str, Rule | AnyOf]
    if _is_detector(name):
        rules = {one.concept: find_rule(one.rule) for one in questions}
        return JudgeObserver(f"judge:{name}", load_detector(name), rules)
    rule = find_rule(name)
    concepts = [one.concept for one in questions]
    if len(concepts) != 1:
        raise ObserverError(
            f"observer judge:{name}: this rule answers for one concept, and {len(concepts)} are "
            f"asked for ({', '.join(concepts)}); name a detector (judge:DETECTOR), to which the "
            "rule of each concept's recipe is applied, or ask for one concept"
        )
    return JudgeObserver(f"judge:{name}", load_detector(rule.detector), {concepts[0]: rule})


def _is_detector(name: str) -> bool:
    found = SPEC.fullmatch(name)
    return name in DETECTORS or bool(found and "@" not in name and found["name"] in DETECTORS)
