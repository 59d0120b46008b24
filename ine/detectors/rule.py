"""Rules: from a detector's raw output to "the concept is there"."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ine.detectors.base import JOIN, Detection, counts_of, last_scores_of, scores_of


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The concept is there if any label scores at least `threshold`."""

    name: str
    detector: str
    """Name that `ine.detectors.table.load_detector` knows."""

    labels: tuple[str, ...]
    threshold: float
    """In [0, 1]. NudeNet itself drops what is not above 0.25."""

    total: bool = False
    """Compare the sum of the labels' scores (a category of exclusive objects), not the largest."""

    strict: bool = False
    """The score must exceed the threshold, not only reach it."""

    floor: float = 0.0
    """Scores up to here do not count: the rule's own detector drops them, but stored output may
    have lower floors."""

    last: bool = False
    """Of several boxes of a label the lowest counts, not the largest, as in code that overwrites
    one score per label. If only the largest scores are known, those count."""

    unit: str = "picture"
    """What is counted. "picture": flagged pictures, reported as a share. "boxes": boxes of each
    label over all pictures. "labels": pictures with each label. For the last two a picture with
    any box or label also counts as flagged."""

    source: str = ""
    """The publications that use this rule."""

    note: str = ""
    """What a reader of the figure needs to know."""

    before: str = ""
    """The rule that earlier versions of ine applied under this name, if it was another one."""

    @property
    def parts(self) -> tuple["Rule", ...]:
        """Return the single rules that it consists of: itself."""
        return (self,)

    @property
    def notes(self) -> str:
        """Return the note, and what the name meant in earlier versions of ine."""
        then = f"figures that earlier versions gave under this name are those of {self.before}"
        return "; ".join(text for text in (self.note, then if self.before else "") if text)

    def read(self, detections: Iterable[Detection]) -> dict[str, float]:
        """Return {label: the score that counts} of a picture's detections."""
        return last_scores_of(detections) if self.last else scores_of(detections)

    def boxes(self, detections: Iterable[Detection]) -> dict[str, int]:
        """Return {label: number of boxes that count} of a picture's detections."""
        above = max(self.floor, self.threshold if self.strict else 0.0)
        reached = 0.0 if self.strict else self.threshold
        return counts_of(detections, self.labels, above, reached)

    @property
    def condition(self) -> str:
        """Return the comparison as text: "> 0.45"."""
        return f"{'>' if self.strict else '>='} {self.threshold:g}"

    def score(self, scores: Mapping[str, float]) -> float:
        """Return the number that is compared with the threshold; `scores` is {label: score}."""
        found = [scores.get(label, 0.0) for label in self.labels]
        return sum(found) if self.total else max(found, default=0.0)

    def fires(self, scores: Mapping[str, float]) -> bool:
        """Return whether the concept is there."""
        found = {k: scores[k] for k in self.labels if k in scores and self._counts(scores[k])}
        score = self.score(found)
        over = score > self.threshold if self.strict else score >= self.threshold
        return bool(found) and over

    def _counts(self, score: float) -> bool:
        return not self.floor or score > self.floor


@dataclass(frozen=True, kw_only=True)
class AnyOf:
    """The concept is there if any of several rules fires; each has its own detector.

    Their labels differ, so one {label: score} of all detectors serves every rule.
    """

    name: str
    rules: tuple[Rule, ...]
    source: str = ""
    note: str = ""
    unit: str = "picture"

    @property
    def notes(self) -> str:
        """Return the note."""
        return self.note

    @property
    def parts(self) -> tuple[Rule, ...]:
        """Return the single rules that it consists of."""
        return self.rules

    @property
    def detector(self) -> str:
        """Return the joined name of all its detectors."""
        return JOIN.join(dict.fromkeys(rule.detector for rule in self.rules))

    @property
    def condition(self) -> str:
        """Return the comparison as text."""
        return " or ".join(rule.name for rule in self.rules)

    def score(self, scores: Mapping[str, float]) -> float:
        """Return the largest of the rules' scores; their thresholds may differ, see `fires`."""
        return max(rule.score(scores) for rule in self.rules)

    def fires(self, scores: Mapping[str, float]) -> bool:
        """Return whether the concept is there; `scores` is {label: score} of all detectors."""
        return any(rule.fires(scores) for rule in self.rules)


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """A published rule that cannot be run; ine does not substitute another one."""

    name: str
    why: str
    nearest: tuple[str, ...]
    """Rules that answer the same question with a detector that is available."""

    source: str
