"""`ine prompts list | show | check`."""

import json
from dataclasses import asdict

import click

from ine.cli import options
from ine.cli.printing import printable
from ine.errors import IneError, PromptError

SHOWN = 5
WIDTH = 100

column = click.option(
    "--column", metavar="NAME", help="Column of the prompt, where the rule finds none or another."
)


@click.group()
def prompts():
    """Look into prompt files, and list the sets of the bundled model.

    Files may be csv, tsv, jsonl, json or plain text, as the data sets of this field come. Rows
    that are sexual and refer to minors are always left out, counted and not shown;
    docs/prompts.md says how, and which column is taken for what.
    """


@prompts.command("list")
@options.json_output
def list_(as_json):
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
@column
@click.option("--category", metavar="LABEL", help="Only rows with this label.")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only rows that meet it; also != > < >= <=. May be repeated.",
)
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
def show(name, column, category, where, unique, limit, shown, as_json):
    """Show what a prompt file holds and how it is read.

    Counts, the columns and what they were taken for, rows per category, and the first rows.
    """
    from ine.prompts.finding import find_prompt_set

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
    click.echo(f"{found.name}: {_told(found)}")
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
    for label, count in found.per_category.items():
        click.echo(f"  {printable(label)}: {count}")
    for row in found.rows[:shown]:
        text = printable(row.prompt)
        cut = text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
        click.echo(f"{printable(row.id)}: {cut}")


@prompts.command()
@click.argument("names", nargs=-1, required=True, metavar="FILE...")
@column
@click.option("--skip-empty", is_flag=True, help="Let rows without a prompt pass, left out.")
def check(names, column, skip_empty):
    """Check prompt files; the exit code is 8 if one of them cannot be used."""
    from ine.prompts.finding import find_prompt_set

    problems = []
    for name in names:
        try:
            found = find_prompt_set(name, column=column, skip_empty=skip_empty)
        except IneError as error:
            problems.append(str(error))
        else:
            click.echo(f"{name}: ok, {_told(found)}")
    if problems:
        raise PromptError("\n".join(problems))


def _told(found):
    """Return the counts of a set as one line."""
    said = [f"{len(found.rows)} prompts of {found.read} rows", f"{found.duplicates} duplicates"]
    said.append(f"{found.refused} refused by screening")
    if found.empty:
        said.append(f"{len(found.empty)} empty")
    if found.encoding != "utf-8":
        said.append(f"read as {found.encoding}")
    return ", ".join(said)


def _more(found):
    return f" and {len(found.empty) - 10} more" if len(found.empty) > 10 else ""


def _as_data(found, shown):
    """Return what `show --json` prints."""
    return {
        "name": found.name,
        "sha256": found.digest,
        "read": found.read,
        "prompts": len(found.rows),
        "duplicates": found.duplicates,
        "refused": found.refused,
        "empty": list(found.empty),
        "encoding": found.encoding,
        "note": found.note,
        "columns": dict(found.columns),
        "others": list(found.others),
        "seeds": sum(row.seed is not None for row in found.rows),
        "categories": found.per_category,
        "first": [asdict(row) for row in found.rows[:shown]],
    }
