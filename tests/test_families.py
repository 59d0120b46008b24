"""SD 2.x, SDXL, inpainting models and models of few steps: the same code on each of them."""

import copy
import json
import shutil
from dataclasses import fields, replace

import pytest
import torch
from tiny import KINDS, build_tiny, look_ahead, probe_gate

import ine
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.embeddings.fit import check_fits
from ine.errors import EmbeddingError, IneError, ModelError
from ine.families import FAMILIES, family_of
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts, Step
from ine.guidance.safree import Safree, safree_against
from ine.guidance.safree_rewrite import rewrite
from ine.guidance.safree_subspace import pooled_states
from ine.guidance.sld import SafeLatent
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import batch_loss, invert
from ine.inversion.start import start_vectors
from ine.models.few_steps import few_steps_of
from ine.models.inpainting import everything_masked
from ine.models.loading import load_parts
from ine.protection.prompts import encode_negative
from ine.recipe import InversionSettings
from ine.sampling import SamplerSettings, make_scheduler, sample_latents
from ine.text.encode import encode, encode_nothing, negative_prompt_embeds

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS, STEPS = ["a dog", "a blue house"], [3, 4], 4
GUIDED = [k for k in KINDS if k not in ("lcm", "turbo")]
FEW = ["lcm", "turbo"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return kind -> folder of a tiny pipeline."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp("families") / kind
        build_tiny(kind).save_pretrained(made[kind])
    return made


@pytest.fixture(scope="module")
def parts_of_kind(folders):
    return {kind: load_parts(folder) for kind, folder in folders.items()}


@pytest.fixture
def load_pipe(folders):
    def load(kind):
        pipe = type(build_tiny(kind)).from_pretrained(folders[kind])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedding_of(parts, seed=1, name="fire-neg"):
    widths = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    vectors = [3 * noise(2, width, seed=seed + k) for k, width in enumerate(widths)]
    return new_embedding(vectors, name, "fire")


def settings_of(parts, **changes):
    few = parts.few_steps
    usual = {
        "scheduler": few.scheduler if few else "ddim",
        "guidance_scale": few.guidance_scale if few else 5.0,
        "steps": STEPS,
    }
    return SamplerSettings(**{**usual, **changes})


def sample(parts, guidance=None, **changes):
    return sample_latents(parts, PROMPTS, SEEDS, guidance, settings_of(parts, **changes))


def call(kind, pipe, parts, **changes):
    """Return the pipeline's own latents for the same prompts, seeds and settings."""
    settings = {
        "num_inference_steps": STEPS,
        "guidance_scale": settings_of(parts).guidance_scale,
        "generator": [torch.Generator().manual_seed(seed) for seed in SEEDS],
        "output_type": "latent",
    }
    if kind == "inpainting":
        # Its own masked latents would be drawn at random; the mean is what we take.
        size = parts.picture_size
        settings |= {
            "image": torch.zeros(2, 3, size, size),
            "mask_image": torch.ones(2, 1, size, size),
            "masked_image_latents": parts.inpainting_input[None, 1:].repeat(2, 1, 1, 1),
            "height": size,
            "width": size,
        }
    return pipe(PROMPTS, **{**settings, **changes}).images


def with_scheduler(pipe, name="DDIMScheduler"):
    import diffusers

    config = {**pipe.scheduler.config, "clip_sample": False}
    config.pop("_use_default_values", None)  # else diffusers takes other defaults for these
    pipe.scheduler = getattr(diffusers, name).from_config(config)
    return pipe


# ------------------------------------------------------------------------------- what they are


@pytest.mark.parametrize(("width", "name"), [(128, "mini"), (768, "sd1"), (1024, "sd2")])
def test_a_width_names_the_family(width, name):
    assert family_of(width).name == name
    assert len({f.width for f in FAMILIES}) == len(FAMILIES)


def test_an_unknown_width_has_a_name_and_ordinary_defaults():
    family = family_of(320)
    assert (family.name, family.uis, family.modelspec()) == ("width-320", False, (None, None))
    assert family.steps == family_of(768).steps


def test_what_each_kind_is(parts_of_kind):
    found = {k: (p.prediction_type, len(p.text_encoders)) for k, p in parts_of_kind.items()}
    assert found["sd2"] == ("v_prediction", 1)
    assert found["sdxl"] == ("epsilon", 2)
    assert {k for k, p in parts_of_kind.items() if p.few_steps} == set(FEW)
    assert {k for k, p in parts_of_kind.items() if p.inpainting_input is not None} == {"inpainting"}
    assert {k for k, p in parts_of_kind.items() if p.time_ids is not None} == {"sdxl"}
    assert {k for k, p in parts_of_kind.items() if p.timestep_cond is not None} == {"lcm"}
    assert all(p.latent_shape == (4, 8, 8) for p in parts_of_kind.values())


def test_a_condition_carries_all_that_a_model_reads(parts_of_kind):
    for kind, name, shape in (
        ("sdxl", "time_ids", (2, 6)),
        ("lcm", "timestep_cond", (2, 16)),
        ("inpainting", "inpainting_input", (2, 5, 8, 8)),
    ):
        condition = encode(parts_of_kind[kind], PROMPTS)
        assert getattr(condition, name).shape == shape
        assert getattr(condition.rows([0]).repeat(3), name).shape == (3, *shape[1:])
        others = {f.name for f in fields(condition)} - {"states", "pooled", name}
        assert all(getattr(condition, other) is None for other in others)


def test_sizes_are_those_of_an_uncropped_picture(parts_of_kind):
    parts = parts_of_kind["sdxl"]
    assert parts.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]]


def test_no_text_is_zeros_where_the_model_says_so(parts_of_kind):
    parts = parts_of_kind["sdxl"]
    nothing = encode_nothing(parts)
    assert not nothing.states.any()
    assert not nothing.pooled.any()
    assert nothing.time_ids.any()
    other = replace(parts, zeros_for_nothing=False)
    assert torch.equal(encode_nothing(other).states, encode(parts, [""]).states)


def test_a_scheduler_that_is_trailing_is_not_always_one_of_few_steps():
    turbo = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    assert few_steps_of({}, turbo).guidance_scale == 1
    for ordinary in (
        {"timestep_spacing": "leading"},
        {"_class_name": "DDIMScheduler"},
        {"prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True},
    ):
        assert few_steps_of({}, {**turbo, **ordinary}) is None
    assert few_steps_of({}, {"_class_name": "LCMScheduler"}).scheduler == "lcm"
    assert few_steps_of({"time_cond_proj_dim": 256}, turbo).guidance_scale > 1


def test_a_unet_of_other_channels_is_refused(parts_of_kind):
    parts = parts_of_kind["inpainting"]
    assert torch.equal(parts.inpainting_input[0], torch.ones(8, 8))
    unet = build_tiny("sd1").unet
    assert everything_masked(unet, parts.vae) is None
    unet.register_to_config(in_channels=8)
    with pytest.raises(ModelError, match=r"reads 8 channels.*inpainting models of 9"):
        everything_masked(unet, parts.vae)


def test_a_vae_that_overflows_stays_in_float32(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["sdxl"], folder)
    config = folder / "vae" / "config.json"
    for says, dtype in ((True, torch.float32), (False, torch.float16)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": says}))
        parts = load_parts(folder, dtype=torch.float16)
        assert (parts.unet.dtype, parts.vae.dtype) == (torch.float16, dtype)


# ---------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", KINDS)
def test_undefended_latents_are_those_of_the_pipeline(kind, parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind[kind], load_pipe(kind)
    if kind not in FEW:
        pipe = with_scheduler(pipe)
    found, _, calls = sample(parts)
    torch.testing.assert_close(found, call(kind, pipe, parts), atol=1e-4, rtol=0)
    assert calls == [STEPS if kind in FEW else 2 * STEPS] * 2


def methods(embedding):
    """Return name -> guidance that acts also without guidance, each with a strength."""
    negative = Negative("", (embedding,))
    joined = Negative("a house", (embedding,))
    return {
        "additive": Additive(negative, strength=2.0),
        "additive joined": Additive(joined, strength=2.0),
        "sld": SafeLatent.preset("max", negative),
        "safree": safree_against(negative, alpha=0.0, validate=False),
        "safree per vector": Safree(
            embeddings=(embedding,), columns="vectors", alpha=0.0, validate=False, reattention=True
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_guidance_acts(kind, parts_of_kind):
    parts = parts_of_kind[kind]
    plain, _, _ = sample(parts)
    all_methods = methods(embedding_of(parts))
    if kind not in FEW:
        all_methods["cfg"] = ClassifierFree(Negative("", (embedding_of(parts),)))
    for name, guidance in all_methods.items():
        found, _, _ = sample(parts, guidance)
        assert found.isfinite().all(), name
        for row in range(2):
            assert (found[row] - plain[row]).abs().max() > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_gate_leaves_pictures_alone(kind, parts_of_kind):
    parts = parts_of_kind[kind]
    negative = Negative("", (embedding_of(parts),))
    plain, _, _ = sample(parts)
    for gate, open_ in ((probe_gate(1e9), False), (Window(0.0, 0.5), True)):
        found, _, _ = sample(parts, Gated(Additive(negative, strength=2.0), gate))
        same = torch.allclose(found, plain, atol=1e-5 if kind in FEW else 0)
        assert same != open_


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FEW])
def test_a_closed_look_ahead_leaves_pictures_of_every_family_alone(kind, parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind[kind], load_pipe(kind)
    guidance = Additive(Negative("", (embedding_of(parts),)), strength=2.0)
    plain, _, _ = sample(parts)
    found, notes, _ = sample(parts, Gated(guidance, look_ahead(1e9)))
    assert torch.equal(found, plain)
    own = call(kind, pipe, parts)
    with ine.protect(pipe, guidance=guidance, gate=look_ahead(1e9)) as defence:
        assert torch.equal(call(kind, pipe, parts), own)
    scores, theirs = ([n["gate"]["probes"][0][2] for n in some] for some in (notes, defence.notes))
    assert theirs == pytest.approx(scores, abs=2e-2)
    with ine.protect(pipe, guidance=guidance, gate=look_ahead(-1e9)):
        assert not torch.allclose(call(kind, pipe, parts), own, atol=1e-3)


@pytest.mark.parametrize("kind", FEW)
def test_a_look_ahead_on_few_steps_is_refused_by_name(kind, parts_of_kind, load_pipe):
    parts = parts_of_kind[kind]
    guidance = Additive(Negative("", (embedding_of(parts),)), strength=2.0)
    with pytest.raises(IneError, match="is a model of few steps"):
        sample(parts, Gated(guidance, look_ahead(0.0)))
    with pytest.raises(IneError, match="is a model of few steps"):
        ine.protect(load_pipe(kind), guidance=guidance, gate=look_ahead(0.0))


@pytest.mark.parametrize("kind", FEW)
def test_a_negative_that_would_steer_nothing_is_refused(kind, parts_of_kind):
    parts = parts_of_kind[kind]
    negative = Negative("", (embedding_of(parts),))
    gated = Gated(Additive(negative), Window(0.0, 0.5))
    for guidance in (ClassifierFree(negative), Additive(negative), gated):
        with pytest.raises(IneError, match=r"'fire-neg' .*steers nothing; what works is additive"):
            sample(parts, guidance)
    sample(parts, ClassifierFree())


def test_an_ordinary_model_without_guidance_is_no_exception(parts_of_kind):
    parts = parts_of_kind["sd1"]
    negative = Negative("", (embedding_of(parts),))
    with pytest.raises(IneError, match="guidance scale of 1"):
        sample(parts, ClassifierFree(negative), guidance_scale=1.0)
    plain, _, calls = sample(parts, guidance_scale=1.0)
    assert calls == [STEPS, STEPS]
    two_calls, _, _ = sample(parts, guidance_scale=1.0 + 1e-6)
    torch.testing.assert_close(plain, two_calls, atol=1e-3, rtol=0)


def test_an_lcm_receives_the_scale(parts_of_kind):
    parts = parts_of_kind["lcm"]
    weak, _, _ = sample(parts, guidance_scale=2.0)
    strong, _, _ = sample(parts, guidance_scale=12.0)
    assert (weak - strong).abs().max() > 1e-3


@pytest.mark.parametrize("kind", FEW)
def test_noise_that_a_sampler_adds_belongs_to_the_picture(kind, parts_of_kind):
    parts = parts_of_kind[kind]
    both, _, _ = sample(parts)
    alone, _, _ = sample_latents(parts, PROMPTS[1:], SEEDS[1:], None, settings_of(parts))
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)


def test_lcm_makes_no_more_steps_than_it_learnt(parts_of_kind):
    with pytest.raises(IneError, match="'lcm': cannot take 99 steps"):
        sample(parts_of_kind["lcm"], steps=99)


def test_a_run_that_begins_without_signal(parts_of_kind):
    """Zero terminal signal (Lin et al. 2023): at the first step alpha-bar is 0."""
    parts = parts_of_kind["sd2"]
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    parts = replace(parts, scheduler_config={**parts.scheduler_config, **zero})
    seen = []
    guidance = methods(embedding_of(parts))["sld"]
    settings = settings_of(parts)
    found, _, _ = sample_latents(parts, PROMPTS, SEEDS, guidance, settings, seen.append)
    assert found.isfinite().all()
    assert seen[0].alpha_bar == 0


def test_a_v_prediction_gives_the_clean_latents_without_signal():
    x_0, eps = noise(1, 4, 2, 2), noise(1, 4, 2, 2, seed=1)
    for a in (0.0, 0.3, 0.9):
        a = torch.tensor(a)
        step = Step(
            index=0,
            count=1,
            t=torch.tensor(999),
            x_t=a.sqrt() * x_0 + (1 - a).sqrt() * eps,
            alpha_bar=a,
            prediction_type="v_prediction",
        )
        v = a.sqrt() * eps - (1 - a).sqrt() * x_0
        torch.testing.assert_close(step.preview(v), x_0)


# ------------------------------------------------------------------------------------- safree


def test_safree_reads_both_encoders_at_the_layer_of_the_unet(parts_of_kind):
    parts = parts_of_kind["sdxl"]
    pooled, ids = pooled_states(parts, "a dog", masked=True)
    assert pooled.shape == (1 + len(ids), 32 + 48)
    states = encode(parts, ["a dog"]).states[0]
    torch.testing.assert_close(pooled[0], states[len(ids) + 1], atol=1e-5, rtol=0)


@pytest.fixture
def square(parts_of_kind):
    """A tiny SDXL whose second encoder's embeddings are as wide as its states, as SDXL's are."""
    parts = parts_of_kind["sdxl"]
    second = copy.deepcopy(parts.text_encoders[1])
    second.config.projection_dim = second.config.hidden_size
    second.text_projection = torch.nn.Linear(48, 48, bias=False)
    torch.nn.init.normal_(second.text_projection.weight, generator=torch.Generator().manual_seed(0))
    return parts.with_text_encoders([parts.text_encoders[0], second])


@torch.no_grad()
def test_safree_on_sdxl_can_be_the_released_one(square):
    """Against modified_stable_diffusion_xl_pipeline.py of the authors (b8b2c3f), written out."""
    prompt, phrases, alpha = "a dog in snow", ("fire", "ox"), 0.01
    tokenizer, second = square.tokenizers[1], square.text_encoders[1]

    def embeds(ids):
        return second(torch.tensor(ids)).text_embeds.double()

    def on_span(columns):
        return columns @ torch.linalg.pinv(columns.T @ columns) @ columns.T

    ids = tokenizer(prompt).input_ids
    count = len(ids) - 2
    masked = embeds([[*ids[:i], 0, *ids[i + 1 :]] for i in range(1, count + 1)])
    concept = torch.cat([embeds([tokenizer(p).input_ids]) for p in phrases])
    outside = torch.eye(48).double() - on_span(concept.T)
    far = (outside @ masked.T).norm(dim=0)
    triggers = [
        i + 1
        for i in range(count)
        if far[i] >= (1 + alpha) * torch.cat([far[:i], far[i + 1 :]]).mean()
    ]
    states = encode(square, [prompt]).states[0]
    wanted = states.double().clone()
    moved = (outside @ on_span(masked.T) @ wanted[:, 32:].T).T
    wanted[triggers, 32:] = moved[triggers]

    method = Safree(phrases=phrases, alpha=alpha, as_released=True)
    found = rewrite(square, prompt, states, method.concept(square), alpha, as_released=True)
    assert 0 < len(triggers) < count
    assert list(found.triggers) == triggers
    torch.testing.assert_close(found.states.double(), wanted, atol=1e-4, rtol=1e-3)
    # The first encoder's part stays, which the default projects as well.
    assert torch.equal(found.states[:, :32], states[:, :32])
    ours = replace(method, as_released=False)
    both = rewrite(square, prompt, states, ours.concept(square), -1.0)
    assert not torch.equal(both.states[:, :32], states[:, :32])


def test_the_released_safree_on_sdxl_has_no_filter(square, parts_of_kind):
    method = Safree(phrases=("fire",), alpha=0.0, as_released=True, up_t=0)
    prompts = Prompts(parts=square, texts=("a dog in snow",), scale=5.0)
    with method.begin(prompts) as session:
        assert session.last(session.rewrites[0], 30) == 29
    with replace(method, as_released=False).begin(prompts) as session:
        assert session.last(session.rewrites[0], 30) == 0
    with pytest.raises(IneError, match="states of 48 and embeddings of 24"):
        method.concept(parts_of_kind["sdxl"])


def test_safree_refuses_tokens_that_differ(parts_of_kind, tmp_path):
    parts = parts_of_kind["sdxl"]
    other = type(parts.tokenizers[1])(
        vocab={**parts.tokenizers[1].get_vocab(), "do": 5},
        merges=[("d", "o")],
        model_max_length=77,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="!",
    )
    two = replace(parts, tokenizers=(parts.tokenizers[0], other))
    with pytest.raises(IneError, match="into other tokens"):
        pooled_states(two, "dog")


# ---------------------------------------------------------------------------------- inversion


@pytest.fixture
def pictures():
    return ConceptPictures(
        mean=noise(3, 4, 8, 8, seed=1),
        std=0.1 * noise(3, 4, 8, 8, seed=2).abs(),
        captions=None,
        names=("0", "1", "2"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_inversion_learns_and_resumes(kind, parts_of_kind, pictures, tmp_path, monkeypatch):
    parts = parts_of_kind[kind]
    monkeypatch.setattr("ine.inversion.invert.SAVE_EVERY", 5)
    spec = InversionSettings(vectors=2, steps=24, batch=3, lr=0.05, preview_every=100)
    state = tmp_path / "state.safetensors"

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step == 12:
            raise Killed

    with pytest.raises(Killed):
        invert(parts, pictures, spec, trigger="fire-neg", state=state, key="k", on_step=kill)
    made = invert(parts, pictures, spec, trigger="fire-neg", state=state, key="k")
    whole = invert(parts, pictures, spec, trigger="fire-neg")
    assert all(map(torch.equal, made.vectors, whole.vectors))
    schedule = make_scheduler("ddim", parts.scheduler_config, 50).alphas_cumprod

    def loss(vectors):
        """The mean over the same noise, timesteps and captions for all vectors."""
        with torch.no_grad():
            return sum(
                batch_loss(
                    *(parts, pictures, spec, vectors, "fire-neg", (), schedule),
                    torch.Generator().manual_seed(seed),
                ).item()
                for seed in range(15)
            )

    assert loss(made.vectors) < loss(start_vectors(parts, spec, 0))
    widths = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    assert [v.shape for v in made.vectors] == [(2, width) for width in widths]


def test_both_encoders_vectors_are_trained_together(parts_of_kind, pictures):
    parts = parts_of_kind["sdxl"]
    spec = InversionSettings(
        vectors=2, steps=1, batch=2, lr=0.05, preview_every=100, init_noise=0.0
    )
    made = invert(parts, pictures, spec, trigger="fire-neg")
    for vectors, encoder in zip(made.vectors, parts.text_encoders, strict=True):
        start = encoder.get_input_embeddings().weight.mean(0)
        # Adam's first step is the learning rate in every direction that has a gradient.
        assert (vectors - start).abs().max() > 0.04


def test_an_sdxl_embedding_is_a_pair_and_fits_sdxl_only(parts_of_kind, tmp_path):
    parts = parts_of_kind["sdxl"]
    embedding = embedding_of(parts)
    write_embedding(embedding, tmp_path / "fire-neg.safetensors")
    again = read_embedding(tmp_path / "fire-neg.safetensors")
    assert [v.shape[1] for v in again.vectors] == [32, 48]
    check_fits(again, parts)
    with pytest.raises(EmbeddingError, match=r"32 \+ 48"):
        check_fits(again, parts_of_kind["sd1"])
    with pytest.raises(IneError, match="also needs pooled states"):
        negative_prompt_embeds(parts, embedding)


# ------------------------------------------------------------------------------------- protect


@pytest.mark.parametrize("kind", KINDS)
def test_protect_is_the_sampler_with_the_same_guidance(kind, parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind[kind], load_pipe(kind)
    if kind not in FEW:
        pipe = with_scheduler(pipe)
    embedding = embedding_of(parts)
    negative = Negative("", (embedding,))
    plain = call(kind, pipe, parts)
    guidances = {
        "additive": Additive(negative, strength=2.0),
        "sld": SafeLatent.preset("max", negative),
    }
    if kind not in FEW:
        guidances["cfg"] = ClassifierFree(negative)
    for name, guidance in guidances.items():
        wanted, _, calls = sample(parts, guidance)
        with ine.protect(pipe, guidance=guidance) as defence:
            found = call(kind, pipe, parts)
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0, msg=f"{kind} {name}")
        assert (found - plain).abs().max() > 1e-2, name
        assert defence.unet_calls == calls, name
    torch.testing.assert_close(call(kind, pipe, parts), plain, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_protect_behind_a_closed_gate_changes_nothing(kind, parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind[kind], load_pipe(kind)
    plain = call(kind, pipe, parts)
    guidance = Additive(Negative("", (embedding_of(parts),)), strength=2.0)
    with ine.protect(pipe, guidance=guidance, gate=probe_gate(1e9)):
        assert torch.equal(call(kind, pipe, parts), plain)
    with ine.protect(pipe, guidance=guidance, gate=Window(0.0, 0.5)):
        assert not torch.allclose(call(kind, pipe, parts), plain, atol=1e-3)


@pytest.mark.parametrize("kind", FEW)
def test_protect_says_what_works_on_few_steps(kind, parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind[kind], load_pipe(kind)
    with (
        ine.protect(pipe, embedding_of(parts)),
        pytest.raises(IneError, match="steers nothing; what works is additive"),
    ):
        call(kind, pipe, parts)
    call(kind, pipe, parts)


def test_a_real_mask_is_respected(parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind["inpainting"], load_pipe("inpainting")
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :, :8] = 1
    given = {"image": noise(2, 3, 16, 16).clamp(0, 1), "mask_image": mask}
    plain = call("inpainting", pipe, parts, **given)
    with ine.protect(pipe, embedding_of(parts)):
        found = call("inpainting", pipe, parts, **given)
    assert (found - plain).abs().max() > 1e-2
    whole = call("inpainting", pipe, parts)
    assert (plain - whole).abs().max() > 1e-2


def test_a_negative_of_the_users_own_on_sdxl(parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind["sdxl"], load_pipe("sdxl")
    pipe = with_scheduler(pipe)
    embedding = embedding_of(parts)
    theirs = {"negative_prompt": ["a cat", "a cat"]}
    with ine.protect(pipe, guidance=Additive(Negative("", (embedding,)), strength=0.0)):
        found = call("sdxl", pipe, parts, **theirs)
    torch.testing.assert_close(found, call("sdxl", pipe, parts, **theirs), atol=1e-3, rtol=0)


def test_the_guiders_conditions_on_sdxl(parts_of_kind, load_pipe):
    parts, pipe = parts_of_kind["sdxl"], load_pipe("sdxl")
    negative, empty = encode_negative(pipe, embedding_of(parts))
    prompts = Prompts(parts=parts, texts=("a",), scale=1.0)
    assert torch.equal(empty.states, prompts.nothing().states)
    assert negative.pooled.shape == (1, 24)


# ---------------------------------------------------------------------------- the command line


def test_generate_on_a_model_of_few_steps(folders, parts_of_kind, run_ine, tmp_path):
    parts = parts_of_kind["turbo"]
    file = tmp_path / "fire-neg.safetensors"
    write_embedding(embedding_of(parts), file)
    given = ("generate", "--model", folders["turbo"], "--prompt", "a dog", "--json")
    plain = run_ine(*given, "--out", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    assert "4 steps of euler-a at scale 1" in plain.stderr
    given = (*given, "--negative-embedding", file)
    refused = run_ine(*given, "--out", tmp_path / "refused")
    assert refused.exit_code != 0
    assert "what works is additive with a strength" in refused.stderr
    given = (*given, "--guidance", "additive", "--negative-strength", "2")
    done = run_ine(*given, "--out", tmp_path / "done")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "done" / "sheet.png").read_bytes() != (
        tmp_path / "plain" / "sheet.png"
    ).read_bytes()


@pytest.mark.parametrize("kind", ["sdxl", "sd2", "inpainting"])
def test_generate_on_other_families(kind, folders, parts_of_kind, run_ine, tmp_path):
    file = tmp_path / "fire-neg.safetensors"
    write_embedding(embedding_of(parts_of_kind[kind]), file)
    done = run_ine(
        *("generate", "--model", folders[kind], "--prompt", "a (dog:1.2)", "--steps", "2"),
        *("--negative-embedding", file, "--out", tmp_path / "pictures", "--json"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pictures"]
