"""The look-ahead in a user's pipeline, with several concepts, with restarts, and in its file."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import FEATURES, counted_rows, look_ahead, noise

import ine
from ine.calibration.scores import gate_scores
from ine.calibration.thresholds import Ahead, calibrated
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.behind import behind, behind_all
from ine.guidance.gate_file import Calibration, read_calibration, write_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.look_ahead import join
from ine.guidance.negative import Negative
from ine.guidance.per_concept import PerConcept
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.restart import Restart
from ine.guidance.safree import Safree
from ine.sampling import SamplerSettings, sample_latents

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS = ("a dog", "a burning cat", "a house", "snow"), (3, 4, 5, 6)
SETTINGS = SamplerSettings(steps=6, guidance_scale=5.0)
FIRE = new_embedding(3 * noise(2, 32, seed=1), "fire-neg", "fire")
WEAPON = new_embedding(3 * noise(2, 32, seed=2), "weapon-neg", "weapon")
STEER = {
    "fire": Additive(Negative("", (FIRE,)), strength=2.0),
    "weapon": Additive(Negative("", (WEAPON,)), strength=3.0),
}


def sample(parts, guidance):
    return sample_latents(parts, PROMPTS, SEEDS, guidance, SETTINGS)


def opening_for(parts, wanted, concept, seed):
    """A look-ahead that opens for `wanted` of the four pictures, and which those are."""
    scores = gate_scores(parts, PROMPTS, SEEDS, look_ahead(0.0, concept, seed), SETTINGS)
    ranked = sorted(range(4), key=lambda i: -scores[i])
    threshold = (scores[ranked[wanted - 1]] + scores[ranked[wanted]]) / 2
    return look_ahead(threshold, concept, seed), set(ranked[:wanted])


# --- several concepts -----------------------------------------------------------------------------


def test_a_picture_is_steered_away_from_what_fired_and_from_no_other(tiny_parts):
    fire, burning = opening_for(tiny_parts, 2, "fire", 7)
    weapon, armed = opening_for(tiny_parts, 2, "weapon", 8)
    assert burning != armed
    both = Gated(PerConcept(("fire", "weapon"), tuple(STEER.values())), join([fire, weapon]))
    latents, notes, calls = sample(tiny_parts, both)
    plain, _, _ = sample(tiny_parts, None)
    alone = {
        "fire": sample(tiny_parts, Gated(STEER["fire"], fire))[0],
        "weapon": sample(tiny_parts, Gated(STEER["weapon"], weapon))[0],
    }
    rows = join([fire, weapon]).rows
    for i in range(4):
        found = {c for c, own in (("fire", burning), ("weapon", armed)) if i in own}
        assert [p[1] for p in notes[i]["gate"]["probes"]] == ["fire", "weapon"]
        # One look for both, and each picture pays for its own concepts only.
        assert calls[i] == 2 * 6 + rows + len(found) * 6
        if not found:
            assert torch.equal(latents[i], plain[i])
        elif len(found) == 1:
            torch.testing.assert_close(latents[i], alone[found.pop()][i], atol=1e-4, rtol=0)


def test_where_both_fire_their_corrections_add(tiny_parts):
    method = PerConcept(("fire", "weapon"), tuple(STEER.values()))
    opened = join([look_ahead(-math.inf), look_ahead(-math.inf, "weapon")])
    found, _, _ = sample(tiny_parts, Gated(method, opened))
    always, _, _ = sample(tiny_parts, method)
    torch.testing.assert_close(found, always, atol=1e-3, rtol=0)
    for one in STEER.values():
        assert (found - sample(tiny_parts, one)[0]).abs().max() > 1e-2


def test_several_concepts_keep_the_settings_of_each():
    method = PerConcept(("fire", "weapon"), tuple(STEER.values()))
    assert [g.strength for g in method.scaled(2.0).guidances] == [4.0, 6.0]
    more = method.with_embedding(new_embedding(noise(2, 32), "sword-neg", "weapon"))
    assert [len(g.negative.embeddings) for g in more.guidances] == [1, 2]
    assert method.negative.name == "fire-neg, weapon-neg"
    assert method.cost(5.0, 50).nfe == 50 * 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PerConcept((), ()), "0 concepts and 0 guidances"),
        (lambda: PerConcept(("fire", "fire"), tuple(STEER.values())), "for the same concept"),
        (
            lambda: PerConcept(("fire",), (Safree(phrases=("burning",)),)),
            "Safree rewrites the prompts",
        ),
        (
            lambda: PerConcept(("fire",), (Gated(STEER["fire"], Window()),)),
            "give guidances without gates",
        ),
        (
            lambda: PerConcept(("fire",), (STEER["fire"],)).with_embedding(WEAPON),
            "is of 'weapon'; the concepts are fire",
        ),
        (
            lambda: behind_all([(STEER["fire"], Calibration(gate=half_gate(0.0), record={}))]),
            "the gate of fire has no look-ahead",
        ),
    ],
)
def test_concepts_that_cannot_act_together(make, words):
    with pytest.raises(IneError) as caught:
        make()
    assert words in str(caught.value)


# --- the second chance ----------------------------------------------------------------------------


def half_gate(threshold):
    return ProbeGate(threshold, (Probe(noise(FEATURES, seed=9), 0.0),), (0.5,), "fire")


def test_restarts_strengthen_what_was_steered_and_steer_what_was_missed(tiny_parts, beginning_with):
    ahead, opened = opening_for(tiny_parts, 2, "fire", 7)
    always = half_gate(-math.inf)
    calibration = Calibration(gate=always, look_ahead=ahead, record={})
    found, notes, _ = sample(tiny_parts, behind(STEER["fire"], calibration, None, (1.0, 2.0)))
    with beginning_with(1):
        strong, _, _ = sample(tiny_parts, STEER["fire"].scaled(2.0))
    torch.testing.assert_close(found, strong, atol=1e-4, rtol=0)
    for i in range(4):
        # A steered picture skips the attempt that would repeat it.
        assert len(notes[i]["attempts"]) == (2 if i in opened else 3)
        assert notes[i]["attempts"][0]["look_ahead"]["opened"] is not None or i not in opened
        assert notes[i]["left"]
    never = replace(calibration, gate=half_gate(math.inf))
    found, notes, _ = sample(tiny_parts, behind(STEER["fire"], never, None, (1.0, 2.0)))
    once, _, _ = sample(tiny_parts, behind(STEER["fire"], never))
    assert torch.equal(found, once)
    assert all(len(note["attempts"]) == 1 and not note["left"] for note in notes)


def test_restarts_of_several_concepts_act_on_what_was_found(tiny_parts, beginning_with):
    """Fire is found ahead in two pictures, weapon in all of them at half the run."""
    fire, burning = opening_for(tiny_parts, 2, "fire", 7)
    weapon = look_ahead(math.inf, "weapon", 8)
    late = {"fire": half_gate(math.inf), "weapon": replace(half_gate(-math.inf), concept="weapon")}
    defences = [
        (STEER[name], Calibration(gate=late[name], look_ahead=look, record={}))
        for name, look in (("fire", fire), ("weapon", weapon))
    ]
    found, notes, _ = sample(tiny_parts, behind_all(defences, None, (1.0, 2.0)))
    every = PerConcept(("fire", "weapon"), tuple(STEER.values()))
    with beginning_with(1):  # after the one that repeats what steered them, or was the first to
        both, _, _ = sample(tiny_parts, every.scaled(2))
        armed, _, _ = sample(tiny_parts, STEER["weapon"].scaled(2.0))
    for i in range(4):
        wanted = both if i in burning else armed
        torch.testing.assert_close(found[i], wanted[i], atol=1e-3, rtol=0)
        late_look = notes[i]["attempts"][0]["gate"]
        assert [probe[1] for probe in late_look["probes"]] == ["fire", "weapon"]
        assert late_look["opened"][1] == "weapon"


def test_the_gate_of_an_old_file_decides_at_half_the_run():
    old = Calibration(gate=half_gate(0.0), record={})
    assert behind(STEER["fire"], old) == Gated(STEER["fire"], old.gate)
    window = Window(0.0, 0.6)
    restart = behind(STEER["fire"], old, window, (1.0,))
    assert restart == Restart(Gated(STEER["fire"], window), old.gate, (1.0,))
    new = replace(old, look_ahead=look_ahead(0.0))
    assert behind(STEER["fire"], new, window).gate.window == window


# --- the file -----------------------------------------------------------------------------------


@pytest.fixture
def calibration():
    scores = [0.1, 0.2, 0.3, 0.4]
    ahead = Ahead(look=look_ahead(0.0, timestep=481), scores=[10 * s for s in scores])
    return calibrated(half_gate(0.0), scores, 0.5, {"seed": 3}, ahead)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_look_ahead_comes_back_as_it_was_written(tmp_path, calibration, suffix):
    path = tmp_path / f"fire-neg.gate.{suffix}"
    write_calibration(calibration, path)
    found = read_calibration(path)
    assert found == calibration
    assert found.threshold == 3.0
    assert found.gate.threshold == 0.3
    assert found.default == found.look_ahead
    assert found.record["false_open"] == found.record["restart_false_open"]
    again = tmp_path / f"again.gate.{suffix}"
    write_calibration(found, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(look_ahead=3), "its look_ahead is no object"),
        (lambda d: d["look_ahead"].update(stepz=3), "look_ahead.stepz is unknown"),
        (lambda d: d["look_ahead"].update(steps=0), "0 steps; give 1 or more"),
        (lambda d: d["look_ahead"].update(probes=[]), "there is no probe to ask"),
        (lambda d: d["look_ahead"].pop("timestep"), "look_ahead does not make a gate"),
        (lambda d: d["look_ahead"]["probes"][0].update(bias=math.nan), "is not finite"),
        (lambda d: d["look_ahead"]["probes"][0].update(weight=[math.nan]), "is not finite"),
        (lambda d: d["look_ahead"]["probes"][0].update(threshold=math.nan), "threshold is NaN"),
        (lambda d: d.update(text_width="x"), "ine never wrote such text_width"),
    ],
)
def test_damaged_look_aheads_are_refused(tmp_path, calibration, change, words):
    path = tmp_path / "bad.gate.json"
    write_calibration(calibration, path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(IneError) as caught:
        read_calibration(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_embedding_in_the_place_of_its_gate_is_refused(tmp_path):
    from ine.embeddings.embedding import write_embedding

    path = tmp_path / "fire-neg.safetensors"
    write_embedding(FIRE, path)
    with pytest.raises(IneError, match="is not a gate; give the"):
        read_calibration(path)


def test_a_gate_of_another_text_width_is_refused(tiny_parts, calibration):
    from ine.calibration.check import check_calibrated

    assert check_calibrated(calibration, [], tiny_parts) is not None
    other = replace(calibration, record={**calibration.record, "text_width": 768})
    with pytest.raises(IneError, match=r"text states of width 768, .* has 32; calibrate one"):
        check_calibrated(other, [], tiny_parts)


def test_a_gate_of_another_concept_is_refused(tiny_parts, calibration):
    from ine.calibration.check import check_calibrated

    check_calibrated(calibration, [FIRE], tiny_parts)
    check_calibrated(calibration, [FIRE, WEAPON], tiny_parts)
    check_calibrated(calibration, [replace(WEAPON, concept="weapon-neg")], tiny_parts)
    with pytest.raises(IneError, match="recognises fire, and the negative is of weapon"):
        check_calibrated(calibration, [WEAPON], tiny_parts)


# --- a user's pipeline --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe, prompt="a dog", count=1, **kwargs):
    settings = {"num_inference_steps": 3, "guidance_scale": 7.5, "output_type": "latent"}
    if "image" not in kwargs:
        settings["latents"] = noise(count, 4, 8, 8)
    return pipe(prompt, **{**settings, **kwargs}).images


@pytest.mark.parametrize("negative_prompt", [None, "blurry"])
def test_closed_pictures_of_a_pipeline_are_bit_identical(pipe, negative_prompt):
    plain = make(pipe, negative_prompt=negative_prompt)
    with ine.protect(pipe, FIRE, "additive", gate=look_ahead(math.inf), strength=3) as handle:
        found = make(pipe, negative_prompt=negative_prompt)
        calls = handle.unet_calls
    assert torch.equal(found, plain)
    # PNDM makes four calls for three steps, and its first is so low that two coarse ones do.
    assert calls == [2 * 4 + 3]
    with ine.protect(pipe, FIRE, "additive", gate=look_ahead(-math.inf), strength=3):
        opened = make(pipe, negative_prompt=negative_prompt)
    with ine.protect(pipe, FIRE, "additive", strength=3):
        always = make(pipe, negative_prompt=negative_prompt)
    torch.testing.assert_close(opened, always, atol=1e-4, rtol=0)
    assert (opened - plain).abs().max() > 1e-2


def test_a_pipeline_sees_what_the_sampler_sees(pipe, tiny_parts):
    """The same start, scheduler and prompt give the same score in both loops."""
    from diffusers import DDIMScheduler

    from ine.sampling import start_noise

    scheduler = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    gate = look_ahead(math.inf)
    try:
        with ine.protect(pipe, FIRE, "additive", gate=gate, strength=3) as handle:
            make(
                pipe,
                list(PROMPTS),
                latents=start_noise(tiny_parts.latent_shape, SEEDS),
                num_inference_steps=6,
                guidance_scale=5.0,
            )
            found = [note["gate"]["probes"][0][2] for note in handle.notes]
    finally:
        pipe.scheduler = scheduler
    wanted = gate_scores(tiny_parts, PROMPTS, SEEDS, gate, SETTINGS)
    assert found == pytest.approx(wanted, abs=5e-3)


def test_image_to_image_looks_from_its_own_start(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    given = {"image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    given |= {"strength": 0.7, "num_inference_steps": 5}

    def run(gate=None):
        generator = torch.Generator().manual_seed(4)
        if gate is None:
            return make(other, generator=generator, **given), None, generator.get_state()
        with ine.protect(other, FIRE, "additive", gate=gate, strength=3) as handle:
            images = make(other, generator=generator, **given)
        return images, handle.notes[0]["gate"], generator.get_state()

    plain, _, state = run()
    closed, note, after = run(look_ahead(math.inf))
    assert torch.equal(closed, plain)
    assert torch.equal(after, state)
    assert math.isfinite(note["probes"][0][2])
    assert (run(look_ahead(-math.inf))[0] - plain).abs().max() > 1e-2


def test_a_scheduler_that_cannot_be_copied_is_not_copied(pipe):
    from diffusers import DDIMScheduler

    class Single(DDIMScheduler):
        def __deepcopy__(self, _memo):
            raise TypeError("there is only one")

    scheduler = pipe.scheduler
    pipe.scheduler = Single.from_config(scheduler.config, clip_sample=False)
    try:
        plain = make(pipe)
        with ine.protect(pipe, FIRE, "additive", gate=look_ahead(math.inf), strength=3):
            assert torch.equal(make(pipe), plain)
    finally:
        pipe.scheduler = scheduler


def test_a_pipeline_of_few_steps_is_refused_by_name(pipe):
    from diffusers import LCMScheduler

    scheduler = pipe.scheduler
    pipe.scheduler = LCMScheduler.from_config(scheduler.config)
    try:
        with pytest.raises(IneError, match=r"is a model of few steps \(LCM without"):
            ine.protect(pipe, FIRE, "additive", gate=look_ahead(0.0), strength=3)
    finally:
        pipe.scheduler = scheduler


def test_several_concepts_in_a_pipeline(pipe):
    gate = join([look_ahead(math.inf), look_ahead(-math.inf, "weapon", 8)])
    both = Gated(PerConcept(("fire", "weapon"), tuple(STEER.values())), gate)
    with ine.protect(pipe, guidance=both):
        found = make(pipe)
    alone = look_ahead(-math.inf, "weapon", 8)
    with ine.protect(pipe, guidance=Gated(STEER["weapon"], alone)):
        wanted = make(pipe)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


# --- a guider -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modular():
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
    from tiny import build_tiny

    xl = build_tiny("sdxl")
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
    pipe.update_components(**{n: getattr(xl, n) for n in names}, scheduler=xl.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided(pipe, guider, **kwargs):
    pipe.update_components(guider=guider)
    given = {"prompt": "a dog", "num_inference_steps": 3, "latents": noise(1, 4, 8, 8)}
    given |= {"height": 16, "width": 16, "output_type": "latent", "output": "images"}
    with counted_rows(pipe.unet.conv_in) as rows:
        return pipe(**{**given, **kwargs}), sum(rows)


@pytest.mark.parametrize("negative_prompt", [None, "blurry"])
def test_a_guider_looks_ahead(modular, negative_prompt):
    from diffusers.guiders import ClassifierFreeGuidance

    given = {} if negative_prompt is None else {"negative_prompt": negative_prompt}
    pair = new_embedding((noise(2, 32, seed=1), noise(2, 48, seed=2)), "fire-neg", "fire")
    scale = {"guidance_scale": 7.5}
    plain, base = guided(modular, ClassifierFreeGuidance(**scale), **given)

    def guider(gate=None):
        return ine.embedding_guider(modular, pair, gate=gate, strength=3, **scale)

    closed = guider(look_ahead(math.inf))
    found, rows = guided(modular, closed, **given)
    assert torch.equal(found, plain)
    first = 1 if negative_prompt is None else 2
    # The negative is predicted once, and never after nothing was found.
    ahead = rows - base - first
    assert ahead in (3, 5, 7)
    assert closed.notes[0]["gate"]["opened"] is None
    opened = guider(look_ahead(-math.inf))
    found, rows = guided(modular, opened, **given)
    always, every = guided(modular, guider(), **given)
    assert torch.equal(found, always)
    assert rows == every + ahead
    assert (found - plain).abs().max() > 1e-2
    assert opened.notes[0]["gate"]["opened"][1] == "fire"
    assert opened.new(strength=5).look == opened.look
    assert not modular.unet._forward_pre_hooks


def test_a_guiders_batch_is_its_pictures(modular):
    pair = new_embedding((noise(2, 32, seed=1), noise(2, 48, seed=2)), "fire-neg", "fire")

    def run(threshold, **given):
        guider = ine.embedding_guider(modular, pair, gate=look_ahead(threshold), strength=3)
        found, _ = guided(modular, guider, **given)
        return found, [note["gate"]["probes"][0][2] for note in guider.notes]

    latents = noise(2, 4, 8, 8)
    both = {"prompt": ["a dog", "a house"], "latents": latents}
    plain, scores = run(math.inf, **both)
    assert scores[0] != scores[1]
    mixed, again = run(sum(scores) / 2, **both)
    assert again == scores
    place = scores.index(max(scores))
    assert torch.equal(mixed[1 - place], plain[1 - place])
    alone, score = run(sum(scores) / 2, prompt=both["prompt"][place], latents=latents[[place]])
    torch.testing.assert_close(mixed[[place]], alone, atol=1e-3, rtol=0)
    assert score == pytest.approx([scores[place]], abs=5e-3)


def test_a_gate_that_a_guider_cannot_ask_is_refused(modular):
    pair = new_embedding((noise(2, 32, seed=1), noise(2, 48, seed=2)), "fire-neg", "fire")
    with pytest.raises(IneError, match="has to be a look-ahead of one concept"):
        ine.embedding_guider(modular, pair, gate=half_gate(0.0))
