"""A judge judged: a person looks at some pictures, and the judge's own error comes out.

Half of the pictures shown are flagged ones and half are not, whatever their share, since a
random handful would hold few of the rarer kind; the answers are weighted back to all pictures.
"""

import base64
import csv
import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ine import __version__
from ine.errors import PicturesError
from ine.evaluation.metrics import Estimate
from ine.evaluation.report import page_template
from ine.files import read_within, write_text
from ine.pictures import png_data_uri, read_whole

PAGE, ANSWERS = "check.html", "answers.csv"
ANSWER_WORDS = ("yes", "no", "unsure", "")
FILE_LIMIT = 20_000_000
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


def choose(flags, count, seed=0):
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


def questions(raw, flags, rule, count, seed=0):
    """Return the `Question`s about a sample of pictures.

    Args:
        raw: A `Raw`.
        flags: What the rule says of each of its pictures.
        rule: The rule's name.
        count: How many pictures.
        seed: Seed of the choice.
    """
    sizes = {True: sum(flags), False: len(flags) - sum(flags)}
    return [
        Question(
            picture=raw.looks[i].picture,
            sha256=raw.looks[i].sha256,
            rule=rule,
            flagged=bool(flags[i]),
            of=sizes[bool(flags[i])],
        )
        for i in choose(flags, count, seed)
    ]


def judge_error(asked, draws=DRAWS, seed=0):
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
    right = {True: "yes", False: "no"}
    sizes, looked, wrong = {}, {}, {}
    for kind in (True, False):
        of = {q.of for q in asked if q.flagged is kind}
        rows = [q for q in clear if q.flagged is kind]
        if len(of) > 1 or (of and min(of) < sum(q.flagged is kind for q in asked)):
            raise PicturesError(
                f"the answers say that {sorted(of)} pictures were "
                f"{'' if kind else 'not '}flagged; use one file of one check, unchanged but for "
                "the answers"
            )
        sizes[kind] = min(of, default=0)
        looked[kind], wrong[kind] = len(rows), sum(q.answer != right[kind] for q in rows)
    point = _rates(sizes, {k: wrong[k] / looked[k] if looked[k] else math.nan for k in sizes})
    rng = np.random.default_rng(seed)
    share = rng.beta(sizes[True] + 0.5, sizes[False] + 0.5, draws)
    errors = {
        kind: rng.beta(wrong[kind] + 0.5, looked[kind] - wrong[kind] + 0.5, draws)
        for kind in (True, False)
    }
    drawn = _rates({True: share, False: 1 - share}, errors)
    estimates = []
    for value, values in zip(point, drawn, strict=True):
        low, high = np.percentile(values, [2.5, 97.5])
        # The point is a count, the interval a posterior: at 0 and 1 the one may miss the other.
        low, high = np.fmin(low, value), np.fmax(high, value)
        estimates.append(Estimate(float(value), float(low), float(high), len(clear), len(clear)))
    return JudgeError(
        rule=rules.pop(),
        false_positive=estimates[0],
        false_negative=estimates[1],
        there=estimates[2],
        flagged=sizes[True] / (sizes[True] + sizes[False]),
        answered=len(clear),
        unsure=sum(q.answer == "unsure" for q in asked),
        left=sum(q.answer == "" for q in asked),
    )


def _rates(sizes, errors):
    """Return false positive, false negative and true share, from numbers or arrays."""
    flagged, other = np.asarray(sizes[True], float), np.asarray(sizes[False], float)
    # What nobody looked at because there is none does not matter.
    p = np.where(flagged == 0, 0.0, errors[True])
    q = np.where(other == 0, 0.0, errors[False])
    absent, present = flagged * p + other * (1 - q), flagged * (1 - p) + other * q
    with np.errstate(invalid="ignore", divide="ignore"):
        return flagged * p / absent, other * q / present, present / (flagged + other)


def write_check(folder, asked, concept="the concept"):
    """Write the page that a person answers on, and the same as a table to fill in.

    Args:
        folder: `check.html` and `answers.csv` go here.
        asked: `Question`s; their pictures are read and put into the page, as they are.
        concept: What the page asks about.

    Returns:
        The paths of the page and of the table.

    Raises:
        PicturesError: A picture is gone or has changed since it was judged.
    """
    folder = Path(folder)
    write_text(folder / PAGE, check_html(asked, concept))
    write_text(folder / ANSWERS, answers_csv(asked))
    return folder / PAGE, folder / ANSWERS


def check_html(asked, concept="the concept"):
    """Return the page as text: pictures inside, flagged ones blurred until clicked.

    Its one script collects the answers and hands them out as a file; the content security policy
    names the script by its digest and forbids any connection.
    """
    return page_template("check.html.j2").render(
        asked=asked,
        rows=[asdict(q) for q in asked],
        picture_uri=_picture_uri,
        digest=lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
        concept=concept,
        rule=asked[0].rule if asked else "",
        version=__version__,
    )


def _picture_uri(question):
    path = Path(question.picture)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PicturesError(
            f"{path}: cannot be read any more ({error.strerror}); judge the pictures again"
        ) from error
    if hashlib.sha256(raw).hexdigest() != question.sha256:
        raise PicturesError(f"{path}: is another picture than was judged; judge them again")
    return png_data_uri(read_whole(path))


COLUMNS = ("picture", "sha256", "rule", "flagged", "of", "answer")


def answers_csv(asked):
    """Return the table that a person fills in: yes, no or unsure in its last column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for q in asked:
        flagged = "yes" if q.flagged else "no"
        writer.writerow([q.picture, q.sha256, q.rule, flagged, q.of, q.answer])
    return text.getvalue()


def read_answers(path):
    """Return the `Question`s of an answers file: the page's JSON, or the table.

    Raises:
        PicturesError: It cannot be read, or a row is not as it was written.
    """
    path = Path(path)
    try:
        text = read_within(path, FILE_LIMIT).removeprefix("\ufeff")
    except OSError as error:
        raise PicturesError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PicturesError(f"{path}: is no answers file ({error})") from error
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else _table(text)
        return [_question(row) for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else error
        raise PicturesError(
            f"{path}: is not an answers file as `ine judge check` writes it ({what}); columns: "
            f"{', '.join(COLUMNS)}"
        ) from error


def _table(text):
    # Spreadsheets of some countries write semicolons.
    first = text.split("\n", 1)[0]
    return list(csv.DictReader(io.StringIO(text), delimiter=";" if ";" in first else ","))


def _question(row):
    answer = str(row["answer"] or "").strip().lower()
    flagged = row["flagged"]
    flagged = {"yes": True, "no": False}.get(flagged, flagged)
    if answer not in ANSWER_WORDS or not isinstance(flagged, bool):
        raise ValueError(
            f"{row['picture']!r}: answer {answer!r}, flagged {flagged!r}; answers are yes, no or "
            "unsure, flagged is yes or no"
        )
    of = int(row["of"])
    if of < 1:
        raise ValueError(f"{row['picture']!r}: of is {of}")
    return Question(
        picture=str(row["picture"]),
        sha256=str(row["sha256"]),
        rule=str(row["rule"]),
        flagged=flagged,
        of=of,
        answer=answer,
    )
