"""Protecting a user's own pipeline: what comes out, and what is left behind."""

import logging
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny import probe_gate

import ine
from ine.calibration.features import noised_features
from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import EmbeddingError, IneError
from ine.guidance.additive import Additive, additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.restart import Restart
from ine.guidance.sld import SafeLatent
from ine.protection.call import pick_rows
from ine.protection.guider import EmbeddingGuider
from ine.protection.guider_builder import embedding_guider
from ine.protection.parts import parts_of, signal_power
from ine.protection.prompts import encode_negative
from ine.text.encode import negative_prompt_embeds

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

W = 7.5


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def load(tiny_folder):
    """Load a pipeline of its own, for a test that changes more than protect may."""
    from diffusers import StableDiffusionPipeline

    def load(folder=tiny_folder):
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture(scope="module")
def shared(load):
    pipe = load()
    make(pipe, steps=1)  # a first call leaves its settings on a pipeline
    return pipe


@pytest.fixture
def pipe(shared):
    """The pipeline, and afterwards the check that nothing was left on it."""
    before = footprint(shared)
    yield shared
    assert footprint(shared) == before


@pytest.fixture(scope="module")
def embedding():
    return new_embedding(3 * noise(3, 32, seed=1), "fire-neg", "fire")


def footprint(pipe):
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    held = [sorted(m.__dict__) for m in modules]
    weights = [
        float(p.detach().double().sum()) for m in modules for p in m.parameters() if not p.is_meta
    ]
    table = pipe.text_encoder.get_input_embeddings()
    return hooks, held, weights, sorted(pipe.__dict__), len(table._forward_hooks)


def make(pipe, prompt="a dog", seed=0, count=1, steps=3, **kwargs):
    settings = {"num_inference_steps": steps, "guidance_scale": W, "output_type": "latent"}
    if "image" not in kwargs:
        settings["latents"] = noise(count, 4, 8, 8, seed=seed)
    return pipe(prompt, **{**settings, **kwargs}).images


def close(one, other, atol=1e-4):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


def differs(one, other):
    return float((one - other).abs().max()) > 1e-2


@contextmanager
def rows_of(unet):
    """Yield a list that gets the rows of every run of the U-Net, however it is called."""
    rows = []
    handle = unet.conv_in.register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()


def by_hand(pipe, prompt, combine, conditions, steps=3):
    """Denoise with the pipeline's own scheduler and a formula: an independent computation."""
    x = noise(1, 4, 8, 8)
    pipe.scheduler.set_timesteps(steps)
    states = {n: pipe.encode_prompt(t, "cpu", 1, False)[0] if isinstance(t, str) else t
              for n, t in {"c": prompt, **conditions}.items()}  # fmt: skip
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            outs = {n: pipe.unet(x, t, encoder_hidden_states=s).sample for n, s in states.items()}
            x = pipe.scheduler.step(combine(**outs), t, x).prev_sample
    return x


# --- the prediction ---------------------------------------------------------------------------


def test_cfg_equals_negative_prompt_embeds_at_the_same_cost(pipe, embedding):
    plain = make(pipe)
    wanted = make(pipe, negative_prompt_embeds=negative_prompt_embeds(pipe, embedding))
    with ine.protect(pipe, embedding) as handle, rows_of(pipe.unet) as rows:
        found = make(pipe)
        assert rows == [2] * 4  # PNDM makes four calls for three steps
        assert handle.unet_calls == [8]
        assert handle.notes == [{}]
    close(found, wanted)
    assert differs(found, plain)
    assert torch.equal(make(pipe), plain)


def test_the_bundled_model_too(load):
    from diffusers import DDIMScheduler

    from ine.models.parts import MINI_FOLDER

    mini = load(MINI_FOLDER)
    mini.scheduler = DDIMScheduler.from_config(mini.scheduler.config)
    vectors = new_embedding(0.1 * noise(2, 128), "fire-neg", "fire")
    shape = (1, mini.unet.config.in_channels, *[mini.unet.config.sample_size] * 2)
    plain = make(mini, latents=noise(*shape))
    embeds = negative_prompt_embeds(mini, vectors)
    wanted = make(mini, latents=noise(*shape), negative_prompt_embeds=embeds)
    with ine.protect(mini, vectors):
        close(make(mini, latents=noise(*shape)), wanted)
    assert differs(wanted, plain)


def test_additive_equals_the_formula_and_strength_zero_is_plain(pipe, embedding):
    ours = negative_prompt_embeds(pipe, embedding)
    with ine.protect(pipe, embedding, guidance="additive", strength=3.0):
        found = make(pipe)
    close(found, by_hand(pipe, "a dog", lambda c, e, n: additive(e, c, n, W, 3.0),
                         {"e": "", "n": ours}))  # fmt: skip
    plain = make(pipe)
    with ine.protect(pipe, embedding, guidance="additive", strength=0.0):
        close(make(pipe), plain)
    assert differs(found, plain)


@pytest.mark.parametrize("method", ["cfg", "additive"])
def test_the_users_own_negative_stays_beside_ours(pipe, embedding, method):
    ours = negative_prompt_embeds(pipe, embedding)
    strength = {"cfg": W - 1, "additive": 5.0}[method]
    wanted = by_hand(
        pipe,
        "a dog",
        lambda c, e, n, u: u + W * (c - u) - strength * (n - e),
        {"e": "", "n": ours, "u": "xyzzy blurry"},
    )
    given = strength if method == "additive" else None
    with ine.protect(pipe, embedding, guidance=method, strength=given):
        found = make(pipe, negative_prompt="xyzzy blurry")
        assert differs(found, make(pipe))
        embeds = pipe.encode_prompt("xyzzy blurry", "cpu", 1, False)[0]
        close(make(pipe, negative_prompt_embeds=embeds), found)
    close(found, wanted)


@pytest.mark.parametrize(
    "guidance",
    [
        lambda n: SafeLatent.preset("max", n),
        lambda n: Gated(Additive(n), Window(0.2, 0.9)),
        lambda n: Gated(ClassifierFree(n), probe_gate(-math.inf)),
        lambda n: Additive(Negative("a cat", n.embeddings)),
        lambda n: Gated(Additive(n), probe_gate(-math.inf, (0.5,))),
    ],
)
def test_any_guidance_does_what_ine_generate_does(pipe, embedding, guidance):
    from ine.protection.parts import parts_of
    from ine.sampling import SamplerSettings, sample_latents, start_noise

    parts = parts_of(pipe)
    method = guidance(Negative("", (embedding,)))
    settings = SamplerSettings(scheduler="pndm", steps=4, guidance_scale=W)
    wanted, notes, _ = sample_latents(parts, ["a dog", "a cat"], [3, 4], method, settings)
    latents = start_noise((4, 8, 8), [3, 4])
    with ine.protect(pipe, guidance=method) as handle:
        found = make(pipe, ["a dog", "a cat"], latents=latents, steps=4)
        assert [list(n) for n in handle.notes] == [list(n) for n in notes]
    close(found, wanted, atol=2e-3)


def test_v_prediction(load, embedding):
    from diffusers import DDIMScheduler

    pipe = load()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction", clip_sample=False
    )
    wanted = make(pipe, negative_prompt_embeds=negative_prompt_embeds(pipe, embedding))
    with ine.protect(pipe, embedding):
        close(make(pipe), wanted)


def test_guidance_rescale_means_what_the_user_asked(pipe, embedding):
    embeds = negative_prompt_embeds(pipe, embedding)
    wanted = make(pipe, guidance_rescale=0.7, negative_prompt_embeds=embeds)
    with ine.protect(pipe, embedding):
        found = make(pipe, guidance_rescale=0.7)
        close(found, wanted)
        assert differs(found, make(pipe))


def test_half_precision_rounds_no_worse_than_the_pipeline_itself(load, embedding):
    pipe = load()
    latents = noise(1, 4, 8, 8).bfloat16()
    embeds = negative_prompt_embeds(pipe, embedding)
    exact = make(pipe, latents=latents.float(), negative_prompt_embeds=embeds)
    pipe.to(torch.bfloat16)
    native = make(pipe, latents=latents, negative_prompt_embeds=embeds.bfloat16())
    with ine.protect(pipe, embedding):
        found = make(pipe, latents=latents)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.5 * (native - exact).norm()


# --- gates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative_prompt", [None, "blurry"])
def test_a_closed_gate_is_bit_equal(pipe, embedding, negative_prompt):
    plain = make(pipe, negative_prompt=negative_prompt)
    with ine.protect(pipe, embedding, gate=probe_gate(math.inf)) as handle:
        assert torch.equal(make(pipe, negative_prompt=negative_prompt), plain)
    assert handle.notes[0]["gate"]["opened"] is None
    assert handle.notes[0]["gate"]["probes"]


def test_of_a_batch_only_open_pictures_change(pipe, embedding):
    prompts = ["a dog", "a burning cat", "a house"]
    plain = make(pipe, prompts, count=3)
    watching = probe_gate(math.inf)
    with ine.protect(pipe, embedding, gate=watching) as handle:
        make(pipe, prompts, count=3)
        scores = [note["gate"]["probes"][0][2] for note in handle.notes]
    middle = sorted(scores)[1]
    gate = probe_gate((middle + max(scores)) / 2)
    with ine.protect(pipe, embedding, guidance="additive", gate=gate):
        found = make(pipe, prompts, count=3)
    hit = scores.index(max(scores))
    assert differs(found[hit], plain[hit])
    for i in set(range(3)) - {hit}:
        assert torch.equal(found[i], plain[i])


def test_a_gate_that_is_open_makes_no_difference_to_the_formula(pipe, embedding):
    with ine.protect(pipe, embedding, guidance="additive"):
        wanted = make(pipe, negative_prompt="blurry")
    with ine.protect(pipe, embedding, guidance="additive", gate=Window(0.0, 1.0)):
        close(make(pipe, negative_prompt="blurry"), wanted)


# --- giving it back ---------------------------------------------------------------------------


def test_remove_gives_the_pipeline_back(pipe, embedding):
    plain = make(pipe)
    handle = ine.protect(pipe, embedding)
    assert differs(make(pipe), plain)
    handle.remove()
    handle.remove()
    assert torch.equal(make(pipe), plain)


def test_an_exception_in_the_loop_leaves_nothing_behind(pipe, embedding):
    plain = make(pipe)

    def fail(*_):
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="own"), ine.protect(pipe, embedding) as handle:
        make(pipe, callback_on_step_end=fail)
    assert torch.equal(make(pipe), plain)
    with ine.protect(pipe, embedding):
        wanted = make(pipe)
        with pytest.raises(RuntimeError, match="own"):
            make(pipe, callback_on_step_end=fail)
        assert torch.equal(make(pipe), wanted)
    assert handle.notes == []


def test_state_is_new_in_every_call(pipe, embedding):
    method = SafeLatent.preset("strong", Negative("", (embedding,)), warmup=1)
    with ine.protect(pipe, guidance=method):
        first = make(pipe, steps=4)
        make(pipe, "a house", seed=7, steps=6)
        assert torch.equal(make(pipe, steps=4), first)


# --- what people do with pipelines --------------------------------------------------------------


def test_img2img_and_inpaint(pipe, embedding):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    picture = Image.new("RGB", (16, 16), (200, 30, 30))
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    cases = (
        (StableDiffusionImg2ImgPipeline, {"strength": 0.7}),
        (StableDiffusionInpaintPipeline, {"mask_image": Image.new("L", (16, 16), 255),
                                          "height": 16, "width": 16}),
    )  # fmt: skip
    for kind, extra in cases:
        other = kind(**parts, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)

        def run(**kwargs):
            seed = torch.Generator().manual_seed(3)
            return make(other, image=picture, generator=seed, steps=4, **extra, **kwargs)  # noqa: B023

        plain = run()
        wanted = run(negative_prompt_embeds=negative_prompt_embeds(pipe, embedding))
        gate = probe_gate(-math.inf)
        with ine.protect(other, embedding):
            found = run()
        with ine.protect(other, embedding, gate=gate) as handle:
            close(run(), found)
            # The first step of the run, wherever in the schedule that is.
            assert handle.notes[0]["gate"]["probes"][0][0] == 0
        close(found, wanted)
        assert differs(found, plain)
        assert torch.equal(run(), plain)


def test_an_inpainting_unet_of_nine_channels(load, embedding):
    from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel

    pipe = load()
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
        parts["unet"] = UNet2DConditionModel(**{**config, "in_channels": 9}).eval()
    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    picture, mask = Image.new("RGB", (16, 16), (200, 30, 30)), Image.new("L", (16, 16), 255)

    def run(**kwargs):
        seed = torch.Generator().manual_seed(3)
        sizes = {"height": 16, "width": 16}
        return make(pipe, image=picture, mask_image=mask, generator=seed, **sizes, **kwargs)

    wanted = run(negative_prompt_embeds=negative_prompt_embeds(pipe, embedding))
    with ine.protect(pipe, embedding):
        close(run(), wanted)
    with ine.protect(pipe, embedding, guidance="additive", strength=W - 1):
        close(run(), wanted)
    assert differs(wanted, run())


def test_controlnet_residuals_go_with_their_rows(pipe, embedding):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    with torch.random.fork_rng():
        torch.manual_seed(2)
        control = ControlNetModel.from_unet(
            pipe.unet, conditioning_embedding_out_channels=(4, 8)
        ).eval()
        for parameter in control.parameters():  # or its zero convolutions would say nothing
            parameter.data += 0.05 * torch.randn_like(parameter)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    other = StableDiffusionControlNetPipeline(
        **parts, controlnet=control, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (16, 16), (10, 200, 90))
    size = {"image": image, "latents": noise(1, 4, 8, 8), "height": 16, "width": 16}
    plain, free = make(other, **size), make(pipe)
    assert differs(plain, free)
    with ine.protect(other, embedding, gate=probe_gate(math.inf)):
        assert torch.equal(make(other, **size), plain)
    with ine.protect(other, embedding, guidance="additive", strength=0.0):
        close(make(other, **size), plain)
    with ine.protect(other, embedding):
        found = make(other, **size)
    with ine.protect(pipe, embedding):
        assert differs(found, make(pipe))
    assert differs(found, plain)


def test_num_images_per_prompt_is_its_pictures(pipe, embedding):
    prompts = ["a dog", "a house"]
    with ine.protect(pipe, embedding, guidance="additive"):
        blurry = ["blurry", "blurry"]
        found = make(pipe, prompts, count=4, num_images_per_prompt=2, negative_prompt=blurry)
        latents = noise(4, 4, 8, 8)
        for i in range(4):
            one = make(pipe, prompts[i // 2], latents=latents[[i]], negative_prompt="blurry")
            close(found[[i]], one)


def test_prompt_embeds_and_weighted_prompts(pipe, embedding):
    states = pipe.encode_prompt("a dog", "cpu", 1, False)[0]
    with ine.protect(pipe, embedding):
        wanted = make(pipe)
        assert torch.equal(make(pipe, None, prompt_embeds=states), wanted)
    # As weighting tools do it: states scaled about the empty text's, then more than one chunk.
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    ours = negative_prompt_embeds(pipe, embedding)
    weighted = empty + 1.4 * (states - empty)
    cases = ((weighted, empty, ours), *(((torch.cat([weighted, states], 1)),
             torch.cat([empty, empty], 1), torch.cat([ours, ours], 1)),))  # fmt: skip
    for positive, blank, negative in cases:
        pair = {"prompt_embeds": positive, "negative_prompt_embeds": blank}
        expected = make(pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)
        for method, strength in (("cfg", None), ("additive", W - 1)):
            with ine.protect(pipe, embedding, guidance=method, strength=strength):
                close(make(pipe, None, **pair), expected)


def test_callbacks_may_change_latents_scale_and_prompt(pipe, embedding):
    seen = []

    def halve(_pipe, i, _t, kwargs):
        seen.append(i)
        return {"latents": kwargs["latents"] * 0.9}

    embeds = negative_prompt_embeds(pipe, embedding)
    wanted = make(pipe, callback_on_step_end=halve, negative_prompt_embeds=embeds)
    with ine.protect(pipe, embedding):
        close(make(pipe, callback_on_step_end=halve), wanted)
    assert len(seen) == 8

    def rescale(pipe, i, _t, _kwargs):
        pipe._guidance_scale = 3.0
        return {}

    with ine.protect(pipe, embedding, guidance="additive", strength=0.0):
        found = make(pipe, callback_on_step_end=rescale)
    close(found, make(pipe, callback_on_step_end=rescale))

    other = torch.cat([pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("", "a house")])

    def exchange(_pipe, _i, _t, kwargs):
        return {"prompt_embeds": other}

    changing = {
        "callback_on_step_end": exchange,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    for method in ("cfg", "additive"):
        with ine.protect(pipe, embedding, guidance=method):
            assert differs(make(pipe, **changing), make(pipe))
    with ine.protect(pipe, embedding, guidance="additive", strength=0.0):
        found = make(pipe, **changing)
    close(found, make(pipe, **changing))

    def stop(pipe, i, _t, kwargs):
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": kwargs["prompt_embeds"].chunk(2)[-1]}

    changing["callback_on_step_end"] = stop
    with ine.protect(pipe, embedding), pytest.raises(IneError, match="guidance is off"):
        make(pipe, **changing)


def test_weights_changed_as_a_lora_does_are_used(load, embedding):
    pipe = load()
    with ine.protect(pipe, embedding):
        before = make(pipe)
        for module in (pipe.unet, pipe.text_encoder):
            for name, parameter in module.named_parameters():
                if "to_k" in name or "q_proj.weight" in name:
                    parameter.data += 0.3 * noise(*parameter.shape)
        found = make(pipe)
    assert differs(found, before)
    close(found, make(pipe, negative_prompt_embeds=negative_prompt_embeds(pipe, embedding)))


def test_cross_attention_kwargs_reach_every_call(pipe, embedding):
    seen = []
    block = pipe.unet.mid_block.attentions[0]
    handle = block.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["cross_attention_kwargs"]), with_kwargs=True
    )
    with ine.protect(pipe, embedding, gate=probe_gate(-math.inf)):
        make(pipe, cross_attention_kwargs={}, negative_prompt="blurry")
    handle.remove()
    assert len(seen) > 4
    assert all(found == {} for found in seen)


@pytest.mark.parametrize("first", ["offload", "protect"])
@pytest.mark.parametrize("how", ["model", "layers"])
def test_offloading_before_and_after(load, embedding, first, how):
    from accelerate import cpu_offload
    from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module

    pipe = load()
    plain = make(pipe)
    wanted = make(pipe, negative_prompt_embeds=negative_prompt_embeds(pipe, embedding))
    modules = (pipe.unet, pipe.text_encoder, pipe.vae)
    hooks, _, weights, *rest = footprint(pipe)

    def offload():
        for module in modules:
            if how == "layers":
                cpu_offload(module, execution_device="cpu")
            else:
                add_hook_to_module(module, CpuOffload("cpu"))

    def bring_back():
        for module in modules:
            remove_hook_from_module(module, recurse=True)

    if first == "offload":
        offload()
    handle = ine.protect(pipe, embedding)
    if first == "protect":
        offload()
    for _ in range(2):
        close(make(pipe), wanted)
        # What diffusers does at the end of every call of an offloaded pipeline.
        bring_back()
        offload()
    handle.remove()
    assert torch.equal(make(pipe), plain)
    bring_back()
    assert torch.equal(make(pipe), plain)
    # Offloading itself leaves an attribute `forward` on modules.
    assert footprint(pipe)[0] == hooks
    assert footprint(pipe)[2:] == (weights, *rest)


def test_return_dict_and_other_arguments_go_through(pipe, embedding):
    with ine.protect(pipe, embedding):
        picture = pipe("a dog", num_inference_steps=2, return_dict=False)[0][0]
        assert picture.size == (16, 16)
        assert pipe("a dog", num_inference_steps=2).images[0].size == (16, 16)


def test_both_forms_of_the_unets_answer(pipe, embedding):
    handle = ine.protect(pipe, embedding)
    given = (noise(2, 4, 8, 8), torch.tensor(500), noise(2, 77, 32))
    pipe._guidance_scale, pipe._num_timesteps = W, 1
    pipe.scheduler.set_timesteps(2)
    with torch.no_grad(), handle._bracket(total=1):  # a loop of one's own is refused
        whole = pipe.unet(*given)
        pair = pipe.unet(*given, return_dict=False)
    assert torch.equal(whole.sample, pair[0])
    handle.remove()
    with torch.no_grad():
        assert torch.equal(pipe.unet(*given).sample[1], pair[0][1])
    del pipe._num_timesteps, pipe._guidance_scale
    make(pipe)


def test_schedulers(pipe, embedding):
    import diffusers

    own = pipe.scheduler
    embeds = negative_prompt_embeds(pipe, embedding)
    method = SafeLatent.preset("max", Negative("", (embedding,)))
    try:
        for kind in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"):
            pipe.scheduler = getattr(diffusers, kind).from_config(own.config)
            wanted = make(pipe, negative_prompt_embeds=embeds)
            with ine.protect(pipe, embedding):
                close(make(pipe), wanted, atol=1e-3)
            with ine.protect(pipe, guidance=method):
                assert make(pipe).isfinite().all()
    finally:
        pipe.scheduler = own


def test_signal_power():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    ddim, euler = DDIMScheduler(), EulerDiscreteScheduler()
    euler.set_timesteps(7)
    for index, t in enumerate(euler.timesteps):
        sigma = euler.sigmas[index]
        close(signal_power(euler, t), 1 / (1 + sigma**2), atol=1e-6)
        low, high = ddim.alphas_cumprod[int(t)], ddim.alphas_cumprod[min(int(t) + 1, 999)]
        assert high - 1e-6 <= signal_power(ddim, t) <= low + 1e-6
    assert signal_power(ddim, torch.tensor(999)) == ddim.alphas_cumprod[999]
    with pytest.raises(IneError, match="alphas_cumprod"):
        signal_power(object(), torch.tensor(1))


def test_pick_rows_reaches_everything_that_has_rows():
    value = {"a": [noise(4, 2), noise(1, 2)], "b": (noise(4), 0.5), "c": None, "t": torch.tensor(3)}
    found = pick_rows(value, [0, 3, 0], 4)
    assert torch.equal(found["a"][0], value["a"][0][[0, 3, 0]])
    assert found["a"][1] is value["a"][1]
    assert torch.equal(found["b"][0], value["b"][0][[0, 3, 0]])
    assert found["b"][1:] == (0.5,)
    assert found["c"] is None
    assert found["t"] is value["t"]


# --- bad input --------------------------------------------------------------------------------


def test_several_embeddings_and_files(pipe, embedding, tmp_path):
    path = tmp_path / "fire-neg.safetensors"
    write_embedding(embedding, path)
    other = new_embedding(noise(1, 32, seed=5), "smoke-neg", "smoke")
    with ine.protect(pipe, str(path)):
        one = make(pipe)
    with ine.protect(pipe, [path, other]):
        assert differs(make(pipe), one)
    with ine.protect(pipe, guidance=ClassifierFree(Negative("", (embedding,)))):
        assert torch.equal(make(pipe), one)


def test_what_is_refused(pipe, embedding):
    good = Additive(Negative("", (embedding,)))
    cases = (
        ({}, "no embedding is given"),
        ({"embeddings": []}, "no embedding is given"),
        ({"embeddings": embedding, "guidance": "aditive"}, "did you mean 'additive'"),
        ({"embeddings": embedding, "strength": 2.0}, "no strength of its own"),
        ({"embeddings": embedding, "guidance": "additive", "strength": -1.0}, "strength is -1"),
        ({"embeddings": embedding, "guidance": "additive", "strength": float("nan")}, "is nan"),
        ({"embeddings": embedding, "guidance": good}, "its own negative"),
        ({"guidance": Additive()}, "negative is empty"),
        ({"embeddings": embedding, "guidance": "safree"}, "Safree rewrites the prompts"),
        ({"guidance": 3}, "guidance is a int"),
        ({"guidance": Gated(good, Window()), "gate": Window()}, "a gate already"),
        ({"embeddings": embedding, "gate": "presence"}, "gate is a str"),
    )
    for given, message in cases:
        with pytest.raises(IneError, match=message):
            ine.protect(pipe, **given)


def test_an_embedding_of_another_width_names_both(pipe):
    wide = new_embedding(noise(2, 768), "fire-neg", "fire")
    with pytest.raises(EmbeddingError, match=r"width 768\).*width 32"):
        ine.protect(pipe, wide)


def test_an_embedding_that_equals_the_empty_prompt_is_said(pipe, embedding, caplog):
    table = pipe.text_encoder.get_input_embeddings().weight
    nothing = new_embedding(table[[pipe.tokenizer.pad_token_id] * 2], "none-neg", "none")
    with caplog.at_level(logging.WARNING, "ine"):
        ine.protect(pipe, embedding).remove()
        assert "steer nothing" not in caplog.text
        ine.protect(pipe, nothing).remove()
        assert "'none-neg' equals the empty prompt" in caplog.text
        assert "steer nothing" in caplog.text


def test_scale_one_is_refused_where_it_is_given(pipe, embedding):
    with ine.protect(pipe, embedding):
        for scale in (1.0, 0.0):
            with pytest.raises(IneError, match=r"guidance scale of 1 .* steers nothing"):
                make(pipe, guidance_scale=scale)
        make(pipe)


def test_twice_is_refused_also_through_a_sharing_pipeline(pipe, embedding):
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    other = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with ine.protect(pipe, embedding):
        for one in (pipe, other):
            with pytest.raises(IneError, match="protected already"):
                ine.protect(one, embedding)
        with pytest.raises(IneError, match="outside its pipeline's own loop"):
            make(other, image=Image.new("RGB", (16, 16)))
        make(pipe)
    with ine.protect(other, embedding):
        pass


def test_an_unknown_pipeline_lists_those_known(embedding):
    class StableDiffusionPipline:
        pass

    with pytest.raises(IneError, match=r"did you mean 'StableDiffusionPipeline'.*Inpaint"):
        ine.protect(StableDiffusionPipline(), embedding)


def test_a_protection_that_was_taken_off_is_noticed(pipe, embedding):
    handle = ine.protect(pipe, embedding)
    del pipe.unet.forward
    with pytest.raises(IneError, match="took the protection off"):
        make(pipe)
    handle.remove()


def test_a_guidance_that_rewrites_prompts_is_refused(pipe, embedding):
    class Rewriting(ClassifierFree):
        reads_prompts = True

    class Sneaky(ClassifierFree):
        @contextmanager
        def begin(self, prompts):
            prompts.encode([text.upper() for text in prompts.texts])
            yield

    negative = Negative("", (embedding,))
    with pytest.raises(IneError, match="Rewriting rewrites the prompts"):
        ine.protect(pipe, guidance=Rewriting(negative))
    with pytest.raises(IneError, match="rewrites"), ine.protect(pipe, guidance=Sneaky(negative)):
        make(pipe)


# --- SDXL -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xl(shared):
    """A Stable Diffusion XL of real classes and random weights, on the tiny one's parts."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    config = {k: v for k, v in shared.unet.config.items() if not k.startswith("_")}
    config |= {
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(4)
        unet = UNet2DConditionModel(**config).eval()
        second = CLIPTextModelWithProjection(shared.text_encoder.config).eval()
    pipe = StableDiffusionXLPipeline(
        vae=shared.vae,
        text_encoder=shared.text_encoder,
        text_encoder_2=second,
        tokenizer=shared.tokenizer,
        tokenizer_2=shared.tokenizer,
        unet=unet,
        scheduler=shared.scheduler,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pair_embedding():
    return new_embedding((3 * noise(2, 32, seed=1), 3 * noise(2, 32, seed=2)), "fire-neg", "fire")


def test_sdxl_with_both_encoders_and_pooled_states(xl, pair_embedding):
    size = {"height": 16, "width": 16}
    negative, empty = encode_negative(xl, pair_embedding)
    assert not empty.states.any()  # what this pipeline passes where no negative is given
    plain = make(xl, **size)
    given = {
        "negative_prompt_embeds": negative.states,
        "negative_pooled_prompt_embeds": negative.pooled,
    }
    wanted = make(xl, **size, **given)
    for method, strength in (("cfg", None), ("additive", W - 1)):
        with ine.protect(xl, pair_embedding, guidance=method, strength=strength):
            close(make(xl, **size), wanted)
    beside = make(xl, **size, negative_prompt="blurry")
    with ine.protect(xl, pair_embedding, guidance="additive", strength=0.0):
        close(make(xl, **size, negative_prompt="blurry"), beside)
    with ine.protect(xl, pair_embedding, gate=probe_gate(math.inf)):
        assert torch.equal(
            make(xl, **size, negative_prompt=""), make(xl, **size, negative_prompt="")
        )
        assert torch.equal(make(xl, **size), plain)
    assert differs(wanted, plain)
    with pytest.raises(EmbeddingError, match=r"width 32\).*2 text encoders of width 32 \+ 32"):
        ine.protect(xl, new_embedding(noise(1, 32), "fire-neg", "fire"))


# --- the guider -------------------------------------------------------------------------------


def run_guider(guider, unet, data, x, step=0, steps=4):
    """Run a guider as the loops of modular pipelines do."""
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    batches = guider.prepare_inputs(data)
    assert len(batches) == guider.num_conditions
    with torch.no_grad():
        for place, batch in enumerate(batches):
            guider.prepare_models(unet)
            assert guider.is_conditional == (place == 0)
            batch.noise_pred = unet(x, 500, encoder_hidden_states=batch.prompt_embeds).sample
            guider.cleanup_models(unet)
    return guider(batches)[0]


def test_the_guiders_formula(pipe, embedding):
    x, t = noise(2, 4, 8, 8), 500
    positive = pipe.encode_prompt(["a dog", "a house"], "cpu", 1, False)[0]
    empty = pipe.encode_prompt(["", ""], "cpu", 1, False)[0]
    blurry = pipe.encode_prompt(["blurry", ""], "cpu", 1, False)[0]
    ours = negative_prompt_embeds(pipe, embedding).expand(2, -1, -1)
    with torch.no_grad():
        c, e, u, n = (
            pipe.unet(x, t, encoder_hidden_states=s).sample for s in (positive, empty, blurry, ours)
        )
    guider = embedding_guider(pipe, embedding, guidance_scale=W)
    found = run_guider(guider, pipe.unet, {"prompt_embeds": (positive, empty)}, x)
    close(found, n + W * (c - n))
    found = run_guider(guider, pipe.unet, {"prompt_embeds": (positive, blurry)}, x)
    close(found, u + W * (c - u) - (W - 1) * (n - e))
    other = guider.new(strength=2.0, stop=0.5)
    found = run_guider(other, pipe.unet, {"prompt_embeds": (positive, empty)}, x)
    close(found, e + W * (c - e) - 2.0 * (n - e))
    found = run_guider(other, pipe.unet, {"prompt_embeds": (positive, empty)}, x, step=2)
    close(found, c)
    rescaled = guider.new(guidance_rescale=1.0)
    found = run_guider(rescaled, pipe.unet, {"prompt_embeds": (positive, empty)}, x)
    close(found.flatten(1).std(1), c.flatten(1).std(1))
    state = SimpleNamespace(prompt=positive, blank=empty, ids=noise(2, 6))
    fields = {"prompt_embeds": ("prompt", "blank"), "ids": "ids", "image": ("no", "no")}
    batches = guider.prepare_inputs_from_block_state(state, fields)
    assert len(batches) == 3
    assert torch.equal(batches[2].prompt_embeds, ours)
    assert all(b.ids is state.ids for b in batches)
    assert "guidance_scale" in repr(guider)


def test_the_guider_in_the_modular_denoising_block(xl, pair_embedding):
    from diffusers.modular_pipelines.modular_pipeline import BlockState
    from diffusers.modular_pipelines.stable_diffusion_xl import denoise

    state = BlockState(
        prompt_embeds=noise(2, 77, 64),
        negative_prompt_embeds=torch.zeros(2, 77, 64),
        add_time_ids=noise(2, 6),
        negative_add_time_ids=noise(2, 6),
        pooled_prompt_embeds=noise(2, 32),
        negative_pooled_prompt_embeds=torch.zeros(2, 32),
        num_inference_steps=4,
        scaled_latents=noise(2, 4, 8, 8),
        timestep_cond=None,
        cross_attention_kwargs=None,
    )
    negative, _ = encode_negative(xl, pair_embedding)
    parts = SimpleNamespace(guider=embedding_guider(xl, pair_embedding), unet=xl.unet)
    denoise.StableDiffusionXLLoopDenoiser()(parts, state, 1, torch.tensor(500))

    def query_unet(states, pooled, ids):
        extra = {"text_embeds": pooled, "time_ids": ids}
        with torch.no_grad():
            return xl.unet(state.scaled_latents, 500, states, added_cond_kwargs=extra).sample

    c = query_unet(state.prompt_embeds, state.pooled_prompt_embeds, state.add_time_ids)
    n = query_unet(
        negative.states.expand(2, -1, -1),
        negative.pooled.expand(2, -1),
        state.negative_add_time_ids,
    )
    close(state.noise_pred, n + W * (c - n))


def test_a_modular_pipeline_with_the_guider_is_the_protected_one(xl, pair_embedding):
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    size = {"height": 16, "width": 16}
    modular = StableDiffusionXLAutoBlocks().init_pipeline()
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
    modular.update_components(**{n: getattr(xl, n) for n in names}, scheduler=xl.scheduler)
    modular.update_components(guider=embedding_guider(modular, pair_embedding, guidance_scale=W))
    modular.set_progress_bar_config(disable=True)
    for prompts in ({}, {"negative_prompt": "blurry"}):
        found = modular(
            prompt="a dog",
            num_inference_steps=3,
            latents=noise(1, 4, 8, 8),
            output_type="latent",
            output="images",
            **size,
            **prompts,
        )
        with ine.protect(xl, pair_embedding):
            close(found, make(xl, **size, **prompts))


def test_the_guider_as_the_docs_build_it(xl, pair_embedding, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "guidance.md").read_text()
    (block,) = (
        b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "embedding_guider" in b
    )
    xl.save_pretrained(tmp_path / "my-unlearned-sdxl")
    write_embedding(pair_embedding, tmp_path / "fire-neg.safetensors")
    monkeypatch.chdir(tmp_path)
    shown = {}
    exec(compile(block, "docs/guidance.md", "exec"), shown)
    assert isinstance(shown["pipe"].guider, EmbeddingGuider)
    assert shown["pipe"].guider.strength == 3
    assert shown["picture"].size == (16, 16)


def test_what_the_guider_refuses(pipe, embedding):
    with pytest.raises(IneError, match="no embedding is given"):
        embedding_guider(pipe, None)
    with pytest.raises(IneError, match="no embedding is given"):
        EmbeddingGuider()
    with pytest.raises(IneError, match="strength is nan"):
        embedding_guider(pipe, embedding, strength=float("nan"))
    with pytest.raises(IneError, match="scale above 1"):
        embedding_guider(pipe, embedding, guidance_scale=1.0)
    guider = embedding_guider(pipe, embedding)
    with pytest.raises(IneError, match="passes latents"):
        guider.prepare_inputs({"latents": noise(1, 4)})
    with pytest.raises(EmbeddingError, match="width 32, this pipeline has 64"):
        guider.prepare_inputs({"prompt_embeds": (noise(1, 77, 64), noise(1, 77, 64))})


def test_a_gate_that_recognises_works_and_a_rewind_is_refused(pipe, embedding):
    parts = parts_of(pipe)
    with torch.no_grad():
        features = noised_features(
            parts, noise(1, *parts.latent_shape), 500.0, 0.5, torch.Generator()
        )
    probe = Probe(noise(features.shape[1]), 0.0)
    gate = ProbeGate(float("inf"), (probe,), (0.5,), "fire")
    undefended = make(pipe)
    with ine.protect(pipe, embedding, gate=gate) as handle:
        assert torch.equal(make(pipe), undefended)
        (note,) = handle.notes
    score = note["gate"]["probes"][0][2]
    opened = replace(gate, threshold=score - 1)
    with ine.protect(pipe, embedding, guidance="additive", strength=5, gate=opened) as handle:
        assert not torch.equal(make(pipe), undefended)
        assert handle.notes[0]["gate"]["opened"] == [2, "fire", score]
    method = Additive(Negative("", (embedding,)), strength=2.0)
    with pytest.raises(IneError, match="cannot restart a picture"):
        ine.protect(pipe, guidance=Restart(method, gate))
