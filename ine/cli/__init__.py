"""The command line: a table of commands, and one place that turns errors into exit codes.

A command's module is imported when the command runs, and torch when its function does, so that
`ine --help` is quick. Commands return nothing; results go to stdout, all else to stderr.
"""

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from importlib import import_module

import click

from ine import __version__
from ine.errors import IneError, OutputError

log = logging.getLogger("ine")

COMMANDS = {
    "invert": ("ine.cli.invert", "invert", "Find the vectors of a concept on an unlearned model."),
    "generate": (
        "ine.cli.generate",
        "generate",
        "Make pictures, with an embedding as the negative.",
    ),
    "unlearn": ("ine.cli.unlearn", "unlearn", "Make an unlearned model where none is published."),
    "compare": (
        "ine.cli.compare",
        "compare",
        "Look at methods side by side before choosing one.",
    ),
    "evaluate": (
        "ine.cli.evaluate",
        "evaluate",
        "Run a grid of models, negatives and prompt sets; score it.",
    ),
    "report": (
        "ine.cli.report",
        "report",
        "Write the report of a grid again, or compare two runs.",
    ),
    "calibrate": (
        "ine.cli.calibrate",
        "calibrate",
        "Set a gate's threshold from benign prompts.",
    ),
    "attack": ("ine.cli.attack", "attack", "Make adversarial prompts, to measure a defence by."),
    "audit": ("ine.cli.audit", "audit", "Attack your own defence, add what was found, repeat."),
    "demo": ("ine.cli.demo", "demo", "Tell the whole story on the bundled model, with a report."),
    "judge": ("ine.cli.judge", "judge", "Score pictures by named rules, and check the judge."),
    "embedding": ("ine.cli.embedding", "embedding", "Look into, check and convert embeddings."),
    "unet": ("ine.cli.unet", "unet", "Look into unlearned weights, or merge them for other UIs."),
    "prompts": ("ine.cli.prompts", "prompts", "Look into prompt files and check them."),
    "recipe": ("ine.cli.recipe", "recipe", "List, show, check and copy concept recipes."),
}
"""Name -> (module, attribute, one line for `ine --help`), in the order of a user's work."""

BUG = 70
INTERRUPTED = 130


class LazyCommands(Mapping):
    """The commands of a table, each imported when it is looked up."""

    def __init__(self, table):
        self.table = table

    def __getitem__(self, name):
        module, attribute, _ = self.table[name]
        return getattr(import_module(module), attribute)

    def __iter__(self):
        return iter(self.table)

    def __len__(self):
        return len(self.table)


class IneGroup(click.Group):
    """A group that lists its commands without importing them, and ends with an exit code."""

    def __init__(self, *args, table=COMMANDS, **kwargs):
        super().__init__(*args, **kwargs)
        self.table = table
        self.commands = LazyCommands(table)

    def list_commands(self, ctx):
        """Return the names in the table's order."""
        return list(self.table)

    def format_commands(self, ctx, formatter):
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in self.table.items()])

    def invoke(self, ctx):
        """Run the chosen command; click itself deals with usage errors, help and exits."""
        with logging_to_stderr(ctx.params["verbose"] - ctx.params["quiet"]):
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit):
                raise
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, OSError) and error.errno == errno.EPIPE:
                    raise
                message, code = explain(error)
                if ctx.params["debug"]:
                    click.echo(traceback.format_exc(), err=True, nl=False)
                click.echo(message, err=True)
                ctx.exit(code)


def explain(error):
    """Return what to tell the user about an exception, and the exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return (
            "Interrupted. Files that are finished are whole; run the same command again.",
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


class LevelFormatter(logging.Formatter):
    """Plain text for progress, "Warning: ..." and "Error: ..." for what is more."""

    def format(self, record):
        """Return the line for a record."""
        prefix = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        return prefix + super().format(record)


@contextmanager
def logging_to_stderr(verbosity=0):
    """Send the `ine` logger to stderr while a command runs.

    Args:
        verbosity: 0 shows progress, 1 and more also details, -1 warnings, -2 and less errors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LevelFormatter())
    levels = {1: logging.DEBUG, 0: logging.INFO, -1: logging.WARNING, -2: logging.ERROR}
    before = log.level
    log.addHandler(handler)
    log.setLevel(levels[max(-2, min(1, verbosity))])
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


@click.group(
    cls=IneGroup,
    context_settings={
        "auto_envvar_prefix": "INE",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.option("--debug", is_flag=True, help="Show the traceback of any error.")
@click.option("-v", "--verbose", count=True, help="Tell details.")
@click.option("-q", "--quiet", count=True, help="Tell only warnings (-qq: only errors).")
@click.version_option(__version__, prog_name="ine")
def cli(debug, verbose, quiet):
    """Invert a concept against an unlearned text-to-image model; use it as the negative.

    Begin with `ine demo`: it needs no download and no GPU.
    """


def quieten_libraries():
    """Hide advice of transformers and diffusers that a user of ine can do nothing about.

    They read the environment when they are imported, which has not happened yet. Values that
    the user has set stay. Progress bars appear only for what takes longer than three seconds:
    downloads do, loading the bundled model does not.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DELAY", "3")
    if not sys.warnoptions:
        libraries = r"(torch|transformers|diffusers|accelerate|huggingface_hub)\b"
        warnings.filterwarnings("ignore", module=libraries)


def main():
    """Run the command line of this process."""
    quieten_libraries()
    cli(prog_name="ine")
