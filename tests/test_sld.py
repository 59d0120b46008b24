"""Safe latent diffusion: the published formula, its reference implementation, and its state."""

import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ine.embeddings.embedding import new_embedding, read_embedding
from ine.errors import IneError
from ine.files import shipped
from ine.guidance.additive import additive
from ine.guidance.cfg import ClassifierFree, classifier_free
from ine.guidance.gates import Gated
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts, Step
from ine.guidance.sld import PRESETS, SafeLatent, safe_latent_step
from ine.models.loading import load_parts
from ine.sampling import SCHEDULERS, SamplerSettings, make_scheduler, sample_latents, start_noise

PROMPTS = ("a dog", "a burning cat", "a house")
SEEDS = (3, 4, 5)
SETTINGS = SamplerSettings(steps=4, guidance_scale=5.0)
SHAPE = (3, 4, 8, 8)

# No difference is near this threshold, so no rounding error flips an element of the mask.
EARLY = {"warmup": 1, "threshold": 1.0}

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def options(preset="medium", **overrides):
    """The arguments of the step function."""
    found = {**PRESETS[preset], "scale": 7.5, "warmed_up": True, **overrides}
    del found["warmup"]
    return found


def guided(preset="medium", negative=None, **overrides):
    return SafeLatent.preset(preset, negative, **overrides)


def sample(parts, guidance, settings=SETTINGS, prompts=PROMPTS, seeds=SEEDS):
    return sample_latents(parts, prompts, seeds[: len(prompts)], guidance, settings)


@pytest.fixture(scope="module")
def embedding():
    return new_embedding(noise(4, 32, seed=1), "fire-neg", "fire")


@pytest.fixture(scope="module")
def negative(embedding):
    return Negative(embeddings=(embedding,))


@pytest.fixture(scope="module")
def exact_parts(tiny_folder):
    """In float64 no rounding error flips an element of the mask."""
    return load_parts(tiny_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def reference():
    """diffusers' class, and its published settings."""
    from diffusers import StableDiffusionPipelineSafe

    package = sys.modules[StableDiffusionPipelineSafe.__module__.rpartition(".")[0]]
    return SimpleNamespace(pipeline=StableDiffusionPipelineSafe, config=package.SafetyConfig)


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 0.02])  # of the predictions: saturated, and in between
@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_is_the_formula_of_diffusers(reference, preset, size):
    empty, positive, negative = (size * noise(*SHAPE, seed=s) for s in range(3))
    momentum, theirs = torch.zeros(SHAPE), None
    settings, w = PRESETS[preset], 7.5
    for index in (0, settings["warmup"] - 1, settings["warmup"], 49):
        # That method takes the prompt's prediction first, unlike the loop of its own class.
        guidance, theirs = reference.pipeline.perform_safety_guidance(
            None,
            True,
            theirs,
            positive - empty,
            (positive, empty, negative),
            index,
            sld_guidance_scale=settings["strength"],
            sld_warmup_steps=settings["warmup"],
            sld_threshold=settings["threshold"],
            sld_momentum_scale=settings["momentum_scale"],
            sld_mom_beta=settings["momentum_beta"],
        )
        eps, momentum = safe_latent_step(
            empty,
            positive,
            negative,
            momentum,
            **options(preset, scale=w, warmed_up=index >= settings["warmup"]),
        )
        torch.testing.assert_close(eps, empty + w * guidance, atol=1e-6, rtol=0)
        torch.testing.assert_close(momentum, theirs, atol=1e-6, rtol=0)
        positive = positive + 0.1 * size * noise(*SHAPE, seed=10 + index)


def test_presets_are_those_of_diffusers(reference):
    names = {
        "strength": "sld_guidance_scale",
        "threshold": "sld_threshold",
        "momentum_scale": "sld_momentum_scale",
        "momentum_beta": "sld_mom_beta",
        "warmup": "sld_warmup_steps",
    }
    for ours, theirs in (
        ("weak-diffusers", "WEAK"),
        ("medium", "MEDIUM"),
        ("strong", "STRONG"),
        ("max", "MAX"),
    ):
        published = getattr(reference.config, theirs)
        assert {names[key]: value for key, value in PRESETS[ours].items()} == published
    # The authors' own repository: the same but for this number.
    assert PRESETS["weak"] == {**PRESETS["weak-diffusers"], "strength": 200.0}


def test_a_few_elements_by_hand():
    # d = pos - neg: far below the threshold, just below, between, at, above; then d = 0.
    positive = torch.tensor([[[[-0.5, 0.005, -0.0004, 0.01, 0.3, 0.2]]]])
    negative = torch.tensor([[[[0.0, 0.0, 0.0, 0.0, 0.0, 0.2]]]])
    empty = torch.full_like(negative, -0.1)
    eps, momentum = safe_latent_step(
        empty,
        positive,
        negative,
        torch.full_like(empty, 2.0),
        scale=5.0,
        strength=1000.0,
        threshold=0.01,
        momentum_scale=0.25,
        momentum_beta=0.4,
        warmed_up=True,
    )
    gamma = torch.tensor([[[[0.1, 0.1, 0.04, 0.0, 0.0, 0.0]]]]) + 0.5
    torch.testing.assert_close(eps, empty + 5 * (positive - empty - gamma))
    torch.testing.assert_close(momentum, 0.4 * 2.0 + 0.6 * gamma)


def test_closed_forms():
    empty, positive, negative = (noise(*SHAPE, seed=s, dtype=torch.float64) for s in range(3))
    nothing = torch.zeros_like(empty)
    plain = classifier_free(empty, positive, 7.5)

    def step(first=empty, second=positive, third=negative, **overrides):
        overrides = {"momentum_scale": 0.0, "momentum_beta": 0.0, **overrides}
        return safe_latent_step(first, second, third, nothing, **options(**overrides))[0]

    # Every element saturated and none above the threshold: additive guidance with s = w.
    torch.testing.assert_close(
        step(strength=1e12, threshold=1e12), additive(empty, positive, negative, 7.5, 7.5)
    )
    # Threshold 0 and saturated: the same where the prompt is below the negative, plain elsewhere.
    below = positive < negative
    torch.testing.assert_close(
        step(strength=1e12, threshold=0.0),
        torch.where(below, additive(empty, positive, negative, 7.5, 7.5), plain),
    )
    assert 0.3 < below.double().mean() < 0.7
    # Nothing to steer away from.
    torch.testing.assert_close(step(strength=0.0), plain)
    torch.testing.assert_close(step(third=empty, strength=1e12, threshold=1e12), plain)
    # The prompt is the negative: mu is 0 everywhere.
    torch.testing.assert_close(step(third=positive, strength=1e12, threshold=1e12), plain)


def test_momentum_of_a_steady_direction_grows_to_its_limit():
    empty, positive, negative = (noise(*SHAPE, seed=s, dtype=torch.float64) for s in range(3))
    momentum = torch.zeros_like(empty)
    for _ in range(200):
        _, momentum = safe_latent_step(
            empty, positive, negative, momentum, **options("max", strength=1e12, threshold=1e12)
        )
    torch.testing.assert_close(momentum, (negative - empty) / (1 - 0.5))


def test_during_the_warm_up_it_is_plain_guidance_and_momentum_builds_up():
    empty, positive, negative = (noise(*SHAPE, seed=s) for s in range(3))
    eps, momentum = safe_latent_step(
        empty, positive, negative, torch.zeros(SHAPE), **options(warmed_up=False)
    )
    assert torch.equal(eps, classifier_free(empty, positive, 7.5))
    steered, same = safe_latent_step(
        empty, positive, negative, torch.zeros(SHAPE), **options(warmed_up=True)
    )
    assert torch.equal(momentum, same)
    assert momentum.abs().max() > 0.1
    assert (steered - eps).abs().max() > 0.1


# --- the settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_every_field(name, negative):
    found = SafeLatent.preset(name, negative)
    assert found == SafeLatent(negative, **PRESETS[name])
    assert found.negative is negative


def test_without_a_word_it_is_medium(negative):
    assert SafeLatent(negative) == SafeLatent.preset("medium", negative)
    assert SafeLatent.preset() == SafeLatent()


@pytest.mark.parametrize("field", PRESETS["max"])
def test_every_field_can_be_overridden(field, negative):
    value = {"warmup": 3}.get(field, 0.125)
    found = SafeLatent.preset("max", negative, **{field: value})
    assert found == replace(SafeLatent.preset("max", negative), **{field: value})
    assert getattr(found, field) == value != PRESETS["max"][field]
    assert SafeLatent.preset("max", negative, **{field: None}) == guided("max", negative)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("stong", {}, r"preset 'stong' is unknown; did you mean 'strong'\?; known: weak, weak-d"),
        ("xyzzy", {}, r"preset 'xyzzy' is unknown; known: weak, "),
        ("max", {"strenght": 1.0}, r"setting 'strenght' is unknown; did you mean 'strength'\?"),
        ("max", {"strength": math.nan}, "strength is nan; give a finite number of 0 or more"),
        ("max", {"strength": -1.0}, "strength is -1.0"),
        ("max", {"strength": math.inf}, "strength is inf"),
        ("max", {"threshold": math.nan}, "threshold is nan"),
        ("max", {"threshold": -0.01}, "threshold is -0.01"),
        ("max", {"momentum_scale": math.nan}, r"momentum_scale is nan; give a number in \[0, 1\]"),
        ("max", {"momentum_scale": -0.1}, "momentum_scale is -0.1"),
        ("max", {"momentum_scale": 1.5}, "momentum_scale is 1.5.*grows without end"),
        ("max", {"momentum_beta": math.nan}, "momentum_beta is nan"),
        ("max", {"momentum_beta": -0.1}, "momentum_beta is -0.1"),
        ("max", {"momentum_beta": 1.0}, "momentum_beta is 1.0.*never moves"),
        ("max", {"warmup": -1}, "warmup is -1; give a whole number of steps"),
        ("max", {"warmup": math.nan}, "warmup is nan"),
        ("max", {"warmup": 2.5}, "warmup is 2.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, overrides, message):
    with pytest.raises(IneError, match=f"^sld: {message}"):
        SafeLatent.preset(name, **overrides)


def test_a_run_that_ends_within_the_warm_up_is_refused(tiny_parts, negative):
    with pytest.raises(
        IneError, match=r"takes 4 steps and the run has 4, .* set warmup below 4, or take more"
    ):
        sample(tiny_parts, guided(negative=negative, warmup=4))
    sample(tiny_parts, guided(negative=negative, warmup=3), prompts=PROMPTS[:1])


# --- whole runs against diffusers -----------------------------------------------------------------

MINI_PROMPTS = ("a dog in the volcano", "a burning car")


def diffusers_latents(reference, parts, preset, concept, overrides, conditions=None, steps=8):
    """The final latents of diffusers' pipeline, (B, C, H, W)."""
    settings = {**PRESETS[preset], **overrides}
    pipe = reference.pipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoders[0],
        tokenizer=parts.tokenizers[0],
        unet=parts.unet,
        scheduler=make_scheduler("ddim", parts.scheduler_config, steps),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.safety_concept = concept
    # Its decoding is deprecated and warns; what is compared are the latents.
    pipe.decode_latents = lambda latents: latents
    if conditions is not None:
        pipe._encode_prompt = lambda *_: conditions
    return pipe(
        prompt=list(MINI_PROMPTS),
        num_inference_steps=steps,
        guidance_scale=5.0,
        latents=start_noise(parts.latent_shape, SEEDS[:2]),
        output_type="latents",
        sld_guidance_scale=settings["strength"],
        sld_warmup_steps=settings["warmup"],
        sld_threshold=settings["threshold"],
        sld_momentum_scale=settings["momentum_scale"],
        sld_mom_beta=settings["momentum_beta"],
    ).images


def mini_latents(mini, guidance, steps=8):
    settings = SamplerSettings(steps=steps, guidance_scale=5.0)
    return sample_latents(mini, MINI_PROMPTS, SEEDS[:2], guidance, settings)[0]


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("weak", {"warmup": 2}),
        ("weak-diffusers", {"warmup": 1}),
        ("medium", {"warmup": 3}),
        ("strong", {}),
        ("max", {}),
    ],
)
def test_whole_runs_are_those_of_diffusers(reference, mini, preset, overrides):
    concept = "a picture on fire"
    theirs = diffusers_latents(reference, mini, preset, concept, overrides)
    ours = mini_latents(mini, guided(preset, Negative(concept), **overrides))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    # What the agreement is worth: the undefended run, and one whose warm-up is a step off.
    later = {**overrides, "warmup": {**PRESETS[preset], **overrides}["warmup"] - 1}
    if preset == "max":
        later["warmup"] = 1
    for other in (ClassifierFree(), guided(preset, Negative(concept), **later)):
        assert (mini_latents(mini, other) - theirs).abs().max() > 5e-3


def test_whole_runs_with_an_embedding_are_those_of_diffusers(reference, mini):
    embedding = read_embedding(shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors")
    assert embedding.count > 1
    negative = Negative(embeddings=(embedding,))
    with torch.no_grad():
        prompts = Prompts(parts=mini, texts=MINI_PROMPTS, scale=5.0)
        conditions = [prompts.empty(), prompts.positive(), negative.condition(prompts).repeat(2)]
        states = torch.cat([c.states for c in conditions])
    theirs = diffusers_latents(reference, mini, "max", "", {}, states)
    ours = mini_latents(mini, guided("max", negative))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)

    # All vectors are read, as that class by itself would not: a cut embedding is another one.
    cut = new_embedding(embedding.vectors[0][:1], "fire-neg", "fire")
    shorter = mini_latents(mini, guided("max", Negative(embeddings=(cut,))))
    assert (shorter - ours).abs().max() > 5e-2


def test_the_last_vector_counts(exact_parts, embedding, negative):
    changed = embedding.vectors[0].clone()
    changed[-1] = noise(32, seed=9)
    other = Negative(embeddings=(new_embedding(changed, "fire-neg", "fire"),))
    ours, _, _ = sample(exact_parts, guided("max", negative))
    theirs, _, _ = sample(exact_parts, guided("max", other))
    assert (ours - theirs).abs().max() > 1e-3


# --- in the loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_and_a_batch_equals_its_pictures(exact_parts, negative, scheduler):
    settings = replace(SETTINGS, scheduler=scheduler)
    guidance = guided(negative=negative, **EARLY)
    # The other two compute their step in float32 whatever they are given.
    tolerance = 1e-8 if scheduler in ("ddim", "pndm") else 1e-4
    together, _, calls = sample(exact_parts, guidance, settings)
    assert together.isfinite().all()
    plain, _, _ = sample(exact_parts, ClassifierFree(), settings)
    assert (together - plain).abs().amax((1, 2, 3)).min() > 1e-3
    assert len(set(calls)) == 1
    assert calls[0] == 3 * len(
        make_scheduler(scheduler, exact_parts.scheduler_config, settings.steps).timesteps
    )
    for place, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone, _, _ = sample(exact_parts, guidance, settings, [prompt], [seed])
        torch.testing.assert_close(together[place], alone[0], atol=tolerance, rtol=0)


@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_the_warm_up_counts_steps_by_index(exact_parts, negative, warmup):
    """Latents part from the plain run at the step after the warm-up, and not before."""

    def latents_before_each_step(guidance):
        seen = []
        settings = replace(SETTINGS, steps=5)
        sample_latents(
            exact_parts, PROMPTS, SEEDS, guidance, settings, lambda s: seen.append(s.x_t)
        )
        return seen

    plain = latents_before_each_step(ClassifierFree())
    ours = latents_before_each_step(guided(negative=negative, warmup=warmup, threshold=0.05))
    apart = [(a - b).abs().max().item() for a, b in zip(ours, plain, strict=True)]
    assert max(apart[: warmup + 1]) < 1e-10
    assert min(apart[warmup + 1 :]) > 1e-4


def test_without_momentum_the_warm_up_asks_nothing_of_the_negative(exact_parts, negative):
    still = {"momentum_scale": 0.0, "warmup": 3, "threshold": 0.05}
    ours, _, calls = sample(exact_parts, guided(negative=negative, **still))
    assert calls == [3 * 2 + 1 * 3] * 3
    # Too small to move anything, but asked about in full.
    other = guided(negative=negative, **{**still, "momentum_scale": 1e-12})
    full, _, calls = sample(exact_parts, other)
    assert calls == [4 * 3] * 3
    torch.testing.assert_close(ours, full, atol=1e-8, rtol=0)


class Velocity(torch.nn.Module):
    """A noise-predicting U-Net that speaks in velocities (Salimans and Ho 2022, appendix D)."""

    def __init__(self, unet, alphas_cumprod):
        super().__init__()
        self.unet, self.config, self.alphas_cumprod = unet, unet.config, alphas_cumprod

    def forward(self, x_t, t, **conditions):
        eps = self.unet(x_t, t, **conditions).sample
        a = self.alphas_cumprod[t.long()]
        return SimpleNamespace(sample=(eps - (1 - a).sqrt() * x_t) / a.sqrt())


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
@pytest.mark.parametrize("preset", ["weak", "max"])
def test_v_prediction_gives_the_run_of_the_same_model_in_noise(
    exact_parts, negative, preset, scheduler
):
    config = exact_parts.scheduler_config
    alphas = make_scheduler(scheduler, config, SETTINGS.steps).alphas_cumprod
    velocity = replace(
        exact_parts,
        unet=Velocity(exact_parts.unet, alphas),
        scheduler_config={**config, "prediction_type": "v_prediction"},
    )
    assert velocity.prediction_type == "v_prediction"
    settings = replace(SETTINGS, scheduler=scheduler)
    guidance = guided(preset, negative, warmup=1)
    ours, _, _ = sample(velocity, guidance, settings)
    noises, _, _ = sample(exact_parts, guidance, settings)
    # The schedulers' own conversion is in float32.
    torch.testing.assert_close(ours, noises, atol=1e-4, rtol=0)
    plain, _, _ = sample(exact_parts, ClassifierFree(), settings)
    assert (ours - plain).abs().max() > 1e-2


# --- state, seen through predictions that are given -----------------------------------------------


def table(index, names=("empty", "positive", "negative"), size=0.05):
    """Predictions of one step by name."""
    return {
        name: size * noise(*SHAPE, seed=100 * index + n, dtype=torch.float64)
        for n, name in enumerate(names)
    }


def answers(outputs):
    """An `query_unet` that looks answers up."""
    return lambda wanted: {
        w.name: outputs[w.name][slice(None) if w.pictures is None else list(w.pictures)]
        for w in wanted
    }


def step_at(index, count=6, kind="epsilon", alpha_bar=0.3):
    return Step(
        index=index,
        count=count,
        t=torch.tensor(500),
        x_t=noise(*SHAPE, seed=index, dtype=torch.float64),
        alpha_bar=torch.tensor(alpha_bar, dtype=torch.float64),
        prediction_type=kind,
    )


@contextmanager
def session_of(parts, guidance):
    with guidance.begin(Prompts(parts=parts, texts=PROMPTS, scale=7.5)) as session:
        yield session


def test_pictures_left_out_keep_their_momentum(tiny_parts, negative):
    guidance = guided("strong", negative, warmup=2)
    who = [None, (2, 0), (0,), None, (1, 2), None]
    with session_of(tiny_parts, guidance) as session:
        found = [
            session.predict(step_at(i), answers(table(i)), pictures)
            for i, pictures in enumerate(who)
        ]
    # Every picture by itself, over the steps at which it was asked about.
    for picture in range(3):
        momentum = torch.zeros(SHAPE[1:], dtype=torch.float64)
        for i, pictures in enumerate(who):
            rows = (0, 1, 2) if pictures is None else pictures
            if picture not in rows:
                continue
            out = {name: output[picture] for name, output in table(i).items()}
            eps, momentum = safe_latent_step(
                **out, momentum=momentum, **options("strong", warmed_up=i >= 2)
            )
            torch.testing.assert_close(found[i][rows.index(picture)], eps)


def test_a_session_starts_without_momentum(tiny_parts, negative):
    guidance = guided("max", negative)
    runs = []
    for _ in range(2):
        with session_of(tiny_parts, guidance) as session:
            runs.append([session.predict(step_at(i), answers(table(i))) for i in range(3)])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize("alpha_bar", [0.9991, 0.5, 0.0047])
def test_v_prediction_is_steered_as_the_noise_that_it_stands_for(tiny_parts, negative, alpha_bar):
    guidance = guided("medium", negative, warmup=1)
    with (
        session_of(tiny_parts, guidance) as noises,
        session_of(tiny_parts, guidance) as velocities,
    ):
        for i in range(4):
            eps_step = step_at(i, alpha_bar=alpha_bar)
            v_step = step_at(i, kind="v_prediction", alpha_bar=alpha_bar)
            a, eps = eps_step.alpha_bar, table(i, size=0.01)
            v = {n: (e - (1 - a).sqrt() * v_step.x_t) / a.sqrt() for n, e in eps.items()}
            pictures = (2, 0) if i == 2 else None
            expected = noises.predict(eps_step, answers(eps), pictures)
            found = velocities.predict(v_step, answers(v), pictures)
            torch.testing.assert_close(v_step.of(pictures).noise(found), expected)


def test_behind_a_gate_closed_pictures_are_the_undefended_ones(tiny_parts, negative):
    class Opens:
        found = None
        named = None

        def __init__(self, *pictures):
            self.pictures = pictures

        def begin(self, prompts):
            return self

        def open(self, step, query_unet):
            return self.pictures if step.index else ()

        def notes(self):
            return [{} for _ in PROMPTS]

    guidance = guided("max", negative)
    shut, _, plain_calls = sample(tiny_parts, Gated(guidance, Opens()))
    some, _, calls = sample(tiny_parts, Gated(guidance, Opens(1)))
    assert torch.equal(some[[0, 2]], shut[[0, 2]])
    assert (some[1] - shut[1]).abs().max() > 1e-3
    assert plain_calls == [8, 8, 8]
    assert calls == [8, 11, 8]
