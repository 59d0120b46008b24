"""Ways to lose a defence: each ends in the defended picture or in an error, never in a plain one.

docs/reliability.md has the same list in a table.
"""

import copy
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import diffusers
import pytest
import torch
from PIL import Image
from tiny import build_tiny, tiny_unet

import ine
from ine.attacks.text_distance import end_states
from ine.embeddings.embedding import new_embedding
from ine.errors import EmbeddingError, IneError, ModelError
from ine.finite import NotFinite
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.guidance.probe import features_of, listening
from ine.guidance.reattention import Reattention, reattending
from ine.guidance.safree_subspace import concept_columns
from ine.inversion.preview import WithVectors
from ine.protection.guider_builder import embedding_guider
from ine.protection.parts import parts_of
from ine.protection.prompts import encode_negative
from ine.runtime import uncompiled
from ine.sampling import SamplerSettings, sample_latents
from ine.text.encode import encode, encode_text, negative_prompt_embeds
from ine.text.splicing import splice

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

W = 7.5


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fresh():
    pipe = build_tiny("sd1")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe, prompt="a dog", **kwargs):
    settings = {"num_inference_steps": 2, "guidance_scale": W, "output_type": "latent"}
    return pipe(prompt, **{**settings, "latents": noise(1, 4, 8, 8), **kwargs}).images


def same(one, other):
    return torch.allclose(one, other, atol=1e-3)


@pytest.fixture(scope="module")
def embedding():
    return new_embedding(3 * noise(3, 32, seed=1), "fire-neg", "fire")


@pytest.fixture(scope="module")
def wanted(embedding):
    pipe = fresh()
    found = make(pipe, negative_prompt_embeds=negative_prompt_embeds(pipe, embedding))
    assert not same(found, make(pipe))
    return found


# --- an encoder that ignores the vectors --------------------------------------------------------


def deaf(encoder, how):
    """Return a text encoder on which a hook of the token table does nothing."""
    encoder = copy.deepcopy(encoder)
    if how == "cached":
        forward, known = encoder.forward, {}

        def remember(ids, **kwargs):
            key = (str(ids.tolist()), str(kwargs))
            known[key] = known.get(key) or forward(ids, **kwargs)
            return known[key]

        encoder.forward = remember
        return encoder
    decoy = copy.deepcopy(encoder.get_input_embeddings())
    encoder.get_input_embeddings = lambda: decoy
    if how == "looked up for show":

        def look_up(_module, inputs):
            decoy(inputs[0])

        encoder.register_forward_pre_hook(look_up)
    return encoder


DEAF = ("traced", "looked up for show", "cached")


@pytest.mark.parametrize("how", DEAF)
def test_whoever_encodes_with_an_ignored_embedding_gets_an_error(embedding, how):
    pipe = fresh()
    pipe.text_encoder = deaf(pipe.text_encoder, how)
    for call in (ine.protect, encode_negative, embedding_guider, negative_prompt_embeds):
        with pytest.raises(EmbeddingError, match=r"CLIPTextModel\) ignores the embedding"):
            call(pipe, embedding)
    assert not same(make(pipe), make(pipe, "a house"))  # of plain prompts it knows the words


def pictures(parts, embedding):
    negative = ClassifierFree(Negative("", (embedding,)))
    return sample_latents(parts, ["a dog"], [0], negative, SamplerSettings(steps=1))


def preview(parts, embedding):
    revived = WithVectors("it", embedding.vectors, Negative())
    return sample_latents(parts, ["a dog it"], [0], revived, SamplerSettings(steps=1))


def attack(parts, embedding):
    leaf = embedding.vectors[0].clone().requires_grad_(True)
    return end_states(parts, ["a dog it"], {"it": (leaf,)})


def inversion(parts, embedding):
    leaf = torch.nn.Parameter(embedding.vectors[0].clone())
    return encode(parts, ["it", "a it"], {"it": (leaf,)})


def safree(parts, embedding):
    return concept_columns(parts, (), (embedding,))


@pytest.mark.parametrize("how", DEAF[:2])
@pytest.mark.parametrize("work", [pictures, preview, attack, inversion, safree])
def test_so_does_every_part_of_ine(tiny_parts, embedding, work, how):
    work(tiny_parts, embedding)
    encoders = [deaf(e, how) for e in tiny_parts.text_encoders]
    with pytest.raises(EmbeddingError, match="ignores the embedding"):
        work(tiny_parts.with_text_encoders(encoders), embedding)


def test_of_two_encoders_each_is_looked_at(embedding):
    pipe = build_tiny("sdxl")
    pair = new_embedding((embedding.vectors[0], 3 * noise(3, 48)), "fire-neg", "fire")
    ine.protect(pipe, pair).remove()
    pipe.text_encoder_2 = deaf(pipe.text_encoder_2, "traced")
    with pytest.raises(EmbeddingError, match="CLIPTextModelWithProjection"):
        ine.protect(pipe, pair)


def test_the_check_costs_one_encoding_per_embedding_and_encoder(tiny_parts, embedding):
    encoder = copy.deepcopy(tiny_parts.text_encoders[0])
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    given = (tiny_parts.tokenizers, (encoder,), ["a fire-neg"], {"fire-neg": embedding.vectors})
    counts = []
    for _ in range(3):
        encode_text(*given)
        counts.append(len(calls))
    assert counts == [2, 3, 4]
    learned = torch.nn.Parameter(noise(2, 32))
    for _ in range(3):
        encode_text(*given[:3], {"fire-neg": (learned * 1.0,)})  # another tensor every time
        counts.append(len(calls))
    assert counts[3:] == [6, 7, 8]


def test_an_embedding_that_is_its_placeholder_is_no_error(tiny_parts):
    tokenizer, encoder = tiny_parts.tokenizers[0], tiny_parts.text_encoders[0]
    word = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))[0]
    row = encoder.get_input_embeddings().weight[word].detach().clone()[None]
    found = encode(tiny_parts, ["it"], {"it": (row,)}).states
    assert torch.equal(found, encode(tiny_parts, ["a"]).states)


def test_a_splice_leaves_the_prompts_of_other_threads_alone(tiny_parts, embedding):
    plain = encode(tiny_parts, ["a dog"]).states
    found = []
    other = threading.Thread(target=lambda: found.append(encode(tiny_parts, ["a dog"]).states))
    encoder = tiny_parts.text_encoders[0]
    with splice(encoder, [0], [1], embedding.vectors[0][:1]):
        other.start()
        other.join()
        with torch.no_grad():
            encoder(torch.zeros(1, 77, dtype=torch.long))
    assert torch.equal(found[0], plain)


def test_a_unet_whose_blocks_are_never_called_is_an_error(tiny_parts):
    with pytest.raises(IneError, match="does not call its blocks"), listening(tiny_parts.unet) as h:
        features_of(h)
    with pytest.raises(IneError, match="up blocks"), reattending(tiny_parts.unet, Reattention(), 1):
        pass


# --- compiled modules ---------------------------------------------------------------------------


@pytest.fixture
def counting():
    """A backend for torch.compile and the number of times that its graphs ran."""
    ran = []

    def backend(graph, _inputs):
        def run(*args):
            ran.append(1)
            return graph(*args)

        return run

    yield SimpleNamespace(backend=backend, ran=ran)
    torch._dynamo.reset()


def compiled_encoder(pipe, backend, form):
    if form == "encoder.compile()":
        pipe.text_encoder.compile(backend=backend)
    elif form == "torch.compile(encoder)":
        pipe.text_encoder = torch.compile(pipe.text_encoder, backend=backend)
    else:
        pipe.text_encoder.forward = torch.compile(pipe.text_encoder.forward, backend=backend)


FORMS = ("encoder.compile()", "torch.compile(encoder)", "encoder.forward = torch.compile")


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_text_encoder(embedding, wanted, counting, form):
    pipe = fresh()
    compiled_encoder(pipe, counting.backend, form)
    if form == FORMS[0]:  # a graph that is there already; the others take as long
        encode(parts_of(pipe), ["a dog"])
        assert counting.ran
    count = len(counting.ran)
    embeds = negative_prompt_embeds(pipe, embedding)
    assert len(counting.ran) == count
    assert torch.equal(embeds, negative_prompt_embeds(fresh(), embedding))
    if form == FORMS[0]:
        with ine.protect(pipe, embedding):
            assert same(make(pipe), wanted)
    other = fresh()
    with ine.protect(other, embedding):
        compiled_encoder(other, counting.backend, form)
        if form == FORMS[0]:
            assert same(make(other), wanted)


@pytest.mark.slow  # seconds of tracing; the tests below stand for it
def test_a_compiled_unet_is_defended_and_still_runs_compiled(embedding, counting):
    pipe = fresh()
    down, up = ("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",)
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "down_block_types": down}
    pipe.register_modules(unet=tiny_unet(pipe, **small, up_block_types=up))
    plain, embeds = make(pipe), negative_prompt_embeds(pipe, embedding)
    wanted = make(pipe, negative_prompt_embeds=embeds)
    pipe.unet.compile(backend=counting.backend, fullgraph=True)
    compiled = pipe.unet._compiled_call_impl
    with ine.protect(pipe, embedding):
        assert same(make(pipe), wanted)
        assert counting.ran
    assert pipe.unet._compiled_call_impl is compiled
    assert same(make(pipe), plain)
    assert not same(plain, wanted)


@pytest.mark.parametrize("first", ["compile", "protect"])
def test_a_compiled_decoder_may_not_break_a_graph_and_hides_no_nan(embedding, counting, first):
    pipe = fresh()

    def compile_decoder():
        pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager", fullgraph=True)

    if first == "compile":
        compile_decoder()
    with ine.protect(pipe, embedding):
        if first == "protect":
            compile_decoder()
        assert make(pipe, output_type="np").shape == (1, 16, 16, 3)
        pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
        with pytest.raises(NotFinite, match="VAE"):
            make(pipe, output_type="np")
    assert "postprocess" not in pipe.image_processor.__dict__


def as_compiled(unet):
    """Compile without waiting for dynamo: a graph that was traced before sees no attribute."""
    unet._compiled_call_impl = lambda *args, **kwargs: type(unet).forward(unet, *args, **kwargs)


@pytest.mark.parametrize("first", ["compile", "protect"])
def test_a_graph_that_sees_nothing_is_stood_above(embedding, wanted, first):
    pipe = fresh()
    plain = make(pipe)
    if first == "compile":
        as_compiled(pipe.unet)
    handle = ine.protect(pipe, embedding)
    with pytest.raises(IneError, match="protected already"):
        ine.protect(pipe, embedding)
    if first == "protect":
        make(pipe)
        as_compiled(pipe.unet)
    assert same(make(pipe), wanted)
    assert handle.unet_calls == [6]
    with pytest.raises(IneError, match="took the protection off"):
        make(pipe, callback_on_step_end=lambda pipe, *_: as_compiled(pipe.unet) or {})
    assert same(make(pipe), wanted)
    handle.remove()
    assert "forward" not in pipe.unet.__dict__
    assert same(make(pipe), plain)


@pytest.mark.parametrize("first", ["compile", "protect"])
def test_a_unet_in_the_compilers_wrapper(embedding, wanted, first):
    pipe = fresh()
    with torch.compiler.set_stance("force_eager"):  # the wrapper is real, tracing takes seconds
        if first == "compile":
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        with ine.protect(pipe, embedding):
            if first == "protect":
                pipe.unet = torch.compile(pipe.unet, backend="eager")
            assert same(make(pipe), wanted)
            pipe.unet = pipe.unet._orig_mod
            assert same(make(pipe), wanted)
        assert not same(make(pipe), wanted)


def test_uncompiled_puts_the_compilers_stance_back(counting):
    double = torch.compile(lambda x: 2 * x, backend=counting.backend)
    with uncompiled():
        double(torch.ones(1))
        assert not counting.ran
    double(torch.ones(1))
    assert counting.ran == [1]


# --- what people do with a protected pipeline ----------------------------------------------------


def from_pipe(kind, pipe):
    other = kind.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return other


def on_step(change):
    return {"callback_on_step_end": lambda pipe, i, _t, _kwargs: change(pipe, i) or {}}


def replace_forward(pipe, *_):
    unet = pipe.unet
    unet.forward = lambda *args, **kwargs: type(unet).forward(unet, *args, **kwargs)


def without_hooks(pipe):
    replace_forward(pipe)
    pipe.unet._forward_hooks.clear()
    return make(pipe)


def exchanged(name, other=None):
    def change(pipe, *_):
        setattr(pipe, name, other() if other else copy.deepcopy(getattr(pipe, name)))

    return change


def after(change):
    return lambda pipe: change(pipe) or make(pipe)


def midway(change):
    return lambda pipe: make(pipe, **on_step(change))


def set_scale(scale):
    return midway(lambda pipe, _i: setattr(pipe, "_guidance_scale", scale))


def picture_of(pipe):
    image = Image.new("RGB", (16, 16))
    kind = diffusers.StableDiffusionImg2ImgPipeline
    return from_pipe(kind, pipe)("a dog", image=image, output_type="latent").images


def swallowing(pipe):
    def nested(pipe, i):
        if i == 0:
            with pytest.raises(IneError, match="second call"):
                make(pipe)

    return make(pipe, **on_step(nested))


def cached(pipe):
    from diffusers.hooks import HookRegistry, ModelHook

    hook = type("Cache", (ModelHook,), {"_is_stateful": True})()
    block = pipe.unet.mid_block
    HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, "some_cache")


def deep_cached(pipe):
    block = pipe.unet.mid_block
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    block.forward.__module__ = "DeepCache.extension.deepcache"


def other_schedule(pipe, *_):
    kind = diffusers.DDIMScheduler
    pipe.scheduler = kind.from_config(pipe.scheduler.config, prediction_type="sample")
    pipe.scheduler.set_timesteps(2)


def again(pipe):
    kept = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    other = type(pipe)(**kept, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return make(other)


ERRORS = {
    "a shallow copy": (lambda p: make(copy.copy(p)), "a copy"),
    "from_pipe": (lambda p: make(from_pipe(type(p), p)), "outside"),
    "from_pipe to another kind": (picture_of, "outside"),
    "a new pipeline of its components": (again, "outside"),
    "another U-Net": (after(exchanged("unet")), "U-Net was replaced"),
    "another U-Net in mid-run": (
        midway(exchanged("unet", lambda: fresh().unet)),
        "took the protection off",
    ),
    "another text encoder": (after(exchanged("text_encoder")), "text_encoder was replaced"),
    "another tokenizer": (after(exchanged("tokenizer")), "tokenizer was replaced"),
    "another kind of scheduler": (after(other_schedule), "prediction type"),
    "another kind of scheduler in mid-run": (midway(other_schedule), "prediction type"),
    "unet.forward assigned": (after(replace_forward), "took the protection off"),
    "unet.forward assigned in mid-run": (midway(replace_forward), "took the protection off"),
    "unet.forward assigned, hooks cleared": (without_hooks, "took the protection off"),
    "progress_bar assigned": (
        after(lambda p: setattr(p, "progress_bar", lambda **k: type(p).progress_bar(p, **k))),
        "outside",
    ),
    "guidance 1 by a callback": (set_scale(1.0), "guidance is off"),
    "guidance not a number by a callback": (set_scale(float("nan")), "guidance is off"),
    "a call in a callback": (midway(lambda p, _i: make(p)), "second call"),
    "a call in a callback, its error swallowed": (swallowing, "second call"),
    "a cache of diffusers, asked twice": (
        lambda p: cached(p) or make(p, negative_prompt="blurry"),
        "some_cache",
    ),
    "DeepCache, asked twice": (
        lambda p: deep_cached(p) or make(p, negative_prompt="blurry"),
        "DeepCache",
    ),
}


@pytest.mark.parametrize("way", ERRORS)
def test_refused(embedding, way):
    pipe = fresh()
    handle = ine.protect(pipe, embedding)
    change, said = ERRORS[way]
    with pytest.raises(IneError, match=said):
        change(pipe)
    handle.remove()


def without_encoder(pipe):
    positive, negative = pipe.encode_prompt("a dog", "cpu", 1, True)
    pipe.text_encoder = pipe.tokenizer = None
    return make(pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)


def double(pipe):
    pipe.to(torch.float64)
    return make(pipe, latents=noise(1, 4, 8, 8).double()).float()


def grouped(pipe):
    place = torch.device("cpu")
    for module in (pipe.unet, pipe.text_encoder):
        diffusers.hooks.apply_group_offloading(
            module, onload_device=place, offload_device=place, offload_type="leaf_level"
        )


def subclass(pipe):
    class Mine(type(pipe)):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    return Mine


RIGHT = {
    "deepcopy": lambda p: make(copy.deepcopy(p)),
    "text encoder and tokenizer taken out": without_encoder,
    "attention processors": after(
        lambda p: p.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    ),
    "attention slicing": after(lambda p: p.enable_attention_slicing(1)),
    "fused projections": after(lambda p: p.fuse_qkv_projections()),
    "memory format": after(lambda p: p.unet.to(memory_format=torch.channels_last) and None),
    "a progress bar's settings": after(lambda p: p.set_progress_bar_config(disable=True, ncols=1)),
    "another precision": double,
    "moved": after(lambda p: p.to("cpu") and None),
    "group offloading": after(grouped),
    "layerwise casting": after(
        lambda p: p.unet.enable_layerwise_casting(torch.float32, torch.float32)
    ),
    "a cache, asked once": after(cached),
    "hooks taken off": after(lambda p: p.remove_all_hooks()),
    "inference mode": lambda p: torch.inference_mode()(make)(p).clone(),
}


@pytest.mark.parametrize("way", RIGHT)
def test_defended_all_the_same(embedding, wanted, way):
    pipe = fresh()
    with ine.protect(pipe, embedding):
        assert same(RIGHT[way](pipe), wanted)


def test_a_deep_copy_outlives_the_handle(embedding, wanted):
    pipe = fresh()
    plain = make(pipe)
    handle = ine.protect(pipe, embedding)
    other = copy.deepcopy(pipe)
    handle.remove()
    assert same(make(pipe), plain)
    assert same(make(other), wanted)
    as_compiled(pipe.unet)
    handle = ine.protect(pipe, embedding)
    with pytest.raises(IneError, match="took the protection off"):
        make(copy.deepcopy(pipe))  # modules leave out what was compiled when they are copied
    handle.remove()


def test_removing_in_mid_run_is_no_picture(embedding):
    pipe = fresh()
    handle = ine.protect(pipe, embedding)
    with pytest.raises(IneError, match="took the protection off"):
        make(pipe, **on_step(lambda *_: handle.remove()))


def test_two_threads_both_end_in_an_error(embedding, wanted):
    pipe = fresh()
    inside, done, found = threading.Event(), threading.Event(), []

    def wait(_pipe, i):
        if i == 0:
            inside.set()
            done.wait(20)

    def first():
        with pytest.raises(IneError, match="second call"):
            make(pipe, **on_step(wait))
        found.append("refused")

    with ine.protect(pipe, embedding):
        thread = threading.Thread(target=first)
        thread.start()
        assert inside.wait(20)
        other = from_pipe(type(pipe), pipe)
        with pytest.raises(IneError, match="outside"):
            make(other)  # a call of the U-Net within somebody else's run
        with pytest.raises(IneError, match="second call"):
            make(pipe)
        done.set()
        thread.join()
        assert found == ["refused"]
        assert same(make(pipe), wanted)


def test_an_interrupted_run_is_defended_as_far_as_it_went(embedding):
    pipe = fresh()
    stop = on_step(lambda pipe, i: setattr(pipe, "_interrupt", i == 1))
    plain = make(pipe, num_inference_steps=4, **stop)
    embeds = negative_prompt_embeds(pipe, embedding)
    wanted = make(pipe, num_inference_steps=4, negative_prompt_embeds=embeds, **stop)
    with ine.protect(pipe, embedding):
        found = make(pipe, num_inference_steps=4, **stop)
    assert same(found, wanted)
    assert not same(found, plain)


@contextmanager
def lora(module, names, seed):
    """Wrap layers as PEFT does while the context lasts."""

    class Wrapped(torch.nn.Module):
        def __init__(self, base, down, up):
            super().__init__()
            self.base_layer, self.down, self.up = base, down, up

        def forward(self, x):
            return self.base_layer(x) + x @ self.down @ self.up

    own = {n: m for n, m in module.named_modules() if n.endswith(names)}
    for i, (name, layer) in enumerate(own.items()):
        down = noise(layer.in_features, 2, seed=seed + i)
        module.set_submodule(
            name, Wrapped(layer, down, noise(2, layer.out_features, seed=seed - i))
        )
    assert own
    yield
    for name, layer in own.items():
        module.set_submodule(name, layer)


def test_a_lora_that_comes_and_goes(embedding, wanted):
    pipe = fresh()

    def loaded():
        return lora(pipe.text_encoder, ("q_proj",), 9), lora(pipe.unet, ("to_k",), 99)

    def picture(**kwargs):
        return make(pipe, num_inference_steps=3, **kwargs)

    def with_lora(**kwargs):
        one, two = loaded()
        with one, two:
            return picture(**kwargs)

    def unloading(**kwargs):
        one, two = loaded()
        one.__enter__()
        two.__enter__()

        def unload(_pipe, i):
            if i == 1:
                one.__exit__(None, None, None)
                two.__exit__(None, None, None)

        return picture(**on_step(unload), **kwargs)

    one, two = loaded()
    with one, two:
        embeds = negative_prompt_embeds(pipe, embedding)
    expected = [f(negative_prompt_embeds=embeds) for f in (with_lora, unloading)]
    with ine.protect(pipe, embedding):
        for act, picture_wanted in zip((with_lora, unloading), expected, strict=True):
            found = act()
            assert same(found, picture_wanted)
            assert not same(found, wanted)
        assert same(make(pipe), wanted)


def test_a_subclass_with_a_loop_of_its_own_is_refused(embedding, wanted):
    pipe = fresh()
    mine = from_pipe(subclass(pipe), pipe)
    with ine.protect(mine, embedding):
        assert same(make(mine), wanted)

    class Own(type(pipe)):
        def __call__(self, *_args, latents, **_):  # conditional rows first
            self._guidance_scale, self._num_timesteps = W, 1
            self.scheduler.set_timesteps(1)
            with self.progress_bar(total=1):
                states = torch.cat(self.encode_prompt("a dog", "cpu", 1, True))
                self.unet(latents.repeat(2, 1, 1, 1), torch.tensor(1), states)

    own = from_pipe(Own, pipe)
    with ine.protect(own, embedding), pytest.raises(IneError, match="loop of its own"):
        make(own)


def test_what_is_no_module_is_refused(embedding):
    pipe = fresh()
    traced = SimpleNamespace(config=pipe.unet.config)
    pipe.__dict__["unet"] = traced
    with pytest.raises(ModelError, match="U-Net is a SimpleNamespace"):
        ine.protect(pipe, embedding)
    pipe = fresh()
    pipe.text_encoder = torch.nn.Identity()
    with pytest.raises(ModelError, match="text encoder is a Identity"):
        ine.protect(pipe, embedding)


def test_the_guider_notices_another_text_encoder(embedding):
    pipe = fresh()
    guider = embedding_guider(pipe, embedding)
    states = encode(parts_of(pipe), ["a dog", ""]).states.chunk(2)
    guider.set_state(step=0, num_inference_steps=2, timestep=torch.tensor(500))
    assert len(guider.prepare_inputs({"prompt_embeds": states})) == 3
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    for one in (guider, guider.new(guidance_scale=3.0)):
        one.set_state(step=0, num_inference_steps=2, timestep=torch.tensor(500))
        with pytest.raises(IneError, match="text_encoder was replaced"):
            one.prepare_inputs({"prompt_embeds": states})
    pipe.text_encoder = None
    assert len(guider.prepare_inputs({"prompt_embeds": states})) == 3
