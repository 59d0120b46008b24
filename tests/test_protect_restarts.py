"""Restarts in a diffusers pipeline: it ends where a run steered from its first step ends."""

import copy
import logging
import math
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from tiny import FEATURES, build_tiny, noise

import ine
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.any_gate import AnyGate
from ine.guidance.behind import behind
from ine.guidance.contextual import Contextual
from ine.guidance.gate_file import Calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.look_ahead import ConceptProbe, LookAhead
from ine.guidance.negative import Negative
from ine.guidance.per_concept import PerConcept
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.restart import Restart

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

W = 5.0
CLOSE = {"atol": 5e-4, "rtol": 0}
NEVER, ALWAYS = math.inf, -math.inf


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def negative_of(concept="fire", seed=1):
    return Negative("", (new_embedding(3 * noise(2, 32, seed=seed), f"{concept}-neg", concept),))


METHOD = Additive(negative_of(), 3.0)


def probe(seed=9):
    return Probe(noise(FEATURES, seed=seed), 0.0)


def looking(threshold, concept="fire", steps=3):
    asked = ConceptProbe(concept=concept, probe=probe(7), threshold=threshold)
    return LookAhead(probes=(asked,), steps=steps)


def late(threshold, concept="fire"):
    return ProbeGate(threshold, (probe(),), (0.5,), concept)


def restarting(ahead, half, ladder=(1.0, 2.0), method=METHOD):
    calibration = Calibration(gate=late(half), look_ahead=looking(ahead), record={})
    return behind(method, calibration, None, ladder)


def start(pipe, count=1):
    size = pipe.unet.config.sample_size
    return noise(count, 4, size, size, seed=2)


def make(pipe, prompt="a dog", count=1, **given):
    settings = {"num_inference_steps": 6, "guidance_scale": W, "output_type": "latent"}
    if not isinstance(pipe, StableDiffusionImg2ImgPipeline):
        settings["latents"] = start(pipe, count)
    return pipe(prompt, **{**settings, **given}).images


def protected(pipe, guidance, *args, **given):
    """Return (latents, the handle) of a protected call."""
    with ine.protect(pipe, guidance=guidance) as handle:
        return make(pipe, *args, **given), handle


@pytest.fixture
def scheduler_of(pipe):
    """Exchange the pipeline's scheduler for one test."""
    kept = pipe.scheduler

    def exchange(kind, **settings):
        pipe.scheduler = kind.from_config(kept.config, **settings)

    yield exchange
    pipe.scheduler = kept


# -------------------------------------------------------------------------------- where it ends


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DPMSolverMultistepScheduler, {}),
        (EulerDiscreteScheduler, {}),
        (DDIMScheduler, {"set_alpha_to_one": True}),
        # It ends before the noise does.
        (DDIMScheduler, {"set_alpha_to_one": False, "clip_sample": False}),
        # They mix in what was predicted before the restart.
        (PNDMScheduler, {}),
        (UniPCMultistepScheduler, {}),
        # Two calls of the U-Net a step.
        (HeunDiscreteScheduler, {}),
    ],
)
def test_a_picture_that_was_missed_ends_where_a_steered_one_does(
    pipe, scheduler_of, kind, settings
):
    scheduler_of(kind, **settings)
    plain = make(pipe)
    expected, _ = protected(pipe, METHOD)
    found, handle = protected(pipe, restarting(NEVER, ALWAYS, (1.0,)))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (expected - plain).abs().max() > 0.1
    (note,) = handle.notes
    assert len(note["attempts"]) == 2
    assert note["left"], "the gate opens for everything, so it shows to the last"
    assert note["attempts"][0]["look_ahead"]["opened"] is None
    assert note["attempts"][0]["gate"]["opened"][1] == "fire"


def test_a_picture_that_was_steered_goes_on_from_other_noise_with_more_strength(pipe):
    expected, _ = protected(pipe, METHOD.scaled(2.0), latents=-start(pipe))
    found, handle = protected(pipe, restarting(ALWAYS, ALWAYS))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(handle.notes[0]["attempts"]) == 2  # the one that repeats the first is skipped
    # With nothing further on the ladder it stays what it is.
    once, _ = protected(pipe, METHOD)
    found, handle = protected(pipe, restarting(ALWAYS, ALWAYS, (1.0,)))
    torch.testing.assert_close(found, once, **CLOSE)
    assert handle.notes[0]["left"]


def test_where_the_second_look_finds_nothing_it_is_the_first_attempt(pipe):
    plain = make(pipe)
    found, handle = protected(pipe, restarting(NEVER, NEVER))
    assert torch.equal(found, plain)
    assert handle.notes == [{"attempts": handle.notes[0]["attempts"], "left": False}]
    gated, _ = protected(pipe, Gated(METHOD, looking(ALWAYS)))
    found, _ = protected(pipe, restarting(ALWAYS, NEVER))
    torch.testing.assert_close(found, gated, atol=1e-5, rtol=0)


def scores_at_half(pipe, prompts):
    _, handle = protected(pipe, restarting(NEVER, NEVER), prompts, count=len(prompts))
    return [note["attempts"][0]["gate"]["probes"][0][2] for note in handle.notes]


def test_only_pictures_in_which_it_shows_are_restarted(pipe):
    prompts = ["a dog", "a house"]
    scores = scores_at_half(pipe, prompts)
    assert scores[0] != scores[1]
    place = scores.index(max(scores))
    guidance = restarting(NEVER, sum(scores) / 2, (1.0,))
    found, handle = protected(pipe, guidance, prompts, count=2)
    plain = make(pipe, prompts, count=2)
    steered, _ = protected(pipe, METHOD, prompts, count=2)
    assert torch.equal(found[1 - place], plain[1 - place])
    torch.testing.assert_close(found[place], steered[place], **CLOSE)
    assert [len(note["attempts"]) for note in handle.notes] == [
        2 if i == place else 1 for i in range(2)
    ]
    # What it cost is counted for the picture that it was spent on.
    own, other = handle.unet_calls[place], handle.unet_calls[1 - place]
    assert own - other == 3 * 6 + 1
    assert handle.unet_calls[1 - place] == 2 * 6 + (2 * 2 + 1) + 1


def test_what_shows_to_the_last_is_named_and_can_be_withheld(pipe, caplog):
    prompts = ["a dog", "a house"]
    scores = scores_at_half(pipe, prompts)
    place = scores.index(max(scores))
    # One restart, which changes nothing of what the gate finds: strength 0 steers nowhere.
    guidance = restarting(NEVER, sum(scores) / 2, (1.0,), METHOD.scaled(1e-9))
    found, handle = protected(pipe, guidance, prompts, count=2)
    assert handle.left == (place,)
    assert "in 1 of 2 pictures the gate finds the concept after the last restart" in caplog.text
    with ine.protect(pipe, guidance=guidance, withhold=True) as handle:
        withheld = make(pipe, prompts, count=2)
    assert handle.left == (place,)
    assert torch.equal(withheld[1 - place], found[1 - place])
    assert found[place].abs().max() > 0.1
    torch.testing.assert_close(withheld[place], torch.zeros_like(found[place]), **CLOSE)
    _, handle = protected(pipe, restarting(NEVER, NEVER), prompts, count=2)
    assert handle.left == ()
    with pytest.raises(IneError, match="withhold=True needs restarts"):
        ine.protect(pipe, guidance=METHOD, withhold=True)


# ------------------------------------------------------------------- what belongs to the pipeline


@pytest.mark.parametrize(
    "given",
    [{"negative_prompt": "xyzzy blurry"}, {"guidance_rescale": 0.7}, {"num_images_per_prompt": 1}],
)
def test_the_users_negative_and_rescaling_hold_in_the_restarted_run(pipe, given):
    expected, _ = protected(pipe, METHOD, **given)
    found, _ = protected(pipe, restarting(NEVER, ALWAYS, (1.0,)), **given)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_contextual_guidance_restarts_too(pipe):
    method = Contextual(negative_of(), 3.0)
    expected, _ = protected(pipe, method)
    found, _ = protected(pipe, restarting(NEVER, ALWAYS, (1.0,), method))
    torch.testing.assert_close(found, expected, **CLOSE)


def check_restarts_from_its_own_noise(made):
    """Check a pipeline that does not begin with pure noise; `made` returns (latents, handle)."""
    expected, _ = made(METHOD)
    torch.testing.assert_close(made(restarting(NEVER, ALWAYS, (1.0,)))[0], expected, **CLOSE)
    assert (expected - made(restarting(NEVER, NEVER))[0]).abs().max() > 0.05
    # Nobody knows the noise in its start, so that what is left is more strength.
    found, handle = made(restarting(NEVER, ALWAYS, (1.0, 1.0, 2.0)))
    torch.testing.assert_close(found, made(METHOD.scaled(2.0))[0], **CLOSE)
    assert len(handle.notes[0]["attempts"]) == 3


def test_it_begins_where_image_to_image_does(pipe):
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    size = 2 * pipe.unet.config.sample_size

    def made(guidance):
        own = torch.Generator().manual_seed(0)
        given = {"image": noise(1, 3, size, size).clamp(0, 1), "strength": 0.7, "generator": own}
        return protected(other, guidance, num_inference_steps=10, **given)

    check_restarts_from_its_own_noise(made)


def test_inpainting_restarts_with_a_unet_that_reads_the_mask():
    other = build_tiny("inpainting")
    other.scheduler = DPMSolverMultistepScheduler.from_config(other.scheduler.config)
    other.set_progress_bar_config(disable=True)
    size = other.unet.config.sample_size * 2
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 2 :] = 1

    def made(guidance):
        own = torch.Generator().manual_seed(0)
        given = {"image": noise(1, 3, size, size).clamp(0, 1), "mask_image": mask}
        shape = {"height": size, "width": size, "generator": own}
        return protected(other, guidance, **given, **shape)

    check_restarts_from_its_own_noise(made)


def test_a_scheduler_that_draws_noise_leaves_the_users_generator_alone(pipe, scheduler_of):
    scheduler_of(EulerAncestralDiscreteScheduler)

    def made(guidance):
        own = torch.Generator().manual_seed(0)
        found, _ = protected(pipe, guidance, generator=own)
        return found, own.get_state()

    plain, after_plain = made(restarting(NEVER, NEVER))
    found, after = made(restarting(NEVER, ALWAYS, (1.0,)))
    assert torch.equal(after, after_plain)
    assert (found - plain).abs().max() > 0.1
    assert torch.equal(made(restarting(NEVER, ALWAYS, (1.0,)))[0], found)


def test_sdxl_restarts_with_both_encoders():
    xl = build_tiny("sdxl")
    xl.scheduler = DPMSolverMultistepScheduler.from_config(xl.scheduler.config)
    xl.set_progress_bar_config(disable=True)
    pair = new_embedding((3 * noise(2, 32, seed=1), 3 * noise(2, 48, seed=2)), "fire-neg", "fire")
    method = Additive(Negative("", (pair,)), 3.0)
    size = {"height": 16, "width": 16}
    expected, _ = protected(xl, method, **size)
    found, _ = protected(xl, restarting(NEVER, ALWAYS, (1.0,), method), **size)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_of_several_concepts_it_is_steered_from_those_that_were_found(pipe):
    other = Additive(negative_of("weapon", 4), 2.0)
    both = PerConcept(("fire", "weapon"), (METHOD, other))
    probes = tuple(
        ConceptProbe(concept=name, probe=probe(7), threshold=NEVER) for name in both.concepts
    )
    first = Gated(both, LookAhead(probes=probes, steps=3))
    half = AnyGate(both.concepts, (late(NEVER), late(ALWAYS, "weapon")))
    found, _ = protected(pipe, Restart(first, half, (1.0,)))
    expected, _ = protected(pipe, other)
    torch.testing.assert_close(found, expected, **CLOSE)


# -------------------------------------------------------------------------------- what cannot be


def test_a_pipeline_that_cannot_restart_refuses_or_says_that_it_leaves_them_out(
    pipe, tmp_path, caplog
):
    from test_recommended import RESTARTS, write_defence

    caplog.set_level(logging.INFO, "ine")
    other = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(IneError, match="InpaintPipeline cannot restart a picture"):
        ine.protect(other, guidance=restarting(NEVER, ALWAYS))
    without = Restart(METHOD, late(0.0))
    with pytest.raises(IneError, match="cannot restart a picture with this guidance; that takes a"):
        ine.protect(pipe, guidance=without)
    file = write_defence(tmp_path, recommended=RESTARTS)
    with ine.protect(other, file) as defence:
        assert defence._restart is None
    assert "restarts are left out, which this loop cannot make" in caplog.text
    caplog.clear()
    with ine.protect(pipe, file) as defence:
        assert defence._restart.ladder == (1.0, 2.0)
    assert "left out" not in caplog.text
    with ine.protect(pipe, file, restart=False) as defence:
        assert defence._restart is None
    assert "as asked for instead: no restarts" in caplog.text


def test_a_scheduler_that_cannot_be_copied_is_refused(pipe, scheduler_of):
    class Stubborn(DDIMScheduler):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle a lock")

    scheduler_of(Stubborn)
    with pytest.raises(IneError, match=r"Stubborn cannot be copied \(cannot pickle a lock\)"):
        ine.protect(pipe, guidance=restarting(NEVER, ALWAYS))
    with ine.protect(pipe, guidance=restarting(NEVER, ALWAYS).guidance):
        make(pipe)
    with pytest.raises(TypeError):
        copy.deepcopy(pipe.scheduler)


def test_a_window_limits_the_restarted_attempts_too(pipe):
    part = Window(0.0, 0.6)
    calibration = Calibration(gate=late(ALWAYS), look_ahead=looking(NEVER), record={})
    found, _ = protected(pipe, behind(METHOD, calibration, part, (1.0,)))
    expected, _ = protected(pipe, Gated(METHOD, part))
    torch.testing.assert_close(found, expected, **CLOSE)
    whole, _ = protected(pipe, METHOD)
    assert (whole - expected).abs().max() > 0.01
    assert replace(part, first=0.1) != part


def test_an_attempt_of_which_nothing_is_kept_ends_at_its_look(pipe):
    """As in our own loop: where all pictures are restarted once more, the rest is not made."""
    _, short = protected(pipe, restarting(NEVER, ALWAYS, (1.0,)))
    found, handle = protected(pipe, restarting(NEVER, ALWAYS, (1.0, 2.0)))
    last, until_the_look = 3 * 6 + 1, 3 * 4 + 1
    assert handle.unet_calls[0] == short.unet_calls[0] + until_the_look
    assert short.unet_calls[0] == 2 * 6 + (2 * 2 + 1) + 1 + last
    expected, _ = protected(pipe, METHOD.scaled(2.0), latents=-start(pipe))
    torch.testing.assert_close(found, expected, **CLOSE)
