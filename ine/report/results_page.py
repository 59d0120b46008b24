"""A page of results for the documentation: the tables of reports as Markdown, never by hand.

Its first line says which command wrote it and has a digest of the rest, so that a test finds pages
that were edited. Equal folders give equal bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ine.errors import OutputError
from ine.evaluation.entering import HEAD
from ine.evaluation.run_folder import read_run
from ine.files import JSON_LIMIT, parse_json, read_within, sha256_of, write_text
from ine.report.data import report_figures, report_of
from ine.report.grid import grid_report
from ine.report.markdown import escaped, fact_list, joined, section_blocks
from ine.report.values import Report

MARK = "<!-- Written by `ine report --markdown`: do not edit, give the command again. sha256 "
REPORT = "report.json"


def write_results_page(folders: Sequence[Path], file: Path) -> None:
    """Write the tables of folders as one page of Markdown.

    Args:
        folders: Run folders of `ine evaluate`, or folders in which `ine demo`, `ine compare` or
            `ine audit` wrote a report.
        file: The page; one that this function wrote is replaced.

    Raises:
        OutputError: A folder has no report, or the file is of somebody else or cannot be written.
    """
    page = results_page([read_report(folder) for folder in folders])
    if file.exists() and not _is_own(file):
        raise OutputError(
            f"{file}: exists and was not written by `ine report --markdown`; give another name, or "
            "remove it first"
        )
    write_text(file, page)


def _is_own(file: Path) -> bool:
    try:
        return read_within(file, JSON_LIMIT).startswith(MARK)
    except (OSError, ValueError):
        return False


def read_report(folder: Path) -> Report:
    """Return the report of a folder without its pictures.

    Raises:
        OutputError: It has none, or it is damaged.
    """
    path = folder / REPORT
    try:
        return report_of(_figures(folder, path))
    except FileNotFoundError as error:
        raise OutputError(
            f"{folder}: has no {HEAD} and no {REPORT}; give the folder of an `ine evaluate`, "
            "`ine demo`, `ine compare` or `ine audit` that has ended"
        ) from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path}: is damaged or of another version ({error!r}); run the command that wrote it "
            "again"
        ) from error


def _figures(folder: Path, path: Path) -> dict[str, Any]:
    """Return a report as plain values; that of a grid is made from its figures again."""
    if (folder / HEAD).exists():
        return report_figures(grid_report(read_run(folder)))
    found: dict[str, Any] = parse_json(read_within(path, JSON_LIMIT))
    return found


def results_page(reports: Sequence[Report]) -> str:
    """Return the page of reports: of each its lead, where it came from, and all its tables."""
    several = len(reports) > 1
    blocks = ["# Results"] if several else []
    for report in reports:
        blocks += _blocks(report, 2 if several else 1)
    text = joined(blocks)
    return f"{MARK}{sha256_of(text.encode())[:16]} -->\n\n{text}"


def _blocks(report: Report, depth: int) -> Iterator[str]:
    facts = {key: v for key, v in report.provenance.items() if key != "the grid file"}
    given = [facts.pop(key, []) for key in ("command", "commands")]
    commands = [line for v in given for line in ([v] if isinstance(v, str) else v)]
    yield f"{'#' * depth} {escaped(report.title)}"
    yield "```\n" + "\n".join(commands) + "\n```" if commands else ""
    yield escaped(report.lead)
    yield fact_list(facts)
    for section in report.sections:
        yield from section_blocks(section, depth + 1)
