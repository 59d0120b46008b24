"""Render docs/cli.md from the commands themselves: `python -m ine.cli.reference > docs/cli.md`."""

import inspect
import re
from collections.abc import Iterator

import click

from ine import errors
from ine.cli import BUG, COMMANDS, INTERRUPTED, TASKS, cli
from ine.cli.command import ordinary_and_expert

HEAD = """\
# Command line

<!-- Generated: python -m ine.cli.reference > docs/cli.md -->

Results go to standard output, progress and warnings to standard error. Options of `ine` itself
stand before the command (`ine --debug invert ...`). An option of a command can also be given as an
environment variable: `INE_GENERATE_DEVICE=cpu` is `ine generate --device cpu`. Commands with many
options list those that few users need last, as expert options."""


def cli_reference() -> str:
    """Return docs/cli.md: every command, its options and defaults, and the exit codes."""
    parts = [HEAD, tasks(), *sections(cli, click.Context(cli, info_name="ine")), exit_codes()]
    return "\n\n".join(parts) + "\n"


def tasks() -> str:
    """Return the table of commands by task."""
    rows = [
        (task if name == names[0] else "", f"[`ine {name}`](#ine-{name})", COMMANDS[name][2])
        for task, names in TASKS.items()
        for name in names
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["| task | command | what it does |", "|---|---|---|", *lines])


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the section of a command, then those of its subcommands."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", inspect.cleandoc(command.help or "")]
    parts.append(f"```\n{usage}\n```")
    ordinary, expert = ordinary_and_expert(command, context)
    parts.append(option_list([o for o in ordinary if o in command.params], context))
    if expert:
        parts += ["Expert options:", option_list(expert, context)]
    yield "\n\n".join(part for part in parts if part)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child:
                yield from sections(child, click.Context(child, parent=context, info_name=name))


def option_list(options: list[click.Option], context: click.Context) -> str:
    """Return a list with one item for each option."""
    return "\n".join(option_line(option, context) for option in options)


def option_line(option: click.Option, context: click.Context) -> str:
    """Return one list item: names, metavar, help, default."""
    names, text = option.get_help_record(context) or ("", "")
    # click puts default and range at the end, in brackets that Markdown could take for a link.
    return f"- `{names}`: " + re.sub(r" +\[(.+)\]$", r" (\1)", text)


def exit_codes() -> str:
    """Return the section about exit codes, from the classes in `ine.errors`."""
    classes = [k for k in vars(errors).values() if isinstance(k, type)]
    kinds = [k for k in classes if issubclass(k, errors.IneError) and k is not errors.IneError]
    rows = [(0, "Success."), (2, "The command line itself is wrong.")]
    other = "Any other error that a user can fix; or two runs differ (`ine report diff`)."
    rows += [(errors.IneError.exit_code, other)]
    rows += [(k.exit_code, inspect.cleandoc(k.__doc__ or "").splitlines()[0]) for k in kinds]
    rows += [(errors.LIFELESS, "An embedding fits, and is not alive (`ine embedding verify`).")]
    rows += [(BUG, "A bug in ine; `--debug` shows the traceback."), (INTERRUPTED, "Interrupted.")]
    lines = [f"| {code} | {text} |" for code, text in sorted(rows)]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *lines])


if __name__ == "__main__":
    click.echo(cli_reference(), nl=False)
