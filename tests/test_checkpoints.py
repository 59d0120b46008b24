import copy
import json
import logging
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from unet_states import STRICT, nested, only, strict

from ine.errors import CheckpointError
from ine.weights.apply import apply_weights
from ine.weights.files import write_unet_weights
from ine.weights.fit import same_values
from ine.weights.read import read_weights, weights_metadata
from ine.weights.unlearned import AppliedWeights


@pytest.fixture
def state(tiny_parts):
    """The base's UNet with noise on every tensor: what a full fine-tuning leaves."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tiny_parts.unet.state_dict().items()
    }


def predict(parts):
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, *parts.latent_shape, generator=generator)
    states = torch.randn(1, 7, parts.width, generator=generator)
    with torch.no_grad():
        return parts.unet(latents, torch.tensor([500]), states).sample


def refusal(parts, path, *words):
    """The message of a refusal; it starts with the path and holds all words."""
    with pytest.raises(CheckpointError) as caught:
        apply_weights(parts, path)
    text = str(caught.value)
    assert text.startswith(str(path))
    for word in words:
        assert word in text, text
    return text


# Layouts that are applied.


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_a_full_state_dict_replaces_everything(tiny_parts, state, tmp_path, ending):
    path = tmp_path / f"full{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    parts, weights = apply_weights(tiny_parts, path)
    assert weights.layout == "full diffusers UNet"
    assert weights.method == "full fine-tuning"
    assert weights.replaced == weights.changed == weights.total == len(state)
    applied = parts.unet.state_dict()
    assert all(torch.equal(applied[name], state[name]) for name in state)


def test_applying_changes_the_prediction_and_not_the_base(tiny_parts, state, tmp_path):
    save_file(strict(state), tmp_path / "part.safetensors")
    before = predict(tiny_parts)
    parts, _ = apply_weights(tiny_parts, tmp_path / "part.safetensors")
    assert not torch.allclose(predict(parts), before, atol=1e-4)
    assert torch.equal(predict(tiny_parts), before)
    assert parts.unet is not tiny_parts.unet
    assert not parts.unet.training
    assert not any(p.requires_grad for p in parts.unet.parameters())
    assert parts.unet_name == "part.safetensors (UCE, RECE or Concept Ablation)"
    assert parts.text_encoders == tiny_parts.text_encoders


@pytest.mark.parametrize("seed", range(4))
def test_a_partial_file_leaves_all_other_tensors_bit_equal(tiny_parts, state, tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(state), generator=generator) < 0.3
    part = {name: state[name] for name, kept in zip(state, keep, strict=True) if kept}
    save_file(part, tmp_path / "part.safetensors")
    base = {name: t.clone() for name, t in tiny_parts.unet.state_dict().items()}
    parts, weights = apply_weights(tiny_parts, tmp_path / "part.safetensors")
    for name, tensor in parts.unet.state_dict().items():
        assert torch.equal(tensor, part.get(name, base[name]))
        assert torch.equal(tiny_parts.unet.state_dict()[name], base[name])
    assert weights.layout == "partial diffusers UNet"
    assert (weights.replaced, weights.changed) == (len(part), len(part))


def is_linear_or_conv(name):
    return "norm" not in name


@pytest.mark.parametrize(
    ("test", "dtype", "method"),
    [
        (lambda n: ".attn2." in n, torch.bfloat16, "ESD-x"),
        (lambda n: n.endswith(STRICT), torch.bfloat16, "ESD-x-strict"),
        (lambda n: n.endswith(STRICT), torch.float32, "UCE, RECE or Concept Ablation"),
        (lambda n: is_linear_or_conv(n) and "attn2" not in n, torch.bfloat16, "ESD-u"),
        (is_linear_or_conv, torch.bfloat16, "ESD-all"),
        (lambda n: ".attn1." in n, torch.float32, "merged DUO or ESD on self-attention"),
    ],
)
def test_the_likely_method_of_a_partial_file(tiny_parts, state, tmp_path, test, dtype, method):
    part = {name: tensor.to(dtype) for name, tensor in only(state, test).items()}
    save_file(part, tmp_path / "x.safetensors")
    assert read_weights(tmp_path / "x.safetensors").method == method
    _, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    assert weights.method == method
    assert f"likely {method}" in weights.describe()


def test_a_full_file_shows_its_method_by_what_differs(tiny_parts, state, tmp_path):
    full = {**tiny_parts.unet.state_dict(), **strict(state)}
    torch.save(full, tmp_path / "erased.pt")
    _, weights = apply_weights(tiny_parts, tmp_path / "erased.pt")
    assert weights.method == "UCE, RECE or Concept Ablation"
    assert (weights.replaced, weights.changed) == (len(full), len(strict(state)))


@pytest.mark.parametrize(
    ("wrap", "layout"),
    [
        (nested, "partial diffusers UNet (alt-ESD nesting)"),
        (lambda s: {"unet": s}, "partial diffusers UNet (key 'unet')"),
        (lambda s: {"unet": nested(s)}, "partial diffusers UNet (key 'unet', alt-ESD nesting)"),
        (lambda s: {"state_dict": s, "epoch": 3}, "partial diffusers UNet (key 'state_dict')"),
        (
            lambda s: {f"module.{k}": v for k, v in s.items()},
            "partial diffusers UNet (prefix 'module.')",
        ),
        (
            lambda s: {f"unet.{k}": v for k, v in s.items()},
            "partial diffusers UNet (prefix 'unet.')",
        ),
        (
            lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
            "partial diffusers UNet (key 'state_dict', prefix 'model.')",
        ),
        (
            lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
            "partial diffusers UNet",
        ),
    ],
)
def test_wrapped_state_dicts(tiny_parts, state, tmp_path, wrap, layout):
    part = only(state, lambda name: ".attn2." in name)
    torch.save(wrap(part), tmp_path / "x.pt")
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.pt")
    assert weights.layout == layout
    assert weights.tensors.keys() == part.keys()
    assert weights.method == "ESD-x"
    applied = parts.unet.state_dict()
    assert all(torch.equal(applied[name], part[name]) for name in part)


def test_prefixes_are_stripped_one_after_the_other(tiny_parts, state, tmp_path):
    torch.save({f"module.unet.{k}": v for k, v in state.items()}, tmp_path / "x.pt")
    weights = apply_weights(tiny_parts, tmp_path / "x.pt")[1]
    assert weights.layout == "full diffusers UNet (prefix 'module.unet.')"
    torch.save({"module.unet.conv_in.other": torch.ones(1)}, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "has no key", "module.unet.conv_in.other")


def test_torch_files_of_the_format_before_zip(tiny_parts, state, tmp_path):
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert apply_weights(tiny_parts, tmp_path / "x.pt")[1].changed == len(state)


def test_content_decides_and_not_the_ending(tiny_parts, state, tmp_path):
    save_file(state, tmp_path / "renamed.pt")
    assert apply_weights(tiny_parts, tmp_path / "renamed.pt")[1].changed == len(state)


@pytest.mark.parametrize("safe", [True, False])
def test_a_unet_folder(tiny_parts, state, tmp_path, safe):
    unet = copy.deepcopy(tiny_parts.unet)
    unet.load_state_dict(state)
    unet.save_pretrained(tmp_path / "unet", safe_serialization=safe)
    parts, weights = apply_weights(tiny_parts, tmp_path / "unet")
    assert weights.layout == "full diffusers UNet (UNet folder)"
    assert torch.equal(predict(parts), predict(tiny_parts.with_unet(unet, "x")))


def test_a_unet_folder_in_shards(tiny_parts, state, tmp_path):
    unet = copy.deepcopy(tiny_parts.unet)
    unet.load_state_dict(state)
    unet.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert apply_weights(tiny_parts, tmp_path / "unet")[1].changed == len(state)


@pytest.fixture
def pipeline(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "erased")
    return tmp_path / "erased"


def test_a_pipeline_folder_gives_its_unet(tiny_parts, state, pipeline):
    save_file(state, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    parts, weights = apply_weights(tiny_parts, pipeline)
    assert weights.layout == "full diffusers UNet (pipeline folder)"
    assert (weights.changed, weights.text_encoder) == (len(state), None)
    assert parts.text_encoders == tiny_parts.text_encoders


@pytest.mark.parametrize("old_names", [False, True])
def test_a_pipeline_folder_gives_its_text_encoder_if_it_differs(tiny_parts, pipeline, old_names):
    path = pipeline / "text_encoder" / "model.safetensors"
    encoder = load_file(path)
    key = next(name for name in encoder if name.endswith("layers.0.mlp.fc1.weight"))
    encoder[key] = encoder[key] + 1
    if old_names:
        encoder = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.items()}
        encoder["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(encoder, path)
    before = tiny_parts.text_encoders[0].state_dict()
    parts, weights = apply_weights(tiny_parts, pipeline)
    assert (weights.changed, weights.encoder_changed) == (0, 1)
    assert list(weights.text_encoder) == ["text_encoder." + _own(key, before)]
    assert not weights.is_base
    assert "1 of the text encoder differ" in weights.describe()
    after = parts.text_encoders[0].state_dict()
    assert [n for n in after if not torch.equal(after[n], before[n])] == [_own(key, before)]
    assert parts.text_encoders[0] is not tiny_parts.text_encoders[0]


def _own(key, names):
    short = key.removeprefix("text_model.")
    return short if short in names else f"text_model.{short}"


def test_a_delta_with_a_text_encoder(tiny_parts, state, tmp_path):
    encoder = {n: t + 1 for n, t in tiny_parts.text_encoders[0].state_dict().items()}
    torch.save({"unet": strict(state), "text_encoder": encoder}, tmp_path / "delta.bin")
    parts, weights = apply_weights(tiny_parts, tmp_path / "delta.bin")
    assert weights.encoder_changed == len(encoder)
    applied = parts.text_encoders[0].state_dict()
    assert all(torch.equal(applied[n], encoder[n]) for n in encoder)


# What it says.


def test_reading_needs_no_base(state, tmp_path):
    save_file(strict(state), tmp_path / "x.safetensors")
    weights = read_weights(str(tmp_path / "x.safetensors"))
    assert weights.layout == "diffusers UNet"
    assert weights.replaced == len(strict(state))
    assert not isinstance(weights, AppliedWeights)
    assert f"replaces {len(strict(state))} UNet tensors." in weights.describe()


def test_a_file_that_equals_the_base_is_applied_and_says_so(tiny_parts, tmp_path, caplog):
    save_file(tiny_parts.unet.state_dict(), tmp_path / "same.safetensors")
    with caplog.at_level(logging.WARNING, "ine"):
        parts, weights = apply_weights(tiny_parts, tmp_path / "same.safetensors")
    assert (weights.changed, weights.is_base) == (0, True)
    assert "nothing was unlearned" in weights.describe()
    assert "nothing was unlearned" in caplog.text
    base = tiny_parts.unet.state_dict()
    assert all(torch.equal(t, base[name]) for name, t in parts.unet.state_dict().items())
    # Not bit-equal: the base lies in a mapped file, unaligned, where other kernels run.
    assert torch.allclose(predict(parts), predict(tiny_parts), atol=1e-5)


def test_a_file_that_differs_gives_no_warning(tiny_parts, state, tmp_path, caplog):
    save_file(strict(state), tmp_path / "x.safetensors")
    _, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    assert "nothing was unlearned" not in weights.describe()
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_a_coarser_dtype_is_no_difference(tiny_parts, state, tmp_path, dtype):
    rounded = {n: t.to(dtype) for n, t in tiny_parts.unet.state_dict().items()}
    changed = "conv_in.weight"
    save_file(rounded | {changed: state[changed].to(dtype)}, tmp_path / "x.safetensors")
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    assert weights.changed == 1
    assert parts.dtype == torch.float32


def test_float16_and_bfloat16_copies_of_one_tensor_are_equal():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    half, brain = values.half(), values.bfloat16()
    # Without the step of tolerance this would fail: rounding twice is not rounding once.
    assert not torch.equal(half.bfloat16(), brain)
    assert same_values(half, brain)
    assert same_values(brain, half)
    assert not same_values(half, (values * 1.02).bfloat16())


def test_metadata_names_method_and_concept(tiny_parts, state, tmp_path):
    path = tmp_path / "x.safetensors"
    write_unet_weights(path, strict(state), {"ine.method": "uce", "ine.concept": "fire"})
    assert weights_metadata(path) == {"ine.method": "uce", "ine.concept": "fire"}
    parts, weights = apply_weights(tiny_parts, path)
    assert weights.method == "uce"
    assert "uce by its metadata, concept 'fire'" in weights.describe()
    assert parts.unet_name == "x.safetensors (uce)"


# Refusals: what the file is instead.


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["emb_params"], "a token embedding"),
        (["clip_l", "clip_g"], "a token embedding"),
        (["<fire>"], "a token embedding"),
    ],
)
def test_known_but_not_unet_weights(tiny_parts, tmp_path, keys, what):
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, path)
    refusal(tiny_parts, path, f"this is {what}", "expected UNet weights", ";")
    torch.save({"state_dict": {key: torch.ones(2, 2) for key in keys}}, tmp_path / "x.ckpt")
    refusal(tiny_parts, tmp_path / "x.ckpt", f"this is {what}")


def test_a_webui_embedding(tiny_parts, tmp_path):
    torch.save({"string_to_param": {"*": torch.ones(1, 32)}, "name": "x"}, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "a token embedding", "--negative-embedding")


def test_a_folder_of_something_else(tiny_parts, tmp_path):
    refusal(tiny_parts, tmp_path, "neither model_index.json nor the config.json of a UNet")


def test_a_unet_folder_without_weights(tiny_parts, pipeline):
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refusal(tiny_parts, pipeline / "unet", "expected one file of weights", "found none")


def test_an_unknown_layout_names_keys_and_the_nearest(tiny_parts, tmp_path):
    keys = [f"encoder.down.{n}.block.conv.weight" for n in range(5)]
    torch.save({key: torch.ones(1) for key in keys}, tmp_path / "x.pt")
    text = refusal(tiny_parts, tmp_path / "x.pt", *keys[:3], "nearest known layout is")
    assert keys[3] not in text


# Refusals: broken files.


def test_a_missing_file(tiny_parts, tmp_path):
    refusal(tiny_parts, tmp_path / "x.pt", "no such file")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><head>", "web page"),
        (b"\n <HTML lang=en>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        (b"just some text that is no model", "neither a safetensors file nor"),
        (b"\x05\0\0\0\0\0\0\0{abc}", "header cannot be read"),
        (b"\x00\x01\0\0\0\0\0\0{ ", "truncated"),
        (b"{}", "neither a safetensors file nor"),
    ],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_files_that_are_no_weights(tiny_parts, tmp_path, data, words, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(data)
    refusal(tiny_parts, path, words)


def test_a_damaged_zip(tiny_parts, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 and no more")
    refusal(tiny_parts, tmp_path / "x.pt", "truncated or damaged torch file")


def test_a_torch_file_named_safetensors(tiny_parts, state, tmp_path):
    torch.save(state, tmp_path / "x.safetensors")
    refusal(tiny_parts, tmp_path / "x.safetensors", "is no safetensors file", "rename it to .pt")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_files(tiny_parts, state, tmp_path, share):
    for path in (tmp_path / "x.safetensors", tmp_path / "x.pt"):
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        refusal(tiny_parts, path, "truncated")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("writer", ["zip", "old", "pickle"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_malicious_pickle_is_not_executed(tiny_parts, tmp_path, writer, ending):
    path, mark = tmp_path / f"x{ending}", tmp_path / "executed"
    value = {"conv_in.weight": Malicious(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=writer == "zip")
    refusal(tiny_parts, path, "refused and not executed")
    assert not mark.exists()


def test_the_malicious_pickle_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_pickled_module_is_refused(tiny_parts, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "refused and not executed", "Linear", "state_dict")


def test_a_torch_file_of_a_list(tiny_parts, tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "holds a list, expected a state dict")


def test_a_dict_that_holds_itself(tiny_parts, tmp_path):
    value = {}
    value["state_dict"] = value
    torch.save(value, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "no known layout")


# Refusals: weights that do not fit.


def test_other_shapes_name_three_keys_with_both_shapes(tiny_parts, state, tmp_path):
    names = [name for name in state if name.endswith("norm1.weight")][:4]
    save_file(state | {name: torch.ones(7) for name in names}, tmp_path / "x.safetensors")
    text = refusal(tiny_parts, tmp_path / "x.safetensors", "4 tensors", "is (7,), in the base (")
    assert text.count("(7,)") == 3


def test_unknown_keys_name_three(tiny_parts, state, tmp_path):
    extra = {f"down_blocks.9.conv{n}.weight": torch.ones(1) for n in range(4)}
    save_file(state | extra, tmp_path / "x.safetensors")
    text = refusal(tiny_parts, tmp_path / "x.safetensors", "4 of", "unknown to the base's UNet")
    assert text.count("down_blocks.9") == 3


def test_no_matching_key(tiny_parts, tmp_path):
    extra = {f"down_blocks.9.conv{n}.weight": torch.ones(1) for n in range(4)}
    save_file(extra, tmp_path / "x.safetensors")
    text = refusal(
        tiny_parts, tmp_path / "x.safetensors", "has no key of the base's UNet", "nearest known"
    )
    assert text.count("down_blocks.9") == 3


@pytest.mark.parametrize(
    ("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (128, "mini")]
)
def test_another_family_names_both(tiny_parts, state, tmp_path, width, family):
    part = {name: torch.zeros(len(tensor), width) for name, tensor in strict(state).items()}
    save_file(part, tmp_path / "x.safetensors")
    ours = f"is {tiny_parts.family} (width {tiny_parts.width})"
    theirs = f"made for {family} (cross-attention width {width})"
    refusal(tiny_parts, tmp_path / "x.safetensors", theirs, ours, "--model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(tiny_parts, state, tmp_path, value):
    part = strict(state)
    name = list(part)[1]
    part[name][3, 5] = value
    save_file(part, tmp_path / "x.safetensors")
    refusal(tiny_parts, tmp_path / "x.safetensors", name, "NaN or infinite")


def test_quantised_weights(tiny_parts, state, tmp_path):
    save_file(state | {"conv_in.weight": torch.ones(2, dtype=torch.int8)}, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "conv_in.weight", "torch.int8", "floating-point")


def test_settings_that_leave_shapes_alone(tiny_parts, pipeline):
    path = pipeline / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 8}))
    refusal(tiny_parts, pipeline / "unet", "attention_head_dim is 8", "is 4")
    refusal(tiny_parts, pipeline, "attention_head_dim")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": [4, 4]}))
    apply_weights(tiny_parts, pipeline / "unet")


def test_another_prediction_type(tiny_parts, pipeline):
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    refusal(tiny_parts, pipeline, "prediction_type is v_prediction", "is epsilon")


def test_nothing_is_changed_by_a_refusal(tiny_parts, state, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny_parts.unet.state_dict().items()}
    state["conv_out.bias"][0] = float("nan")
    save_file(state, tmp_path / "x.safetensors")
    refusal(tiny_parts, tmp_path / "x.safetensors", "NaN")
    after = tiny_parts.unet.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# Writing.


def test_written_weights_read_back_and_have_the_same_bytes(tmp_path):
    tensors = {
        "b": torch.randn(3, 4).t(),
        "a": torch.randn(5).bfloat16(),
        "c": torch.randn(2, 2).half(),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
    }
    metadata = {f"key{n}": "wörter" for n in range(8)}
    write_unet_weights(tmp_path / "1.safetensors", tensors, metadata)
    turned = dict(reversed(tensors.items()))
    write_unet_weights(tmp_path / "2.safetensors", turned, dict(reversed(metadata.items())))
    first = (tmp_path / "1.safetensors").read_bytes()
    assert first == (tmp_path / "2.safetensors").read_bytes()
    loaded = load_file(tmp_path / "1.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert weights_metadata(tmp_path / "1.safetensors") == metadata


def test_a_header_length_that_looks_like_a_pickle(tmp_path):
    for length in range(200, 700):
        path = tmp_path / "x.safetensors"
        write_unet_weights(path, {"a": torch.ones(2)}, {"pad": "x" * length})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert weights_metadata(path) == {"pad": "x" * length}


def test_metadata_of_others(tmp_path, state):
    save_file(strict(state), tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "x.pt")
    assert weights_metadata(tmp_path / "plain.safetensors") == {}
    assert weights_metadata(tmp_path / "x.pt") == {}
    assert weights_metadata(tmp_path) == {}
    with pytest.raises(CheckpointError, match="no such file"):
        weights_metadata(tmp_path / "missing.safetensors")
