"""What PPO and GRPO of a rewriter share: where from and to, what is written, who makes pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ine.files import write_text
from ine.models.loading import load_parts
from ine.observers.adapters import read_about
from ine.posi.recipe import GeneratorSettings, PosiRecipe
from ine.posi.trained import Asking, bring_along, stages_of
from ine.refining.generators import Generator, SamplerGenerator
from ine.runtime import pick_device, pick_dtype
from ine.sampling import SamplerSettings
from ine.store.units import key_of
from ine.training.bases import Base
from ine.weights.fingerprint import exact_digest

ROLLOUTS = "rollouts.jsonl"


@dataclass(frozen=True, kw_only=True)
class PictureStage:
    """What the second stage starts from and writes to."""

    base: Path
    adapters: tuple[Path, ...]
    """Of the first stage; merged into the base, which is then the reference of the KL penalty."""

    out: Path
    store: Path
    """Folder of pictures, which runs may share."""

    device: str = "auto"
    force: bool = False


def key_of_stage(
    method: Literal["ppo", "grpo"],
    recipe: PosiRecipe,
    prompts: Sequence[str],
    asking: Asking,
    stage: PictureStage,
    base: Base,
    generator: Generator,
) -> str:
    """Return what the result of a second stage depends on, 64 hex digits."""
    return key_of(
        stage=method,
        prompts=list(prompts),
        method=getattr(recipe, method).model_dump(mode="json"),
        lora=recipe.sft.lora.model_dump(mode="json"),
        reward=recipe.reward.model_dump(mode="json"),
        asking=[asking.instruction, asking.template.text],
        base=base.digest,
        adapters=[
            (read_about(folder) or {}).get("key", "") for folder in stages_of(stage.adapters)
        ],
        generator=generator.name,
    )


def write_rows(stage: PictureStage, asking: Asking, rows: Sequence[dict[str, float]]) -> None:
    """Write what stands beside the adapter of a second stage, the first one's adapter included."""
    lines = [json.dumps(row, sort_keys=True) for row in rows]
    write_text(stage.out / ROLLOUTS, "".join(f"{line}\n" for line in lines))
    asking.write(stage.out)
    bring_along(stage.adapters, stage.out)


def open_generator(settings: GeneratorSettings, device: str = "auto") -> SamplerGenerator:
    """Return our sampler on a base model.

    Raises:
        ModelError: The model cannot be had.
    """
    where = pick_device(device)
    parts = load_parts(settings.model, where, pick_dtype("auto", where))
    usual = parts.few_steps or parts.family_info
    sampler = SamplerSettings(
        scheduler=parts.few_steps.scheduler if parts.few_steps else "ddim",
        steps=settings.steps or usual.steps,
        guidance_scale=settings.guidance_scale or usual.guidance_scale,
        batch=settings.batch or parts.family_info.batch,
    )
    weights = exact_digest([parts.unet, parts.vae, *parts.text_encoders])
    name = f"{parts.name} {weights} {sampler!r}"
    return SamplerGenerator(parts=parts, guidance=None, sampler=sampler, name=name)
