"""Errors that a user can fix, each kind with its own exit code.

    IneError 1
    +- RecipeError 3       a recipe or an override is wrong
    +- ModelError 4        a base model is missing or unusable
    +- CheckpointError 5   unlearned weights cannot be recognised or do not fit
    +- EmbeddingError 6    an embedding file cannot be read or does not fit
    +- PicturesError 7     concept pictures are missing or broken
    +- PromptError 8       prompts are missing, empty or too long for an embedding
    +- OutputError 9       an output exists, cannot be written, or the disk is full
    +- MissingDependency 10
    +- ObserverError 12    an observer cannot be reached, or gave no answer

A verdict is not an error, but scripts need it: `ine embedding verify` ends with 11 for an embedding
that fits and has no effect.

Usage errors are click's (2); Ctrl-C is 130; anything else is a bug (70, with `--debug` also
the traceback).
A message says where, what was found and expected, and what to do.
"""

import os
from collections import abc

LIFELESS = 11
"""Exit code of `ine embedding verify` for an embedding that fits and has no effect."""


class IneError(Exception):
    """Base of all errors that a user can fix."""

    exit_code = 1


class RecipeError(IneError):
    """A recipe, or an override of one, is wrong."""

    exit_code = 3


class ModelError(IneError):
    """A base model is missing or unusable."""

    exit_code = 4


class CheckpointError(IneError):
    """Unlearned weights cannot be recognised or do not fit the base."""

    exit_code = 5


class EmbeddingError(IneError):
    """An embedding file cannot be read or does not fit the model."""

    exit_code = 6


class PicturesError(IneError):
    """Concept pictures are missing or broken."""

    exit_code = 7


class PromptError(IneError):
    """Prompts are missing, empty, or too long for an embedding's vectors."""

    exit_code = 8


class OutputError(IneError):
    """An output exists, cannot be written, or the disk is full."""

    exit_code = 9


class MissingDependency(IneError):
    """An optional package is needed and not installed."""

    exit_code = 10


class ObserverError(IneError):
    """An observer cannot be used or reached, or gave no answer where one is needed."""

    exit_code = 12


def did_you_mean(word: str | int | os.PathLike[str], options: abc.Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest option, or an empty string."""
    from difflib import get_close_matches

    near = get_close_matches(str(word), [str(o) for o in options], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
