"""Folders and repositories of models as people have them: variants, shards, ids of the hub."""

import inspect
import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ine.errors import CheckpointError, IneError, ModelError
from ine.models.loading import load_parts
from ine.models.stored import UNET_DEFAULTS, stored_parts
from ine.runtime import pick_device
from ine.weights.apply import apply_weights, compare_weights
from ine.weights.compvis import single_file
from ine.weights.hub import is_hub_id
from ine.weights.read import read_weights, weights_metadata

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def in_shards(folder, stem, variant):
    """Rewrite a component's weights as diffusers and transformers write shards."""
    state = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names = sorted(state)
    halves, where = (names[::2], names[1::2]), {}
    for number, part in enumerate(halves, 1):
        shard = f"{stem}{variant}-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / shard, {"format": "pt"})
        where |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps(index))


def as_variant(folder, stem, variant):
    (folder / f"{stem}.safetensors").rename(folder / f"{stem}{variant}.safetensors")


@pytest.mark.parametrize("variant", ["", ".fp16", ".bf16"])
@pytest.mark.parametrize("write", [in_shards, as_variant])
def test_base_folders_of_variants_and_shards(tiny_folder, tiny_parts, tmp_path, write, variant):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    for part, stem in PARTS.items():
        write(folder / part, stem, variant)
    found = load_parts(folder)
    for module, wanted in (
        (found.unet, tiny_parts.unet),
        (found.vae, tiny_parts.vae),
        (found.text_encoders[0], tiny_parts.text_encoders[0]),
    ):
        state = wanted.state_dict()
        assert all(torch.equal(t, state[name]) for name, t in module.state_dict().items())
    assert read_weights(folder / "unet").replaced == len(tiny_parts.unet.state_dict())
    assert apply_weights(tiny_parts, folder)[1].is_base


def test_full_precision_is_taken_where_it_is_there(tiny_folder, tiny_parts, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    own = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(
        {name: 0 * t for name, t in load_file(own).items()},
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors",
        {"format": "pt"},
    )
    assert apply_weights(tiny_parts, folder / "unet")[1].is_base
    own.unlink()
    assert not apply_weights(tiny_parts, folder / "unet")[1].is_base


def test_a_folder_of_other_variants_says_what_it_has(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    as_variant(folder / "unet", "diffusion_pytorch_model", ".other")
    with pytest.raises(ModelError, match=r"found diffusion_pytorch_model\.other\.safetensors"):
        load_parts(folder)


# Ids of the hub.


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Put files into a cache as the hub's library writes it; returns their folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cache" / "models--some--eraser"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    (root / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return root / "snapshots" / ("0" * 40)


def test_unets_by_the_id_of_a_repository(tiny_parts, cached):
    state = {n: 2 * t for n, t in tiny_parts.unet.state_dict().items() if "attn2.to_k" in n}
    save_file(state, cached / "esd.safetensors", {"ine.concept": "fire"})
    applied, weights = apply_weights(tiny_parts, "some/eraser")
    assert weights.changed == len(state)
    assert applied.unet_name.startswith("eraser (")
    assert weights_metadata("some/eraser/esd.safetensors") == {"ine.concept": "fire"}
    save_file(state, cached / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"esd\.safetensors, other\.safetensors"):
        read_weights("some/eraser")
    assert apply_weights(tiny_parts, "some/eraser/other.safetensors")[1].changed == len(state)


def test_an_adapter_in_a_repository_keeps_its_alpha(cached):
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {"lora_A": torch.ones(2, 32), "lora_B": torch.ones(32, 2)}
    file = {f"base_model.model.{path}.{n}.weight": t for n, t in pair.items()}
    save_file(file, cached / "adapter_model.safetensors")
    (cached / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    for name in ("some/eraser", "some/eraser/adapter_model.safetensors"):
        assert [v.scale for v in read_weights(name).tensors.values()] == [4.0]


def test_a_base_in_the_cache_with_torch_files_or_half_precision_alone(
    tiny_folder, tiny_parts, cached
):
    shutil.copytree(tiny_folder, cached, dirs_exist_ok=True)
    as_variant(cached / "text_encoder", "model", ".fp16")
    file = cached / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    found = load_parts("some/eraser").unet.state_dict()
    assert all(torch.equal(t, found[n]) for n, t in tiny_parts.unet.state_dict().items())


def test_what_is_no_id_of_a_repository_is_a_path(cached, tmp_path):
    (tmp_path / "here").mkdir()
    assert is_hub_id("some/eraser")
    assert is_hub_id("some/eraser/unet/x.pt")
    for path in ("x.pt", "some/x.pt", "here/eraser", "here/a/x.pt", "a/b/c", "../a/b", "/a/b"):
        assert not is_hub_id(path)
    with pytest.raises(CheckpointError, match=r"some/other: no such file or folder.*hf download"):
        read_weights("some/other")


# Files that are whole models.


def test_a_whole_model_given_as_weights_alone_is_recognised_as_a_base(
    run_ine, tiny_folder, tiny_parts, tmp_path
):
    state = {name: tensor.contiguous() for name, tensor in single_file(tiny_parts).items()}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "x.ckpt")
    for path in (tmp_path / "x.ckpt", tiny_folder):
        done = run_ine("generate", "--prompt", "x", "--unet", path, "--out", tmp_path / "out")
        assert done.exit_code == ModelError.exit_code
        assert f"give --model {path} alone" in done.stderr
        shown = run_ine("unet", "show", path).stdout
        assert "a model by itself" in shown


# A base of which only the files are read.


def test_a_stored_base_compares_as_a_loaded_one(tiny_folder, tiny_parts, tmp_path):
    state = {n: 1.5 * t for n, t in tiny_parts.unet.state_dict().items() if "attn1" in n}
    encoder = {
        f"text_model.{n}": 2 * t for n, t in tiny_parts.text_encoders[0].state_dict().items()
    }
    torch.save({"unet": state, "text_encoder": encoder}, tmp_path / "x.pt")
    stored = stored_parts("tiny", tiny_folder)
    assert (stored.width, stored.family) == (tiny_parts.width, tiny_parts.family)
    found, values = compare_weights(stored, tmp_path / "x.pt")
    applied, wanted = apply_weights(tiny_parts, tmp_path / "x.pt")
    assert (found.differing, found.encoder_changed) == (wanted.differing, wanted.encoder_changed)
    assert all(torch.equal(t, applied.unet.state_dict()[n]) for n, t in values.items())


def test_defaults_of_a_stored_unet_are_those_of_diffusers():
    stated = inspect.signature(UNet2DConditionModel.__init__).parameters
    assert {name: stated[name].default for name in UNET_DEFAULTS} == UNET_DEFAULTS


def test_a_look_at_weights_imports_neither_diffusers_nor_transformers(tmp_path):
    from ine.models.parts import MINI_FOLDER

    state = load_file(MINI_FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({n: t for n, t in state.items() if "attn2" in n}, tmp_path / "x.safetensors")
    command = ["unet", "show", str(tmp_path / "x.safetensors"), "--model", "mini"]
    code = (
        f"import sys; from ine.cli import cli; cli({command!r}, standalone_mode=False)\n"
        "print('torch' in sys.modules, {'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True set()"


# Devices and interpreters.


def test_devices_that_are_not_here_get_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, words in (
        ("mps", "--device mps: .*Apple silicon.*--device cpu"),
        ("cuda:2", "the last is cuda:1"),
        ("meta", "ine computes on cpu, cuda and mps"),
        ("gpu", "expected auto, cpu"),
    ):
        with pytest.raises(IneError, match=words):
            pick_device(name)
    assert pick_device("cuda:1").index == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(IneError, match="no CUDA device here"):
        pick_device("cuda")


def test_python_without_docstrings_gets_a_sentence():
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "ine", "--help"], capture_output=True, text=True
    )
    assert done.returncode == IneError.exit_code
    assert "-OO" in done.stderr
    assert not done.stdout
