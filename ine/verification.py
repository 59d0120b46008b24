"""Does an embedding fit a model, and is it alive there?

That vectors move the noise prediction far says nothing: random ones of the same norm do too.
What random ones do not do is explain pictures of the concept. With x_t a noised picture of the
base model, eps its noise and e(c) = |eps_theta(x_t, c) - eps|^2 the error under condition c,

    gain(x, v) = (e("a") - e("a v")) / mean e("a")        averaged over timesteps
    recall(v)  = mean gain over pictures of the concept
                 - mean gain over the same pictures without it

the log-likelihood ratio by which Li et al. 2023 (arXiv 2303.16203) classify with a diffusion
model, asked of vectors instead of classes. The difference cancels what any token does to any
picture. Compared are vectors of the same norms that mean nothing: the elements of each vector
shuffled, and Gaussian ones. Alive is what recalls more than every one of them, by `MARGIN`
of their standard deviations at least.

Pictures stay latents; nothing is decoded, no file is written.

Shape letters: N vectors, D text width, P pictures, C latent channels, H W latent size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ine.embedding import check_fits
from ine.errors import EmbeddingError, RecipeError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.guidance.protocol import Step
from ine.inversion.objective import noised
from ine.recipe import pairs
from ine.runtime import generator_for, seed_for
from ine.sampling import SamplerSettings, make_scheduler, run_unet, sample_latents
from ine.text import encode, encode_nothing

MARGIN = 3.0
"""Standard deviations of the controls by which a living embedding stands out. The four shipped
ones stand out by 4.1 to 6.2 (16 pictures, 24 controls); of the 96 controls themselves, each
judged by the others of its model, one passed."""

NOTHING = 0.01
"""Share of the token table's median norm below which a vector is as good as zero."""

TIMES = (0.7, 0.55, 0.4)
"""Where in [0, 1] of the noise schedule predictions are compared."""

PLAIN = (
    *("a dog", "a house", "a car", "a tree", "a cat", "a flower", "a chair", "a boat"),
    *("a bird", "a mountain", "a cup", "a book", "a bicycle", "a lamp", "a horse", "a bridge"),
)
"""Innocent prompts where no recipe has better ones."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an embedding is said to stand for, as prompts."""

    name: str
    word: str
    """The phrase that embeddings are compared with, as a UI user would type it."""

    shown: tuple[str, ...]
    """Prompts with the concept."""

    innocent: tuple[str, ...]
    """`innocent[i]` is `shown[i]` without the concept, or just another prompt."""

    avoid: str = ""
    """A negative prompt for making the pictures."""


def subject_of(recipe, count, seed=0):
    """Return the `Subject` of a recipe with `count` prompts of each kind.

    Best are pairs that differ in the concept alone, "a burning dog" and "a dog": a background
    that is always there with it would be recalled too. A recipe that says nothing about erasing
    has none, and gives the prompts of its pictures and its benign ones.
    """
    both = _pairs(recipe) or _apart(recipe)
    both.sort(key=lambda pair: seed_for(seed, "verify", *pair))
    both = [both[i % len(both)] for i in range(count)]
    return Subject(
        name=recipe.name,
        word=recipe.words.negative_text(),
        shown=tuple(s for s, _ in both),
        innocent=tuple(i for _, i in both),
        avoid=recipe.pictures.negative_prompt,
    )


def _pairs(recipe):
    """Return [(prompt with the concept, the same without it), ...] after what erasers are told.

    Where the concept is the noun ("a gun", target "a thing"), another noun takes its place.
    """
    erase = recipe.erase
    if erase is None:
        return []
    others = [n for n in erase.preserve_nouns if n]
    found = []
    for shown, innocent in zip(erase.concepts, erase.targets, strict=True):
        for noun in erase.nouns if "{}" in shown else ():
            if "{}" in innocent:
                found.append((recipe.fill(shown, noun), recipe.fill(innocent, noun)))
            else:
                found += [(recipe.fill(shown, noun), recipe.fill(shown, n)) for n in others]
    return found


def _apart(recipe):
    """Return [(prompt of the pictures, some benign prompt), ...]."""
    shown = [recipe.fill(t, n) for t, n in pairs(recipe.pictures.prompts, recipe.pictures.nouns)]
    nouns = [n for n in recipe.prompt_nouns if n]
    benign = [recipe.fill(t, n) for t, n in pairs(recipe.prompt_sets.get("benign", ()), nouns)]
    benign = benign or list(PLAIN)
    benign.sort(key=lambda text: seed_for("verify", text))
    return [(text, benign[i % len(benign)]) for i, text in enumerate(dict.fromkeys(shown))]


def subject_of_words(words, count):
    """Return the `Subject` of phrases that a user gives, in turn; innocent are plain objects."""
    words = [w.strip() for w in words if w.strip()]
    if not words:
        raise RecipeError("verify: the words for the concept are empty; give a phrase")
    return Subject(
        name=", ".join(words),
        word=", ".join(words),
        shown=tuple(words[i % len(words)] for i in range(count)),
        innocent=tuple(PLAIN[i % len(PLAIN)] for i in range(count)),
    )


@dataclass(frozen=True, kw_only=True)
class Reaction:
    """What the U-Net makes of one condition."""

    move: float
    """Root mean square of eps(condition) - eps(""), over that of eps(word) - eps("")."""

    recall: float
    """Share of the error that it takes away from pictures of the concept beyond innocent ones."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found out; `as_dict` for JSON."""

    trigger: str
    fits: bool
    alive: bool | None
    """None where it does not fit."""

    verdict: str
    """One line."""

    notes: tuple[str, ...] = ()
    """How the model differs from the one that the embedding was made with."""

    norms: tuple[tuple[float, ...], ...] = ()
    """Norm of each vector over the median norm of the token table, per text encoder."""

    nearest: tuple[tuple[tuple[str, float], ...], ...] = ()
    """The nearest words of each vector and their cosines, first text encoder."""

    subject: str = ""
    embedding: Reaction | None = None
    word: Reaction | None = None
    """The concept's own phrase on the same U-Net."""

    shuffled: tuple[Reaction, ...] = ()
    random: tuple[Reaction, ...] = ()
    margin: float | None = None
    """(recall - mean of the controls) / their standard deviation."""

    def as_dict(self):
        """Return plain values."""
        plain = dict(vars(self))
        for name in ("embedding", "word"):
            plain[name] = vars(plain[name]) if plain[name] else None
        for name in ("shuffled", "random"):
            plain[name] = [vars(r) for r in plain[name]]
        return plain


@torch.no_grad()
def verify_embedding(
    base,
    parts,
    embedding,
    subject,
    *,
    controls=12,
    settings=None,
    seed=0,
    progress: Callable[[int, int], None] = lambda done, wanted: None,
):
    """Return the `Verification` of an embedding on a model.

    Args:
        base: The base model's parts; it makes the pictures.
        parts: The base with the weights laid over it that the embedding shall act on.
        embedding: A `ConceptEmbedding`.
        subject: A `Subject`; its prompts say how many pictures are made.
        controls: Shuffled and as many random embeddings to compare with, at least 2.
        settings: `SamplerSettings` for making the pictures; its batch is the U-Net's everywhere.
        seed: Where all randomness comes from.
        progress: Called with (conditions done, conditions wanted).
    """
    if controls < 2:
        raise ValueError(f"{controls} controls have no spread; 2 or more are needed")
    try:
        notes = check_fits(embedding, parts)
    except EmbeddingError as error:
        verdict = f"does not fit: {error}"
        return Verification(trigger=embedding.trigger, fits=False, alive=None, verdict=verdict)
    norms = relative_norms(parts, embedding)
    known = {
        "trigger": embedding.trigger,
        "fits": True,
        "notes": tuple(notes),
        "norms": norms,
        "nearest": nearest_words(parts, embedding.vectors[0]),
        "subject": subject.name,
    }
    if max(norm for row in norms for norm in row) < NOTHING:
        verdict = "fits, but is not alive: its vectors are zero, or as good as that"
        return Verification(**known, alive=False, verdict=verdict)
    settings = settings or SamplerSettings()
    examiner = Examiner.prepare(base, parts, subject, settings, seed)
    word = examiner.react(encode(parts, [subject.word]))
    wanted = 2 * controls + 2
    progress(1, wanted)

    def react(vectors):
        given = {embedding.trigger: vectors}
        return examiner.react(encode(parts, [f"a {embedding.trigger}"], given), word.move)

    own = react(embedding.vectors)
    progress(2, wanted)
    kinds = {"shuffled": shuffled, "random": random_vectors}
    found: dict = {kind: [] for kind in kinds}
    for kind, draw in kinds.items():
        for number in range(controls):
            found[kind].append(react(draw(embedding.vectors, seed_for(seed, kind, number))))
            progress(2 + sum(map(len, found.values())), wanted)
    alive, margin = judge(own.recall, [r.recall for rows in found.values() for r in rows])
    return Verification(
        **known,
        alive=alive,
        verdict=_verdict(alive, margin, subject, bool(notes)),
        embedding=own,
        word=replace(word, move=1.0 if word.move else 0.0),
        shuffled=tuple(found["shuffled"]),
        random=tuple(found["random"]),
        margin=margin,
    )


def judge(recall, controls):
    """Return (alive, margin) of a recall and those of meaningless vectors."""
    given = torch.tensor(controls, dtype=torch.float64)
    spread = float(given.std())
    if not (math.isfinite(recall) and spread > 0):
        return False, None
    margin = (recall - float(given.mean())) / spread
    return recall > max(0.0, float(given.max())) and margin >= MARGIN, margin


def _verdict(alive, margin, subject, noted):
    there = "fits, with notes," if noted else "fits"
    if alive:
        return f"{there} and is alive: it recalls {subject.name!r}, {margin:.1f} sd above chance"
    if margin is None:
        return f"{there} but is not alive: the U-Net answers with what is no number, or not at all"
    return (
        f"{there} but is not alive: it recalls {subject.name!r} no better than meaningless vectors "
        f"do ({margin:+.1f} sd, {MARGIN:g} are needed)"
    )


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Noised pictures and what the U-Net says to them without the embedding."""

    parts: object
    steps: tuple[Step, ...]
    """One per timestep; `x_t` holds P pictures of the concept, then as many innocent ones."""

    noise: tuple[torch.Tensor, ...]
    """eps of each step, (2P, C, H, W)."""

    empty: tuple[torch.Tensor, ...]
    """eps("") of each step, (2P, C, H, W)."""

    plain: tuple[torch.Tensor, ...]
    """e("a") of each step, (2P,)."""

    batch: int

    @classmethod
    def prepare(cls, base, parts, subject, settings, seed=0):
        """Make the pictures on the base and noise them; a pair shares its seeds."""
        steps, noise = _noised(base, parts, _pictures(base, subject, settings, seed), seed)
        bare = cls(parts=parts, steps=steps, noise=noise, empty=(), plain=(), batch=settings.batch)
        errors = [bare.error(p, k) for k, p in enumerate(bare.predict(encode(parts, ["a"])))]
        return replace(bare, empty=tuple(bare.predict(encode_nothing(parts))), plain=tuple(errors))

    def predict(self, condition):
        """Return the noise predictions under one condition, [(2P, C, H, W), ...] by step."""
        found = []
        for step in self.steps:
            rows = []
            for x_t in step.x_t.split(self.batch):
                output = run_unet(self.parts.unet, x_t, step.t, condition.repeat(len(x_t)))
                rows.append(replace(step, x_t=x_t).noise(output).float())
            found.append(torch.cat(rows))
        return found

    def error(self, predicted, number):
        """Return the squared error of predictions of a step, (2P,)."""
        return (predicted - self.noise[number]).square().mean(dim=(1, 2, 3))

    def react(self, condition, unit=1.0):
        """Return the `Reaction` to one condition; `unit` is the move that counts as 1."""
        moves, gains = [], []
        for k, predicted in enumerate(self.predict(condition)):
            moves.append((predicted - self.empty[k]).square().mean())
            gains.append((self.plain[k] - self.error(predicted, k)) / self.plain[k].mean())
        shown, innocent = torch.stack(gains).mean(0).chunk(2)
        return Reaction(
            move=float(torch.stack(moves).mean().sqrt()) / (unit or 1.0),
            recall=float(shown.mean() - innocent.mean()),
        )


def _pictures(base, subject, settings, seed):
    """Return latents of the concept, then innocent ones, (2P, C, H, W)."""
    guidance = ClassifierFree(Negative(subject.avoid))
    count = len(subject.shown)
    prompts = [*subject.shown, *subject.innocent]
    seeds = [seed_for(seed, "verify", i % count) for i in range(2 * count)]
    return torch.cat(
        [
            sample_latents(
                base,
                prompts[i : i + settings.batch],
                seeds[i : i + settings.batch],
                guidance,
                settings,
            )[0]
            for i in range(0, len(prompts), settings.batch)
        ]
    )


def _noised(base, parts, latents, seed):
    """Return (steps, noises): the latents noised to every one of `TIMES`."""
    scheduler = make_scheduler("ddim", base.scheduler_config, 10)
    total = len(scheduler.alphas_cumprod)
    steps, noises = [], []
    for index, time in enumerate(TIMES):
        t = round(time * (total - 1))
        alpha_bar = scheduler.alphas_cumprod[t].to(latents.device)
        half = (len(latents) // 2, *latents.shape[1:])
        eps = torch.randn(half, generator=generator_for(seed, "verify", "noise", index))
        eps = eps.repeat(2, 1, 1, 1).to(latents.device)
        x_t = noised(latents.float(), eps, alpha_bar)
        steps.append(
            Step(
                index=index,
                count=len(TIMES),
                t=torch.tensor(t, device=latents.device),
                x_t=x_t.to(latents.dtype),
                alpha_bar=alpha_bar,
                prediction_type=parts.prediction_type,
            )
        )
        noises.append(eps)
    return tuple(steps), tuple(noises)


def shuffled(vectors, seed):
    """Return vectors whose elements are shuffled, each for itself: same norms, no meaning."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(
        torch.stack([row[torch.randperm(len(row), generator=draw)] for row in given])
        for given in vectors
    )


def random_vectors(vectors, seed):
    """Return Gaussian vectors of the same norms."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for given in vectors:
        noise = torch.randn(given.shape, generator=draw)
        found.append(noise / noise.norm(dim=1, keepdim=True) * given.norm(dim=1, keepdim=True))
    return tuple(found)


def relative_norms(parts, embedding):
    """Return norms of the vectors over the median of the token table's, per text encoder."""
    found = []
    for encoder, vectors in zip(parts.text_encoders, embedding.vectors, strict=True):
        usual = encoder.get_input_embeddings().weight.float().norm(dim=1).median()
        found.append(tuple((vectors.norm(dim=1) / usual.cpu()).tolist()))
    return tuple(found)


def nearest_words(parts, vectors, count=3):
    """Return the tokens of the first text encoder that are most alike, with their cosines.

    Args:
        parts: A `DiffusionParts`.
        vectors: (N, D).
        count: How many per vector.
    """
    tokenizer = parts.tokenizers[0]
    table = parts.text_encoders[0].get_input_embeddings().weight.float().cpu()
    unit = torch.nn.functional.normalize
    alike = unit(vectors.float(), dim=1) @ unit(table, dim=1).T
    alike[:, [i for i in tokenizer.all_special_ids if i < len(table)]] = -1
    best = alike.topk(min(count, len(table)), dim=1)
    return tuple(
        tuple(
            (word.removesuffix("</w>"), round(cosine, 3))
            for word, cosine in zip(
                tokenizer.convert_ids_to_tokens(ids), cosines.tolist(), strict=True
            )
        )
        for ids, cosines in zip(best.indices.tolist(), best.values, strict=True)
    )
