"""ESD: erased Stable Diffusion, fine-tuning with the negated guidance of the frozen model.

    target = eps*(x_t, n) - eta (eps*(x_t, c) - eps*(x_t, n))
    loss   = || eps_theta(x_t, c) - target ||^2

Gandikota et al. 2023, eq. 7. c is the concept prompt and n the neutral one: the empty text in
the paper; for an attribute the same prompt without it ("a dog on fire", "a dog"), so that the
subject is not erased with it. x_t is reached by the student itself, from noise, with guidance.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from ine.errors import IneError
from ine.models.fingerprint import exact_digest
from ine.runtime import generator_for
from ine.sampling import make_scheduler, run_unet
from ine.text import Condition, encode, join_conditions
from ine.unlearning.training import Resumable, key_of, train

GROUPS = {
    "x": lambda name: ".attn2." in name,
    "x-strict": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "u": lambda name: ".attn2." not in name,
    "all": lambda name: True,
}
"""Parameter groups by the name of a Linear or Conv2d weight, as the authors' code has them."""


@dataclass(frozen=True, kw_only=True)
class EsdSettings:
    """How ESD trains; defaults for SD 1.x as the authors' code."""

    group: Literal["x", "x-strict", "u", "all"] = "x"
    iterations: int = 200
    lr: float = 5e-5
    batch: int = 1
    negative_guidance: float = 2.0
    """eta."""

    guidance_scale: float = 3.0
    """Scale with which the student reaches x_t."""

    steps: int = 50
    """Denoising steps of a whole trajectory."""


def trained_names(unet, group):
    """Return the names of the parameters of a group: weights and biases of Linear and Conv2d."""
    names = []
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            names += [
                f"{path}.{n}" for n, _ in module.named_parameters() if GROUPS[group](f"{path}.{n}")
            ]
    return names


def reach(student, scheduler, x, stop, positive, empty, scale):
    """Return x_t after `stop` denoising steps of the student, (B, C, H, W)."""
    both = join_conditions([empty, positive])
    with torch.no_grad():
        for t in scheduler.timesteps[:stop]:
            pair = torch.cat([scheduler.scale_model_input(x, t)] * 2)
            e_0, e_c = run_unet(student, pair, t, both).chunk(2)
            x = scheduler.step(e_0 + scale * (e_c - e_0), t, x, return_dict=False)[0]
    return x


def esd(
    parts,
    texts,
    settings=None,
    *,
    seed=0,
    state: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    save_every: int = 10,
    force: bool = False,
):
    """Return the trained tensors {name in the U-Net: tensor}; `parts` is not changed.

    Args:
        parts: The base model.
        texts: `EraseTexts`.
        settings: `EsdSettings`.
        seed: Where all randomness comes from.
        state: File to resume from and to save to; the result is byte-equal either way.
        on_step: Called with (iteration, loss).
        save_every: Iterations between saves.
        force: Begin anew where the state belongs to another run.

    Raises:
        IneError: The state belongs to another run, the group holds no parameter, or the loss is
            not finite.
    """
    settings = settings or EsdSettings()
    names = trained_names(parts.unet, settings.group)
    if not names:
        raise IneError(f"esd: group {settings.group!r} holds no parameter of this U-Net")
    student = copy.deepcopy(parts.unet)
    parameters = {name: student.get_parameter(name).requires_grad_(True) for name in names}
    conditions = _Conditions(parts, texts)

    def loss_of(iteration, part):
        generator = generator_for(seed, "esd", iteration)
        return _loss(parts, student, conditions, settings, generator)

    train(
        "esd",
        parameters,
        torch.optim.Adam(parameters.values(), lr=settings.lr),
        loss_of,
        settings.iterations,
        lr=settings.lr,
        key=key_of(
            exact_digest([parts.unet, *parts.text_encoders]), asdict(texts), asdict(settings), seed
        ),
        resumable=Resumable(path=state, every=save_every, force=force),
        on_step=on_step,
    )
    return {name: p.detach().clone() for name, p in parameters.items()}


class _Conditions:
    """Text states of the erase prompts, encoded once."""

    def __init__(self, parts, texts):
        with torch.no_grad():
            self.empty = encode(parts, [""])
            self.concepts = self._all(parts, texts.concepts)
            self.targets = self._all(parts, texts.targets)

    @staticmethod
    def _all(parts, prompts):
        rows = [encode(parts, list(prompts[i : i + 64])) for i in range(0, len(prompts), 64)]
        return join_conditions(rows)

    def pick(self, index, count) -> tuple[Condition, Condition, Condition]:
        """Return the rows of (concept, neutral, empty) for one batch."""
        return self.concepts.rows(index), self.targets.rows(index), self.empty.repeat(count)


def _loss(parts, student, conditions, settings, generator):
    count = settings.batch
    index = torch.randint(len(conditions.concepts), (count,), generator=generator)
    concept, neutral, empty = conditions.pick(index.tolist(), count)
    scheduler = make_scheduler("ddim", parts.scheduler_config, settings.steps, parts.device)
    stop = int(torch.randint(settings.steps, (1,), generator=generator))
    x = torch.randn((count, *parts.latent_shape), generator=generator)
    x = x.to(parts.device, parts.dtype)
    x_t = reach(student, scheduler, x, stop, concept, empty, settings.guidance_scale)
    t = scheduler.timesteps[stop]
    with torch.no_grad():
        pair = torch.cat([x_t, x_t])
        e_c, e_n = run_unet(parts.unet, pair, t, join_conditions([concept, neutral])).chunk(2)
        target = e_n - settings.negative_guidance * (e_c - e_n)
    return (run_unet(student, x_t, t, concept).float() - target.float()).pow(2).mean()
