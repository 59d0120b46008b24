"""The denoising loop against diffusers' own pipeline, against itself, and against an oracle."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import IneError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.sampling import (
    SCHEDULERS,
    PictureRequest,
    SamplerSettings,
    decode_latents,
    generate,
    make_scheduler,
    sample_latents,
    start_noise,
)
from ine.text.encode import negative_prompt_embeds

# DPM-Solver++ in diffusers hands a tensor to numpy in a way that numpy 2 announces the end of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a dog", "a burning cat"]
SEEDS = [3, 4]
CLOSE = {"atol": 1e-4, "rtol": 0}
SCALE = 7.5


@pytest.fixture(scope="module")
def embedding():
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    return new_embedding(vectors, "fire-neg", "fire")


@pytest.fixture(scope="module")
def embedding_file(embedding, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedding") / "fire-neg.safetensors"
    write_embedding(embedding, path)
    return path


@pytest.fixture
def pipe(tiny_folder):
    """A fresh pipeline: loading an embedding into it changes its text encoder."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predicting(parts, kind):
    return replace(parts, scheduler_config={**parts.scheduler_config, "prediction_type": kind})


def generators(seeds=SEEDS):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run_pipe(pipe, parts, scheduler, steps, prompts=PROMPTS, output="latent", **negative):
    pipe.scheduler = make_scheduler(scheduler, parts.scheduler_config, steps)
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=SCALE,
        height=16,
        width=16,
        generator=generators(SEEDS[: len(prompts)]),
        output_type=output,
        **negative,
    ).images


# --- the same as diffusers ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scheduler", "steps"), [("ddim", 5), ("dpm++", 6), ("euler", 4)])
def test_an_embedding_does_what_it_does_in_diffusers(
    tiny_parts, pipe, embedding, embedding_file, scheduler, steps, kind
):
    parts = predicting(tiny_parts, kind)
    settings = SamplerSettings(scheduler=scheduler, steps=steps, guidance_scale=SCALE)
    guidance = ClassifierFree(Negative(embeddings=(embedding,)))
    ours, _, calls = sample_latents(parts, PROMPTS, SEEDS, guidance, settings)
    assert calls == [2 * steps] * len(PROMPTS)

    states = negative_prompt_embeds(parts, embedding).repeat(len(PROMPTS), 1, 1)
    by_states = run_pipe(pipe, parts, scheduler, steps, negative_prompt_embeds=states)
    torch.testing.assert_close(ours, by_states, **CLOSE)

    plain = run_pipe(pipe, parts, scheduler, steps)
    pipe.load_textual_inversion(embedding_file, token="fire-neg")
    by_word = run_pipe(pipe, parts, scheduler, steps, negative_prompt=["fire-neg"] * 2)
    torch.testing.assert_close(ours, by_word, **CLOSE)

    # Control: without the embedding, and with its word alone, the latents are others.
    assert (ours - plain).abs().max() > 0.1
    undefended, _, _ = sample_latents(parts, PROMPTS, SEEDS, None, settings)
    torch.testing.assert_close(undefended, plain, **CLOSE)
    word = ClassifierFree(Negative("fire-neg"))
    word_only, _, _ = sample_latents(parts, PROMPTS, SEEDS, word, settings)
    assert (ours - word_only).abs().max() > 0.1


def test_decoded_pictures_are_those_of_diffusers(tiny_parts, pipe, embedding):
    settings = SamplerSettings(scheduler="ddim", steps=4, guidance_scale=SCALE)
    guidance = ClassifierFree(Negative(embeddings=(embedding,)))
    latents, _, _ = sample_latents(tiny_parts, PROMPTS, SEEDS, guidance, settings)
    states = negative_prompt_embeds(tiny_parts, embedding).repeat(len(PROMPTS), 1, 1)
    theirs = run_pipe(pipe, tiny_parts, "ddim", 4, output="np", negative_prompt_embeds=states)
    ours = decode_latents(tiny_parts, latents)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape == (2, 16, 16, 3)
    assert np.abs(ours - theirs * 255).max() <= 1
    assert ours.std() > 1


def test_text_and_embedding_in_one_string_do_what_they_do_in_diffusers(
    tiny_parts, pipe, embedding, embedding_file
):
    settings = SamplerSettings(scheduler="ddim", steps=4, guidance_scale=SCALE)
    for text, typed in (("blurry", "blurry, fire-neg"), ("a fire-neg cat", "a fire-neg cat")):
        guidance = ClassifierFree(Negative(text, (embedding,)))
        ours, _, _ = sample_latents(tiny_parts, PROMPTS, SEEDS, guidance, settings)
        if "fire-neg" not in pipe.tokenizer.get_vocab():
            pipe.load_textual_inversion(embedding_file, token="fire-neg")
        theirs = run_pipe(pipe, tiny_parts, "ddim", 4, negative_prompt=[typed] * 2)
        torch.testing.assert_close(ours, theirs, **CLOSE)


# --- the same as itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "pndm"])
def test_a_batch_equals_its_pictures(tiny_parts, embedding, scheduler):
    settings = SamplerSettings(scheduler=scheduler, steps=4, guidance_scale=5.0)
    guidance = ClassifierFree(Negative(embeddings=(embedding,)))
    prompts, seeds = ["a dog", "a cat", "a dog"], [1, 2, 3]
    together, _, _ = sample_latents(tiny_parts, prompts, seeds, guidance, settings)
    for row in range(3):
        cut = slice(row, row + 1)
        alone, _, _ = sample_latents(tiny_parts, prompts[cut], seeds[cut], guidance, settings)
        torch.testing.assert_close(together[cut], alone, **CLOSE)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_a_picture_depends_on_its_own_seed_only(tiny_parts):
    settings = SamplerSettings(steps=3)
    one, _, _ = sample_latents(tiny_parts, PROMPTS, [3, 4], None, settings)
    two, _, _ = sample_latents(tiny_parts, PROMPTS, [3, 5], None, settings)
    torch.testing.assert_close(one[0], two[0], **CLOSE)
    assert (one[1] - two[1]).abs().max() > 0.1


def test_start_noise_is_one_draw_per_seed():
    noise = start_noise((4, 8, 8), [7, 8, 7])
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], torch.randn(1, 4, 8, 8, generator=generators([8])[0]))


def test_the_same_unit_gives_the_same_bytes(tiny_parts, embedding):
    requests = [PictureRequest(prompt=f"picture {i}", seed=i) for i in range(5)]
    settings = SamplerSettings(steps=2, batch=2)
    guidance = ClassifierFree(Negative(embeddings=(embedding,)))
    units = list(generate(tiny_parts, requests, guidance, settings))
    assert [u.first for u in units] == [0, 2, 4]
    assert [len(u.requests) for u in units] == [2, 2, 1]
    assert [r for u in units for r in u.requests] == requests
    assert all(u.pictures.shape == (len(u.requests), 16, 16, 3) for u in units)
    assert len({u.pictures[0].tobytes() for u in units}) == 3
    # What came before a unit does not matter.
    again = list(generate(tiny_parts, requests, guidance, settings, skip=lambda f: f == 0))
    assert [u.first for u in again] == [2, 4]
    for one, other in zip(units[1:], again, strict=True):
        assert one.pictures.tobytes() == other.pictures.tobytes()


def test_every_step_is_reported(tiny_parts):
    steps = []
    settings = SamplerSettings(scheduler="ddim", steps=4)
    sample_latents(tiny_parts, PROMPTS, SEEDS, None, settings, steps.append)
    assert [(s.index, s.count) for s in steps] == [(i, 4) for i in range(4)]
    assert [int(s.t) for s in steps] == sorted((int(s.t) for s in steps), reverse=True)
    powers = [float(s.alpha_bar) for s in steps]
    assert powers == sorted(powers)
    assert 0 < powers[0] < powers[-1] <= 1
    assert all(s.x_t.shape == (2, 4, 8, 8) for s in steps)
    assert {s.prediction_type for s in steps} == {"epsilon"}


# --- an oracle: a guidance that knows the clean latents -------------------------------------------


class Oracle(Method, MethodSession):
    """Predicts what leads to `x_0`, and looks whether every step agrees that it does."""

    def __init__(self, x_0):
        self.x_0 = x_0
        self.worst = self.drift = 0.0
        self.first = None

    @contextmanager
    def begin(self, prompts):
        self.count = len(prompts.texts)
        yield self

    def predict(self, step, query_unet, pictures=None):
        a = step.alpha_bar
        eps = (step.x_t - a.sqrt() * self.x_0) / (1 - a).sqrt()
        output = eps
        if step.prediction_type == "v_prediction":
            output = a.sqrt() * eps - (1 - a).sqrt() * self.x_0
        error = max(
            (step.preview(output) - self.x_0).abs().max(), (step.noise(output) - eps).abs().max()
        )
        self.worst = max(self.worst, float(error))
        # Were alpha_bar not the scheduler's own, the noise found would differ between steps.
        self.first = eps if self.first is None else self.first
        self.drift = max(self.drift, float((eps - self.first).abs().max()))
        return output

    def notes(self):
        return [{} for _ in range(self.count)]


ALL = sorted(SCHEDULERS)


@pytest.mark.parametrize(
    ("scheduler", "kind", "spacing"),
    [
        *((s, "epsilon", "leading") for s in ALL),
        # Not PNDM: it extrapolates the outputs of several steps, and a true v is not constant.
        *((s, "v_prediction", "leading") for s in ALL if s != "pndm"),
        # Timesteps that are no whole numbers.
        ("euler", "epsilon", "linspace"),
    ],
)
def test_every_scheduler_reaches_the_latents_that_are_predicted(
    tiny_parts, scheduler, kind, spacing
):
    """With the true noise predicted every solver is exact, up to the noise left at its end.

    The clean latents are beyond [-1, 1], so a scheduler that clips would not get there.
    """
    x_0 = 3 * start_noise((4, 8, 8), [11, 12])
    oracle = Oracle(x_0)
    settings = SamplerSettings(scheduler=scheduler, steps=8)
    config = {**tiny_parts.scheduler_config, "prediction_type": kind, "timestep_spacing": spacing}
    parts = replace(tiny_parts, scheduler_config=config)
    latents, _, calls = sample_latents(parts, PROMPTS, SEEDS, oracle, settings)
    assert set(calls) == {0}
    assert oracle.worst < 1e-3
    # Samplers that add noise follow a new one at every step, and still arrive.
    assert (oracle.drift < 1e-2) == (scheduler not in ("euler-a", "lcm"))
    # set_alpha_to_one=False leaves the noise of timestep 0, sqrt(1 - 0.99915) = 0.03.
    left = {"ddim": 0.03, "pndm": 0.03}.get(scheduler, 0.0)
    assert (latents - x_0).abs().mean() <= left + 1e-3


def test_a_schedulers_name_is_checked(tiny_parts):
    with pytest.raises(IneError, match=r"'dpm' is unknown; did you mean 'dpm\+\+'\?; known: ddim"):
        make_scheduler("dpm", tiny_parts.scheduler_config, 4)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_a_scheduler_keeps_the_models_noise_schedule(tiny_parts, scheduler):
    config = {**tiny_parts.scheduler_config, "beta_end": 0.015, "prediction_type": "v_prediction"}
    made = make_scheduler(scheduler, config, 5)
    assert made.config.beta_end == 0.015
    assert made.config.prediction_type == "v_prediction"
    assert made.config.steps_offset == 1
    assert not made.config.get("clip_sample", False)
