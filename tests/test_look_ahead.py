"""Looking ahead: what stays closed is the undefended model, and a batch is its pictures."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import look_ahead, noise

from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.coarse import check_model, coarse_run, coarse_timesteps, signal_powers
from ine.guidance.gates import Gated, Window
from ine.guidance.look_ahead import LookAhead, join
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe
from ine.guidance.step import Step
from ine.models.parts import DiffusionParts
from ine.sampling import SamplerSettings, Start, sample_latents

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS = ("a dog", "a burning cat", "a house", "snow"), (3, 4, 5, 6)
STEPS = 6
SETTINGS = SamplerSettings(steps=STEPS, guidance_scale=5.0)
FIRE = Negative("", (new_embedding(noise(2, 32, seed=1), "fire-neg", "fire"),))
METHOD = Additive(FIRE, strength=2.0)


CLOSED, OPEN = look_ahead(math.inf), look_ahead(-math.inf)


def sample(parts, guidance, pictures=range(4), settings=SETTINGS, start=None):
    prompts, seeds = [PROMPTS[i] for i in pictures], [SEEDS[i] for i in pictures]
    start = start and start.of(list(pictures))
    return sample_latents(parts, prompts, seeds, guidance, settings, start=start)


def scores(notes, place=0):
    return [note["gate"]["probes"][place][2] for note in notes]


def half_open(parts, **settings):
    """A look-ahead that opens for two of the four pictures."""
    found = sorted(scores(sample(parts, Gated(METHOD, look_ahead(math.inf)))[1]))
    return look_ahead((found[1] + found[2]) / 2, **settings)


# --- in the sampler -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "euler-a"])
def test_closed_pictures_are_bit_identical_whatever_the_scheduler(tiny_parts, scheduler):
    settings = replace(SETTINGS, scheduler=scheduler)
    plain, _, _ = sample(tiny_parts, None, settings=settings)
    latents, notes, calls = sample(tiny_parts, Gated(METHOD, CLOSED), settings=settings)
    assert torch.equal(latents, plain)
    assert all(note["gate"]["opened"] is None for note in notes)
    assert calls == [2 * STEPS + CLOSED.rows] * 4
    opened, _, _ = sample(tiny_parts, Gated(METHOD, OPEN), settings=settings)
    assert (opened - plain).abs().max() > 1e-2


def test_opened_pictures_are_steered_from_their_first_step(tiny_parts):
    ungated, _, _ = sample(tiny_parts, METHOD)
    latents, notes, calls = sample(tiny_parts, Gated(METHOD, OPEN))
    torch.testing.assert_close(latents, ungated, atol=1e-5 * float(ungated.abs().max()), rtol=0)
    assert [note["gate"]["opened"][:2] for note in notes] == [[0, "fire"]] * 4
    assert calls == [3 * STEPS + OPEN.rows] * 4


def test_each_picture_of_a_mixed_batch_equals_its_own_run(tiny_parts):
    guidance = Gated(METHOD, half_open(tiny_parts))
    plain, _, _ = sample(tiny_parts, None)
    latents, notes, calls = sample(tiny_parts, guidance)
    opened = [note["gate"]["opened"] is not None for note in notes]
    assert sorted(opened) == [False, False, True, True]
    for i in range(4):
        alone, note, call = sample(tiny_parts, guidance, [i])
        torch.testing.assert_close(latents[[i]], alone, atol=1e-4, rtol=0)
        assert scores(note) == pytest.approx(scores([notes[i]]), abs=2e-3)
        assert call == [calls[i]]
        assert torch.equal(latents[i], plain[i]) == (not opened[i])


def test_a_window_limits_when_the_method_acts_and_not_the_look(tiny_parts):
    gate = look_ahead(-math.inf, window=Window(0.5, 1.0))
    latents, notes, calls = sample(tiny_parts, Gated(METHOD, gate))
    windowed, _, _ = sample(tiny_parts, Gated(METHOD, Window(0.5, 1.0)))
    assert torch.equal(latents, windowed)
    assert scores(notes) == scores(sample(tiny_parts, Gated(METHOD, OPEN))[1])
    assert calls == [2 * STEPS + STEPS // 2 + gate.rows] * 4


def test_image_to_image_looks_from_its_own_start(tiny_parts):
    start = Start(latents=noise(4, *tiny_parts.latent_shape, seed=11), strength=0.5)
    plain, _, _ = sample(tiny_parts, None, start=start)
    latents, notes, _ = sample(tiny_parts, Gated(METHOD, CLOSED), start=start)
    assert torch.equal(latents, plain)
    other = Start(latents=noise(4, *tiny_parts.latent_shape, seed=12), strength=0.5)
    assert scores(sample(tiny_parts, Gated(METHOD, CLOSED), start=other)[1]) != scores(notes)
    # Below the probe's level: one step up to it, made of the run's own first prediction.
    short = replace(start, strength=0.2)
    _, notes, calls = sample(tiny_parts, Gated(METHOD, CLOSED), start=short)
    assert calls == [2 * 1 + 1] * 4
    assert all(map(math.isfinite, scores(notes)))


# --- the coarse run -----------------------------------------------------------------------------


def test_coarse_timesteps():
    assert coarse_timesteps(999, 499, 5) == [899, 799, 699, 599, 499]
    assert coarse_timesteps(999, 451, 1) == [451]
    assert coarse_timesteps(749, 499, 4) == [624, 499]
    assert coarse_timesteps(499, 499, 4) == [499]
    assert coarse_timesteps(201, 499, 4) == [499]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_coarse_steps_are_those_of_the_second_order_solver(tiny_parts, kind):
    from diffusers import DPMSolverMultistepScheduler

    config = {**tiny_parts.scheduler_config, "prediction_type": kind}
    scheduler = DPMSolverMultistepScheduler.from_config(
        {**config, "timestep_spacing": "leading", "steps_offset": 0}, lower_order_final=False
    )
    scheduler.set_timesteps(10)
    times = scheduler.timesteps[:5].tolist()
    outputs = [noise(2, 4, 8, 8, seed=i) for i in range(4)]
    x_t = wanted = noise(2, 4, 8, 8, seed=9)
    for t, output in zip(times[:4], outputs, strict=True):
        wanted = scheduler.step(output, t, wanted).prev_sample
    signal = signal_powers(replace(tiny_parts, scheduler_config=config))
    begin = Step(
        index=0,
        count=10,
        t=torch.tensor(times[0]),
        x_t=x_t,
        alpha_bar=signal[times[0]],
        prediction_type=kind,
    )
    end = coarse_run(begin, times[1:], signal, lambda _place, number: outputs[number])
    assert int(end.t) == times[4]
    torch.testing.assert_close(end.x_t, wanted, atol=1e-3, rtol=1e-4)


def test_a_first_step_without_signal_is_defined(tiny_parts):
    """Models of zero terminal signal (Lin et al. 2023) begin at abar = 0."""
    config = {
        **tiny_parts.scheduler_config,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    signal = signal_powers(replace(tiny_parts, scheduler_config=config))
    begin = Step(
        index=0,
        count=10,
        t=torch.tensor(999),
        x_t=noise(1, 4, 8, 8),
        alpha_bar=torch.tensor(0.0),
        prediction_type="v_prediction",
    )
    end = coarse_run(begin, [800, 600, 451], signal, lambda _p, n: noise(1, 4, 8, 8, seed=n))
    assert end.x_t.isfinite().all()


@pytest.mark.parametrize("steps", [5, 8])
def test_what_a_look_costs_at_fifty_steps(tiny_parts, steps):
    """Counted, and by the closed form: 2 (k - 1) + 1 rows beside those of the run."""
    settings = replace(SETTINGS, steps=50)

    def rows(threshold, window):
        gate = look_ahead(threshold, steps=steps, window=window)
        found = sample(tiny_parts, Gated(METHOD, gate), [0], settings)[2][0]
        assert found == 2 * 50 + (50 * window.last if threshold < 0 else 0) + gate.rows
        return found / 100

    assert look_ahead(0.0, steps=steps).rows == 2 * (steps - 1) + 1
    assert rows(math.inf, Window()) <= 1.15
    assert rows(-math.inf, Window(0.0, 0.6)) <= 1.5
    assert rows(-math.inf, Window()) <= 1.7


def test_a_closed_look_leaves_pictures_of_mini_alone():
    """Also through diffusers' own pipeline, and both see the same."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    import ine
    from ine.embeddings.embedding import read_embedding
    from ine.files import shipped
    from ine.models.loading import load_parts
    from ine.sampling import start_noise

    parts = load_parts("mini")
    embedding = read_embedding(shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors")
    method = Additive(Negative("", (embedding,)), strength=8.0)
    settings = SamplerSettings(steps=4, guidance_scale=5.0)
    prompts, seeds = ["a dog in the volcano", "a cat", "a house"], [1, 2, 3]
    gate = look_ahead(math.inf, features=768)
    plain, _, _ = sample_latents(parts, prompts, seeds, None, settings)
    latents, notes, _ = sample_latents(parts, prompts, seeds, Gated(method, gate), settings)
    assert torch.equal(latents, plain)
    pipe = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoders[0],
        tokenizer=parts.tokenizers[0],
        unet=parts.unet,
        scheduler=DDIMScheduler.from_config(parts.scheduler_config, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    def run():
        return pipe(
            prompts,
            num_inference_steps=4,
            guidance_scale=5.0,
            latents=start_noise(parts.latent_shape, seeds),
            output_type="latent",
        ).images

    own = run()
    with ine.protect(pipe, guidance=Gated(method, gate)) as handle:
        assert torch.equal(run(), own)
        found = scores(handle.notes)
    assert found == pytest.approx(scores(notes), abs=2e-2)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: look_ahead(math.nan), "threshold is NaN; give a number"),
        (lambda: LookAhead(probes=()), "there is no probe to ask"),
        (lambda: look_ahead(0.0, steps=0), "0 steps; give 1 or more"),
        (lambda: look_ahead(0.0, timestep=999), "timestep 999; give a number from 1 to 998"),
        (lambda: look_ahead(0.0, scale=math.nan), "guidance scale nan"),
        (lambda: join([OPEN, CLOSED]), "two probes are for 'fire'"),
        (
            lambda: join([OPEN, look_ahead(0.0, "weapon", steps=5)]),
            "the gate of fire has steps 3, that of weapon 5",
        ),
        (lambda: Probe(torch.tensor([math.nan]), 0.0), "a probe holds a number that is not finite"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(IneError) as caught:
        make()
    assert words in str(caught.value)


def test_a_gate_of_another_kind_of_model_is_refused(tiny_parts):
    with pytest.raises(IneError, match="reads 768 features, this U-Net has 192"):
        sample(tiny_parts, Gated(METHOD, look_ahead(0.0, features=768)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "LCMScheduler"}, r"is a model of few steps \(LCM without a guidance"),
        ({"prediction_type": "sample"}, "predicts 'sample'; known are epsilon and v_prediction"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"flow matching"),
    ],
)
def test_models_on_which_coarse_steps_mean_nothing_are_refused(tiny_parts, config, words):
    parts = replace(tiny_parts, scheduler_config={**tiny_parts.scheduler_config, **config})
    assert isinstance(parts, DiffusionParts)
    check_model(tiny_parts)
    with pytest.raises(IneError, match=words):
        check_model(parts)
