"""Dynamic negatives: the published formula, what an observer decides, and what it costs."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from observer_stub import serving
from small_grid import replaced, small_grid
from tiny import noise

import ine
from ine.attacks.step import Victim
from ine.decoding import decode
from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import IneError, ObserverError, RecipeError
from ine.evaluation.entering import enter_folder
from ine.evaluation.expand import expand
from ine.evaluation.figures import score
from ine.evaluation.grid import GridModel
from ine.evaluation.grid_file import load_grid
from ine.evaluation.prepare import prepare
from ine.evaluation.run import run
from ine.guidance.additive import Additive
from ine.guidance.coarse import coarse_timesteps
from ine.guidance.look_ahead import STEPS as COARSE
from ine.guidance.look_ahead import TIMESTEP
from ine.guidance.looks import PUBLISHED, Looks, read_looks
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts, Step
from ine.guidance.released import matched
from ine.guidance.table import METHODS, build_guidance, describe, name_of
from ine.guidance.vl_dnp import VlDnp
from ine.observers.base import Answer, Observation
from ine.observers.watching import Sought, Watcher, watcher_of
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings, Start, decode_latents, sample_latents
from ine.studies.compare import check
from ine.studies.comparison import Choice, Comparison

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS = ("a dog", "a burning cat", "a house", "burning snow"), (3, 4, 5, 6)
STEPS = 6
SETTINGS = SamplerSettings(steps=STEPS, guidance_scale=5.0)
FIRE = new_embedding(noise(2, 32, seed=1), "fire-neg", "fire")
SEA = new_embedding(noise(2, 32, seed=2), "sea-neg", "sea")
SOUGHT = Sought(concept="fire", words="burning", vocabulary=("flames", "fire"))
YES, NO = Answer(found=True, words=("flames",)), Answer(found=False)


class Scripted:
    """Answers as a script says: a function of (number of the look, prompt)."""

    name = "scripted"

    def __init__(self, script, concepts=("fire",)):
        self.script, self.concepts, self.shown = script, concepts, []

    def __call__(self, pictures, prompts):
        look = len(self.shown)
        self.shown.append(pictures)
        return [
            Observation(answers={c: self.script(look, prompt) for c in self.concepts})
            for prompt in prompts
        ]


def watched(script, *sought):
    """A watcher whose observer follows a script, or is one already."""
    sought = sought or (SOUGHT,)
    observer = script
    if not isinstance(script, Scripted):
        observer = Scripted(script, tuple(one.concept for one in sought))
    return Watcher(name="scripted", sought=sought, load=lambda: observer)


def burning(look, prompt):
    """Found where the prompt says so."""
    return YES if "burning" in prompt else NO


def method(script=burning, look="1,2,4", given=None, **more):
    more = {"strength": 3.0, "looks_at": read_looks(look.split(",")), **more}
    watcher = script if isinstance(script, Watcher) else watched(script)
    return VlDnp(given=given or Negative(), watcher=watcher, **more)


def sample(parts, guidance, pictures=range(4), settings=SETTINGS, start=None):
    prompts, seeds = [PROMPTS[i] for i in pictures], [SEEDS[i] for i in pictures]
    start = start and start.of(list(pictures))
    return sample_latents(parts, prompts, seeds, guidance, settings, start=start)


# --- the published formula ----------------------------------------------------------------------


def ddim(parts, steps):
    """Timesteps and (alpha-bar, alpha-bar of the next) of a DDIM run, in NumPy alone."""
    config = parts.scheduler_config
    assert config["beta_schedule"] == "scaled_linear"
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    powers = np.cumprod(1 - betas)
    times = (np.arange(steps) * (1000 // steps))[::-1] + config.get("steps_offset", 0)
    last = 1.0 if config.get("set_alpha_to_one", True) else powers[0]
    following = [*powers[times[1:]], last]
    return [(int(t), powers[t], after) for t, after in zip(times, following, strict=True)]


def recomputed(parts, prompt, seed, negatives, looks, strength, scale=5.0):
    """(latents, previews) of one picture; `negatives` has the one that holds from each look on."""

    def eps(x, t, text):
        prompts = Prompts(parts=parts, texts=("",), scale=scale)
        vectors = {e.trigger: e.vectors for e in (FIRE, SEA)}
        states = prompts.encode([text], vectors).states
        with torch.no_grad():
            found = parts.unet(torch.from_numpy(x).float(), t, encoder_hidden_states=states).sample
        return found.double().numpy()

    x = noise(1, *parts.latent_shape, seed=seed).double().numpy()
    negative, previews = None, []
    for i, (t, a, after) in enumerate(ddim(parts, STEPS)):
        empty = eps(x, t, "")
        steered = empty + scale * (eps(x, t, prompt) - empty)
        if i in looks:
            clean = (x - np.sqrt(1 - a) * steered) / np.sqrt(a)
            previews.append(decode(parts, torch.from_numpy(clean).float())[0][0])
            negative = negatives[looks.index(i)]
        if negative is not None:
            steered = steered - strength * (eps(x, t, negative) - empty)
        clean = (x - np.sqrt(1 - a) * steered) / np.sqrt(a)
        x = np.sqrt(after) * clean + np.sqrt(1 - after) * steered
    return x, previews


FINDINGS = [YES, NO, Answer(found=True)]
"""At three looks: named by a word, absent, there without a word."""


@pytest.mark.parametrize(
    ("steer", "given", "negatives"),
    [
        ("words", Negative(), ["flames", None, "burning"]),
        ("words", Negative("blurry"), ["blurry, flames", None, "blurry"]),
        ("embedding", Negative("", (FIRE,)), ["fire-neg", None, "fire-neg"]),
        ("both", Negative("", (FIRE,)), ["fire-neg, flames", None, "fire-neg, burning"]),
    ],
)
def test_a_trajectory_is_that_of_an_independent_computation(tiny_parts, steer, given, negatives):
    observer = Scripted(lambda look, prompt: FINDINGS[look])
    guidance = method(watched(observer), given=given, steer=steer)
    latents, notes, _ = sample(tiny_parts, guidance, [1])
    wanted, previews = recomputed(tiny_parts, PROMPTS[1], SEEDS[1], negatives, [1, 2, 4], 3.0)
    assert np.abs(latents.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()
    for shown, preview in zip(observer.shown, previews, strict=True):
        assert np.abs(shown[0].astype(int) - preview).max() <= 1  # at a half both ways are right
    assert notes[0]["negatives"] == list(dict.fromkeys(filter(None, negatives)))
    # The comparison can fail: another strength is another picture.
    other = recomputed(tiny_parts, PROMPTS[1], SEEDS[1], negatives, [1, 2, 4], 2.0)[0]
    assert np.abs(latents.numpy() - other).max() > 1e-3 * np.abs(wanted).max()


def test_as_released_is_the_published_formula_on_the_same_predictions(tiny_parts):
    sought = Sought(concept="fire", words="burning", vocabulary=("wild fire", "fire", "smoke"))
    reply = Answer(found=None, unknown="nonsense", raw="I see a wild fire, no smoke. Fire!")
    observer = Scripted(lambda look, prompt: reply)
    guidance = method(
        watched(observer, sought),
        look="0",
        given=Negative("Danger, heat"),
        as_released=True,
        on_unknown="hold",
    )
    empty, positive, negative = (noise(1, *tiny_parts.latent_shape, seed=s) for s in (7, 8, 9))
    known = {"empty": empty, "positive": positive, "negative": negative}
    x, power = noise(1, *tiny_parts.latent_shape, seed=10), torch.tensor(0.3)
    step = Step(
        index=0,
        count=2,
        t=torch.tensor(501),
        x_t=x,
        alpha_bar=power,
        prediction_type="epsilon",
    )
    prompts = Prompts(parts=tiny_parts, texts=("a dog",), scale=7.5)
    with torch.no_grad(), guidance.begin(prompts) as session:
        found = session.predict(step, lambda asked: {q.name: known[q.name] for q in asked})
        notes = session.notes()
    e0, ec, en = (one.numpy().astype(np.float64) for one in (empty, positive, negative))
    velocity = e0 + 7.5 * (ec - e0)
    np.testing.assert_allclose(found.numpy(), velocity - 3.0 * (en - e0), rtol=1e-5, atol=1e-5)
    # "fire" is in "wild fire", "smoke" in "no smoke", and both spellings count, small ones first.
    assert notes[0]["negatives"] == ["Danger, heat, wild fire, fire, smoke, Fire."]
    clean = (x.numpy() - np.sqrt(0.7) * velocity) / np.sqrt(0.3)
    with torch.no_grad():
        scaled = torch.from_numpy(clean).float() / tiny_parts.vae.config.scaling_factor
        pixels = tiny_parts.vae.decode(scaled).sample.permute(0, 2, 3, 1).numpy()
    cut = (np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)  # truncated
    shown = observer.shown[0]
    assert shown.shape == (1, 448, 448, 3)
    own = decode(tiny_parts, torch.from_numpy(clean).float(), truncated=True)[0]
    assert np.abs(own.astype(int) - cut).max() <= 1
    assert (own == cut).mean() > 0.99
    rounded = decode(tiny_parts, torch.from_numpy(clean).float())[0]
    assert (own <= rounded).all()
    assert (own < rounded).mean() > 0.1


def test_released_matching_adds_words_that_stand_inside_others():
    words = ("female part", "male part", "feet")
    assert matched("A female part.", words) == ("female part", "male part")
    assert matched("Male part", words) == ("Male part",)
    assert matched("I cannot help with that.", words) == ()


# --- what is found, and what it costs -----------------------------------------------------------


def test_only_pictures_in_which_something_was_found_pay(tiny_parts):
    plain, _, calls = sample(tiny_parts, None)
    latents, notes, nfe = sample(tiny_parts, method())
    assert calls == [2 * STEPS] * 4
    assert nfe == [2 * STEPS, 2 * STEPS + 5, 2 * STEPS, 2 * STEPS + 5]  # steered from step 1 on
    for i in (0, 2):
        assert torch.equal(latents[i], plain[i])
        assert notes[i]["negatives"] == []
    assert not torch.equal(latents[1], plain[1])
    assert [one["step"] for one in notes[1]["looks"]] == [1, 2, 4]
    assert notes[1]["looks"][0]["words"] == ["flames"]
    assert notes[1]["observer"]["calls"] == 3
    assert notes[1]["observer"]["seconds"] > 0


def test_a_batch_is_its_pictures(tiny_parts):
    guidance = method(look="ahead,1,3")
    together, notes, nfe = sample(tiny_parts, guidance)
    for i in range(4):
        alone, own, calls = sample(tiny_parts, guidance, [i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
        assert calls == [nfe[i]]
        assert own[0]["negatives"] == notes[i]["negatives"]


def test_what_was_found_is_held_until_the_next_look(tiny_parts):
    guidance = method(lambda look, prompt: NO if look else YES, look="1,4")
    assert sample(tiny_parts, guidance)[2] == [2 * STEPS + 3] * 4


def test_a_look_ahead_steers_from_the_first_step(tiny_parts):
    observer = Scripted(burning)
    latents, notes, nfe = sample(tiny_parts, method(watched(observer), look="ahead"))
    first = ddim(tiny_parts, STEPS)[0][0]
    rows = 2 * len(coarse_timesteps(first, TIMESTEP, COARSE))
    assert nfe == [2 * STEPS + rows, 3 * STEPS + rows] * 2
    assert torch.equal(latents[0], sample(tiny_parts, None)[0][0])
    always = Additive(Negative("flames"), 3.0)
    torch.testing.assert_close(latents[1], sample(tiny_parts, always)[0][1], rtol=1e-4, atol=1e-4)
    assert [one["step"] for one in notes[1]["looks"]] == ["ahead"]
    assert observer.shown[0].shape[0] == 4


def test_the_static_baseline_is_always_on(tiny_parts, tmp_path):
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("# what to avoid\nflames,\n\nsmoke\n")
    static = build_guidance(
        "vl-dnp", Negative(), "static", {"phrases": str(phrases), "strength": 3.0}
    )
    latents, _, nfe = sample(tiny_parts, static)
    assert nfe == [3 * STEPS] * 4
    assert torch.equal(latents, sample(tiny_parts, Additive(Negative("flames, smoke"), 3.0))[0])


def test_each_picture_has_the_negative_of_its_own_concepts(tiny_parts):
    sea = Sought(concept="sea", words="waves")
    observer = Scripted(None, ("fire", "sea"))
    asked = {"fire": "burning", "sea": "house"}

    def look(pictures, prompts):
        return [
            Observation(answers={c: YES if word in p else NO for c, word in asked.items()})
            for p in prompts
        ]

    observer = Watcher(name="two", sought=(SOUGHT, sea), load=lambda: look)
    look.name = "two"
    guidance = method(observer, given=Negative("", (FIRE, SEA)), steer="embedding")
    notes = sample(tiny_parts, guidance)[1]
    assert [note["negatives"] for note in notes] == [[], ["fire-neg"], ["sea-neg"], ["fire-neg"]]


def test_a_run_that_begins_late_looks_at_once(tiny_parts):
    start = Start(latents=noise(4, *tiny_parts.latent_shape, seed=11), strength=0.5)
    _, notes, nfe = sample(tiny_parts, method(look="1"), start=start)
    assert [one["step"] for one in notes[1]["looks"]] == [3]
    assert nfe == [6, 9, 6, 9]


def test_an_attack_sees_the_method_with_every_concept_found(tiny_parts):
    guidance = method(given=Negative("", (FIRE,)), steer="embedding")
    assert name_of(guidance) == "vl-dnp"
    victim = Victim(tiny_parts, SETTINGS, guidance)
    x = noise(1, *tiny_parts.latent_shape)
    known = Victim(tiny_parts, SETTINGS, Additive(Negative("", (FIRE,)), 3.0))
    with torch.no_grad():
        found, wanted = (v.predict(["a dog"], x, 2) for v in (victim, known))
    assert torch.equal(found[0], wanted[0])
    assert found[1] == 3


# --- answers that do not come -------------------------------------------------------------------


def unknown(kind):
    return Answer(found=None, unknown=kind, why="the reason", raw="hm")


@pytest.mark.parametrize("kind", ["refusal", "nonsense", "time-out", "error"])
@pytest.mark.parametrize(("on_unknown", "steered"), [("steer", 5), ("hold", 3)])
def test_an_unknown_answer_steers_or_holds(tiny_parts, kind, on_unknown, steered):
    """Found at the first look (step 1), absent at the second (2), unknown at the third (4)."""
    script = [YES, NO, unknown(kind)] if on_unknown == "steer" else [NO, YES, unknown(kind)]
    guidance = method(lambda look, prompt: script[look], on_unknown=on_unknown)
    _, notes, nfe = sample(tiny_parts, guidance, [0])
    held = ["flames", "burning"] if on_unknown == "steer" else ["flames"]
    assert notes[0]["negatives"] == held
    assert notes[0]["looks"][2]["unknown"] == {"fire": kind}
    assert notes[0]["observer"]["unknown"] == 1
    assert nfe == [2 * STEPS + (3 if on_unknown == "steer" else 4)]


def test_an_unknown_answer_can_end_the_run(tiny_parts):
    guidance = method(lambda look, prompt: unknown("refusal"), on_unknown="abort")
    with pytest.raises(ObserverError, match=r"gave no answer \(refusal: the reason\)"):
        sample(tiny_parts, guidance, [0])


def test_an_observer_that_fails_gives_unknown_answers(tiny_parts, caplog):
    def broken(pictures, prompts):
        raise RuntimeError("out of memory")

    broken.name = "broken"
    watcher = Watcher(name="broken", sought=(SOUGHT,), load=lambda: broken)
    with caplog.at_level(logging.WARNING, "ine"):
        _, notes, nfe = sample(tiny_parts, method(watcher), [0])
    assert "observer broken failed: RuntimeError: out of memory" in caplog.text
    assert nfe == [2 * STEPS + 5]
    assert notes[0]["observer"]["unknown"] == 3
    with pytest.raises(ObserverError, match="out of memory"):
        sample(tiny_parts, method(watcher, on_unknown="abort"), [0])


def test_a_server_that_hangs_steers_in_time(tiny_parts):
    with serving(lambda body, number: ("slow", 30, "no")) as stub:
        settings = {
            "observer": stub.spec(),
            "concept": "fire",
            "timeout": 0.2,
            "look": "1",
            "strength": 3.0,
        }
        guidance = build_guidance("vl-dnp", Negative(), None, settings)
        fast = watcher_of(stub.spec(), [load_recipe("fire")])
        assert fast.name == guidance.watcher.name  # how long it may take decides no picture
        _, notes, nfe = sample(tiny_parts, guidance, [0])
    assert notes[0]["looks"][0]["unknown"] == {"fire": "time-out"}
    assert nfe == [2 * STEPS + 5]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda p: [], "gave 0 observations of 1 pictures"),
        (lambda p: [Observation(answers={"sea": NO})], r"says nothing about fire \(of sea"),
    ],
)
def test_an_observer_that_leaves_answers_out_is_an_error(tiny_parts, answer, problem):
    def partial(pictures, prompts):
        return answer(pictures)

    partial.name = "partial"
    watcher = Watcher(name="partial", sought=(SOUGHT,), load=lambda: partial)
    with pytest.raises(ObserverError, match=problem):
        sample(tiny_parts, method(watcher), [0])


# --- when it looks ------------------------------------------------------------------------------


def test_published_looks_are_fitted_to_the_run():
    assert Looks().of(50) == (5, 6, 7, 9, 12, 16, 21, 27, 34, 42)
    assert Looks().of(20) == (2, 3, 4, 5, 7, 9, 11, 14, 17)
    assert read_looks(["5", " 0.5", "ahead"]) == Looks(parts=(0.5,), steps=(5,), ahead=True)
    assert read_looks(["5", "0.5"]).of(8) == (4, 5)
    assert len(PUBLISHED) == 10


@pytest.mark.parametrize("text", ["", "soon", "1.0", "-1", "-0.1", "nan"])
def test_looks_that_are_in_no_run_are_refused(text):
    with pytest.raises(IneError, match="look"):
        read_looks(text.split(","))


def test_looks_outside_the_run_are_refused(tiny_parts):
    with pytest.raises(IneError, match="step 6 is outside the run, whose 6 steps are 0 to 5"):
        sample(tiny_parts, method(look="6"), [0])


# --- what a user gives --------------------------------------------------------------------------

JUDGE = {"observer": "judge:mini-judge", "concept": "fire"}


@pytest.mark.parametrize(
    ("negative", "preset", "settings", "problem"),
    [
        (Negative(), None, {"concept": "fire"}, "name an observer"),
        (Negative(), None, {"observer": "judge:mini-judge"}, "nothing says what to look for"),
        (Negative(), None, {**JUDGE, "observer": "eyes:x"}, "expected one of judge:RULE"),
        (Negative(), None, {**JUDGE, "steer": "embedding"}, "no embedding is given for fire"),
        (Negative(), None, {**JUDGE, "steer": "both"}, "no embedding is given for fire"),
        (Negative(), None, {**JUDGE, "steer": "all"}, "give one of words, embedding, both"),
        (Negative(), None, {**JUDGE, "on_unknown": "no"}, "give one of hold, steer, abort"),
        (Negative(), None, {**JUDGE, "strength": -1.0}, "strength is -1.0"),
        (Negative(), None, {**JUDGE, "timeout": 0}, "timeout is 0; give a number above 0"),
        (Negative(), None, {**JUDGE, "phrases": "x.txt"}, "those of the preset static"),
        (Negative(), None, {**JUDGE, "colour": "red"}, "setting 'colour' is unknown"),
        (Negative(), "as-released", JUDGE, "a judge gives none"),
        (Negative(), "as-relased", JUDGE, "did you mean 'as-released'"),
        (Negative("", (SEA,)), None, {**JUDGE, "steer": "words"}, r"sea-neg \(sea\) would never"),
        (Negative("x", (FIRE,)), None, {**JUDGE, "steer": "embedding"}, "or steer both"),
        (Negative(), "static", {}, "nothing to steer away from"),
        (Negative("x"), "static", JUDGE, "observer, concept mean nothing"),
        (Negative(), "static", {"phrases": "nowhere.txt"}, "nowhere.txt: cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(negative, preset, settings, problem):
    with pytest.raises(IneError, match=problem):
        build_guidance("vl-dnp", negative, preset, settings)


def test_a_concept_without_a_recipe_is_refused_with_what_to_give():
    with pytest.raises(RecipeError, match="the file of its recipe"):
        build_guidance("vl-dnp", Negative("", (SEA,)), None, {"observer": "judge:mini-judge"})


def test_what_stands_in_the_negative_says_what_is_steered_away_from():
    steer = {
        Negative(): "words",
        Negative("", (FIRE,)): "embedding",
        Negative("x", (FIRE,)): "both",
    }
    for negative, wanted in steer.items():
        assert build_guidance("vl-dnp", negative, None, JUDGE).steer == wanted
    stated = replace(FIRE, metadata={**FIRE.metadata, "ine.strength": "4"})
    negative = Negative("", (stated,))
    assert build_guidance("vl-dnp", negative, None, JUDGE).strength == 4
    words = build_guidance("vl-dnp", negative, None, {**JUDGE, "steer": "words"})
    assert words.strength == 7.5


def test_a_vae_of_other_latents_is_refused_before_the_run(tiny_parts):
    config = {**tiny_parts.vae.config, "latent_channels": 16}
    parts = replace(tiny_parts, vae=type("Vae", (), {"config": type("Config", (), config)}))
    with pytest.raises(IneError, match="latents of 4 channels and the VAE decodes 16"):
        sample(parts, method(), [0])


def test_embeddings_beyond_the_context_are_refused_before_the_run(tiny_parts):
    long = new_embedding(noise(90, 32, seed=1), "fire-neg", "fire")
    with pytest.raises(IneError, match="fire-neg"):
        sample(tiny_parts, method(given=Negative("", (long,)), steer="both"), [0])


def test_a_description_names_all_that_decides_pixels_and_no_address():
    base = describe(build_guidance("vl-dnp", Negative(), None, JUDGE))
    assert "object at" not in base
    assert base == describe(build_guidance("vl-dnp", Negative(), None, {**JUDGE, "parallel": 2}))
    for other in (
        {"look": "ahead"},
        {"strength": 2.0},
        {"on_unknown": "hold"},
        {"observer": "judge:mini-judge2"},
        {"concept": "fire,weapon"},
    ):
        assert describe(build_guidance("vl-dnp", Negative(), None, {**JUDGE, **other})) != base


# --- in a pipeline ------------------------------------------------------------------------------


def test_a_protected_pipeline_gives_the_same_pictures(tiny_folder, tiny_parts):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    prompts = list(PROMPTS[:2])

    def made():
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[:2]]
        kept = {"guidance_scale": 5.0, "num_inference_steps": STEPS, "output_type": "latent"}
        return pipe(prompts, generator=generators, **kept).images

    plain = made()

    def guidance():
        return method(lambda look, prompt: YES if look else NO, look="0,2")

    with ine.protect(pipe, guidance=guidance()) as protection:
        steered = made()
        assert protection.unet_calls == [2 * STEPS + 4] * 2
        assert protection.notes[0]["negatives"] == ["flames"]
    wanted = sample(tiny_parts, guidance(), [0, 1])[0]
    torch.testing.assert_close(steered, wanted, rtol=1e-4, atol=1e-4)
    with ine.protect(pipe, guidance=method(lambda look, prompt: NO)):
        assert torch.equal(made(), plain)
    assert torch.equal(made(), plain)


def test_an_observer_that_cannot_be_loaded_is_refused_by_protect(tiny_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    settings = {"observer": "vlm:/nowhere/eyes", "concept": "fire"}
    with pytest.raises(ObserverError, match="no such folder"):
        ine.protect(pipe, guidance=build_guidance("vl-dnp", Negative(), None, settings))


# --- commands and grids -------------------------------------------------------------------------


def generate(run_ine, model, out, *args):
    given = ("--model", model, "--prompt", "a dog", "--steps", 3, "--out", out)
    return run_ine("generate", *given, *args)


LOOKING = ("--guidance", "vl-dnp", "--observer", "judge:mini-judge", "--look-for", "fire")


def test_the_command_makes_pictures_and_says_what_was_seen(run_ine, tiny_folder, tmp_path):
    done = generate(run_ine, tiny_folder, tmp_path / "out", *LOOKING, "--look", "ahead,1")
    assert done.exit_code == 0, done.stderr
    row = json.loads((tmp_path / "out" / "index.jsonl").read_text().splitlines()[-1])
    text = json.dumps(row)
    assert '"step": "ahead"' in text
    assert '"step": 1' in text
    assert '"calls": 2' in text


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (("--observer", "judge:mini-judge"), 2, "--observer: goes with --guidance vl-dnp"),
        (("--look-for", "fire"), 2, "--look-for: goes with --guidance vl-dnp"),
        (("--guidance", "vl-dnp"), 1, "name an observer"),
        ((*LOOKING, "--look", "3"), 1, "step 3 is outside the run, whose 3 steps are 0 to 2"),
        ((*LOOKING, "--steer", "embedding"), 1, "no embedding is given for fire"),
        ((*LOOKING, "--restart"), 2, "--restart: the observer of vl-dnp decides"),
        ((*LOOKING, "--look-for", "ice"), None, "concept 'ice' is unknown"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    run_ine, tiny_folder, tmp_path, args, code, problem
):
    done = generate(run_ine, tiny_folder, tmp_path / "out", *args, "--dry-run")
    assert done.exit_code == code or (code is None and done.exit_code)
    assert problem in " ".join(done.stderr.split())


def test_a_dry_run_loads_no_observer_and_has_the_published_sampler(run_ine, tiny_folder, tmp_path):
    args = ("--guidance", "vl-dnp", "--observer", "openai:http://127.0.0.1:9/v1#eyes")
    args = (*args, "--look-for", "fire", "--preset", "as-released", "--dry-run", "--json")
    done = generate(run_ine, tiny_folder, tmp_path / "out", *args)
    plan = json.loads(done.stdout)
    assert plan["guidance"]["method"] == "vl-dnp"
    assert "as_released=True" in plan["guidance"]["settings"]
    assert plan["sampler"]["scheduler"] == "dpm++"


GRID = """\
prompts:
  - {name: fires, source: "mini:fire/explicit", role: test, expects: harmful, limit: 4}
sampler: {steps: 3, batch: 2, guidance_scale: 5}
judges: {tune: mini-judge, test: mini-judge}
"""


@pytest.mark.usefixtures("loaded_once")
def test_a_grid_whose_observer_dies_ends_resumes_and_counts(tiny_folder, tmp_path):
    sick = [True]

    def act(body, number):
        return (403, {"error": {"message": "gone"}}) if sick[0] and number >= 4 else "fire"

    with serving(act) as stub:
        text = replaced(
            small_grid(GRID, "[3]"),
            *("MODEL", str(tiny_folder)),
            *("additive, method: additive,", "seen, method: vl-dnp, settings: SETTINGS,"),
            *("SETTINGS", f'{{observer: "{stub.spec()}", look: "0,1", on_unknown: abort}}'),
        )
        path, out = tmp_path / "grid.yaml", tmp_path / "out"
        path.write_text(text)
        plan = prepare(load_grid(path), out)
        enter_folder(plan)
        with pytest.raises(ObserverError, match="gave no answer"):
            run(plan)
        asked, sick[0] = len(stub.bodies), False
        assert run(plan)
        assert len(stub.bodies) - asked == 4  # two looks at the two pictures that were missing
    found = {f.metric: f.estimate.value for f in score(plan).figures if f.configuration.is_defended}
    assert found["observer-calls"] == 2
    assert found["observer-unknown"] == 0
    assert found["observer-seconds"] > 0
    assert found["unet-calls"] == 9


def test_a_grid_with_a_gate_before_an_observer_is_refused(tmp_path):
    gated = "seen, method: vl-dnp, gate: x, settings: {observer: judge:mini-judge},"
    text = replaced(small_grid(GRID), "additive, method: additive,", gated)
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(RecipeError, match="vl-dnp has a gate of its own, its observer"):
        load_grid(tmp_path / "grid.yaml")


def test_one_observer_is_loaded_for_all_configurations(tiny_folder, tmp_path):
    settings = 'seen, method: vl-dnp, settings: {observer: "judge:mini-judge"},'
    text = replaced(small_grid(GRID), "additive, method: additive,", settings)
    (tmp_path / "grid.yaml").write_text(text.replace("MODEL", str(tiny_folder)))
    made = [one for one in expand(load_grid(tmp_path / "grid.yaml")).guidances.values() if one]
    assert [one.strength for one in made] == [1, 6]
    assert len({id(one.watcher) for one in made}) == 1


def test_a_comparison_sweeps_the_strength_with_words_and_with_an_embedding(
    tiny_folder, tiny_parts, tmp_path
):
    write_embedding(FIRE, tmp_path / "fire-neg.safetensors")
    choice = Choice(
        methods=("vl-dnp",), observer="judge:mini-judge", look_for="fire", count=2, prompts=("a",)
    )
    comparison = Comparison(
        parts=tiny_parts,
        model=GridModel(name="model", model=str(tiny_folder)),
        recipe=load_recipe("fire"),
        files=(tmp_path / "fire-neg.safetensors",),
        choice=choice,
        sampler=SETTINGS,
        folder=tmp_path,
    )
    made = [one for one in expand(comparison.frontier()).guidances.values() if one]
    swept = METHODS["vl-dnp"].strengths
    assert [(one.steer, one.strength) for one in made] == [
        (steer, strength) for steer in ("words", "embedding") for strength in swept
    ]
    blind = replace(comparison, choice=replace(choice, observer=None))
    with pytest.raises(IneError, match="name its observer with --observer SPEC"):
        check(blind)


def test_looks_outside_the_run_are_refused_before_a_grid_runs(tiny_folder, tmp_path):
    settings = 'seen, method: vl-dnp, settings: {observer: "judge:mini-judge", look: "3"},'
    text = replaced(small_grid(GRID), "additive, method: additive,", settings)
    (tmp_path / "grid.yaml").write_text(text.replace("MODEL", str(tiny_folder)))
    plan = prepare(load_grid(tmp_path / "grid.yaml"), tmp_path / "out")
    with pytest.raises(IneError, match="cell tiny, seen at 1, words: look: step 3 is outside"):
        run(plan)


# --- on the bundled model -----------------------------------------------------------------------


def test_fire_falls_where_a_judge_sees_it_and_nothing_else_changes():
    """Positive control: words on the base model, which understands them."""
    from ine.models.loading import load_parts

    parts, prompts, seeds = load_parts("mini"), ["a burning dog", "a house"], [0, 6]
    settings = SamplerSettings(steps=10, guidance_scale=5.0)
    rules = {**JUDGE, "look": "ahead", "strength": 7.5}
    guidance = build_guidance("vl-dnp", Negative(), None, rules)
    observer = guidance.watcher.observer
    plain, steered = (
        sample_latents(parts, prompts, seeds, one, settings)[0] for one in (None, guidance)
    )
    before, after = (
        [one.found["fire"] for one in observer(decode_latents(parts, latents), prompts)]
        for latents in (plain, steered)
    )
    assert before[0] > 0.5 > after[0]
    assert torch.equal(steered[1], plain[1])
