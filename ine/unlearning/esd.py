"""ESD: erased Stable Diffusion, fine-tuning with the negated guidance of the frozen model.

    target = eps*(x_t, n) - eta (eps*(x_t, c) - eps*(x_t, n))
    loss   = || eps_theta(x_t, c) - target ||^2

Gandikota et al. 2023, eq. 7. c is the concept prompt, n the neutral one and x_t a latent on the way
from noise, with guidance. The authors published two scripts, both with the empty text as n:

| setting | `esd_sd.py` (25613d2), the defaults here | `train-esd.py` (a2189e9), the paper's |
|---|---|---|
| `negative_guidance` | 1; its `--negative_guidance 2` counts from c's prediction | 1 |
| `reached_by` | base | student |
| `iterations`, `lr` | 200, 5e-5 | 1000, 1e-5 |
| `guidance_scale`, `steps`, `batch` | 3, 50, 1 | 3, 50, 1 |

`esd_sd.py` writes its target as eps*(c) - h (eps*(c) - eps*(n)), which is the formula above with
eta = h - 1. Both leave the group to the user; papers take "x" for styles and "u" for nudity. What
differs all the same: `esd_sd.py` samples with PNDM in bfloat16, at 1024 pixels by oversight;
`train-esd.py` draws a timestep within the step that was reached, and its groups hold norms too.

Of our own is `neutral: targets`: n is the same prompt without an attribute ("a dog on fire",
"a dog"), so that the subject is not erased with it.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Unpack

import torch
from diffusers import SchedulerMixin

from ine.errors import IneError
from ine.models.parts import DiffusionParts
from ine.runtime import generator_for
from ine.sampling import make_scheduler, run_unet
from ine.text.condition import Condition, join_conditions
from ine.text.encode import encode
from ine.unlearning.pairs import EraseTexts
from ine.unlearning.training import TrainingOptions, train
from ine.weights.fingerprint import exact_digest

GROUPS = {
    "x": lambda name: ".attn2." in name,
    "x-strict": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "u": lambda name: ".attn2." not in name,
    "all": lambda name: True,
}
"""Parameter groups by the name of a Linear or Conv2d weight, as the authors' code has them."""


@dataclass(frozen=True, kw_only=True)
class EsdSettings:
    """How ESD trains; defaults are those of the authors' `esd_sd.py`, for SD 1.4."""

    group: Literal["x", "x-strict", "u", "all"] = "x"
    iterations: int = 200
    lr: float = 5e-5
    batch: int = 1
    negative_guidance: float = 1.0
    """eta; `--negative_guidance` of `esd_sd.py` less 1."""

    neutral: Literal["empty", "targets"] = "empty"
    """What n is: the empty text, or the recipe's targets."""

    reached_by: Literal["base", "student"] = "base"
    """Which model goes from noise to x_t: the frozen one, or the one in training."""

    guidance_scale: float = 3.0
    """Scale with which x_t is reached."""

    steps: int = 50
    """Denoising steps of a whole trajectory."""


def trained_names(unet: torch.nn.Module, group: str) -> list[str]:
    """Return the names of the parameters of a group: weights and biases of Linear and Conv2d."""
    names = []
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            names += [
                f"{path}.{n}" for n, _ in module.named_parameters() if GROUPS[group](f"{path}.{n}")
            ]
    return names


def reach(
    unet: torch.nn.Module,
    scheduler: SchedulerMixin,
    x: torch.Tensor,
    stop: int,
    positive: Condition,
    empty: Condition,
    scale: float,
) -> torch.Tensor:
    """Return x_t after `stop` denoising steps of a U-Net, (B, C, H, W)."""
    both = join_conditions([empty, positive])
    with torch.no_grad():
        for t in scheduler.timesteps[:stop]:
            pair = torch.cat([scheduler.scale_model_input(x, t)] * 2)
            e_0, e_c = run_unet(unet, pair, t, both).chunk(2)
            x = scheduler.step(e_0 + scale * (e_c - e_0), t, x, return_dict=False)[0]
    return x


def esd(
    parts: DiffusionParts,
    texts: EraseTexts,
    settings: EsdSettings | None = None,
    **training: Unpack[TrainingOptions],
) -> dict[str, torch.Tensor]:
    """Return the trained tensors {name in the U-Net: tensor}; `parts` is not changed.

    Args:
        parts: The base model.
        texts: Prompts with the concept and without it.
        settings: By default those of the authors' `esd_sd.py`.
        training: See `ine.unlearning.training.train`.

    Raises:
        IneError: The state belongs to another run, the group holds no parameter, or the loss is
            not finite.
    """
    settings, seed = settings or EsdSettings(), training.get("seed", 0)
    names = trained_names(parts.unet, settings.group)
    if not names:
        raise IneError(f"esd: group {settings.group!r} holds no parameter of this U-Net")
    student = copy.deepcopy(parts.unet)
    parameters = {name: student.get_parameter(name).requires_grad_(True) for name in names}
    conditions = _Conditions(parts, texts)

    def loss_of(iteration: int, part: int) -> torch.Tensor:
        generator = generator_for(seed, "esd", iteration)
        return _loss(parts, student, conditions, settings, generator)

    digest = exact_digest([parts.unet, *parts.text_encoders])
    about = {"model": digest, "texts": asdict(texts), "settings": asdict(settings)}
    optimiser = torch.optim.Adam(parameters.values(), lr=settings.lr)
    return train("esd", parameters, optimiser, loss_of, settings.iterations, about, **training)


class _Conditions:
    """Text states of the erase prompts, encoded once."""

    def __init__(self, parts: DiffusionParts, texts: EraseTexts) -> None:
        with torch.no_grad():
            self.empty = encode(parts, [""])
            self.concepts = self._all(parts, texts.concepts)
            self.targets = self._all(parts, texts.targets)

    @staticmethod
    def _all(parts: DiffusionParts, prompts: Sequence[str]) -> Condition:
        rows = [encode(parts, list(prompts[i : i + 64])) for i in range(0, len(prompts), 64)]
        return join_conditions(rows)

    def pick(self, index: list[int], count: int) -> tuple[Condition, Condition, Condition]:
        """Return the rows of (concept, neutral, empty) for one batch."""
        return self.concepts.rows(index), self.targets.rows(index), self.empty.repeat(count)


def _loss(
    parts: DiffusionParts,
    student: torch.nn.Module,
    conditions: _Conditions,
    settings: EsdSettings,
    generator: torch.Generator,
) -> torch.Tensor:
    count = settings.batch
    index = torch.randint(len(conditions.concepts), (count,), generator=generator)
    concept, neutral, empty = conditions.pick(index.tolist(), count)
    scheduler = make_scheduler("ddim", parts.scheduler_config, settings.steps, parts.device)
    stop = int(torch.randint(settings.steps, (1,), generator=generator))
    x = torch.randn((count, *parts.latent_shape), generator=generator)
    x = x.to(parts.device, parts.dtype)
    guide = parts.unet if settings.reached_by == "base" else student
    x_t = reach(guide, scheduler, x, stop, concept, empty, settings.guidance_scale)
    neutral = empty if settings.neutral == "empty" else neutral
    t = scheduler.timesteps[stop]
    with torch.no_grad():
        pair = torch.cat([x_t, x_t])
        e_c, e_n = run_unet(parts.unet, pair, t, join_conditions([concept, neutral])).chunk(2)
        target = e_n - settings.negative_guidance * (e_c - e_n)
    return (run_unet(student, x_t, t, concept).float() - target.float()).pow(2).mean()
