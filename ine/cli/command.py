"""The class of every command of `ine`: expert options in a list of their own, old names read."""

from collections.abc import Callable
from typing import Any

import click

from ine.cli.old_names import current_arguments

MOST_ORDINARY = 13
"""Options that the first list of `--help` shows at most, beside `--help` itself."""


class ExpertOption(click.Option):
    """An option that few users need; a command with many options lists it last."""


def expert(*names: str, **settings: Any) -> Callable:
    """Return a decorator that adds an expert option; takes what `click.option` takes."""
    return click.option(*names, cls=ExpertOption, **settings)


def ordinary_and_expert(
    command: click.Command, ctx: click.Context
) -> tuple[list[click.Option], list[click.Option]]:
    """Return the options of a command as (ordinary, expert), hidden ones left out.

    A command whose options fit into one list has no expert options.
    """
    params = command.get_params(ctx)
    options = [p for p in params if isinstance(p, click.Option) and not p.hidden]
    ordinary = [option for option in options if not isinstance(option, ExpertOption)]
    if len(options) <= MOST_ORDINARY + 1:
        return options, []
    return ordinary, [option for option in options if isinstance(option, ExpertOption)]


class IneCommand(click.Command):
    """A command that lists expert options last and still reads the names of the last release."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace old names of options, then parse as click does."""
        return super().parse_args(ctx, current_arguments(args, ctx.info_name or ""))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the ordinary options, then the expert ones."""
        ordinary, special = ordinary_and_expert(self, ctx)
        for title, options in (("Options", ordinary), ("Expert options", special)):
            records = [record for o in options if (record := o.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class IneSubgroup(click.Group):
    """A group whose commands are `IneCommand`s."""

    command_class = IneCommand


class DefaultingGroup(IneSubgroup):
    """A group in which words that name none of its commands go to its default command."""

    default: str
    """Name of that command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default before an argument that is neither a command nor `--help`."""
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = [self.default, *args]
        return super().parse_args(ctx, args)
