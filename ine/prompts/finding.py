"""A prompt set by its name or its file."""

from pathlib import Path

from ine.prompts.mini import is_named, named_set
from ine.prompts.reading import read_prompt_set


def is_there(name_or_path):
    """Return whether this is a named set, or a file that exists."""
    return is_named(name_or_path) or Path(name_or_path).is_file()


def find_prompt_set(name_or_path, *, column=None, skip_empty=False, **filters):
    """Return the `PromptSet` of `mini:CONCEPT/SET` or of a file.

    Args:
        name_or_path: See `ine.prompts.mini` and `ine.prompts.reading.read_prompt_set`.
        column: For files, the prompt's column.
        skip_empty: For files, leave rows without a prompt out.
        **filters: See `ine.prompts.rows.choose_rows`.

    Raises:
        PromptError: There is no such set or file, or it cannot be used.
    """
    if is_named(name_or_path):
        return named_set(name_or_path, **filters)
    return read_prompt_set(name_or_path, column=column, skip_empty=skip_empty, **filters)
