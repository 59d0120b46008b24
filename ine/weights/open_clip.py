"""OpenCLIP's names for the tensors of a text encoder, from and to those of transformers.

The text encoder of SD 2.x and the second one of SDXL were trained with OpenCLIP, and single files
hold them under its names (`transformer.resblocks.0.attn.in_proj_weight`). Each name is derived
alone, so that a file with a few tensors is read as surely as a whole one.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

PLACES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
JOINED = re.compile(r"attn\.in_proj_(weight|bias)")
"""Projections to queries, keys and values in one tensor, one under the other."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
TRANSPOSED = "text_projection"
"""[width, projected] there, [projected, width] in transformers."""

UNUSED = {
    "attn_mask": "is a constant",
    "logit_scale": "is used in CLIP's training only",
}


def open_clip_places(name: str) -> tuple[str, ...]:
    """Return the places of an OpenCLIP tensor in a transformers encoder; () for other names.

    One name, without the level `text_model.`, or three if the tensor holds Q, K and V.
    """
    if name in PLACES:
        return (PLACES[name],)
    layer = LAYER.fullmatch(name)
    if not layer:
        return ()
    stem, rest = f"encoder.layers.{layer[1]}", layer[2]
    if joined := JOINED.fullmatch(rest):
        return tuple(f"{stem}.self_attn.{part}.{joined[1]}" for part in PROJECTIONS)
    part, _, leaf = rest.rpartition(".")
    return (f"{stem}.{IN_LAYER[part]}.{leaf}",) if part in IN_LAYER else ()


def from_open_clip(encoder: Any, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a state dict under the names of an encoder, and which tensors it has no place for.

    Args:
        encoder: A `CLIPTextModel` or `CLIPTextModelWithProjection`; its weights are not read.
        state: {name: tensor}; names that are not OpenCLIP's stay as they are, and so do those
            that the encoder lacks. What is cut or transposed is a view.

    Returns:
        ({name: tensor}, {name: why it is left out}).
    """
    own = _own_names(encoder)
    layers = encoder.config.num_hidden_layers
    made: dict[str, Any] = {}
    left: dict[str, str] = {}
    for name, tensor in state.items():
        if reason := _unused(name, layers, "text_projection.weight" in own):
            left[name] = reason
            continue
        places = open_clip_places(name)
        if not places or not set(places) <= own.keys() or tensor.dim() == 0:
            made[name] = tensor
            continue
        for place, value in zip(places, _cut(name, tensor, len(places)), strict=True):
            made[own[place]] = value
    return made, left


def to_open_clip(encoder: Any) -> dict[str, torch.Tensor]:
    """Return an encoder's tensors under OpenCLIP's names; the inverse of `from_open_clip`.

    Q, K and V are joined, which copies them; the rest is shared with the encoder.
    """
    own, state = _own_names(encoder), encoder.state_dict()
    layers = range(encoder.config.num_hidden_layers)
    stems = [*IN_LAYER, "attn.in_proj_"]
    names = [
        *PLACES,
        *(
            f"transformer.resblocks.{layer}.{stem}{'' if stem.endswith('_') else '.'}{leaf}"
            for layer in layers
            for stem in stems
            for leaf in ("weight", "bias")
        ),
    ]
    made = {}
    for name in names:
        places = open_clip_places(name)
        if set(places) <= own.keys():
            values = [state[own[place]] for place in places]
            whole = values[0] if len(values) == 1 else torch.cat(values)
            made[name] = whole.T if name == TRANSPOSED else whole
    return made


def _own_names(encoder: Any) -> dict[str, str]:
    """Return {name without the level `text_model.`, which only some versions have: its name}."""
    return {name.removeprefix("text_model."): name for name in encoder.state_dict()}


def _unused(name: str, layers: int, projects: bool) -> str:
    """Return why a tensor has no place in an encoder, or ""."""
    if name in UNUSED:
        return UNUSED[name]
    if projects:
        return ""
    # SD 2.x reads the states before OpenCLIP's last layer, so its configuration ends there.
    if name == TRANSPOSED:
        return "belongs to pooled states, which this model does not read"
    layer = LAYER.fullmatch(name)
    last = layer and int(layer[1]) == layers
    return "belongs to OpenCLIP's last layer, whose states this model does not read" if last else ""


def _cut(name: str, tensor: torch.Tensor, count: int) -> Collection[torch.Tensor]:
    """Return the values of a tensor's places, as views."""
    if name == TRANSPOSED:
        return (tensor.transpose(0, -1),)
    size = -(-len(tensor) // count)
    return [tensor[n * size : (n + 1) * size] for n in range(count)]
