"""OpenCLIP's names of a text encoder's tensors, both ways, against diffusers and in closed form."""

import re

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ine.models.variants import VARIANTS
from ine.weights.encoders import as_named_by
from ine.weights.open_clip import from_open_clip, open_clip_places, to_open_clip

KINDS = [CLIPTextModel, CLIPTextModelWithProjection]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "projection_dim": 20,
    "hidden_act": "gelu",
    "bos_token_id": 62,
    "eos_token_id": 63,
    "pad_token_id": 0,
}


def random_encoder(kind, **changes):
    """An encoder in which every tensor, biases and norms too, is its own noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = kind(CLIPTextConfig(**{**SIZES, **changes})).eval()
        for parameter in encoder.parameters():
            parameter.data = 0.3 * torch.randn_like(parameter)
    return encoder.requires_grad_(False)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    encoder = random_encoder(kind)
    file = to_open_clip(encoder)
    assert ("text_projection" in file) == (kind is CLIPTextModelWithProjection)
    assert len(file) == 2 * 12 + 4 + ("text_projection" in file)
    made, left = from_open_clip(encoder, file)
    assert not left
    assert equal(made, encoder.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_converter_of_diffusers_agrees(kind):
    encoder = random_encoder(kind)
    file = {f"x.{name}": tensor for name, tensor in to_open_clip(encoder).items()}
    theirs = as_named_by(encoder, convert_open_clip_checkpoint(encoder, file, "x."))
    assert equal(theirs, encoder.state_dict())


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_the_converter_agrees_on_the_names_at_true_size(name):
    settings = next(row for row in VARIANTS if row.name == name).settings()
    settings = settings.get("text_encoder_2", settings["text_encoder"])
    kind = CLIPTextModelWithProjection if name == "sdxl" else CLIPTextModel
    with torch.device("meta"):
        encoder = kind(CLIPTextConfig.from_dict(settings))
    prefix = "conditioner.embedders.1.model." if name == "sdxl" else "cond_stage_model.model."
    file = to_open_clip(encoder)
    if name == "sd2":
        # What is in the published file and not in the configuration.
        last = {n.replace(".22.", ".23."): t for n, t in file.items() if ".resblocks.22." in n}
        file |= last | {"text_projection": torch.empty(1024, 1024, device="meta")}
    file["logit_scale"] = torch.empty((), device="meta")
    made, left = from_open_clip(encoder, file)
    converted = convert_open_clip_checkpoint(
        encoder, {prefix + n: t for n, t in file.items()}, prefix
    )
    theirs = as_named_by(encoder, converted)
    theirs = {n: t for n, t in theirs.items() if n in encoder.state_dict()}
    shapes = {n: t.shape for n, t in made.items()}
    assert shapes == {n: t.shape for n, t in theirs.items()}
    assert shapes == {n: t.shape for n, t in encoder.state_dict().items()}
    assert len(left) == (14 if name == "sd2" else 1)


def forward(file, ids, heads, act):
    """OpenCLIP's text transformer in torch's own layers: (last states, pooled, earlier states)."""
    states = file["token_embedding.weight"][ids] + file["positional_embedding"][: ids.shape[1]]
    length, width = states.shape[1:]
    mask = torch.full((length, length), -torch.inf).triu(1)
    every = []
    layer = 0
    while (stem := f"transformer.resblocks.{layer}.") + "ln_1.weight" in file:
        own = {n.removeprefix(stem): t for n, t in file.items() if n.startswith(stem)}

        def norm(x, which, own=own):
            return torch.layer_norm(x, (width,), own[f"{which}.weight"], own[f"{which}.bias"])

        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        attention.load_state_dict({n[5:]: t for n, t in own.items() if n.startswith("attn.")})
        x = norm(states, "ln_1")
        states = states + attention(x, x, x, need_weights=False, attn_mask=mask)[0]
        x = norm(states, "ln_2") @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"]
        states = states + act(x) @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
        every.append(states)
        layer += 1
    last = torch.layer_norm(states, (width,), file["ln_final.weight"], file["ln_final.bias"])
    pooled = last[torch.arange(len(ids)), ids.argmax(-1)]
    if "text_projection" in file:
        pooled = pooled @ file["text_projection"]
    return last, pooled, every


@torch.no_grad()
def test_a_plain_transformer_with_these_tensors_computes_the_same():
    encoder = random_encoder(CLIPTextModelWithProjection)
    ids = torch.tensor([[62, 5, 9, 63, 0, 0], [62, 11, 3, 4, 7, 63]])
    ours = encoder(ids, output_hidden_states=True)
    last, pooled, every = forward(to_open_clip(encoder), ids, 4, torch.nn.functional.gelu)
    torch.testing.assert_close(ours.last_hidden_state, last, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.text_embeds, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.hidden_states[-2], every[-2], rtol=1e-4, atol=1e-5)
    # Control: the order of queries, keys and values matters.
    file = to_open_clip(encoder)
    name = "transformer.resblocks.0.attn.in_proj_weight"
    file[name] = torch.cat(file[name].chunk(3)[::-1])
    assert not torch.allclose(forward(file, ids, 4, torch.nn.functional.gelu)[0], last, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("token_embedding.weight", ["embeddings.token_embedding.weight"]),
        ("positional_embedding", ["embeddings.position_embedding.weight"]),
        ("ln_final.bias", ["final_layer_norm.bias"]),
        ("text_projection", ["text_projection.weight"]),
        ("transformer.resblocks.7.ln_1.weight", ["encoder.layers.7.layer_norm1.weight"]),
        ("transformer.resblocks.7.mlp.c_proj.bias", ["encoder.layers.7.mlp.fc2.bias"]),
        (
            "transformer.resblocks.31.attn.in_proj_bias",
            [f"encoder.layers.31.self_attn.{p}_proj.bias" for p in "qkv"],
        ),
        (
            "transformer.resblocks.0.attn.out_proj.weight",
            ["encoder.layers.0.self_attn.out_proj.weight"],
        ),
        ("transformer.resblocks.0.attn.in_proj", []),
        ("transformer.resblocks.x.ln_1.weight", []),
        ("text_model.encoder.layers.0.layer_norm1.weight", []),
        ("text_projection.weight", []),
    ],
)
def test_well_known_names(name, places):
    assert list(open_clip_places(name)) == places


@pytest.mark.parametrize("kind", KINDS)
def test_each_tensor_alone(kind):
    encoder = random_encoder(kind)
    state = encoder.state_dict()
    for name, tensor in to_open_clip(encoder).items():
        made, left = from_open_clip(encoder, {name: tensor})
        assert len(made) == (3 if "in_proj" in name else 1)
        assert not left
        assert all(torch.equal(made[n], state[n]) for n in made)


def test_what_is_left_out_has_a_reason():
    encoder = random_encoder(CLIPTextModel)
    file = to_open_clip(encoder)
    more = {
        "attn_mask": torch.zeros(12, 12),
        "logit_scale": torch.zeros(()),
        "text_projection": torch.zeros(24, 20),
        "transformer.resblocks.2.ln_1.weight": torch.zeros(24),
        "transformer.resblocks.2.attn.in_proj_weight": torch.zeros(72, 24),
    }
    made, left = from_open_clip(encoder, file | more)
    assert equal(made, encoder.state_dict())
    assert left.keys() == more.keys()
    assert all(re.match(r"(is|belongs) ", why) for why in left.values())
    # One layer more than the last is no file of this model, nor is the last of a pooled one.
    alien = {"transformer.resblocks.3.ln_1.weight": torch.zeros(24)}
    assert from_open_clip(encoder, alien)[0] == alien
    pooled = random_encoder(CLIPTextModelWithProjection)
    known = {"transformer.resblocks.2.ln_1.weight": torch.zeros(24)}
    assert from_open_clip(pooled, known) == (known, {})


@pytest.mark.parametrize("shape", [(), (7,), (2, 2)])
def test_odd_shapes_are_for_the_check_of_shapes_to_refuse(shape):
    encoder = random_encoder(CLIPTextModelWithProjection)
    for name in ("transformer.resblocks.0.attn.in_proj_bias", "text_projection"):
        made, _ = from_open_clip(encoder, {name: torch.zeros(shape)})
        own = encoder.state_dict()
        assert any(n not in own or own[n].shape != t.shape for n, t in made.items())
