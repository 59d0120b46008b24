"""Advice in messages, fitted to the command that shows them.

The library's messages name options that most commands have. For a command that lacks one, the
tables here name what it has instead, such as the keys of a grid. An option that no table knows is
marked as missing from the command.
"""

import re
from collections.abc import Callable, Iterator

import click

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")
QUOTED = re.compile(r"\bine ([a-z]+)(?: ([a-z]+))?")
FOREIGN = re.compile(r"`(?!ine )[^`]*`")
"""Commands of other programs."""

ANYWHERE = (
    (
        "--force",
        "give --force to replace it, or another --out",
        "delete it, or choose another --out",
    ),
    ("--force", "delete it or give --force", "delete it"),
    ("--force", "give --force to start over", "delete it to start over"),
    ("--force", ", or give --force to go on with this one (pictures that both need are kept)", ""),
    ("--force", ", or give --force to put this one's results there (pictures are kept)", ""),
    ("--store", ", or a --store on a file system", " on a file system"),
    ("--store", "another --out or --store", "another --out"),
    ("--out", "free space or choose another --out", "free space"),
    ("--unet", "go to --unet", "go to `ine generate --unet`"),
    ("--unet", "or apply it with --unet", "or give it to `ine generate --unet`"),
    ("--unet", "give each a weight: --unet ", "give each a weight: "),
    ("--unet", "as a weight: --unet FILE", "as a weight: FILE"),
    ("--unet", ":0.5 --unet ", ":0.5 and "),
    (
        "--negative-embedding",
        "pass it with --negative-embedding",
        "`ine generate --negative-embedding FILE` takes it",
    ),
    (
        "--negative-strength",
        "(--guidance additive --negative-strength 1)",
        "(`ine generate --guidance additive --negative-strength 1`)",
    ),
    ("--negative-strength", "is not set; give --negative-strength", "is not set"),
    ("--model", ", so --model does not help", ""),
    ("--batch", ", or a smaller --batch", ""),
    ("--nudenet-weights", " or give --nudenet-weights", ""),
    ("--set", ", elsewhere with --set pictures.rule=RULE", ""),
)
"""(option, phrase with it, what a command without the option says instead), in order."""

IN_GRIDS = (
    ("--column (in a grid or in Python: column)", "column"),
    ("--skip-empty (in a grid or in Python: skip_empty)", "skip_empty: true"),
    ("use --model mini", "base: mini"),
    ("with --model DIR|FILE", "as base: DIR|FILE"),
    ("with --model", "as base of the grid's model"),
    ("--model", "another base for the grid's model,"),
    ("give --negative-strength", "give the guidance strengths"),
    ("a smaller --batch", "a smaller batch of the sampler"),
    (
        "give one with --gate FILE (in Python gate=...), or --no-gate to steer every picture (in "
        "Python gate=None)",
        "name a gate and a method in the guidance",
    ),
    ("give one of them, or --no-gate (in Python gate=None)", "give one of them"),
    ("leave it or --no-gate out", "leave restart out"),
    ("leave --no-look-ahead out", "leave look_ahead: false out"),
    (", or leave --gate out", ""),
)
IN_OUTPUT_OF_REPORT = (
    ("choose another --out or free space", "free space, or work on a copy of the run"),
)
INSTEAD = {
    "evaluate": IN_GRIDS,
    "defend": (
        ("with --examples", "with --set defence.examples=N"),
        ("too with --base-examples", "with --set defence.learn_from=pictures"),
    ),
    "compare": (("give --negative-strength", "give --strengths"),),
    "report show": IN_OUTPUT_OF_REPORT,
    "report diff": IN_OUTPUT_OF_REPORT,
    "posi train": (
        ("with --model DIR|FILE", "as model of the recipe's generator"),
        ("use --model mini", "take model mini there"),
        ("load the model with --dtype float32", "take a base whose weights are float32"),
    ),
    "posi rewrite": (
        ("give --prompt TEXT or --prompts FILE", "give TEXT or --prompts FILE"),
        ("given with --prompt are empty", "given are empty"),
        (", or --prompt '' for an unconditional picture", ""),
    ),
    "observe": (("choose another --out or free space", "free space, or choose another --cache"),),
    "recipe copy": (("another --out", "another DEST"),),
}
"""{command: (phrase with an option that it lacks, what it has instead), in order}."""


def leaf(name: str, command: click.Command, args: list[str]) -> tuple[str, click.Command]:
    """Return (full name, command) that a command and the words after it name."""
    words = [name]
    for word in args:
        if not isinstance(command, click.Group):
            break
        # A group may have a default command, which takes words that name none.
        word = word if word in command.commands else getattr(command, "default", "")
        if word not in command.commands:
            break
        words.append(word)
        command = command.commands[word]
    return " ".join(words), command


def options_of(command: click.Command) -> set[str]:
    """Return the options of a command; of a group, those of all its commands."""
    own = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    if isinstance(command, click.Group):
        own = own.union(*(options_of(one) for one in command.commands.values()))
    return own | {"--help", "--debug", "--verbose", "--quiet", "--version"}


def fitted(text: str, name: str, command: click.Command, find: Callable) -> str:
    """Return a message in which advice names only what a command has.

    Args:
        text: The message.
        name: The command's name in full, such as "report show".
        command: The command.
        find: Returns the `click.Command` of two words of a line "ine WORD WORD", or None.
    """
    if "--" not in text:
        return text
    have = options_of(command)
    for phrase, instead in INSTEAD.get(name, ()):
        text = text.replace(phrase, instead)
    for option, phrase, instead in ANYWHERE:
        if option not in have:
            text = text.replace(phrase, instead)
    left = list(dict.fromkeys(o for o in advised(text, find) if o not in have))
    return f"{text} (`ine {name}` has no {', '.join(left)})" if left else text


def advised(text: str, find: Callable) -> Iterator[str]:
    """Yield the options that a message advises for the running command.

    Left out are options of other commands that it quotes ("ine generate --unet FILE"), of other
    programs, and the option that the message starts with, which the user gave.
    """
    own = FOREIGN.sub(" ", text)
    quoted = [command for words in QUOTED.findall(own) if (command := find(*words))]
    of_others = set().union(*map(options_of, quoted))
    first = OPTION.match(own.removeprefix("Error: ").lstrip())
    for found in OPTION.finditer(own):
        if found[0] not in of_others and not (first and found[0] == first[0]):
            yield found[0]
