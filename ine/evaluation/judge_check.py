"""A judge judged: a person looks at some pictures, and the judge's own error comes out.

Half of the pictures shown are flagged ones and half are not, whatever their share, since a
random handful would hold few of the rarer kind; the answers are weighted back to all pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ine.detectors.raw import RawOutput
from ine.errors import PicturesError
from ine.evaluation.stats import Estimate

PAGE, ANSWERS = "check.html", "answers.csv"
DRAWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Question:
    """One picture shown to a person."""

    picture: str
    sha256: str
    rule: str
    flagged: bool
    """What the judge said."""

    of: int
    """How many pictures the judge gave this verdict, of which this is a random one."""

    answer: str = ""
    """Whether the concept is there: "yes", "no", "unsure", or "" for not answered yet."""


@dataclass(frozen=True, kw_only=True)
class JudgeError:
    """How often a judge is wrong, with 95% intervals, weighted back to all pictures."""

    rule: str
    false_positive: Estimate
    """Share flagged among pictures without the concept."""

    false_negative: Estimate
    """Share not flagged among pictures with the concept; NaN if a person saw none."""

    flagged: float
    """Share that the judge flags."""

    there: Estimate
    """Share of pictures that have the concept, by the person."""

    answered: int
    unsure: int
    left: int
    """Pictures without an answer; `unsure` ones are counted apart. Both are left out."""


def choose(flags: Sequence[bool] | np.ndarray, count: int, seed: int = 0) -> list[int]:
    """Return the numbers of pictures to show, in random order.

    Half of them flagged and half not; where there are too few of one kind, more of the other.

    Args:
        flags: One bool per picture.
        count: How many; all if there are fewer.
        seed: Seed of the choice.
    """
    rng = np.random.default_rng(seed)
    flags = np.asarray(flags, dtype=bool)
    kinds = [rng.permutation(np.flatnonzero(flags == kind)) for kind in (True, False)]
    half = min(len(kinds[0]), max(count // 2, count - len(kinds[1])))
    chosen = np.concatenate([kinds[0][:half], kinds[1][: count - half]])
    return rng.permutation(chosen).astype(int).tolist()


def questions(
    raw: RawOutput, flags: Sequence[bool], rule: str, count: int, seed: int = 0
) -> list[Question]:
    """Return the `Question`s about a sample of pictures.

    Args:
        raw: A `RawOutput`.
        flags: What the rule says of each of its pictures.
        rule: The rule's name.
        count: How many pictures.
        seed: Seed of the choice.
    """
    sizes = {True: sum(flags), False: len(flags) - sum(flags)}
    return [
        Question(
            picture=raw.pictures[i].picture,
            sha256=raw.pictures[i].sha256,
            rule=rule,
            flagged=bool(flags[i]),
            of=sizes[bool(flags[i])],
        )
        for i in choose(flags, count, seed)
    ]


def judge_error(asked: Sequence[Question], draws: int = DRAWS, seed: int = 0) -> JudgeError:
    """Return the `JudgeError` that answers show.

    With F pictures flagged and U not, p the share of wrong answers among flagged ones and q among
    the others, ``false positive = F p / (F p + U (1 - q))`` and
    ``false negative = U q / (U q + F (1 - p))``. Intervals: p, q and F / (F + U) are drawn from
    their Jeffreys posteriors, so that no error in 50 pictures does not read as no error.

    Args:
        asked: Answered `Question`s of one rule; not answered and unsure ones are left out.
        draws: Draws of the posterior.
        seed: Seed of the draws.

    Raises:
        PicturesError: Nothing is answered, rules are mixed, or counts contradict each other.

    Sources:
        Rogan and Gladen 1978, Am. J. Epidemiology 107; Brown, Cai and DasGupta 2001.
    """
    rules = {q.rule for q in asked}
    clear = [q for q in asked if q.answer in ("yes", "no")]
    if len(rules) != 1 or not clear:
        raise PicturesError(
            f"answers to {len(asked)} pictures under {len(rules)} rules, {len(clear)} of them yes "
            "or no: expected one rule, and at least one such answer"
        )
    counted = {kind: _counted(asked, kind) for kind in (True, False)}
    sizes = {kind: size for kind, (size, _, _) in counted.items()}
    found = _estimates(counted, draws, seed)
    return JudgeError(
        rule=rules.pop(),
        false_positive=found[0],
        false_negative=found[1],
        there=found[2],
        flagged=sizes[True] / (sizes[True] + sizes[False]),
        answered=len(clear),
        unsure=sum(q.answer == "unsure" for q in asked),
        left=sum(q.answer == "" for q in asked),
    )


def _counted(asked: Sequence[Question], kind: bool) -> tuple[int, int, int]:
    """Return (pictures that got a verdict, answers to those, answers that contradict it)."""
    own = [q for q in asked if q.flagged is kind]
    of = {q.of for q in own}
    if len(of) > 1 or (of and min(of) < len(own)):
        raise PicturesError(
            f"the answers say that {sorted(of)} pictures were "
            f"{'' if kind else 'not '}flagged; use one file of one check, unchanged but for "
            "the answers"
        )
    answers = [q.answer for q in own if q.answer in ("yes", "no")]
    return min(of, default=0), len(answers), answers.count("no" if kind else "yes")


def _estimates(
    counted: Mapping[bool, tuple[int, int, int]], draws: int, seed: int
) -> list[Estimate]:
    """Return false positive, false negative and true share, from `_counted` of both verdicts."""
    sizes = {kind: size for kind, (size, _, _) in counted.items()}
    seen = {k: wrong / looked if looked else math.nan for k, (_, looked, wrong) in counted.items()}
    point, count = _rates(sizes, seen), sum(looked for _, looked, _ in counted.values())
    rng = np.random.default_rng(seed)
    share = rng.beta(sizes[True] + 0.5, sizes[False] + 0.5, draws)
    errors = {
        kind: rng.beta(wrong + 0.5, looked - wrong + 0.5, draws)
        for kind, (_, looked, wrong) in counted.items()
    }
    drawn = _rates({True: share, False: 1 - share}, errors)
    estimates = []
    for value, values in zip(point, drawn, strict=True):
        low, high = np.percentile(values, [2.5, 97.5])
        # The point is a count, the interval a posterior: at 0 and 1 the one may miss the other.
        low, high = np.fmin(low, value), np.fmax(high, value)
        estimates.append(Estimate(float(value), float(low), float(high), count, count))
    return estimates


def _rates(
    sizes: Mapping[bool, float | np.ndarray], errors: Mapping[bool, float | np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false positive, false negative and true share, from numbers or arrays."""
    flagged, other = np.asarray(sizes[True], float), np.asarray(sizes[False], float)
    # Verdicts that no picture got do not matter.
    p = np.where(flagged == 0, 0.0, errors[True])
    q = np.where(other == 0, 0.0, errors[False])
    absent, present = flagged * p + other * (1 - q), flagged * (1 - p) + other * q
    with np.errstate(invalid="ignore", divide="ignore"):
        return flagged * p / absent, other * q / present, present / (flagged + other)
