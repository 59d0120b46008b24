"""Load a CLIP tokenizer from the few settings that differ between models.

transformers' own loader follows everything that `tokenizer_config.json` and `tokenizer.json` name:
other files, classes, padding to any length. A CLIP tokenizer needs only the vocabulary, merges,
special tokens and the length of the context; the rest is the same in all of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ine.errors import ModelError
from ine.files import JSON_LIMIT, parse_json, read_within

MARKS = ("bos_token", "eos_token", "unk_token", "pad_token")
PROPERTIES = ("single_word", "lstrip", "rstrip", "normalized")
MOST_TOKENS = 1_000_000
UNKNOWN = "<|endoftext|>"
"""Token for unknown words if the files state none, as in transformers."""

UNSTATED_LENGTH = 1e29
"""transformers writes 10^30 for a context of unstated length."""


def load_tokenizer(folder: Path, room: int, rows: int) -> Any:
    """Return the CLIP tokenizer of a folder, checked against its text encoder.

    Args:
        folder: With `tokenizer.json`, or `vocab.json` and `merges.txt`; and
            `tokenizer_config.json`.
        room: Number of positions of the text encoder; the default length of the context.
        rows: Number of rows of its token table.

    Raises:
        ModelError: A file is missing or broken, or the tokenizer is not the text encoder's.
    """
    from transformers import CLIPTokenizer

    # transformers would look for a missing folder on the hub.
    if not folder.is_dir():
        raise ModelError(f"{folder}: is missing; get the model again")
    try:
        settings = _read(folder, "tokenizer_config.json")
        if "added_tokens_decoder" not in settings:  # the same rule as in transformers
            settings |= _read(folder, "special_tokens_map.json")
        vocab, merges, added = _vocabulary(folder, settings)
        marks = {name: _mark(settings[name]) for name in MARKS if settings.get(name) is not None}
        unknown = str(marks.get("unk_token", UNKNOWN))
        if unknown not in vocab:  # the library would fail at the first unknown word
            raise ValueError(f"its unk_token {unknown[:80]!r} is not in its vocabulary")
        length = _context(settings.get("model_max_length"), room)
        # transformers too records where a tokenizer comes from.
        known = {"name_or_path": str(folder), "model_max_length": length, **marks}
        made = CLIPTokenizer(vocab=vocab, merges=merges, **known)
        _add(made, added)
    except Exception as error:  # a bad vocabulary raises nearly anything, here or in the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); get the model again") from error
    _check_rows(folder, made, rows)
    return made


def _check_rows(folder: Path, tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer with more tokens than the text encoder's table has rows."""
    highest = max([*tokenizer.get_vocab().values(), 0])
    if highest >= rows:
        raise ModelError(
            f"{folder}: has a token of number {highest}, the table of its text encoder has {rows} "
            "rows; they belong to different models, get the model again"
        )


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of a folder, {} without the file."""
    path = folder / name
    value = parse_json(read_within(path, JSON_LIMIT)) if path.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a JSON object")
    return value


def _vocabulary(
    folder: Path, settings: Mapping[str, Any]
) -> tuple[dict[str, int], list[tuple[str, ...]], dict[str, int]]:
    """Return ({token: number}, [(first, second)] merges, {token: number} of added tokens)."""
    whole = _read(folder, "tokenizer.json")
    added = dict(_read(folder, "added_tokens.json"))
    if whole:
        model = whole.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise ValueError("tokenizer.json has no BPE model, expected that of CLIP")
        vocab, merges = model.get("vocab"), model.get("merges")
        for entry in whole.get("added_tokens") or []:
            added[entry["content"]] = entry["id"]
    else:
        vocab = _read(folder, "vocab.json")
        text = read_within(folder / "merges.txt", JSON_LIMIT).replace("\r\n", "\n")
        lines = [line for line in text.split("\n") if line.strip()]
        merges = lines[1:] if lines and lines[0].startswith("#version") else lines
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[entry["content"]] = int(number)
    if not isinstance(vocab, dict) or not vocab or not isinstance(merges, list):
        raise ValueError("it has no vocabulary, or no merges")
    numbers = [*vocab.values(), *added.values()]
    if not all(type(n) is int and 0 <= n < MOST_TOKENS for n in numbers):
        raise ValueError(f"a token's number is no whole number from 0 to {MOST_TOKENS - 1}")
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise ValueError("one of its merges is not of two tokens")
    return vocab, pairs, {token: n for token, n in added.items() if token not in vocab}


def _mark(token: Any) -> Any:
    """Return a special token; a file may give it with properties."""
    from transformers import AddedToken

    given = token if isinstance(token, dict) else {}
    text = given.get("content") if given else token
    if not isinstance(text, str) or not text:
        raise ValueError(f"{str(token)[:80]} is no token")
    stated = {name: given[name] for name in PROPERTIES if type(given.get(name)) is bool}
    return AddedToken(text, **stated, special=True) if given else text


def _context(stated: Any, room: int) -> int:
    if stated is None or (type(stated) in (int, float) and stated >= UNSTATED_LENGTH):
        return room
    if type(stated) is not int or not 3 <= stated <= room:
        raise ValueError(f"its model_max_length is {str(stated)[:80]}, the text encoder has {room}")
    return stated


def _add(tokenizer: Any, added: Mapping[str, int]) -> None:
    """Add a model's extra tokens, such as those of an embedding that was saved with it."""
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([token])
        if tokenizer.convert_tokens_to_ids(token) != number:
            raise ValueError(f"its added token {token[:80]!r} has the number {number} of another")
