"""The tokens that a search for adversarial prompts makes its phrases of.

They are whole words of letters, so that the text of a phrase has the same tokens again.

Shape letters: K tokens of a phrase, D width of a token table, W tokens to choose from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ine.errors import IneError
from ine.models.parts import DiffusionParts

WORD = re.compile(r"[a-z]{2,}")

Places = tuple[int, ...]
"""A phrase, as positions in `Words.ids`."""


@dataclass(frozen=True, eq=False)
class Words:
    """The tokens that phrases are made of."""

    tokenizer: Any
    ids: torch.Tensor
    """Ascending, (W,) int64."""

    tables: tuple[torch.Tensor, ...]
    """Vectors of those tokens, one (W, D) tensor per text encoder."""

    def text(self, places: Places) -> str:
        """Return a phrase as text; `places` are positions in `ids`."""
        return self.tokenizer.decode(self.ids[list(places)].tolist()).strip()

    def vectors(self, places: Places) -> list[torch.Tensor]:
        """Return a phrase's token vectors, one (K, D) tensor per text encoder."""
        return [table[list(places)] for table in self.tables]


def words_of(parts: DiffusionParts, without: Sequence[str] = ()) -> Words:
    """Return the `Words` of a model: tokens that are whole words of at least two letters.

    Args:
        parts: The model; several tokenizers must agree on the tokens.
        without: Texts whose words are left out, such as the concept's own names, which a list of
            forbidden words would catch.
    """
    tokenizer = parts.tokenizers[0]
    banned = {word for text in without for word in WORD.findall(text.lower())}
    vocabularies = [t.get_vocab() for t in parts.tokenizers]
    found = []
    for token, number in vocabularies[0].items():
        word = token.removesuffix("</w>")
        fits = token.endswith("</w>") and WORD.fullmatch(word) and word not in banned
        if fits and all(v.get(token) == number for v in vocabularies):
            found.append(number)
    if len(found) < 2:
        raise IneError(f"{parts.name}: its tokenizer has no whole words to search among")
    ids = torch.tensor(sorted(found))
    tables = tuple(
        encoder.get_input_embeddings().weight.detach()[ids.to(encoder.device)].float().cpu()
        for encoder in parts.text_encoders
    )
    return Words(tokenizer, ids, tables)
