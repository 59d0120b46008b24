"""Loading base models, what is wrong with them, and telling their weights apart."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ine.errors import ModelError
from ine.models.loading import load_parts
from ine.models.parts import find_model
from ine.sampling import SamplerSettings, decode_latents, sample_latents
from ine.weights.fingerprint import TOLERANCE, fingerprint, projection, same_weights, spread

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path, change):
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


# --- finding ------------------------------------------------------------------------------------


def test_a_folder_is_found_as_it_is(tiny_folder):
    assert find_model(tiny_folder) == tiny_folder
    assert find_model(str(tiny_folder)) == tiny_folder
    assert find_model("mini").name == "mini"


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ModelError) as caught:
        find_model(tmp_path)
    for part in (str(tmp_path), "is not a diffusers pipeline folder", "no model_index.json"):
        assert part in str(caught.value)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.safetensors: is empty"):
        load_parts(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "~/no-such", "minni", "a/b/c"])
def test_what_can_be_no_hub_id_is_not_looked_up(name):
    with pytest.raises(ModelError, match=r"no such folder or file; give a pipeline folder"):
        find_model(name)


@pytest.mark.parametrize("fetch", [False, True])
def test_a_hub_id_that_cannot_be_had_says_how_to_get_it(fetch):
    with pytest.raises(ModelError) as caught:
        find_model("nobody/no-such-model", fetch=fetch)
    for part in ("nobody/no-such-model: is not on this machine", "--model DIR", "--model mini"):
        assert part in str(caught.value)


# --- loading ------------------------------------------------------------------------------------


def drop(name):
    return lambda folder: shutil.rmtree(folder / name)


def cut(file):
    def damage(folder):
        path = folder / file
        path.write_bytes(path.read_bytes()[:5000])

    return damage


def lose(file, key):
    def damage(folder):
        edit_tensors(folder / file, lambda t: {k: v for k, v in t.items() if not k.endswith(key)})

    return damage


def gain(file, key):
    def damage(folder):
        edit_tensors(folder / file, lambda t: {**t, key: torch.zeros(2)})

    return damage


def write(file, text):
    return lambda folder: (folder / file).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("model_index.json", "{"), r"model_index\.json: cannot be read"),
        (write("model_index.json", "[]"), r"model_index\.json: expected a mapping, found list"),
        (drop("tokenizer"), "tokenizer: is missing"),
        (write("tokenizer/tokenizer.json", "{"), "tokenizer: cannot be loaded"),
        (drop("unet"), "unet: is missing"),
        (drop("vae"), "vae: is missing"),
        (drop("text_encoder"), "text_encoder: is missing"),
        (drop("scheduler"), r"scheduler_config\.json: cannot be read"),
        (write("unet/config.json", "{"), "unet: cannot be loaded"),
        (cut(UNET), "unet: cannot be loaded"),
        (cut(ENCODER), "text_encoder: cannot be loaded"),
        (lose(UNET, "conv_out.weight"), r"unet: lacks 1 weights .*conv_out\.weight the first"),
        (lose(ENCODER, "layers.0.layer_norm1.weight"), r"text_encoder: lacks 1 weights"),
        (lose(VAE, "decoder.conv_in.bias"), r"vae: lacks 1 weights"),
        (gain(VAE, "decoder.more"), r"vae: has 1 weights .* no place for, decoder\.more the first"),
        (gain(UNET, "more"), r"unet: has 1 weights that its configuration has no place for"),
    ],
)
def test_a_damaged_model_is_a_model_error_that_says_where(folder, damage, message):
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_parts(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["transformers", "T5EncoderModel"], "text encoder of class T5EncoderModel"),
        ([None, None], "has no CLIP text encoder"),
        (None, "has no CLIP text encoder"),
    ],
)
def test_a_pipeline_with_another_text_encoder_is_refused(folder, entry, message):
    edit_json(folder / "model_index.json", text_encoder=entry)
    with pytest.raises(ModelError, match=message):
        load_parts(folder)


def latents_of(parts):
    return sample_latents(parts, ["a dog"], [1], None, SamplerSettings(steps=2))[0]


def test_files_with_the_names_of_early_releases_load_alike(folder, tiny_parts):
    """As those of Stable Diffusion 1.4: other names of attention in the VAE and in CLIP."""
    early = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def rename(tensors):
        for new, old in early.items():
            tensors = {k.replace(new, old): v for k, v in tensors.items()}
        return tensors

    def prefix(tensors):
        named = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in tensors.items()}
        return {**named, "text_model.embeddings.position_ids": torch.arange(77)[None]}

    edit_tensors(folder / VAE, rename)
    edit_tensors(folder / ENCODER, prefix)
    assert any("proj_attn" in k for k in load_file(folder / VAE))
    parts = load_parts(folder)
    latents = latents_of(parts)
    assert torch.equal(latents, latents_of(tiny_parts))
    assert (decode_latents(parts, latents) == decode_latents(tiny_parts, latents)).all()


def test_weights_load_in_the_dtype_asked_for(tiny_folder):
    parts = load_parts(tiny_folder, dtype=torch.bfloat16)
    assert parts.dtype == torch.bfloat16
    assert {p.dtype for e in parts.text_encoders for p in e.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in parts.vae.parameters()} == {torch.bfloat16}


def test_loading_twice_samples_the_same_bits(tiny_folder, tiny_parts):
    assert torch.equal(latents_of(load_parts(tiny_folder)), latents_of(tiny_parts))


def test_parts_with_another_unet_share_the_rest(tiny_parts):
    unet = copy.deepcopy(tiny_parts.unet)
    other = tiny_parts.with_unet(unet, "esd.pt (ESD)")
    assert other.unet is unet
    assert other.unet_name == "esd.pt (ESD)"
    assert other.vae is tiny_parts.vae
    assert tiny_parts.unet is not unet
    assert tiny_parts.unet_name == "base"
    assert other.with_text_encoders([1]).text_encoders == (1,)


def test_parts_know_their_sizes(tiny_parts):
    assert tiny_parts.family == "width-32"
    assert tiny_parts.prediction_type == "epsilon"
    assert tiny_parts.device == torch.device("cpu")
    assert tiny_parts.dtype == torch.float32


# --- fingerprints -------------------------------------------------------------------------------


def changed(module, relative, seed, where=lambda name: True):
    """Return a copy with Gaussian changes of matrices, of a size relative to each one's norm."""
    module, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() >= 2 and where(name):
                change = torch.randn(weight.shape, generator=generator)
                weight += relative * weight.norm() * change / change.norm()
    return module


def test_a_fingerprint_survives_a_change_of_dtype(tiny_parts):
    for module in (tiny_parts.unet, tiny_parts.text_encoders[0]):
        mark = fingerprint(module)
        for dtype in (torch.float16, torch.bfloat16):
            rounded = copy.deepcopy(module)
            for weight in rounded.parameters():
                weight.data = weight.data.to(dtype)
            assert fingerprint(rounded) != mark
            assert same_weights(mark, fingerprint(rounded))
            assert same_weights(fingerprint(rounded), mark)


def test_rounding_moves_a_projection_by_less_than_the_tolerance():
    generator = torch.Generator().manual_seed(0)
    moves = []
    for _ in range(400):
        matrix = 0.02 * torch.randn((64, 48), generator=generator)
        moves.append(projection(matrix.bfloat16()) - projection(matrix))
    moves = torch.tensor(moves)
    # Four standard deviations of room, or models would look foreign by accident.
    assert 1e-3 < moves.std() < TOLERANCE / 4
    assert moves.abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "where",
    [
        lambda name: "attn2.to_k" in name or "attn2.to_v" in name,  # UCE
        lambda name: "attn2" in name,  # ESD-x
        lambda name: "attn2" not in name,  # ESD-u
        lambda name: True,
    ],
)
def test_a_fingerprint_sees_changes_of_the_size_of_unlearning(tiny_parts, where):
    mark = fingerprint(tiny_parts.unet)
    for relative, seed in ((0.02, 0), (0.02, 1), (0.1, 2)):
        assert not same_weights(mark, fingerprint(changed(tiny_parts.unet, relative, seed, where)))
    # Control: it is the size that tells.
    assert same_weights(mark, fingerprint(changed(tiny_parts.unet, 1e-4, 0, where)))


def test_a_fingerprint_sees_a_closed_form_eraser(tiny_parts):
    """A low-rank change, as UCE's: the value of one text state is moved to that of another."""
    unet = copy.deepcopy(tiny_parts.unet)
    generator = torch.Generator().manual_seed(3)
    one, other = torch.randn((2, 32), generator=generator)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_k" in name or "attn2.to_v" in name:
                weight += torch.outer(weight @ (other - one), one) / (10 * one.square().sum())
    assert not same_weights(fingerprint(tiny_parts.unet), fingerprint(unet))


def test_fingerprints_of_other_kinds_do_not_compare(tiny_parts):
    mark = fingerprint(tiny_parts.unet)
    assert mark.startswith("v1:")
    assert len(mark.split(",")) == 16
    assert same_weights(mark, mark)
    assert not same_weights(mark, fingerprint(tiny_parts.text_encoders[0]))
    assert not same_weights(mark, mark.rsplit(",", 1)[0])
    assert not same_weights(mark, "v2:" + mark[3:])
    assert not same_weights(mark, "")
    assert not same_weights(None, mark)


def test_a_projection_is_of_the_order_of_one_and_knows_the_order_of_entries():
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([projection(torch.randn(64, 48, generator=generator)) for _ in range(200)])
    assert 0.8 < found.std() < 1.2
    assert found.mean().abs() < 0.3
    matrix = torch.randn(64, 48, generator=generator)
    assert projection(3 * matrix) == pytest.approx(projection(matrix))
    assert projection(matrix.flip(0)) != pytest.approx(projection(matrix), abs=1e-2)
    assert projection(torch.zeros(4, 4)) == 0


def test_spread_takes_the_ends_and_no_more_than_asked():
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert spread([1, 2], 8) == [1, 2]
