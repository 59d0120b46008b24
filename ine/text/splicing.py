"""Learned vectors written over looked-up rows of a token table, and the check that they got in.

If a vector does not reach the text states, they are those of its placeholder, an ordinary token,
and pictures are generated almost undefended. So states with vectors are checked: the hook must have
run, which costs nothing, and once per embedding and encoder the states must differ from the
placeholder's.

Shape letters: B prompts, L tokens, D text width, K vectors.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ine.errors import EmbeddingError
from ine.runtime import uncompiled

_heard: weakref.WeakKeyDictionary[torch.nn.Module, weakref.WeakValueDictionary] = (
    weakref.WeakKeyDictionary()
)
"""{encoder: what was checked with it}. Saves work only: without it every check is made again."""


@dataclass
class Spliced:
    """The result of a splice."""

    values: torch.Tensor | None = None
    """The vectors as written into the table's output, (K, D); None before."""

    replaced: torch.Tensor | None = None
    """The placeholder's rows that they were written over, (K, D)."""


@contextmanager
def splice(
    text_encoder: torch.nn.Module,
    rows: Sequence[int],
    positions: Sequence[int],
    values: torch.Tensor | None,
) -> Iterator[Spliced]:
    """Replace rows of the token embeddings while the context lasts; the encoder runs within it.

    A forward hook on the token table writes `values` over the looked-up rows; nothing of the
    encoder is resized or assigned, so it is bit-identical afterwards, also after an exception.
    Gradients reach `values` only. A compiled encoder runs uncompiled meanwhile. Other threads may
    use the encoder at the same time; their prompts are left alone.

    Args:
        text_encoder: A CLIP text model.
        rows: K batch rows.
        positions: K token positions, 0 is the start-of-text token.
        values: Vectors of the table's width, (K, D).

    Raises:
        EmbeddingError: The encoder did not look anything up in its table.
    """
    spliced = Spliced()
    if values is None:
        yield spliced
        return
    table = text_encoder.get_input_embeddings()
    thread = threading.get_ident()

    def write(
        _module: torch.nn.Module, _inputs: tuple, looked_up: torch.Tensor
    ) -> torch.Tensor | None:
        if threading.get_ident() != thread:
            return None  # somebody else's prompt, by an encoder that two threads share
        device = looked_up.device
        index = (torch.tensor(rows, device=device), torch.tensor(positions, device=device))
        spliced.values = values.to(device, looked_up.dtype)
        spliced.replaced = looked_up[index].detach()
        return looked_up.index_put(index, spliced.values)

    with uncompiled():
        handle = table.register_forward_hook(write)
        try:
            yield spliced
        finally:
            handle.remove()
    if spliced.values is None:
        raise _unheard(text_encoder, "it does not call its token table")


def check_heard(
    encoder: torch.nn.Module,
    vectors: Sequence[torch.Tensor],
    spliced: Spliced,
    states: torch.Tensor,
    read: Callable[[], tuple[torch.Tensor, object]],
) -> None:
    """Raise where text states are the same with an embedding as with its placeholder.

    Checked once for each tensor and encoder. Of vectors that are being learned the values move,
    and one check stands for all of them.

    Args:
        encoder: The text encoder.
        vectors: The embeddings' vectors, one (N, D) tensor each.
        spliced: The result of the splice.
        states: The text states with the vectors, (B, L, D).
        read: Returns (text states, pooled states) of the same tokens without a splice.

    Raises:
        EmbeddingError: They are the same, though the vectors are not the placeholder's.
    """
    if spliced.values is None:
        return
    known = _heard.setdefault(encoder, weakref.WeakValueDictionary())
    found: dict[int | str, object] = {id(v): v for v in vectors if not v.requires_grad}
    if len(found) < len(vectors):
        found["learned"] = encoder
    if all(known.get(key) is value for key, value in found.items()):
        return
    if torch.equal(spliced.values.detach(), spliced.replaced):
        return  # an embedding may begin as the very word that holds its place
    with torch.no_grad(), uncompiled():
        placeholder = read()[0].float()
    change = (states.detach().float() - placeholder).abs().max()
    if change <= 1e-6 * placeholder.abs().max():
        raise _unheard(encoder, "its states are those of the placeholder token")
    known.update(found)


def _unheard(encoder: torch.nn.Module, how: str) -> EmbeddingError:
    return EmbeddingError(
        f"the text encoder ({type(encoder).__name__}) ignores the embedding's vectors: {how}; a "
        "pipeline would be undefended. If something compiled, traced, cached or replaced the "
        "encoder, load the pipeline again without that"
    )
