"""Names of options from the last release: read with a notice, or refused with the reason."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import click

log = logging.getLogger("ine")

GUIDED = ("generate", "attack", "audit")


@dataclass(frozen=True, kw_only=True)
class OldOption:
    """An option, or some values of one, that earlier releases had."""

    option: str
    commands: tuple[str, ...]
    new_name: str = ""
    """The option that replaced it."""

    ignored: tuple[str, ...] = ()
    """Values that ask for what happens anyway."""

    removed: tuple[str, ...] | None = None
    """Values that were removed; None if the option itself was."""

    reason: str = ""


OLD_OPTIONS = (
    OldOption(option="--rewind", commands=GUIDED, new_name="--restart"),
    OldOption(
        option="--gate",
        commands=("calibrate",),
        ignored=("recognition",),
        reason="the presence and posterior gates were removed; the probe gate, which is the only "
        "one now, separated the concept better in every measurement (docs/lab-log.md)",
    ),
    OldOption(
        option="--measure",
        commands=("calibrate",),
        reason="it was an option of the presence gate, which was removed because the probe gate "
        "separated the concept better in every measurement (docs/lab-log.md)",
    ),
    OldOption(
        option="--several",
        commands=(*GUIDED, "evaluate", "calibrate", "compare"),
        ignored=("join",),
        reason="choosing one of several embeddings for each picture was removed, because one "
        "embedding of more vectors was better in every measurement (docs/lab-log.md); several "
        "embeddings are always joined",
    ),
    OldOption(
        option="--clusters",
        commands=("invert",),
        reason="an embedding for each cluster of pictures was removed, because one embedding of "
        "more vectors was better in every measurement (docs/lab-log.md); use "
        "--set inversion.vectors=16",
    ),
    OldOption(
        option="--guidance",
        commands=(*GUIDED, "compare"),
        removed=("dynamic",),
        reason="dynamic guidance was removed, because no measurement showed an advantage "
        "(docs/lab-log.md); --gate FILE with --restart applies a negative only where needed",
    ),
)
"""What one release reads with a notice or refuses by name; the next one deletes this table."""


def current_arguments(args: list[str], command: str) -> list[str]:
    """Return a command's arguments with old names replaced, a notice logged for each.

    Raises:
        click.UsageError: An option or a value was removed.
    """
    known = {old.option: old for old in OLD_OPTIONS if command in old.commands}
    return list(_replaced(args, known)) if known else args


def _replaced(args: list[str], known: dict[str, OldOption]) -> Iterator[str]:
    """Yield the arguments as this release names them."""
    rest = iter(args)
    for arg in rest:
        option, equals, value = arg.partition("=")
        old = known.get(option)
        if arg == "--":  # what follows are no options
            yield from (arg, *rest)
        elif old is None:
            yield arg
        elif old.new_name:
            log.warning(
                "%s is now %s; the old name works in this release only", option, old.new_name
            )
            yield old.new_name + equals + value
        elif equals:
            yield from _kept(old, value, [arg])
        else:
            value = next(rest, "")
            yield from _kept(old, value, [arg, value])


def _kept(old: OldOption, value: str, given: list[str]) -> list[str]:
    """Return the arguments to keep of an option that was removed, or some values of which were."""
    if value in old.ignored:
        log.warning("%s %s: this is always so now, leave the option out", old.option, value)
        return []
    if old.removed is not None and value not in old.removed:
        return given
    raise click.UsageError(f"{' '.join([old.option, value]).strip()}: {old.reason}")
