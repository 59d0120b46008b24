"""The inversion loop: freeze everything, learn a few token vectors.

    c* = argmin_c E_{z_t, eps, t} || eps - eps_theta'(z_t, t, tau(c)) ||^2

Gal et al. 2022, eq. 2, against the unlearned U-Net theta' (arXiv 2511.04834). Only the vectors
move. Every step draws from a generator seeded by its own number, so a run that was killed
resumes with nothing but the vectors and the optimiser's two moments, and ends byte-equal.

Shape letters: B pictures, N vectors, D text width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ine.finite import NARROW
from ine.inversion.history import History, Inversion, MakePreview, Preview, state_file
from ine.inversion.images import ConceptPictures, draw_latents
from ine.inversion.objective import denoising_target, learning_rate, noised
from ine.inversion.precision import (
    in_type,
    inversion_dtype,
    loss_scale,
    with_gradient_times,
)
from ine.inversion.start import start_vectors
from ine.inversion.templates import captions_for
from ine.models.parts import DiffusionParts
from ine.optim import StateFile, minimise
from ine.recipe import InversionSettings
from ine.runtime import generator_for
from ine.sampling import make_scheduler, run_unet
from ine.text.encode import encode

SAVE_EVERY = 50
"""Steps between two saves of the state."""

Loss = Callable[..., torch.Tensor]
"""The loss of a batch, called with the arguments of `batch_loss`."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, after an optimiser step."""

    step: int
    steps: int
    loss: float
    lr: float
    previews: tuple[Preview, ...]
    run: int = 1
    """Which inversion of the recipe's `runs` it is, from 1."""

    @property
    def done(self) -> int:
        """Steps of all runs up to here, as if none of them had ended early."""
        return (self.run - 1) * self.steps + self.step


def batch_loss(
    parts: DiffusionParts,
    pictures: ConceptPictures,
    spec: InversionSettings,
    vectors: Sequence[torch.Tensor],
    trigger: str,
    plural: Sequence[str],
    alpha_bar: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the denoising loss of one batch, a scalar with gradients into `vectors`."""
    count = spec.batch
    index = torch.randint(pictures.count, (count,), generator=generator)
    x_0 = draw_latents(pictures, index, generator)
    eps = torch.randn(x_0.shape, generator=generator)
    t = torch.randint(len(alpha_bar), (count,), generator=generator)
    nouns = [pictures.captions[i] if pictures.captions else "" for i in index.tolist()]
    captions = captions_for(spec, nouns, trigger, plural, generator)
    a = alpha_bar[t]
    target = denoising_target(x_0, eps, a, parts.prediction_type)
    device = parts.device
    x_t = noised(x_0, eps, a).to(device, parts.dtype)
    scale = loss_scale(parts.dtype, target.numel())
    learned = tuple(with_gradient_times(v, 1 / scale) for v in vectors)
    condition = encode(parts, captions, {trigger: learned})
    output = with_gradient_times(run_unet(parts.unet, x_t, t.to(device), condition).float(), scale)
    return (output - target.to(device)).pow(2).mean()


def invert(
    parts: DiffusionParts,
    pictures: ConceptPictures,
    spec: InversionSettings,
    *,
    trigger: str,
    seed: int = 0,
    plural: Sequence[str] = (),
    preview: MakePreview | None = None,
    state: Path | None = None,
    key: str = "",
    on_step: Callable[[Progress], None] | None = None,
    loss_of: Loss | None = None,
) -> Inversion:
    """Learn vectors that make the U-Net of `parts` reproduce the pictures.

    Args:
        parts: The unlearned model; nothing in it changes.
        pictures: What the vectors shall stand for.
        spec: The recipe's `Inversion` section.
        trigger: The word that stands for the vectors in the captions.
        seed: Seed of all random numbers.
        plural: Nouns without an article.
        preview: `(vectors, step) -> Preview`; the vectors of the best preview are kept, see
            `Preview.order`, and the run ends where `spec.patience` says so.
        state: File to resume from and to save to.
        key: What the run depends on; a state with another key is refused.
        on_step: Called after every step.
        loss_of: What is minimised, called like `batch_loss`, which is the default.

    Returns:
        Inversion: byte-equal for the same inputs, however often the run was interrupted.

    Raises:
        IneError: The state belongs to another run, the loss is not finite, or the device does not
            compute in `spec.precision`.
    """
    vectors = [v.requires_grad_(True) for v in start_vectors(parts, spec, seed)]
    history = History(vectors, spec, preview)
    alpha_bar = make_scheduler("ddim", parts.scheduler_config, 50).alphas_cumprod
    batch, model = loss_of, parts
    if batch is None:
        batch, model = batch_loss, in_type(parts, inversion_dtype(spec.precision, parts))

    def loss(step: int, part: int) -> torch.Tensor:
        generator = generator_for(seed, "step", step, part)
        return batch(model, pictures, spec, vectors, trigger, plural, alpha_bar, generator)

    file = state_file(state, key, SAVE_EVERY, averaged=spec.average > 0)
    with _gradient_checkpointing(model.unet, spec.gradient_checkpointing):
        _descend(history, loss, file, _advice(parts), on_step)
    return history.result()


def _descend(
    history: History,
    loss: Callable[[int, int], torch.Tensor],
    state: StateFile,
    advice: str,
    on_step: Callable[[Progress], None] | None,
) -> None:
    """Run the optimiser over the vectors of a history."""
    spec, vectors = history.spec, history.vectors

    def rate(step: int) -> float:
        return learning_rate(step, spec.steps, spec.lr, spec.schedule)

    def report(step: int, value: float) -> None:
        if on_step:
            seen, lr = tuple(history.previews), rate(step - 1)
            on_step(Progress(step=step, steps=spec.steps, loss=value, lr=lr, previews=seen))

    minimise(
        "inversion",
        {str(number): vector for number, vector in enumerate(vectors)},
        torch.optim.AdamW(vectors, lr=spec.lr, weight_decay=spec.weight_decay),
        loss,
        spec.steps,
        advice=advice,
        state=state,
        history=history,
        accumulation=spec.accumulation,
        lr_of=rate,
        enough=history.enough,
        on_step=report,
    )


@contextmanager
def _gradient_checkpointing(unet: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Recompute activations in the backward pass while the context lasts, if `wanted`."""
    if not wanted or unet.is_gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    unet.train()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
        unet.eval()


def _advice(parts: DiffusionParts) -> str:
    """Return what to do where the loss is not finite."""
    if parts.dtype in NARROW:
        return f"the model is in {str(parts.dtype).removeprefix('torch.')}: give --dtype float32"
    return "use a smaller inversion.lr or inversion.precision=float32"
