"""`ine prompts`: inspect and check prompt files, and list the bundled model's sets."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneSubgroup
from ine.cli.printing import printable
from ine.errors import IneError, PromptError

if TYPE_CHECKING:
    from ine.prompts.rows import PromptSet

SHOWN = 5
WIDTH = 100


@click.group(cls=IneSubgroup)
def prompts() -> None:
    """Inspect prompt files, and list the sets of the bundled model.

    Files may be csv, tsv, jsonl, json or plain text. Rows that are sexual and refer to minors are
    always left out; their row numbers are printed, never their texts. docs/prompts.md says how,
    and which column is read as what.
    """


@prompts.command("list")
@options.json_output
def list_(as_json: bool) -> None:
    """List the prompt sets of the bundled model."""
    from ine.prompts.mini import named_set, named_sets

    counts = {name: len(named_set(name).rows) for name in named_sets()}
    if as_json:
        click.echo(json.dumps(counts, indent=2))
        return
    width = max(map(len, counts))
    for name, count in counts.items():
        click.echo(f"{name:{width}}  {count:4d} prompts")


@prompts.command()
@click.argument("name", metavar="FILE|NAME")
@options.choosing_rows
@click.option("--unique", is_flag=True, help="Only the first row of each prompt.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@click.option(
    "--rows",
    "shown",
    type=click.IntRange(0),
    default=SHOWN,
    show_default=True,
    help="How many rows to print.",
)
@options.json_output
def show(
    name: str,
    column: str | None,
    category: str | None,
    where: tuple[str, ...],
    unique: bool,
    limit: int | None,
    shown: int,
    as_json: bool,
) -> None:
    """Show what a prompt file holds and how it is read.

    It prints counts, the columns and what they are read as, rows per category, and the first rows.
    """
    from ine.prompts.reading import find_prompt_set

    found = find_prompt_set(
        name,
        column=column,
        skip_empty=True,
        category=category,
        where=where,
        unique=unique,
        limit=limit,
    )
    if as_json:
        click.echo(json.dumps(_as_data(found, shown), indent=2, ensure_ascii=False))
        return
    _print_set(found, shown)


def _print_set(found: "PromptSet", shown: int) -> None:
    """Print the facts of a prompt set and its first rows."""
    click.echo(f"{found.name}: {_counts(found)}")
    if found.note:
        click.echo(f"note: {found.note}")
    click.echo("columns: " + ", ".join(f"{r} <- {printable(c)}" for r, c in found.columns.items()))
    if found.others:
        click.echo(f"kept as text: {', '.join(map(printable, found.others))}")
    seeds = sum(row.seed is not None for row in found.rows)
    if seeds:
        click.echo(f"rows with a seed of their own: {seeds}")
    if found.empty:
        click.echo(f"rows without a prompt: {', '.join(map(str, found.empty[:10]))}{_more(found)}")
    if found.refused:
        click.echo(f"refused by screening: {found.refused_summary()}")
    for label, count in found.per_category.items():
        click.echo(f"  {printable(label)}: {count}")
    for row in found.rows[:shown]:
        text = printable(row.prompt)
        cut = text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
        click.echo(f"{printable(row.id)}: {cut}")


@prompts.command()
@click.argument("names", nargs=-1, required=True, metavar="FILE...")
@options.prompt_rows
def check(names: tuple[str, ...], filters: Mapping[str, Any]) -> None:
    """Check prompt files; the exit code is 8 if one of them cannot be used."""
    from ine.prompts.reading import find_prompt_set

    problems = []
    for name in names:
        try:
            found = find_prompt_set(name, **filters)
        except IneError as error:
            problems.append(str(error))
        else:
            click.echo(f"{name}: ok, {_counts(found)}")
    if problems:
        raise PromptError("\n".join(problems))


def _counts(found: "PromptSet") -> str:
    """Return the counts of a set as one line."""
    said = [f"{len(found.rows)} prompts of {found.read} rows", f"{found.duplicates} duplicates"]
    said.append(f"{found.refused} refused by screening")
    if found.refused:
        said[-1] += f" ({found.refused_summary(10)})"
    if found.empty:
        said.append(f"{len(found.empty)} empty")
    if found.encoding != "utf-8":
        said.append(f"read as {found.encoding}")
    return ", ".join(said)


def _more(found: "PromptSet") -> str:
    return f" and {len(found.empty) - 10} more" if len(found.empty) > 10 else ""


def _as_data(found: "PromptSet", shown: int) -> dict[str, Any]:
    """Return what `show --json` prints."""
    return {
        "name": found.name,
        "sha256": found.digest,
        "read": found.read,
        "prompts": len(found.rows),
        "duplicates": found.duplicates,
        "refused": found.refused,
        "refused_rows": list(found.refused_rows),
        "refused_sha256": found.refused_digest,
        "empty": list(found.empty),
        "encoding": found.encoding,
        "note": found.note,
        "columns": dict(found.columns),
        "others": list(found.others),
        "seeds": sum(row.seed is not None for row in found.rows),
        "categories": found.per_category,
        "first": [asdict(row) for row in found.rows[:shown]],
    }
