"""Files that hold an unlearned text encoder and leave the UNet alone, as AdvUnlearn's do."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ine.weights.source import Source, folder_state, once_each

PREFIX = re.compile(r"(cond_stage_model\.transformer\.|module\.)*(text_encoder\.)?")
ALIASES = ("embedding.", "encoder.", "final_layer_norm.")
"""Second names that a wrapper module gives to parts of the encoder that it also holds whole."""


def open_encoder(source: Source) -> Source:
    """Take the entries of a source for those of a text encoder, without aliases."""
    named = {key: match.end() for key in source.entries if (match := PREFIX.match(key))}
    whole = any(key[at:].startswith("text_model.") and at for key, at in named.items())
    pairs = [
        (key[at:], source.entries[key])
        for key, at in named.items()
        if not (whole and not at and key.startswith(ALIASES))
    ]
    state = once_each(source.path, pairs)
    return replace(source, entries={}, encoders={_which(state): state}, done=True)


def open_encoder_folder(source: Source) -> Source:
    """Read a folder that `CLIPTextModel.save_pretrained` wrote."""
    return open_encoder(replace(source, folder=None, entries=folder_state(source.directory)))


def open_encoder_key(source: Source) -> Source:
    """Take the text encoder out of {"text_encoder": state dict}."""
    state = {str(k): v for k, v in source.entries["text_encoder"].items()}
    return open_encoder(replace(source, entries=state))


def _which(state: Mapping[str, Any]) -> str:
    """Return the encoder's folder; a width of 1280 is that of SDXL's second one."""
    norms = [v for k, v in state.items() if k.endswith("final_layer_norm.weight")]
    return (
        "text_encoder_2"
        if [getattr(v, "shape", ()) for v in norms] == [(1280,)]
        else "text_encoder"
    )


def as_named_by(encoder: Any, state: Mapping[str, Any], path: str | Path = "") -> dict[str, Any]:
    """Return a text encoder's state dict under the names that this transformers version uses.

    Since 5.6 CLIPTextModel has no `text_model.` level; files have it. `position_ids` are a
    constant that older versions saved, and a projection is no part of the plain encoder.
    """
    own = encoder.state_dict()
    pairs = []
    for name, tensor in state.items():
        options = (name, name.removeprefix("text_model."), f"text_model.{name}")
        known = next((option for option in options if option in own), None)
        if known or not name.endswith(("position_ids", "text_projection.weight")):
            pairs.append((known or name, tensor))
    return once_each(path, pairs)
