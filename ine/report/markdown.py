"""A report as Markdown: all but the pictures and drawings, which are in `report.html`."""

import re
from collections.abc import Iterator, Mapping, Sequence

from ine.report.text import figure_text
from ine.report.values import Cell, Drawing, PictureGrid, Report, Section, Table


def report_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    blocks = [f"# {escaped(report.title)}", escaped(report.lead)]
    for section in report.sections:
        blocks += section_blocks(section)
    if report.next_steps:
        blocks.append("## How to go on")
    for text, command in report.next_steps:
        blocks += [escaped(text), command and f"```\n{command}\n```"]
    return joined([*blocks, "## Where this came from", fact_list(report.provenance)])


def joined(blocks: Sequence[str]) -> str:
    """Return blocks as one text, an empty line between them; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def section_blocks(section: Section, depth: int = 2) -> Iterator[str]:
    """Yield a section block by block.

    Args:
        section: The section.
        depth: Level of its heading.
    """
    yield f"{'#' * depth} {escaped(section.title)}"
    yield from map(escaped, section.paragraphs)
    parts: list[PictureGrid | Drawing | Table] = [
        *section.grids,
        *section.drawings,
        *section.tables,
    ]
    for part in parts:
        yield f"{'#' * (depth + 1)} {escaped(part.title)}"
        yield escaped(part.caption)
        yield from _blocks(part)


def fact_list(facts: Mapping[str, str | Sequence[str]]) -> str:
    """Return {what: text, or lines of text} as a list."""
    lines = []
    for key, value in facts.items():
        words = f" {escaped(value)}" if isinstance(value, str) else ""
        lines.append(f"- {escaped(key)}:{words}")
        lines += [] if isinstance(value, str) else [f"  - `{line}`" for line in value]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Return text on one line in which nothing is Markdown, except `code`."""
    found = re.compile(r"`[^`|]+`|[\\`*_\[\]<>|#&]")
    return found.sub(lambda m: m[0] if len(m[0]) > 1 else f"\\{m[0]}", " ".join(text.split()))


def _blocks(part: PictureGrid | Drawing | Table) -> Iterator[str]:
    if isinstance(part, Drawing):
        yield "The drawing is in report.html."
    elif isinstance(part, PictureGrid):
        rows = [[label, *map(_picture_text, cells)] for label, cells in part.rows]
        yield _table(["pictures in report.html", *part.column_labels], rows)
    else:
        rows = [[figure_text(cell) for cell in row] for row in part.rows]
        yield _table(part.columns, rows, part.numeric)
        yield from map(escaped, part.footnotes)


def _picture_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return " ".join(w for w in ("flagged" if cell.flagged else "", cell.note) if w) or "-"


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] = ()
) -> str:
    kinds = ["---:" if n else "---" for n in numeric or [False] * len(columns)]
    lines = [list(map(escaped, columns)), kinds, *(list(map(escaped, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
