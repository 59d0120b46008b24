"""What commands print: text of other people's files, and where a report is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ine.report.values import Table


def printable(text: str) -> str:
    """Replace control characters, so that a file's header cannot control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def echo_report(page: Path, as_json: bool, table: "Table | None" = None, **more: object) -> None:
    """Print a table of a report and where its page is, or its figures and `more` as JSON."""
    from ine.report.text import text_table

    if as_json:
        found = {"report": str(page), **more, **json.loads(page.with_suffix(".json").read_text())}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if table:
        click.echo(text_table(table))
    click.echo(f"report: {page}")
