"""The inversion loop: freeze everything, learn a few token vectors.

    c* = argmin_c E_{z_t, eps, t} || eps - eps_theta'(z_t, t, tau(c)) ||^2

Gal et al. 2022, eq. 2, against the unlearned U-Net theta' (arXiv 2511.04834). Only the vectors
move. Every step draws from a generator seeded by its own number, so a run that was killed
resumes with nothing but the vectors and the optimiser's two moments, and ends byte-equal.

Shape letters: B pictures, N vectors, D text width.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ine.errors import EmbeddingError, IneError, RecipeError
from ine.files import write_bytes
from ine.inversion.images import draw_latents
from ine.inversion.objective import denoising_target, learning_rate, noised
from ine.recipe import fill
from ine.runtime import generator_for
from ine.sampling import make_scheduler, run_unet
from ine.text import encode

log = logging.getLogger("ine")

SAVE_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the vectors of one moment do; shares in [0, 1]."""

    step: int
    recovery: float
    """Share of pictures with the concept when the vectors are the prompt."""

    left: float | None
    """Share with the concept on the tuning prompts when the vectors are the negative."""

    undefended: float | None
    """The same without any negative."""

    @property
    def order(self):
        """Sort key: defends best first, recovery breaks ties."""
        return (self.left if self.left is not None else 0.0, -self.recovery)


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """The result of a run."""

    vectors: tuple[torch.Tensor, ...]
    """One (N, D) float32 tensor per text encoder."""

    kept: Preview | None
    """The preview whose vectors were kept; None if there was none."""

    previews: tuple[Preview, ...]
    loss: float
    """Mean loss of the last hundred steps."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `on_step` is told after every optimiser step."""

    step: int
    steps: int
    loss: float
    lr: float
    previews: tuple[Preview, ...]


def start_vectors(parts, spec, seed):
    """Return the vectors that inversion starts from, one (N, D) tensor per text encoder.

    `spec.init` is "mean" (of the token table), words whose vectors are taken in turn, or the
    path of an embedding file with as many vectors.
    """
    starts = []
    given = None
    if spec.init.endswith((".safetensors", ".pt", ".bin")):
        from ine.embedding import read_embedding

        given = read_embedding(spec.init).vectors
        if len(given) != len(parts.text_encoders) or len(given[0]) != spec.vectors:
            raise EmbeddingError(
                f"{spec.init}: has {len(given[0])} vectors, inversion.vectors is {spec.vectors}"
            )
    for number, (tokenizer, encoder) in enumerate(
        zip(parts.tokenizers, parts.text_encoders, strict=True)
    ):
        table = encoder.get_input_embeddings().weight.detach().float().cpu()
        if given:
            base = given[number]
            if base.shape[1] != table.shape[1]:
                raise EmbeddingError(
                    f"{spec.init}: has vectors of width {base.shape[1]}, the token table of "
                    f"{parts.name} has {table.shape[1]}; give an embedding of the same family"
                )
        elif spec.init == "mean":
            base = table.mean(0, keepdim=True).repeat(spec.vectors, 1)
        else:
            ids = tokenizer(spec.init, add_special_tokens=False).input_ids
            if not ids:
                raise IneError(f"inversion.init {spec.init!r} has no tokens; give a word or 'mean'")
            base = table[[ids[i % len(ids)] for i in range(spec.vectors)]]
        noise = torch.randn(base.shape, generator=generator_for(seed, "start", number))
        starts.append(base + spec.init_noise * noise)
    return starts


def captions_for(spec, nouns, trigger, plural, generator):
    """Return one caption per picture with the trigger in it, templates drawn at random."""
    found = []
    for noun in nouns:
        named = bool(noun) and bool(spec.named_templates)
        templates = spec.named_templates if named else spec.templates
        choice = int(torch.randint(len(templates), (1,), generator=generator))
        template = templates[choice].replace("{noun}", "{}")
        # The trigger goes in last: article rules must see the noun, not the trigger.
        text = fill(template.replace("{v}", "\0"), noun, plural)
        found.append(" ".join(text.replace("\0", trigger).split()))
    return found


def check_room(parts, recipe, trigger):
    """Raise `RecipeError` if the recipe's captions with their vectors do not fit the context."""
    spec = recipe.inversion
    texts = set(spec.templates)
    texts |= {
        fill(template.replace("{noun}", "{}"), noun, recipe.plural)
        for template in spec.named_templates
        for noun in recipe.pictures.nouns
    }
    for tokenizer in parts.tokenizers:
        room = tokenizer.model_max_length - 2
        words = {text: _length(tokenizer, text) for text in sorted(texts)}
        text = max(words, key=words.get)
        if spec.vectors + words[text] > room:
            raise RecipeError(
                f"inversion.vectors: {spec.vectors} do not fit; the context of {parts.name} has "
                f"room for {room} tokens, and the caption {text.replace('{v}', trigger)!r} takes "
                f"{words[text]} besides; expected at most {max(0, room - words[text])}, set "
                "inversion.vectors to fewer or shorten the inversion's templates"
            )


def _length(tokenizer, text):
    """Return the number of tokens of a caption without its vectors."""
    pieces = [piece for piece in text.split("{v}") if piece.strip()]
    return sum(len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces)


def batch_loss(parts, pictures, spec, vectors, trigger, plural, alpha_bar, generator):
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
    condition = encode(parts, captions, {trigger: tuple(vectors)})
    precision = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(spec.precision)
    with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
        output = run_unet(parts.unet, x_t, t.to(device), condition)
    return (output.float() - target.to(device)).pow(2).mean()


def invert(
    parts,
    pictures,
    spec,
    *,
    trigger,
    seed=0,
    plural=(),
    preview: Callable | None = None,
    state: Path | None = None,
    key: str = "",
    on_step: Callable[[Progress], None] | None = None,
    loss_of: Callable | None = None,
):
    """Learn vectors that make the U-Net of `parts` reproduce the pictures.

    Args:
        parts: The unlearned model; nothing of it changes.
        pictures: `ConceptPictures`.
        spec: The recipe's `Inversion` section.
        trigger: The word that stands for the vectors in the captions.
        seed: Where all randomness comes from.
        plural: Nouns without an article.
        preview: `(vectors, step) -> Preview`; the vectors of the best preview are kept.
        state: File to resume from and to save to.
        key: What the run depends on; a state with another key is refused.
        on_step: Called after every step.
        loss_of: What is minimised, called as `batch_loss` is, which it is by default.

    Returns:
        Inversion: byte-equal for the same inputs, however often it was interrupted.

    Raises:
        IneError: The state belongs to another run, or the loss is not finite.
    """
    loss_of = loss_of or batch_loss
    schedule = make_scheduler("ddim", parts.scheduler_config, 50)
    alpha_bar = schedule.alphas_cumprod
    vectors = [v.requires_grad_(True) for v in start_vectors(parts, spec, seed)]
    optimiser = torch.optim.AdamW(vectors, lr=spec.lr, weight_decay=spec.weight_decay)
    first, previews, best, losses = 0, [], None, []
    resumed = read_state(state, key) if state else None
    if resumed:
        first, previews, best, losses = _restore(resumed, vectors, optimiser)
        log.info("resuming at step %d of %d", first, spec.steps)
    checkpointing = spec.gradient_checkpointing and not parts.unet.is_gradient_checkpointing
    if checkpointing:
        parts.unet.enable_gradient_checkpointing()
        parts.unet.train()
    try:
        for step in range(first, spec.steps):
            lr = learning_rate(step, spec.steps, spec.lr, spec.schedule)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.zero_grad()
            total = 0.0
            for part in range(spec.accumulation):
                generator = generator_for(seed, "step", step, part)
                loss = loss_of(
                    parts, pictures, spec, vectors, trigger, plural, alpha_bar, generator
                )
                (loss / spec.accumulation).backward()
                total += loss.item() / spec.accumulation
            if not torch.isfinite(torch.tensor(total)):
                raise IneError(
                    f"inversion: the loss is {total} at step {step}; use a smaller inversion.lr "
                    "or inversion.precision=float32"
                )
            optimiser.step()
            losses = [*losses[-99:], total]
            done = step + 1
            if preview and (done % spec.preview_every == 0 or done == spec.steps):
                seen = preview([v.detach() for v in vectors], done)
                previews.append(seen)
                if best is None or seen.order < best[0].order:
                    best = (seen, [v.detach().clone() for v in vectors])
            if state and (done % SAVE_EVERY == 0 or done == spec.steps):
                write_state(state, key, done, vectors, optimiser, previews, best, losses)
            if on_step:
                on_step(
                    Progress(
                        step=done, steps=spec.steps, loss=total, lr=lr, previews=tuple(previews)
                    )
                )
    finally:
        if checkpointing:
            parts.unet.disable_gradient_checkpointing()
            parts.unet.eval()
    kept, chosen = best if best else (None, [v.detach() for v in vectors])
    return Inversion(
        vectors=tuple(v.clone() for v in chosen),
        kept=kept,
        previews=tuple(previews),
        loss=sum(losses) / max(1, len(losses)),
    )


def write_state(path, key, step, vectors, optimiser, previews, best, losses):
    """Write what a run needs to go on, a few kilobytes, atomically."""
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for number, vector in enumerate(vectors):
        moments = optimiser.state[vector]
        tensors[f"vectors.{number}"] = vector.detach().contiguous()
        tensors[f"first.{number}"] = moments["exp_avg"].contiguous()
        tensors[f"second.{number}"] = moments["exp_avg_sq"].contiguous()
        if best:
            tensors[f"best.{number}"] = best[1][number].contiguous()
    about = {
        "key": key,
        "step": step,
        "previews": [asdict(p) for p in previews],
        "best": asdict(best[0]) if best else None,
    }
    write_bytes(path, save(tensors, metadata={"state": json.dumps(about)}))


def read_state(path, key):
    """Return (about, tensors) of a state file, or None if there is none.

    Raises:
        IneError: The file is broken or belongs to another run.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_state(about, tensors)
    # A dtype that torch lacks, or numbers that do not fit one, fail in other ways.
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise IneError(
            f"{path}: is not a state of `ine invert`, or is broken; delete it to begin anew"
        ) from error
    if about["key"] != key:
        raise IneError(
            f"{path}: belongs to a run with other settings, weights or pictures; repeat those to "
            "resume it, or give --force to begin anew"
        )
    return about, tensors


def _check_state(about, tensors):
    """Raise `ValueError` where a run could not go on from what a state file says."""
    best = about["best"]
    previews = [*about["previews"], *([best] if best else [])]
    numbers = [
        number
        for p in previews
        for number in (p["step"], p["recovery"], p["left"], p["undefended"])
        if number is not None
    ]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError("a preview is of other things than numbers")
    if {*map(len, previews)} - {4} or any(p["recovery"] is None for p in previews):
        raise ValueError("a preview is of other fields")
    if type(about["step"]) is not int or about["step"] < 0 or not isinstance(about["key"], str):
        raise ValueError("step or key is of another kind")
    count = sum(name.startswith("vectors.") for name in tensors)
    kinds = ["vectors", "first", "second", *(["best"] if best else [])]
    losses = tensors["losses"]
    shapes = {n: tensors[f"vectors.{n}"].shape for n in range(count)}
    wanted = {f"{kind}.{n}": shapes[n] for kind in kinds for n in shapes}
    if not count or losses.dim() != 1 or losses.dtype != torch.float64:
        raise ValueError("there are no vectors, or no losses")
    for name, shape in wanted.items():
        found = tensors[name]
        fine = found.shape == shape and found.dim() == 2 and found.dtype == torch.float32
        if not fine or not torch.isfinite(found).all():
            raise ValueError(f"{name} is of another shape or not finite")


def _restore(resumed, vectors, optimiser):
    about, tensors = resumed
    with torch.no_grad():
        for number, vector in enumerate(vectors):
            vector.copy_(tensors[f"vectors.{number}"])
            optimiser.state[vector] = {
                "step": torch.tensor(float(about["step"])),
                "exp_avg": tensors[f"first.{number}"],
                "exp_avg_sq": tensors[f"second.{number}"],
            }
    best = None
    if about["best"]:
        best = (
            Preview(**about["best"]),
            [tensors[f"best.{number}"] for number in range(len(vectors))],
        )
    previews = [Preview(**p) for p in about["previews"]]
    return about["step"], previews, best, tensors["losses"].tolist()
