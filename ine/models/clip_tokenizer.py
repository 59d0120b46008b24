"""CLIP's own tokenizer, made from its byte pair merges, which ship with the package.

SD 1.x, SD 2.x and both encoders of SDXL use it; they differ in the padding token.
"""

import lzma
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CLIP_MERGES = Path(__file__).parent / "clip_merges.txt.xz"
"""The merges of CLIP (Radford et al., 2021), the most common pair first, one pair to a line."""

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77
"""Tokens of a text, start and end included."""


@cache
def clip_merges() -> tuple[tuple[str, ...], ...]:
    """Return CLIP's 48,894 merges as pairs of symbols, in order."""
    text = lzma.decompress(CLIP_MERGES.read_bytes()).decode()
    return tuple(tuple(line.split(" ")) for line in text.split("\n"))


def byte_symbols() -> list[str]:
    """Return the printable character for each byte, in the order of CLIP's ids.

    Bytes that are printable in Latin-1 come first and stand for themselves; the others follow as
    the characters from 256 on (Radford et al., 2019, in the tokenizer of GPT-2).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, plain), *(chr(256 + n) for n in range(256 - len(plain)))]


def clip_vocabulary() -> list[str]:
    """Return CLIP's 49,408 tokens in the order of their ids."""
    symbols = byte_symbols()
    joined = ["".join(pair) for pair in clip_merges()]
    return [*symbols, *(f"{symbol}</w>" for symbol in symbols), *joined, START, END]


def clip_tokenizer(pad_token: str = END) -> "CLIPTokenizer":
    """Return CLIP's `CLIPTokenizer`.

    Args:
        pad_token: Padding of a text: "<|endoftext|>" for OpenAI's encoder, "!" for OpenCLIP's.
            As with the published tokenizers, transformers then reads a "!" in a prompt as that
            token, 0; CLIP's own tokenizer has 256.
    """
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(clip_vocabulary())},
        merges=list(clip_merges()),
        model_max_length=CONTEXT,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
    )
