"""The run folder of a grid: whose it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ine import __version__
from ine.errors import OutputError
from ine.evaluation.plan import Plan
from ine.files import why_refused, write_text

HEAD, SOURCE = "grid.json", "grid.yaml"


def enter_folder(plan: Plan, force: bool = False, others: Sequence[str] = ()) -> None:
    """Say in a run folder whose it is, after looking whether it is another grid's.

    Args:
        plan: A `Plan`.
        force: Take the folder from another grid.
        others: What to call the processes that work in it; it is not taken from them.

    Raises:
        OutputError: It holds another grid, or something else, and `force` is not given; or others
            work on that.
    """
    file, path = plan.file, plan.folder / HEAD
    head = {
        "kind": "grid-run",
        "version": 1,
        "grid": file.grid.name,
        "work": file.work,
        "digest": file.digest,
        # Where the pictures are, for who makes the report again.
        "store": "" if plan.store.folder == plan.folder else str(plan.store.folder.resolve()),
        "ine": __version__,
    }
    there = _text_of(path)
    if there is None and plan.folder.exists() and not plan.folder.is_dir():
        raise OutputError(f"{plan.folder}: is not a folder; choose another --out")
    if there is not None and not force:
        _check_owner(plan, path, there)
    if there != _json(head):
        if there is not None and force and others:
            raise OutputError(
                f"{plan.folder}: cannot be given to this grid while another is run there "
                f"({'; '.join(others)}); wait until that has ended, or choose another --out"
            )
        write_text(plan.folder / SOURCE, file.text)
        write_text(path, _json(head))


def _check_owner(plan: Plan, path: Path, there: str) -> None:
    """Raise where the head of a run folder is not of this grid."""
    file = plan.file
    try:
        found = json.loads(there)
        before, work = found["grid"], found["work"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: is not of ine; choose another --out") from error
    if before != file.grid.name:
        raise OutputError(
            f"{plan.folder}: holds the grid {before!r}, this is {file.grid.name!r}; choose "
            "another --out, or give --force to put this one's results there (pictures are kept)"
        )
    if work != file.work:
        raise OutputError(
            f"{plan.folder}: holds a grid {before!r} of other models, negatives, guidances, "
            "prompts, seeds or sampler than this file; choose another --out, or give --force "
            "to go on with this one (pictures that both need are kept)"
        )


def _text_of(path: Path) -> str | None:
    """Return the text of a file, None if there is no file, "" if it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return ""
    except OSError as error:
        what = why_refused(error)
        raise OutputError(f"{path}: cannot be read ({what}); choose another --out") from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
