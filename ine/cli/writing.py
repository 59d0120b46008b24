"""Lock what a command writes, from before its work to its end."""

from pathlib import Path

import click


def claim_folder(out: Path) -> None:
    """Lock a folder until the running command ends; see `ine.locks.sole_writer`.

    Raises:
        OutputError: Another process has locked it, or it cannot be written.
    """
    _claim(out, folder=True)


def claim_file(out: Path) -> None:
    """Lock a file, and with it the run folder beside it, until the running command ends.

    Raises:
        OutputError: As `claim_folder`.
    """
    _claim(out, folder=False)


def join_folder(folder: Path, work: str) -> tuple[str, ...]:
    """Share a folder until the running command ends; return processes that do other work there.

    Raises:
        OutputError: It cannot be written.
    """
    from ine.locks import one_of_many

    return click.get_current_context().with_resource(one_of_many(folder, work))


def _claim(out: Path, folder: bool) -> None:
    from ine.locks import sole_writer

    context = click.get_current_context()
    context.with_resource(sole_writer(out, context.command_path, folder=folder))
