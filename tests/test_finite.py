"""NaN and infinity: found, made again in float32, or an error; never a picture."""

import copy
import json
import math
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from tiny import probe_gate

from ine.cli import cli
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError, RecipeError
from ine.evaluation.grid import Grid, GridMetrics, GridModel
from ine.evaluation.units import UnitOfWork, make_unit
from ine.finite import NotFinite, finite_rows, in_float32, redone_line
from ine.gallery.fill import fill_gallery
from ine.gallery.index import GalleryPlan
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated
from ine.guidance.negative import Negative
from ine.models.loading import load_parts
from ine.pictures import is_blank, png_bytes, read_picture, read_png_text, write_png
from ine.recipe import load_recipe
from ine.sampling import (
    PictureRequest,
    SamplerSettings,
    decode,
    decode_latents,
    generate,
    sample_latents,
)
from ine.store.archives import Doubtful
from ine.store.pictures import Store
from ine.studies.cases import Case, prompts_of
from ine.studies.grids import run_grid, sampler_of, write_grid
from ine.text.encode import encode
from ine.watch import Watch

FULL, SOME = 3e4, 1.9e4
"""Factors of `overflowing`: both pictures of `REQUESTS` overflow, and the second."""

PROMPTS = ("a dog", "a car at the forge")
REQUESTS = tuple(PictureRequest(prompt=text, seed=n) for n, text in enumerate(PROMPTS))
SETTINGS = SamplerSettings(steps=2, guidance_scale=5.0, batch=2)


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


def half(parts):
    """Return parts in float16, copies."""
    encoders = [copy.deepcopy(e).half() for e in parts.text_encoders]
    made = replace(parts, vae=copy.deepcopy(parts.vae).half())
    return made.with_text_encoders(encoders).with_unet(copy.deepcopy(parts.unet).half(), "half")


def overflowing(parts, by):
    """Return parts whose queries are `by` times as large and keys as much smaller.

    In exact arithmetic nothing changes; in float16 the queries leave its range.
    """
    unet = copy.deepcopy(parts.unet)
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                module.to_q.weight *= by
                module.to_k.weight /= by
    return parts.with_unet(unet, "overflowing")


@pytest.fixture(scope="module")
def full(mini):
    return half(overflowing(mini, FULL))


@pytest.fixture(scope="module")
def expected(mini):
    return decoded(overflowing(mini, FULL))


def decoded(parts, settings=SETTINGS, requests=REQUESTS, guidance=None):
    [unit] = generate(parts, requests, guidance, settings)
    return unit


def weights_of(parts):
    modules = (parts.unet, parts.vae, *parts.text_encoders)
    return [t.clone() for m in modules for t in m.state_dict().values()]


def near(one, other):
    """Whether pictures differ by rounding alone."""
    return np.abs(one.astype(int) - other.astype(int)).mean() < 1


# --- what is looked at


def test_one_sum_finds_every_kind_of_number_that_is_not_finite():
    rows = torch.full((5, 3, 4), 60000.0, dtype=torch.float16)  # the largest sum is finite
    rows[1, 0, 0], rows[2, 1, 1], rows[3, 2, 2] = float("nan"), float("inf"), float("-inf")
    rows[4, 0, :2] = torch.tensor([float("inf"), float("-inf")])
    assert finite_rows(rows).tolist() == [True, False, False, False, False]


def test_the_first_step_is_named_though_nobody_looked_before_the_end():
    watch = Watch(3, 5, "cpu", torch.float16)
    fine = torch.zeros(3, 4)
    for index in range(5):
        latents = fine.clone()
        latents[1] = float("nan") if index >= 2 else 0
        watch.stepped(index, latents, look=False)
    with pytest.raises(NotFinite, match=r"guidance: .* float16 at step 3 of 5 \(1 of 3") as found:
        watch.__exit__(None, None, None)
    assert (found.value.step, watch.bad()) == (2, {1: 2})


def test_an_error_that_nan_caused_is_reported_as_nan():
    watch = Watch(1, 5, "cpu", torch.float16)
    watch.saw(0, torch.full((1, 4), float("inf")))
    with pytest.raises(NotFinite, match="U-Net"), watch:
        raise ZeroDivisionError  # what a solver or a gate makes of it
    with pytest.raises(ZeroDivisionError), Watch(1, 5, "cpu", torch.float16):
        raise ZeroDivisionError


# --- overflow of a model, in full and in part


def test_what_overflows_is_made_again_and_equals_float32(full, expected, caplog):
    before = weights_of(full)
    unit = decoded(full)
    assert not is_blank(unit.pictures).any()
    assert near(unit.pictures, expected.pictures)
    record = {"what": "U-Net", "from": "float16", "to": "float32", "step": 1}
    assert [note["redone"] for note in unit.notes] == [[record]] * 2
    assert unit.unet_calls == expected.unet_calls
    assert "step 1 of 2 (2 of 2 pictures); made again in float32" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(full), strict=True))
    assert redone_line(unit.notes).startswith("2 of 2 pictures were made again in float32")
    again = decoded(full)
    assert np.array_equal(again.pictures, unit.pictures)
    assert again.notes == unit.notes


def test_nothing_is_made_again_where_nothing_overflows(mini, caplog):
    unit = decoded(half(mini))
    assert not any("redone" in note for note in unit.notes)
    assert not caplog.records
    assert redone_line(unit.notes) == ""


def test_a_unit_of_which_some_rows_overflow_is_made_again_as_a_whole(mini, caplog):
    parts = overflowing(mini, SOME)
    unit = decoded(half(parts))
    assert "(1 of 2 pictures)" in caplog.text
    assert near(unit.pictures, decoded(parts).pictures)
    assert all(note["redone"] for note in unit.notes)


def test_overflow_in_the_vae_alone_keeps_the_latents(mini, caplog):
    parts = half(mini)
    with torch.no_grad():
        # Equal in exact arithmetic: the next convolution divides what this one multiplied.
        parts.vae.post_quant_conv.weight *= 6e4
        parts.vae.post_quant_conv.bias *= 6e4
        parts.vae.decoder.conv_in.weight /= 6e4
    vae = copy.deepcopy(parts.vae).float()
    latents, notes, _ = sample_latents(parts, PROMPTS, range(2), None, SETTINGS)
    pictures, records = decode(parts, latents)
    wide = decode_latents(replace(parts, vae=vae), latents)
    assert np.array_equal(pictures, wide)
    assert records == [{"what": "VAE", "from": "float16", "to": "float32", "step": None}]
    assert not any("redone" in note for note in notes)
    assert parts.vae.dtype == torch.float16
    assert decoded(parts).notes[0]["redone"] == records


def test_overflow_in_the_text_encoder(mini, caplog):
    parts = half(mini)
    [encoder] = parts.text_encoders
    layer = encoder.get_submodule(
        next(n for n, _ in encoder.named_modules() if n.endswith("layers.0"))
    )
    with torch.no_grad():
        layer.self_attn.q_proj.weight *= 3e4
        layer.self_attn.q_proj.bias *= 3e4
        layer.self_attn.k_proj.weight /= 3e4
        layer.self_attn.k_proj.bias /= 3e4
    with pytest.raises(NotFinite, match=r"text encoder: .* in float16"):
        encode(parts, ["a dog"])
    unit = decoded(parts)
    assert unit.notes[0]["redone"][0]["what"] == "text encoder"
    assert near(unit.pictures, decoded(mini).pictures)


def test_a_gate_that_nan_would_keep_shut_does_not_leave_a_picture_undefended(tiny_parts):
    """The negative alone overflows: plain pictures are finite, and what they show undefended."""
    parts = half(tiny_parts)
    negative = Negative("burning")
    states = encode(parts, ["burning"]).states

    def poison(_unet, _args, kwargs, output):
        rows = (kwargs["encoder_hidden_states"] == states).all(2).all(1)
        output.sample[rows] = float("nan")

    guidance = Gated(ClassifierFree(negative), probe_gate(-math.inf))
    handle = parts.unet.register_forward_hook(poison, with_kwargs=True)
    try:
        sample_latents(parts, ["a dog"], [0], None, SETTINGS)  # without the negative all is well
        with in_float32(*parts.text_encoders):
            states = encode(parts, ["burning"]).states
        wide = in_float32(parts.unet, *parts.text_encoders)
        with pytest.raises(NotFinite, match="U-Net"), wide:
            sample_latents(parts, ["a dog"], [0], guidance, SETTINGS)
    finally:
        handle.remove()


# --- what no wider type mends


def test_float32_that_overflows_is_an_error_that_says_what_to_do(mini):
    parts = mini.with_unet(copy.deepcopy(mini.unet), "broken")
    with pytest.raises(NotFinite, match=r"guidance: .* float32 at step .*smaller guidance scale"):
        sample_latents(parts, ["a dog"], [0], None, replace(SETTINGS, guidance_scale=1e39))
    with torch.no_grad():
        parts.unet.conv_out.bias[0] = float("inf")
    with pytest.raises(NotFinite, match=r"U-Net: .* step 1 of 2 .* 1 tensors of the weights"):
        sample_latents(parts, ["a dog"], [0], None, SETTINGS)
    assert issubclass(NotFinite, IneError)


def test_memory_that_does_not_suffice_for_float32_is_said(full, monkeypatch):
    real = Watch.look

    def look(watch):
        if watch.dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(watch)

    monkeypatch.setattr(Watch, "look", look)
    with pytest.raises(NotFinite, match=r"float32 may help but does not fit.*bfloat16"):
        sample_latents(full, ["a dog"], [0], None, SETTINGS)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_guidance_scale_that_is_not_finite_is_refused(scale):
    with pytest.raises(IneError, match="guidance scale is"):
        SamplerSettings(guidance_scale=scale)


# --- galleries and stores


def test_a_gallery_says_what_was_made_again_and_resumes_byte_equal(full, tmp_path, expected):
    plan = GalleryPlan(requests=REQUESTS, settings={"model": "mini"})
    settings = replace(SETTINGS, batch=1, steps=1)

    def fill(name):
        return fill_gallery(tmp_path / name, full, plan, ClassifierFree(), settings)

    rows = fill("whole")
    assert all(row["redone"] and row["blank"] is False for row in rows)
    first = tmp_path / "whole" / rows[0]["file"]
    assert json.loads(read_png_text(first)["ine.redone"]) == rows[0]["redone"]
    cut = tmp_path / "cut"
    fill("cut")
    for row in rows[1:]:
        (cut / row["file"]).unlink()
    index = cut / "index.jsonl"
    index.write_text("".join(line + "\n" for line in index.read_text().splitlines()[:1]))
    fill("cut")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (cut / path.name).read_bytes(), path.name


def test_a_black_picture_of_an_earlier_version_is_made_again(tiny_parts, tmp_path):
    plan = GalleryPlan(requests=REQUESTS, settings={})
    settings = replace(SETTINGS, steps=1, batch=1)
    rows = fill_gallery(tmp_path, tiny_parts, plan, ClassifierFree(), settings)
    paths = [tmp_path / row["file"] for row in rows]
    before = [path.read_bytes() for path in paths]
    black = np.zeros_like(read_picture(paths[0], tiny_parts.picture_size))
    write_png(paths[0], black, read_png_text(paths[0]))
    stamp = paths[1].stat().st_mtime_ns
    for row in rows:  # such an index says nothing about blank pictures
        row.pop("blank")
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    fill_gallery(tmp_path, tiny_parts, plan, ClassifierFree(), settings)
    assert [path.read_bytes() for path in paths] == before
    assert paths[1].stat().st_mtime_ns == stamp


def test_a_unit_of_a_grid_says_what_was_made_again(full, tmp_path):
    unit = UnitOfWork(
        key="0" * 64,
        configuration=None,
        requests=REQUESTS[:1],
        places=(0,),
        sampler=SETTINGS,
    )
    pictures, notes, calls = make_unit(full, None, unit)
    store = Store(tmp_path)
    store.write_unit(unit.key, pictures, notes, calls, {})
    about = store.about(unit.key)
    assert (about.redone, about.blank) == ((True,), (False,))


def test_black_units_of_an_earlier_version_are_no_units(tmp_path, monkeypatch):
    store, key = Store(tmp_path), "1" * 64
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    noise[1] = 0

    def written(pictures, version):
        with monkeypatch.context() as patch:
            if version == "old":
                real = json.dumps
                patch.setattr(
                    "ine.store.archives.json.dumps",
                    lambda about, **kw: real(
                        {k: v for k, v in about.items() if k != "blank"}, **kw
                    ),
                )
            store.write_unit(key, pictures, [{}] * 3, [4] * 3, {})

    written(noise, "new")  # a picture of one colour behind which all was finite
    assert store.about(key).blank == (False, True, False)
    written(noise, "old")
    with pytest.raises(Doubtful, match="1 of 3 pictures are blank"):
        store.about(key)
    assert not store.sound(key)
    written(noise[[0, 2, 2]], "old")
    assert store.about(key).blank == (False, False, False)


def test_a_blank_picture_is_small_in_a_file():
    for side in (8, 64, 512):
        for colour in (0, 255, 77):
            picture = np.full((side, side, 3), colour, np.uint8)
            assert len(png_bytes(picture)) < 200 + 3 * side * side / 100


def test_a_study_counts_what_was_made_again_and_what_is_blank(full, tmp_path, monkeypatch):
    cases = tuple(Case(prompt=r.prompt, noun="", phrase="", seed=r.seed) for r in REQUESTS)
    grid = Grid(
        kind="grid",
        version=1,
        name="finite",
        models=(GridModel(name="full", model="none"),),
        prompts=(prompts_of(cases, tmp_path / "p.jsonl", "test", "benign"),),
        sampler=sampler_of(SETTINGS, 2),
        rules=("mini-fire@0.5",),
        metrics=GridMetrics(preservation=("pixel-cosine@16",)),
    )
    file = write_grid(grid, tmp_path / "grid.yaml")

    def result():
        return run_grid(file, tmp_path / "run", models={"full": full})

    made = result()
    assert made.seen(made.row(), "p").column("redone").tolist() == [True] * 2
    assert made.entry(made.row(), "p", "blank") == "0 of 2"
    assert "2 of 2 pictures were made again in float32" in " ".join(made.redone)
    monkeypatch.setattr("ine.evaluation.run.make_unit", None)
    assert result().redone == made.redone


# --- protected pipelines


@pytest.fixture
def pipe(tiny_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None).to(
        torch.float16
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def embedding():
    draw = torch.Generator().manual_seed(1)
    return new_embedding(3 * torch.randn(2, 32, generator=draw), "fire-neg", "fire")


def call(pipe, **kwargs):
    draw = torch.Generator().manual_seed(0)
    return pipe("a dog", num_inference_steps=3, generator=draw, **kwargs).images


def ruin_queries(unet):
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                module.to_q.weight *= 6e4
                module.to_k.weight /= 6e4


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_protect_raises_or_warns_as_its_user_chose(pipe, embedding, caplog):
    import ine

    with ine.protect(pipe, embedding) as handle:
        assert not is_blank(np.asarray(call(pipe)[0])[None]).any()
        assert "not_finite" not in handle.notes[0]
    ruin_queries(pipe.unet)
    raised = pytest.raises(NotFinite, match=r"U-Net: .* at step 1 .*pipe.to\(torch.float32\)")
    with ine.protect(pipe, embedding), raised:
        call(pipe)
    assert not caplog.records
    with ine.protect(pipe, embedding, on_overflow="warn") as handle:
        call(pipe)
    assert handle.notes[0]["not_finite"] == {"step": 1}
    assert "U-Net: its numbers are NaN" in caplog.text
    with pytest.raises(IneError, match="on_overflow is 'ignore'; give one of raise, warn"):
        ine.protect(pipe, embedding, on_overflow="ignore")
    pipe.to(torch.float32)
    with ine.protect(pipe, embedding) as handle:
        assert not is_blank(np.asarray(call(pipe)[0])[None]).any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_protect_sees_a_vae_that_overflows(pipe, embedding, caplog):
    import ine

    with torch.no_grad():
        pipe.vae.post_quant_conv.weight *= 6e4
        pipe.vae.post_quant_conv.bias += 6e4
    hooks = len(pipe.vae.decoder._forward_hooks)
    with ine.protect(pipe, embedding):
        with pytest.raises(NotFinite, match=r"VAE: .*pipe.vae.to"):
            call(pipe)
        call(pipe, output_type="latent")  # nothing is decoded
    with ine.protect(pipe, embedding, on_overflow="warn"):
        call(pipe)
    assert "VAE" in caplog.text
    assert len(pipe.vae.decoder._forward_hooks) == hooks


def test_protect_sees_a_gate_of_nan(pipe, embedding):
    """The gate would stay shut, and the picture come out finite and undefended."""
    import ine

    pipe.to(torch.float32)

    real = pipe.unet.conv_out.forward

    def conv_out(x):
        out = real(x)
        return out * float("nan") if len(x) == 1 else out  # the probe is a row of its own

    pipe.unet.conv_out.forward = conv_out
    call(pipe)
    gate = probe_gate(-math.inf)
    with ine.protect(pipe, embedding, gate=gate), pytest.raises(NotFinite, match="U-Net"):
        call(pipe)


def test_the_guider_raises_or_warns_as_its_user_chose(pipe, embedding, caplog):
    from ine.protection.guider_builder import embedding_guider

    fine = torch.zeros(1, 4, 8, 8)
    bad = torch.full_like(fine, float("nan"))
    guider = embedding_guider(pipe, embedding)
    guider.set_state(step=1, num_inference_steps=3, timestep=torch.tensor(5))
    assert guider.forward(fine, fine, fine).pred.isfinite().all()
    with pytest.raises(NotFinite, match=r"U-Net: .* at step 2 of 3"):
        guider.forward(fine, fine, bad)  # the negative alone
    assert "no picture could be made" not in caplog.text
    embedding_guider(pipe, embedding, on_overflow="warn").forward(fine, fine, bad)
    assert "no picture could be made" in caplog.text
    for settings in ({"on_overflow": "x"}, {"guidance_scale": float("inf")}):
        with pytest.raises(IneError, match="EmbeddingGuider: "):
            embedding_guider(pipe, embedding, **settings)


# --- options and recipes


def commands(group, path=()):
    for name, command in group.commands.items() if hasattr(group, "commands") else ():
        yield (*path, name), command
        yield from commands(command, (*path, name))


def test_no_option_of_any_command_takes_a_number_that_is_not_finite():
    context = click.Context(click.Command("x"))
    looked = []
    for path, command in commands(cli):
        for option in command.params:
            if isinstance(option.type, click.types.FloatParamType):
                looked.append((path[-1], option.name))
                for text in ("nan", "inf", "-inf", "NaN", "Infinity"):
                    with pytest.raises(click.BadParameter):
                        option.type.convert(text, option, context)
    assert ("generate", "guidance_scale") in looked
    assert len(looked) > 10


def test_no_field_of_a_recipe_takes_one_either():
    assert load_recipe("fire", ("pictures.guidance_scale=3.5",)).pictures.guidance_scale == 3.5
    for value in (".nan", ".inf"):
        with pytest.raises(RecipeError, match="guidance_scale"):
            load_recipe("fire", (f"pictures.guidance_scale={value}",))
