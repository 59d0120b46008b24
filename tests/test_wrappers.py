"""What training scripts put around weights, and files of other models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ine.errors import CheckpointError, ModelError
from ine.models.loading import load_parts
from ine.schedules import CLASSES, check_schedule
from ine.weights.apply import apply_weights
from ine.weights.read import read_weights


@pytest.fixture(scope="module")
def part(tiny_parts):
    """Cross-attention's keys, doubled."""
    state = tiny_parts.unet.state_dict()
    return {name: 2 * t for name, t in state.items() if name.endswith("attn2.to_k.weight")}


def prefixed(prefix):
    return lambda s: {f"{prefix}{name}": tensor for name, tensor in s.items()}


WRAPPED = {
    "compiled": prefixed("_orig_mod."),
    "compiled inside": lambda s: {n.replace("attn2", "attn2._orig_mod"): t for n, t in s.items()},
    "compiled, in a pipeline": prefixed("unet._orig_mod."),
    "module.unet.": prefixed("module.unet."),
    "unet.module.": prefixed("unet.module."),
    "module.model.": prefixed("module._orig_mod.model."),
    "model_state_dict": lambda s: {"epoch": 3, "optimizer": {}, "model_state_dict": s},
    "unet_state_dict": lambda s: {"unet_state_dict": prefixed("module.")(s), "step": 7},
    "ema": lambda s: {"ema": s, "step": 7},
    "params_ema": lambda s: {"params_ema": s},
    "counters": lambda s: s | {"num_updates": torch.tensor(5), "decay": torch.tensor(0.99)},
    "counters of an average": lambda s: {"ema": s | {"num_updates": 5, "decay": 0.99}},
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrappers_are_taken_off(tiny_parts, part, tmp_path, wrap):
    torch.save(WRAPPED[wrap](part), tmp_path / "x.pt")
    applied, weights = apply_weights(tiny_parts, tmp_path / "x.pt")
    assert weights.tensors.keys() == part.keys()
    state = applied.unet.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in part.items())


def test_of_weights_and_their_average_the_weights_count(tiny_parts, part, tmp_path, caplog):
    other = {name: 0 * tensor for name, tensor in part.items()}
    torch.save({"params_ema": other, "params": part}, tmp_path / "x.pt")
    applied, _ = apply_weights(tiny_parts, tmp_path / "x.pt")
    assert all(torch.equal(applied.unet.state_dict()[n], t) for n, t in part.items())
    assert "averages under the key 'params_ema' are not used" in caplog.text


def test_compiled_names_of_kohya(tiny_parts, tmp_path):
    stem = "lora_unet__orig_mod_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(1, 16),
            f"{stem}.lora_up.weight": torch.ones(16, 1),
        },
        tmp_path / "x.safetensors",
    )
    assert apply_weights(tiny_parts, tmp_path / "x.safetensors")[1].changed == 1


def test_quantised_weights_are_still_recognised(tiny_parts, part, tmp_path):
    torch.save({name: t.to(torch.int8) for name, t in part.items()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="quantised"):
        read_weights(tmp_path / "x.pt")


AVERAGES = {
    "--extract_ema": {"model_ema.diffusion_modelinput_blocks00weight": torch.ones(2)},
    "copy_to": {"decay": 0.99, "shadow_params": [torch.ones(2)]},
}


@pytest.mark.parametrize("words", AVERAGES)
def test_averages_without_names_get_advice_that_fits(tmp_path, words):
    torch.save(AVERAGES[words], tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "x.ckpt")
    if words == "--extract_ema":
        with pytest.raises(ModelError, match=words):
            load_parts(tmp_path / "x.ckpt")


FOREIGN = {
    "double_blocks.0.img_attn.qkv.weight": "Flux",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "Flux",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "Flux",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": "Stable Diffusion 3",
    "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight": "a diffusion transformer",
    "edm_mean": "EDM",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_weights_of_other_models_are_named(tmp_path, key):
    save_file({key: torch.ones(2, 2), "x.y": torch.ones(1)}, tmp_path / "x.safetensors")
    for read, kind in ((read_weights, CheckpointError), (load_parts, ModelError)):
        with pytest.raises(kind, match=FOREIGN[key]):
            read(tmp_path / "x.safetensors")


def test_stable_diffusion_3_as_diffusers_names_it(tmp_path):
    names = ("transformer_blocks.0.attn.to_q.weight", "pos_embed.proj.weight", "context_embedder.x")
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is Stable Diffusion 3,"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusion3Pipeline"])
def test_pipelines_of_other_models_are_named(tmp_path, name):
    index = {"_class_name": name, "transformer": ["diffusers", "A"], "vae": ["diffusers", "B"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for read, kind in ((read_weights, CheckpointError), (load_parts, ModelError)):
        with pytest.raises(kind, match=name):
            read(tmp_path)


def test_a_transformers_folder_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(CheckpointError, match="SD3Transformer2DModel"):
        read_weights(tmp_path)


SCHEDULES = {
    "EDMEulerScheduler": {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5},
    "flow matching": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "SomethingNewScheduler": {"_class_name": "SomethingNewScheduler"},
    "use_flow_sigmas": {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
    "timestep_type": {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_another_kind_are_refused_by_name(tmp_path, name):
    with pytest.raises(ModelError, match=name):
        check_schedule(tmp_path, SCHEDULES[name])
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULES[name]))
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path)


def test_a_class_that_is_no_name_is_refused(tmp_path):
    with pytest.raises(ModelError, match="of the class"):
        check_schedule(tmp_path, {"_class_name": []})


def test_the_scheduler_that_an_index_names_counts_too(tiny_folder, tmp_path):
    """It is the class that diffusers makes."""
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model_index\.json: .*EDMEulerScheduler"):
        load_parts(folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_schedules_of_the_family_are_taken_as_diffusers_saves_them(tmp_path):
    """DPM-Solver's has -Infinity for a limit that is not set."""
    import diffusers

    check_schedule(tmp_path, {})
    for name in sorted(CLASSES - {"DPMSolverSDEScheduler"}):  # needs a package of its own
        made = getattr(diffusers, name)(beta_schedule="scaled_linear")
        check_schedule(tmp_path, json.loads(made.to_json_string()))
