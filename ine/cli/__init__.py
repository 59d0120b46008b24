"""The command line: a table of commands, and one place that turns errors into exit codes.

A command's module is imported when the command runs, and torch when its function does, so that
`ine --help` is quick. Commands return nothing; results go to stdout, all else to stderr.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from ine import __version__
from ine.cli.logs import logging_to_stderr
from ine.errors import IneError, OutputError

COMMANDS = {
    "defend": ("ine.cli.defend", "defend", "Make a defence in one command, chosen and measured."),
    "invert": ("ine.cli.invert", "invert", "Find the vectors of a concept on an unlearned model."),
    "unlearn": ("ine.cli.unlearn", "unlearn", "Make an unlearned model if none is published."),
    "calibrate": (
        "ine.cli.calibrate",
        "calibrate",
        "Train a gate that acts only on pictures of the concept.",
    ),
    "generate": ("ine.cli.generate", "generate", "Make pictures with an embedding as negative."),
    "refine": (
        "ine.cli.refine",
        "refine",
        "Rewrite prompts by what is seen in their pictures.",
    ),
    "embedding": ("ine.cli.embedding", "embedding", "Inspect, check and convert embedding files."),
    "unet": ("ine.cli.unet", "unet", "Inspect unlearned weights, or merge them for other UIs."),
    "evaluate": (
        "ine.cli.evaluate",
        "evaluate",
        "Measure a grid of models, negatives and prompts.",
    ),
    "report": ("ine.cli.report", "report", "Write the report of a grid again, or compare two."),
    "compare": ("ine.cli.compare", "compare", "Compare guidance methods side by side."),
    "judge": ("ine.cli.judge", "judge", "Score pictures by named rules, and check the judge."),
    "observe": (
        "ine.cli.observe",
        "observe",
        "Ask a detector, a local model or a server what pictures show.",
    ),
    "prompts": ("ine.cli.prompts", "prompts", "Inspect and check prompt files."),
    "posi": ("ine.cli.posi", "posi", "Train a language model that rewrites prompts, and use it."),
    "attack": ("ine.cli.attack", "attack", "Search for adversarial prompts against a defence."),
    "audit": ("ine.cli.audit", "audit", "Attack a defence, add what was found to it, repeat."),
    "demo": ("ine.cli.demo", "demo", "Run all steps on the bundled model, with a report."),
    "recipe": ("ine.cli.recipe", "recipe", "List, show, check and copy concept recipes."),
}
"""Name -> (module, attribute, one line for `ine --help`)."""

TASKS = {
    "Make a defence": ("defend", "invert", "unlearn", "calibrate", "posi"),
    "Use it": ("generate", "refine", "embedding", "unet"),
    "Measure it": ("evaluate", "report", "compare", "judge", "observe", "prompts"),
    "Attack it": ("attack", "audit"),
    "Learn": ("demo", "recipe"),
}
"""What a user wants to do -> the commands for it, as `ine --help` lists them."""

RUNNING = "ine.running"
"""Key of click's context for (full name, command) of the running command."""

BUG = 70
INTERRUPTED = 130

Table = Mapping[str, tuple[str, str, str]]


class LazyCommands(Mapping[str, click.Command]):
    """The commands of a table, each imported when it is looked up."""

    def __init__(self, table: Table) -> None:
        """Take the table."""
        self.table = table

    def __getitem__(self, name: str) -> click.Command:
        """Import a command."""
        module, attribute, _ = self.table[name]
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        """Return the names in the table's order."""
        return iter(self.table)

    def __len__(self) -> int:
        """Return how many commands the table has."""
        return len(self.table)


class IneGroup(click.Group):
    """A group that lists its commands without importing them, and ends with an exit code."""

    def __init__(self, *args: Any, table: Table = COMMANDS, **kwargs: Any) -> None:
        """Take the table, and what `click.Group` takes."""
        super().__init__(*args, **kwargs)
        self.table = table
        self.commands: Any = LazyCommands(table)  # a dict to click, which only reads it

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(self.table)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by task, from the table alone."""
        for task, names in TASKS.items():
            rows = [(name, self.table[name][2]) for name in names if name in self.table]
            if rows:
                with formatter.section(task):
                    formatter.write_dl(rows, col_max=12)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return what click does, and keep which command runs, for `fit`."""
        from ine.cli.advice import leaf

        name, command, rest = super().resolve_command(ctx, args)
        if name and command:
            ctx.meta[RUNNING] = leaf(name, command, rest)
        return name, command, rest

    def find(self, *words: str) -> click.Command | None:
        """Return the command that words begin with, or None."""
        from ine.cli.advice import leaf

        if words[0] not in self.table:
            return None
        return leaf(words[0], self.commands[words[0]], list(words[1:]))[1]

    def fit(self, ctx: click.Context, text: str) -> str:
        """Return a message whose advice names only options of the command that runs."""
        from ine.cli.advice import fitted

        if RUNNING not in ctx.meta:
            return text
        name, command = ctx.meta[RUNNING]
        return fitted(text, name, command, self.find)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command; click itself deals with usage errors, help and exits."""
        verbosity = ctx.params["verbose"] - ctx.params["quiet"]
        with logging_to_stderr(verbosity, lambda text: self.fit(ctx, text)):
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit):
                raise
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, OSError) and error.errno == errno.EPIPE:
                    raise
                message, code = explain(error)
                message = message if code == BUG else self.fit(ctx, message)
                if ctx.params["debug"]:
                    click.echo(traceback.format_exc(), err=True, nl=False)
                click.echo(message, err=True)
                ctx.exit(code)


def explain(error: BaseException) -> tuple[str, int]:
    """Return (message for the user, exit code) of an exception."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return (
            "Interrupted. Finished files are complete; give the same command again to resume.",
            INTERRUPTED,
        )
    if isinstance(error, IneError):
        return f"Error: {error}", error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f"{error.filename}: " if error.filename else ""
        text = f"Error: {where}the disk is full; free space or choose another --out"
        return text, OutputError.exit_code
    text = (
        f"Error: unexpected {type(error).__name__}: {error}\n"
        "This is a bug in ine. `ine --debug COMMAND ...` shows the traceback to report."
    )
    return text, BUG


@click.group(
    cls=IneGroup,
    context_settings={
        "auto_envvar_prefix": "INE",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.option("--debug", is_flag=True, help="Show the traceback of any error.")
@click.option("-v", "--verbose", count=True, help="Show details.")
@click.option("-q", "--quiet", count=True, help="Show only warnings (-qq: only errors).")
@click.version_option(__version__, prog_name="ine")
def cli(debug: bool, verbose: int, quiet: int) -> None:
    """Defend an unlearned text-to-image model with an embedding of what it should not show.

    `ine invert` finds the vectors that still bring the concept back; `ine generate` uses them as
    the negative. Start with `ine demo`, which needs no download and no GPU.
    """


def quieten_libraries() -> None:
    """Hide warnings of transformers and diffusers that a user of ine cannot act on.

    They read the environment when they are imported, which has not happened yet. Values that
    the user has set stay. Progress bars appear only after three seconds: for downloads, not for
    loading the bundled model.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DELAY", "3")
    if not sys.warnoptions:
        libraries = r"(torch|transformers|diffusers|accelerate|huggingface_hub)\b"
        warnings.filterwarnings("ignore", module=libraries)


NO_DOCSTRINGS = (
    "Error: Python runs without docstrings (-OO, or PYTHONOPTIMIZE=2), but transformers reads them "
    "when it is imported; run ine without that option. -O, which removes only assertions, is fine."
)


def main() -> None:
    """Run the command line of this process."""
    if sys.flags.optimize > 1:
        click.echo(NO_DOCSTRINGS, err=True)
        sys.exit(IneError.exit_code)
    quieten_libraries()
    cli(prog_name="ine")
