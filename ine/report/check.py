"""The page on which a person answers whether a judge is right."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ine import __version__
from ine.errors import PicturesError
from ine.evaluation.answers import answers_csv
from ine.evaluation.judge_check import ANSWERS, PAGE, Question
from ine.files import write_text
from ine.pictures import png_data_uri, read_whole
from ine.report.templates import page_template


def write_check(
    folder: Path, asked: Sequence[Question], concept: str = "the concept"
) -> tuple[Path, Path]:
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


def check_html(asked: Sequence[Question], concept: str = "the concept") -> str:
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


def _picture_uri(question: Question) -> str:
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
