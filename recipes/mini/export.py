"""Stage `export`: the folder that the package ships, float16 safetensors only."""

import json
import shutil

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, ResNetForImageClassification

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MODULES = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "judge": CLIPModel,
    "judge2": ResNetForImageClassification,
}


TUNED = ("vae", "unet", "text_encoder")
"""Parts that were trained a second time."""


def run(world, work):
    """Write `work`/mini from the trained parts in `work`."""
    target = work / "mini"
    target.mkdir(parents=True, exist_ok=True)
    for name, kind in MODULES.items():
        source = work / (f"{name}_tuned" if name in TUNED else name)
        module = kind.from_pretrained(source).to(torch.float16)
        module.save_pretrained(target / name)
        if name == "text_encoder":
            # Weights are float16 on disk; without this, transformers would also compute in it,
            # and diffusers, which computes in float32 by default, could not use the states.
            config = target / name / "config.json"
            config.write_text(
                json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2)
            )
    for name in ("tokenizer", "judge", "judge2"):
        (target / name).mkdir(exist_ok=True)
        for path in (work / name).iterdir():
            if path.suffix != ".safetensors" and path.name != "config.json":
                shutil.copy(path, target / name / path.name)
    (target / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    (target / "scheduler").mkdir(exist_ok=True)
    config = json.dumps(SCHEDULER, indent=2) + "\n"
    (target / "scheduler" / "scheduler_config.json").write_text(config)
