"""What protection takes from a user's diffusers pipeline, and which pipelines it knows."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from ine.errors import IneError, ModelError, did_you_mean
from ine.models.parts import DiffusionParts
from ine.protection.interception import check_is_module
from ine.sampling import alpha_bar_at

KNOWN = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
"""Pipelines that batch [unconditional B; conditional B], or the conditional B alone where there is
no guidance, and loop under their progress bar."""


def parts_of(pipe: DiffusionPipeline) -> DiffusionParts:
    """Return a diffusers pipeline's pieces as a `DiffusionParts`.

    Raises:
        ModelError: It was loaded without text encoder or tokenizer, or one is not a torch module.
    """
    found = components_of(pipe)
    tokenizers = [part for name, part in found.items() if name.startswith("tokenizer")]
    encoders = [part for name, part in found.items() if name.startswith("text_encoder")]
    if None in tokenizers or None in encoders:
        raise ModelError(
            f"{type(pipe).__name__}: was loaded without its tokenizer or text encoder, which the "
            "embedding needs; load the whole pipeline, pictures may still come from prompt_embeds"
        )
    for encoder in encoders:
        check_is_module(encoder, "text encoder", "get_input_embeddings")
    return DiffusionParts(
        name=getattr(pipe, "name_or_path", None) or type(pipe).__name__,
        tokenizers=tuple(tokenizers),
        text_encoders=tuple(encoders),
        unet=pipe.unet,
        vae=pipe.vae,
        scheduler_config={**pipe.scheduler.config, "_class_name": _class_of(pipe.scheduler)},
        zeros_for_nothing=bool(pipe.config.get("force_zeros_for_empty_prompt")),
    )


def _class_of(scheduler: Any) -> str:
    """Return the name of the class of diffusers that a scheduler is of."""
    kinds = type(scheduler).__mro__
    return next((k.__name__ for k in kinds if k.__module__.startswith("diffusers.")), "")


def components_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return a pipeline's tokenizers and text encoders by name, None where one was left out."""
    suffixes = ("", "_2") if "XL" in type(pipe).__name__ else ("",)
    names = [kind + suffix for kind in ("tokenizer", "text_encoder") for suffix in suffixes]
    return {name: getattr(pipe, name, None) for name in names}


def check_known(pipe: DiffusionPipeline) -> None:
    """Raise `IneError` for a pipeline whose class, U-Net or scheduler cannot be protected."""
    names = [c.__name__ for c in type(pipe).__mro__]
    if not set(names) & set(KNOWN):
        hint = did_you_mean(names[0], KNOWN)
        raise IneError(
            f"a pipeline of class {names[0]} cannot be protected{hint}; known: {', '.join(KNOWN)}"
        )
    check_is_module(pipe.unet, "U-Net", "config")
    check_scheduler(pipe)


def check_scheduler(pipe: DiffusionPipeline) -> None:
    """Raise `IneError` for a scheduler of another prediction type than epsilon or v."""
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise IneError(
            f"the scheduler's prediction type is {kind!r}; only epsilon and v_prediction are known"
        )


def signal_power(scheduler: Any, t: torch.Tensor) -> torch.Tensor:
    """Return alpha-bar of what the U-Net sees at timestep t, a scalar in (0, 1].

    Schedulers that scale the U-Net's input make it variance-preserving, so that the training
    schedule's value at t holds for all of them; between two timesteps it is interpolated.
    """
    if hasattr(scheduler, "sigmas") and type(scheduler).__name__.startswith("Euler"):
        place = (scheduler.timesteps.cpu() == t.cpu()).nonzero()
        if len(place):
            return alpha_bar_at(scheduler, int(place[0]), t)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise IneError(
            f"scheduler {type(scheduler).__name__} has no noise levels (alphas_cumprod); use "
            "another one, for example DPMSolverMultistepScheduler"
        )
    place = float(t)
    low = min(max(int(place), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    return torch.lerp(table[low], table[high], place - int(place))
