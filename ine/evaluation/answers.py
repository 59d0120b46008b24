"""Answers of a person to a judge's pictures: a table to fill in, or the page's JSON, and back."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ine.errors import PicturesError
from ine.evaluation.judge_check import Question
from ine.files import read_within

ANSWER_WORDS = ("yes", "no", "unsure", "")
FILE_LIMIT = 20_000_000
COLUMNS = ("picture", "sha256", "rule", "flagged", "of", "answer")


def answers_csv(asked: Iterable[Question]) -> str:
    """Return the table that a person fills in: yes, no or unsure in its last column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for q in asked:
        flagged = "yes" if q.flagged else "no"
        writer.writerow([q.picture, q.sha256, q.rule, flagged, q.of, q.answer])
    return text.getvalue()


def read_answers(path: str | Path) -> list[Question]:
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


def _table(text: str) -> list[dict[str, str]]:
    # Spreadsheets of some countries write semicolons.
    first = text.split("\n", 1)[0]
    return list(csv.DictReader(io.StringIO(text), delimiter=";" if ";" in first else ","))


def _question(row: Mapping[str, Any]) -> Question:
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
