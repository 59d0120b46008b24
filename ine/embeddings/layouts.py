"""Recognise which tensors of a container are the embedding: one function per layout.

A new layout is one function and one entry of LAYOUTS. The functions see only keys and shapes;
tensors are read afterwards.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.embeddings.content import Content
from ine.errors import EmbeddingError

Shape = tuple[int, ...]

log = logging.getLogger("ine")

MAX_VECTORS = 75
"""Tokens of a CLIP context without its start and end; more do not fit into a prompt."""

PAIR = ("clip_l", "clip_g")
"""Keys of an SDXL embedding, in the order of its text encoders."""

PAIRS = (PAIR, ("text_encoders_0", "text_encoders_1"))
"""All pairs; the second is that of cog's trainer, and of pivotal tuning before `clip_l`."""

NAMELESS = (
    *("emb_params", "emp_params", "clip_l", "text_encoders_0", "clip_h", "*"),
    "string_to_param.*",
)
"""Common keys that are not the embedding's name; `emp_params` is OneTrainer's spelling."""

SECONDS = {second for _, second in PAIRS}
"""Keys that a whole embedding has only in a pair."""

DOTTED = "string_to_param."
BUNDLE = re.compile(r"bundle_emb\.([^.]+)\.(.+)")
"""Key of an embedding that is bundled in a LoRA's file."""

OTHER_KINDS = {
    "a LoRA": r"(^|\.)lora_(up|down|A|B)\b|^lora_(unet|te\d?)_|lora\.(up|down)\.|hada_w|lokr_w",
    "the weights of a U-Net or of a whole model": (
        r"^model\.diffusion_model\.|^(unet\.)?(down_blocks|up_blocks|mid_block)\."
        r"|^(input|middle|output)_blocks?\.|attn2\.to_"
    ),
    "the weights of a VAE": (
        r"^(first_stage_model|(encoder|decoder)\.(conv_in|mid_block|mid))\.|quant_conv\."
    ),
    "the weights of a text encoder": r"text_model\.|text_projection",
}
"""Another kind of file -> a pattern of its tensor names, the most specific first."""


@dataclass(frozen=True)
class Choice:
    """The tensors that are the embedding."""

    keys: tuple[str, ...]
    """One per text encoder."""

    name: str | None = None
    """The embedding's name, if its key is one."""

    copies: tuple[str, ...] = ()
    """Keys that must hold the same numbers as the first; otherwise there are two embeddings."""

    left_out: tuple[str, ...] = ()
    """Tensors beside the embedding that are not read."""


def sdxl_pair(able: Mapping[str, Shape]) -> Choice | None:
    """Recognise one of PAIRS, beside any other keys (`t5xxl`, `clip_l_out`)."""
    pair = next((pair for pair in PAIRS if set(pair) <= able.keys()), None)
    if pair is None:
        return None
    copies = [k for k in NAMELESS if k in able and k != pair[0]]
    return Choice(pair, copies=tuple(copies), left_out=_others(able, [*pair, *copies]))


def well_known_key(able: Mapping[str, Shape]) -> Choice | None:
    """Recognise one of NAMELESS, or several with equal numbers, which A1111 refuses."""
    known = [k for k in NAMELESS if k in able]
    if not known or SECONDS & able.keys():
        return None
    return Choice((known[0],), copies=tuple(known[1:]), left_out=_others(able, known))


def one_tensor(able: Mapping[str, Shape]) -> Choice | None:
    """Recognise a single tensor under any key: diffusers' `{token: tensor}`, A1111's terms."""
    if len(able) != 1 or SECONDS & able.keys():
        return None
    (key,) = able
    return Choice((key,), name=key.removeprefix(DOTTED) or None)


LAYOUTS: tuple[Callable[[Mapping[str, Shape]], Choice | None], ...] = (
    sdxl_pair,
    well_known_key,
    one_tensor,
)


def _others(able: Mapping[str, Shape], keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(k for k in able if k not in keys)


def choose(path: Path, content: Content) -> Choice:
    """Return the `Choice` for a `Content`.

    Args:
        path: For messages.
        content: What `open_container` returned.

    Raises:
        EmbeddingError: There is no embedding, more than one, or half of one.
    """
    shapes, prefix, name = _unbundled(path, content.shapes)
    _refuse_other_kinds(path, shapes)
    able = {k: s for k, s in shapes.items() if s is not None and len(s) in (1, 2)}
    choice = next(filter(None, (layout(able) for layout in LAYOUTS)), None)
    if choice is None:
        raise _no_embedding(path, shapes, able)
    choice = Choice(
        keys=tuple(prefix + k for k in choice.keys),
        name=name or choice.name,
        copies=tuple(prefix + k for k in choice.copies),
        left_out=tuple(prefix + k for k in choice.left_out),
    )
    for key in (*choice.keys, *choice.copies):
        check_shape(path, content.shapes[key] or ())
    for key in choice.copies:
        if not _equal(content, choice.keys[0], key):
            raise EmbeddingError(
                f"{path}: has {_listed(shapes)}, which are not the same; expected one embedding; "
                "save the one you want to a separate file"
            )
    if choice.left_out:
        log.warning("%s: %s beside the embedding is not read", path, ", ".join(choice.left_out[:5]))
    return choice


def check_shape(where: str | Path, shape: Shape) -> None:
    """Raise `EmbeddingError` unless a shape is (N, D) or (D,) with 1 to 75 vectors."""
    if len(shape) not in (1, 2) or shape[-1] == 0 or not 1 <= (1, *shape)[-2] <= MAX_VECTORS:
        raise EmbeddingError(
            f"{where}: has shape {list(shape)}, expected [vectors, width] with 1 to "
            f"{MAX_VECTORS} vectors; is it an embedding?"
        )


def _equal(content: Content, one: str, other: str) -> bool:
    if content.shapes[one] != content.shapes[other]:
        return False
    return np.array_equal(content.get(one), content.get(other))


def _unbundled(
    path: Path, shapes: Mapping[str, Shape | None]
) -> tuple[Mapping[str, Shape | None], str, str | None]:
    """Return (shapes, prefix of their keys, name) of the embedding, which a LoRA may bundle."""
    bundled = {m[1] for m in map(BUNDLE.fullmatch, shapes) if m}
    if not bundled:
        return shapes, "", None
    if len(bundled) > 1:
        raise EmbeddingError(
            f"{path}: is a LoRA that bundles {len(bundled)} embeddings ({', '.join(sorted(bundled))}); "  # noqa: E501
            "expected one; save the one you want to a separate file"
        )
    (name,) = bundled
    prefix = f"bundle_emb.{name}."
    log.info("%s: only the bundled embedding %r is read", path, name)
    inside = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
    return inside, prefix, name


def _refuse_other_kinds(path: Path, shapes: Iterable[str]) -> None:
    for kind, pattern in OTHER_KINDS.items():
        if any(re.search(pattern, key) for key in shapes):
            raise EmbeddingError(
                f"{path}: holds {kind}, not an embedding; weights that change a model go to "
                "--unet, here give the embedding's own file"
            )


def _listed(shapes: Mapping[str, Shape | None]) -> str:
    listed = [
        f"{k} {list(s) if s is not None else 'of whole or quantised numbers'}"
        for k, s in shapes.items()
    ]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _no_embedding(
    path: Path, shapes: Mapping[str, Shape | None], able: Mapping[str, Shape]
) -> EmbeddingError:
    if not able:
        return EmbeddingError(
            f"{path}: holds no embedding, found {_listed(shapes) or 'no tensors'}; expected one "
            "tensor [vectors, width], or clip_l with clip_g"
        )
    for first, second in PAIRS:
        if second in able:
            return EmbeddingError(
                f"{path}: has {second} alone, half of an SDXL embedding; expected {first} with it"
            )
    return EmbeddingError(
        f"{path}: has {len(able)} tensors that could be the embedding, found {_listed(shapes)}; "
        "expected one, or clip_l with clip_g; save the one you want to a separate file"
    )
