"""Render docs/cli.md from the commands themselves: `python -m ine.cli.reference > docs/cli.md`."""

import inspect
import re

import click

from ine import errors
from ine.cli import BUG, INTERRUPTED, cli

HEAD = """\
# Command line

<!-- Generated: python -m ine.cli.reference > docs/cli.md -->

Results go to standard output, progress and warnings to standard error. Options of `ine` itself
stand before the command (`ine --debug invert ...`). An option of a command can also be given as an
environment variable: `INE_GENERATE_DEVICE=cpu` is `ine generate --device cpu`."""


def cli_reference():
    """Return docs/cli.md: every command, its options and defaults, and the exit codes."""
    parts = [HEAD, *sections(cli, click.Context(cli, info_name="ine")), exit_codes()]
    return "\n\n".join(parts) + "\n"


def sections(command, context):
    """Yield the section of a command, then those of its subcommands."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", inspect.cleandoc(command.help or "")]
    parts.append(f"```\n{usage}\n```")
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        parts.append("\n".join(option_line(option, context) for option in options))
    yield "\n\n".join(part for part in parts if part)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            yield from sections(child, click.Context(child, parent=context, info_name=name))


def option_line(option, context):
    """Return one list item: names, metavar, help, default."""
    names, text = option.get_help_record(context)
    # click puts default and range at the end, in brackets that Markdown could take for a link.
    return f"- `{names}`: " + re.sub(r" +\[(.+)\]$", r" (\1)", text)


def exit_codes():
    """Return the section about exit codes, from the classes in `ine.errors`."""
    kinds = [k for k in vars(errors).values() if inspect.isclass(k) and k is not errors.IneError]
    rows = [(0, "Success."), (2, "The command line itself is wrong.")]
    other = "Anything else that a user can mend; or two runs differ (`ine report diff`)."
    rows += [(errors.IneError.exit_code, other)]
    rows += [(k.exit_code, inspect.cleandoc(k.__doc__).splitlines()[0]) for k in kinds]
    rows += [(errors.LIFELESS, "An embedding fits, and is not alive (`ine embedding verify`).")]
    rows += [(BUG, "A bug in ine; `--debug` shows the traceback."), (INTERRUPTED, "Interrupted.")]
    lines = [f"| {code} | {text} |" for code, text in sorted(rows)]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *lines])


if __name__ == "__main__":
    click.echo(cli_reference(), nl=False)
