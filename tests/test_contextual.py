"""Contextual guidance: its formula, its limits, and that a pipeline does the same."""

from dataclasses import replace

import pytest
import torch
from tiny import counted_rows, noise

import ine
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.cfg import classifier_free
from ine.guidance.contextual import MOVED, Contextual, contextual, direction_to
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.per_concept import PerConcept
from ine.guidance.prompts import Prompts
from ine.guidance.protocol import Step
from ine.guidance.restart import Restart
from ine.guidance.table import build_guidance
from ine.sampling import SamplerSettings, run_unet, sample_latents
from ine.text.condition import Condition

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS, W = ("a dog", "a burning cat", "a house"), (3, 4, 5), 5.0
SETTINGS = SamplerSettings(steps=3, guidance_scale=W)
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def embedding():
    return new_embedding(3 * noise(3, 32, seed=1), "fire-neg", "fire")


@pytest.fixture(scope="module")
def negative(embedding):
    return Negative("", (embedding,))


def sample(parts, guidance, prompts=PROMPTS):
    return sample_latents(parts, prompts, SEEDS[: len(prompts)], guidance, SETTINGS)


def step_of(parts):
    x_t = noise(len(PROMPTS), *parts.latent_shape, seed=9)
    number = torch.tensor(0.5)
    return Step(
        index=0, count=3, t=torch.tensor(500.0), x_t=x_t, alpha_bar=number,
        prediction_type="epsilon",
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the formula


def test_without_strength_or_difference_it_is_plain_guidance():
    empty, positive, moved = (noise(2, 4, 8, 8, seed=s) for s in range(3))
    plain = classifier_free(empty, positive, W)
    assert torch.equal(contextual(empty, positive, moved, W, 0.0, 0.25), plain)
    assert torch.equal(contextual(empty, positive, positive, W, 3.0, 0.25), plain)


@pytest.mark.parametrize("shift", [1.0, 0.25, 0.1])
def test_of_a_linear_model_it_is_additive_for_every_shift(tiny_parts, negative, shift):
    """Up to what a linear model says of the empty text and of what all texts have in common."""
    weight, step = noise(32, 4, seed=7), step_of(tiny_parts)

    def linear(queries):
        found = {}
        for query in queries:
            states = query.condition.repeat(len(PROMPTS)).states
            found[query.name] = (states.mean(1) @ weight)[:, :, None, None].expand(-1, 4, 8, 8)
        return found

    def predicted(guidance):
        prompts = Prompts(parts=tiny_parts, texts=PROMPTS, scale=W)
        with guidance.begin(prompts) as session:
            return session.predict(step, linear)

    expected = predicted(Additive(negative, 3.0))
    torch.testing.assert_close(predicted(Contextual(negative, 3.0, shift)), expected, **CLOSE)
    assert (expected - predicted(Additive(negative, 0.0))).abs().max() > 1e-2


def test_for_small_shifts_it_is_the_derivative_along_the_difference(tiny_parts, negative):
    step = step_of(tiny_parts)
    prompts = Prompts(parts=tiny_parts, texts=PROMPTS, scale=W)
    positive, whole = prompts.positive(), direction_to(negative, prompts)

    def unet(states):
        condition = replace(positive, states=states)
        return run_unet(tiny_parts.unet, step.x_t, step.t, condition)

    tangent = whole.states.expand_as(positive.states)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        here, derivative = torch.autograd.functional.jvp(unet, positive.states, tangent)
        errors = []
        for shift in (0.4, 0.2, 0.1):
            moved = positive.moved(whole.times(shift))
            found = (unet(moved.states) - here) / shift
            errors.append(float((found - derivative).norm() / derivative.norm()))
    assert errors == sorted(errors, reverse=True)
    # Of first order: half the shift, about half the error.
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.2


# ------------------------------------------------------------------------------------- the offset


def test_an_offset_moves_the_first_tokens_of_longer_prompts_only():
    states, offset = noise(2, 6, 5), Condition(states=noise(1, 4, 5, seed=1))
    moved = Condition(states=states).moved(offset)
    assert torch.equal(moved.states[:, :4], states[:, :4] + offset.states)
    assert torch.equal(moved.states[:, 4:], states[:, 4:])
    with pytest.raises(IneError, match=r"the prompts have 3 tokens of text states and .* has 4"):
        Condition(states=states[:, :3]).moved(offset)


def test_pooled_states_are_moved_where_both_have_them():
    own = Condition(states=noise(2, 4, 5), pooled=noise(2, 3))
    offset = Condition(states=noise(1, 4, 5, seed=1), pooled=noise(1, 3, seed=2))
    moved = own.moved(offset.times(0.5))
    torch.testing.assert_close(moved.pooled, own.pooled + 0.5 * offset.pooled)
    assert torch.equal(own.moved(replace(offset, pooled=None)).pooled, own.pooled)


def test_what_all_texts_have_in_common_drops_out(tiny_parts, negative):
    """Also where no text is zeros, as in SDXL, and a negative would be all of its states."""
    plain = Prompts(parts=tiny_parts, texts=PROMPTS, scale=W)
    zeros = Prompts(parts=replace(tiny_parts, zeros_for_nothing=True), texts=PROMPTS, scale=W)
    assert not zeros.empty().states.any()
    for prompts in (plain, zeros):
        found = direction_to(negative, prompts).states
        expected = negative.condition(plain).states - plain.encode([""]).states
        torch.testing.assert_close(found, expected)
        # The first token is the same in every text.
        assert not found[:, 0].any()
        assert not direction_to(Negative(), prompts).states.any()


# ------------------------------------------------------------------------------------------- runs


def test_it_takes_three_rows_and_acts(tiny_parts, negative):
    with counted_rows(tiny_parts.unet) as rows:
        found, notes, calls = sample(tiny_parts, Contextual(negative, 3.0))
    assert rows == [3 * len(PROMPTS)] * SETTINGS.steps
    assert calls == [3 * SETTINGS.steps] * len(PROMPTS)
    assert notes == [{}] * len(PROMPTS)
    plain, _, _ = sample(tiny_parts, None)
    assert (found - plain).abs().max() > 1e-2
    for idle in (Contextual(negative, 0.0), Contextual(Negative(), 3.0)):
        torch.testing.assert_close(sample(tiny_parts, idle)[0], plain, **CLOSE)
    # Without a number it is w - 1, as in plain guidance.
    own, _, _ = sample(tiny_parts, Contextual(negative))
    assert torch.equal(own, sample(tiny_parts, Contextual(negative, W - 1))[0])


def test_pictures_do_not_depend_on_their_batch(tiny_parts, negative):
    guidance = Contextual(negative, 3.0)
    together, _, _ = sample(tiny_parts, guidance)
    for i, prompt in enumerate(PROMPTS):
        alone, _, _ = sample_latents(tiny_parts, [prompt], [SEEDS[i]], guidance, SETTINGS)
        torch.testing.assert_close(alone[0], together[i], **CLOSE)


def test_gates_restarts_and_several_concepts_take_it(tiny_parts, negative):
    other = Negative("", (new_embedding(3 * noise(2, 32, seed=4), "weapon-neg", "weapon"),))
    one, two = Contextual(negative, 2.0), Contextual(other, 2.0)
    both, _, _ = sample(tiny_parts, PerConcept(("fire", "weapon"), (one, two)))
    plain, alone = sample(tiny_parts, None)[0], sample(tiny_parts, one)[0]
    assert (both - alone).abs().max() > 1e-3
    late, _, _ = sample(tiny_parts, Gated(one, Window(0.9, 1.0)))
    assert torch.equal(late, plain), "the window holds none of the three steps"
    assert Restart(one, Window()).guidance.scaled(2.0).strength == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"shift": 0.0}, r"shift is 0.0; give a number in \(0, 1\]"),
        ({"shift": 2.0}, r"shift is 2.0"),
        ({"shift": float("nan")}, "shift is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(negative, settings, said):
    with pytest.raises(IneError, match=said):
        build_guidance("contextual", negative, None, settings)


def test_without_guidance_a_strength_is_needed(tiny_parts, negative):
    settings = replace(SETTINGS, guidance_scale=1.0)
    with pytest.raises(IneError, match="contextual without a strength"):
        sample_latents(tiny_parts, PROMPTS, SEEDS, Contextual(negative), settings)


# ------------------------------------------------------------------------------------ the pipeline


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe, prompt="a dog", **given):
    settings = {"num_inference_steps": 3, "guidance_scale": W, "output_type": "latent"}
    start = noise(1, *ine_latent_shape(pipe), seed=2)
    return pipe(prompt, latents=start, **{**settings, **given}).images


def ine_latent_shape(pipe):
    return (pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)


def by_hand(pipe, states, offset, strength, shift):
    """Return the latents of a loop of our own: three calls of the U-Net a step."""
    scheduler, x = pipe.scheduler, noise(1, *ine_latent_shape(pipe), seed=2)
    scheduler.set_timesteps(3)
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    with torch.no_grad():
        for number, t in enumerate(scheduler.timesteps):
            own = states if number == 0 or len(states) == 1 else states[1:]
            own = own[:1]
            e, c, m = (
                pipe.unet(x, t, encoder_hidden_states=s).sample for s in (empty, own, own + offset)
            )
            x = scheduler.step(contextual(e, c, m, W, strength, shift), t, x).prev_sample
    return x


def offset_in(pipe, embedding, shift):
    from ine.protection.prompts import encode_negative

    negative, empty = encode_negative(pipe, embedding)
    return shift * (negative.states - empty.states)


def test_a_pipeline_does_the_same(pipe, embedding):
    states = pipe.encode_prompt("a dog", "cpu", 1, False)[0]
    plain = make(pipe)
    wanted = by_hand(pipe, states, offset_in(pipe, embedding, 0.25), 3.0, 0.25)
    with ine.protect(pipe, embedding, guidance="contextual", strength=3.0):
        found = make(pipe)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert (found - plain).abs().max() > 1e-2
    with ine.protect(pipe, embedding, guidance="contextual", strength=0.0):
        torch.testing.assert_close(make(pipe), plain, **CLOSE)


def test_prompts_of_several_windows_are_steered(pipe, embedding):
    states = pipe.encode_prompt("a dog", "cpu", 1, False)[0]
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    twice = {
        "prompt_embeds": torch.cat([states, states], 1),
        "negative_prompt_embeds": torch.cat([empty, empty], 1),
    }
    with ine.protect(pipe, embedding, guidance="contextual", strength=3.0):
        assert (make(pipe, None, **twice) - make(pipe)).abs().max() > 1e-6
        found = make(pipe, None, **twice)
    assert (found - make(pipe, None, **twice)).abs().max() > 1e-2


def test_prompts_that_a_callback_exchanges_are_the_ones_that_are_moved(pipe, embedding):
    """Else the difference of two prompts, s / a times as large, would be taken for the concept."""
    texts = ("a dog", "a house")
    states = torch.cat([pipe.encode_prompt(t, "cpu", 1, False)[0] for t in texts])
    other = torch.cat([pipe.encode_prompt("", "cpu", 1, False)[0], states[1:]])

    def exchange(_pipe, _i, _t, _kwargs):
        return {"prompt_embeds": other}

    changing = {
        "callback_on_step_end": exchange,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    wanted = by_hand(pipe, states, offset_in(pipe, embedding, 0.25), 3.0, 0.25)
    with ine.protect(pipe, embedding, guidance="contextual", strength=3.0):
        torch.testing.assert_close(make(pipe, **changing), wanted, **CLOSE)
    assert (wanted - make(pipe, **changing)).abs().max() > 1e-2


def test_what_a_pipeline_passes_for_its_prompts_goes_with_the_moved_ones():
    """Residuals of a ControlNet, an adapter's pictures: rows of the prompt, by the query's name."""
    assert MOVED.startswith("positive")


def test_a_guider_does_it_and_keeps_the_users_negative(pipe, embedding):
    from types import SimpleNamespace

    states = {t: pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("a dog", "", "blurry")}
    offset, x = offset_in(pipe, embedding, 0.25), noise(1, *ine_latent_shape(pipe), seed=2)
    inputs = {**states, "moved": states["a dog"] + offset}
    with torch.no_grad():
        out = {
            name: pipe.unet(x, 500, encoder_hidden_states=own).sample
            for name, own in inputs.items()
        }

    def by_guider(guider, unconditional):
        guider.set_state(step=0, num_inference_steps=3, timestep=torch.tensor(500))
        data = {"prompt_embeds": (states["a dog"], states[unconditional])}
        batches = guider.prepare_inputs(data)
        assert len(batches) == guider.num_conditions == 3
        conditional = []
        for batch in batches:
            guider.prepare_models(pipe.unet)
            conditional.append(guider.is_conditional)
            with torch.no_grad():
                batch.noise_pred = pipe.unet(x, 500, batch.prompt_embeds).sample
            guider.cleanup_models(pipe.unet)
        assert conditional == [True, False, True]
        return guider(batches)[0]

    guider = ine.embedding_guider(pipe, embedding, strength=3.0, shift=0.25, guidance_scale=W)
    away = 3.0 * (out["moved"] - out["a dog"]) / 0.25
    for own in ("", "blurry"):
        expected = classifier_free(out[own], out["a dog"], W) - away
        torch.testing.assert_close(by_guider(guider, own), expected, **CLOSE)
    assert away.abs().max() > 1e-2
    closer = guider.new(shift=0.5)
    assert (closer.shift, closer.strength, guider.shift) == (0.5, 3.0, 0.25)
    assert SimpleNamespace(**closer.config).shift == 0.5
    for shift in (0.0, 2.0):
        with pytest.raises(IneError, match=f"shift is {shift}"):
            guider.new(shift=shift)
    with pytest.raises(IneError, match="contextual guidance needs a direction"):
        guider.new(direction=None)


def test_pipeline_and_guider_do_what_a_file_recommends(pipe, tmp_path):
    from ine.embeddings.embedding import write_embedding
    from ine.guidance.recommended import Recommendation

    about = Recommendation(guidance="contextual", strength=4.0).metadata()
    file = tmp_path / "fire-neg.safetensors"
    write_embedding(new_embedding(noise(2, 32), "fire-neg", "fire", about), file)
    guider = ine.embedding_guider(pipe, file)
    assert (guider.strength, guider.shift) == (4.0, 0.25)
    with ine.protect(pipe, file) as defence:
        assert defence._method == Contextual(defence._method.negative, 4.0)
