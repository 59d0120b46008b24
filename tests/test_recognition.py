"""The gate that recognises, and the restart: what opens, what is kept, what it costs."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ine.calibration.features import noise_levels, noised_features
from ine.calibration.fit import fit_probe
from ine.calibration.teach import IMPLIED, teach_probes
from ine.calibration.thresholds import calibrated
from ine.detectors.rules import find_rule
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError, PicturesError
from ine.guidance.additive import Additive
from ine.guidance.attempts import NOISES, noise_of
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gate_file import read_calibration, write_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.probe import (
    Probe,
    ProbeGate,
    blocks_of,
    features_of,
    listening,
)
from ine.guidance.restart import LONGEST, Restart
from ine.guidance.table import describe
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings, make_scheduler, sample_latents

PROMPTS, SEEDS = ("a dog", "a cat", "a house", "snow"), (3, 4, 5, 6)
SETTINGS = SamplerSettings(steps=6, guidance_scale=5.0)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FIRE = Negative("", (new_embedding(noise(2, 32, seed=1), "fire-neg", "fire"),))
METHOD = Additive(FIRE, strength=2.0)


def sample(parts, guidance, pictures=range(4), settings=SETTINGS):
    prompts, seeds = [PROMPTS[i] for i in pictures], [SEEDS[i] for i in pictures]
    return sample_latents(parts, prompts, seeds, guidance, settings)


def width(parts):
    with torch.no_grad():
        return noised_features(parts, noise(1, *parts.latent_shape), 500.0, 0.5, None).shape[1]


@pytest.fixture
def gate(tiny_parts):
    """A gate that opens for some pictures of `PROMPTS`, not for all."""
    probe = Probe(noise(width(tiny_parts), seed=7), 0.0)
    closed = ProbeGate(math.inf, (probe,), (0.5,), "fire")
    _, notes, _ = sample(tiny_parts, Gated(METHOD, closed))
    scores = sorted(note["gate"]["probes"][0][2] for note in notes)
    assert len(set(scores)) == 4
    return replace(closed, threshold=(scores[1] + scores[2]) / 2)


# --- features and probes ------------------------------------------------------------------------


def test_features_are_mean_maximum_and_spread_of_every_channel():
    first, second = noise(2, 3, 4, 4, seed=1), noise(2, 5, 2, 2, seed=2)
    found = features_of([first, second])
    assert found.shape == (2, 3 * (3 + 5))
    assert torch.allclose(found[1, 0], first[1, 0].mean())
    assert torch.allclose(found[1, 3], first[1, 0].max())
    assert torch.allclose(found[1, 6], first[1, 0].std())
    assert torch.allclose(found[0, 9 + 5], second[0, 0].max())


def test_listening_hears_the_blocks_and_leaves_no_hook(tiny_parts):
    unet = tiny_parts.unet
    before = [len(block._forward_hooks) for block in blocks_of(unet)]
    with listening(unet) as heard:
        sample(tiny_parts, ClassifierFree(), [0])
        assert [h.shape[0] for h in heard] == [2, 2]
    assert [len(block._forward_hooks) for block in blocks_of(unet)] == before


def test_a_probe_finds_the_direction_that_separates_the_kinds():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3 == 0  # uneven kinds
    direction = torch.zeros(20)
    direction[4] = 1.0
    features = torch.randn(600, 20, generator=generator) * 3 + 7
    features[labels] += 12 * direction
    probe = fit_probe(features, labels)
    scores = probe.scores(features)
    assert ((scores > 0) == labels).float().mean() > 0.97
    assert int(probe.weight.abs().argmax()) == 4
    assert scores.median() < 0  # the rarer kind is not believed to be the rule


def test_a_probe_on_labels_without_meaning_knows_nothing():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 10, generator=generator)
    labels = torch.rand(400, generator=generator) < 0.5
    fresh = torch.randn(400, 10, generator=generator)
    right = (fit_probe(features, labels).scores(fresh) > 0) == (
        torch.rand(400, generator=generator) < 0.5
    )
    assert abs(right.float().mean() - 0.5) < 0.1


def test_the_penalty_is_of_logistic_regression():
    # At the optimum the gradient of the penalised loss in standardised units is nothing.
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 4, generator=generator).double() * 2 + 1
    labels = features[:, 0] + torch.randn(200, generator=generator).double() > 1
    probe = fit_probe(features, labels, ridge=0.1)
    scale = features.std(0)
    standard = (features - features.mean(0)) / scale
    weight = probe.weight.double() * scale
    each = torch.where(labels, 0.5 / labels.double().mean(), 0.5 / (~labels).double().mean())
    miss = (torch.sigmoid(probe.scores(features.float()).double()) - labels.double()) * each
    assert torch.allclose((standard * miss[:, None]).mean(0), -0.2 * weight, atol=1e-4)
    assert abs(float(miss.mean())) < 1e-4


@pytest.mark.parametrize(("label", "word"), [(True, "without"), (False, "with")])
def test_a_probe_needs_both_kinds(label, word):
    with pytest.raises(IneError, match=f"none {word} the concept"):
        fit_probe(noise(4, 3), torch.full((4,), label))


def test_a_probe_of_another_network_is_refused(tiny_parts):
    gate = ProbeGate(0.0, (Probe(noise(5), 0.0),), (0.5,))
    with pytest.raises(IneError, match="reads 5 features, this U-Net has"):
        sample(tiny_parts, Gated(METHOD, gate))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Probe(torch.tensor([math.nan]), 0.0), "not finite"),
        (lambda: ProbeGate(0.0, (), (0.5,)), "0 probes for 1 queries"),
        (lambda: ProbeGate(0.0, (Probe(noise(2), 0.0),), (1.5,)), "fractions of the run"),
        (lambda: ProbeGate(math.nan, (Probe(noise(2), 0.0),), (0.5,)), "NaN"),
        (lambda: Restart(METHOD, Window(), ()), "ladder"),
        (lambda: Restart(METHOD, Window(), (1.0, -2.0)), "ladder"),
        (lambda: Additive(FIRE).scaled(2.0), "give --negative-strength"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(IneError, match=words):
        make()


def test_noise_levels_are_those_of_the_run(tiny_parts):
    settings = SamplerSettings(steps=10)
    scheduler = make_scheduler("ddim", tiny_parts.scheduler_config, 10)
    (t, alpha_bar), (late, _) = noise_levels(tiny_parts, settings, (0.3, 0.85))
    assert t == float(scheduler.timesteps[3])
    assert late == float(scheduler.timesteps[9])
    assert alpha_bar == pytest.approx(float(scheduler.alphas_cumprod[int(t)]))


# --- the gate -----------------------------------------------------------------------------------


def test_a_closed_gate_leaves_the_undefended_picture_to_the_bit(tiny_parts, gate):
    plain, _, plain_calls = sample(tiny_parts, ClassifierFree())
    found, notes, calls = sample(tiny_parts, Gated(METHOD, gate))
    opened = [note["gate"]["opened"] is not None for note in notes]
    assert sorted(opened) == [False, False, True, True]
    for i, yes in enumerate(opened):
        assert torch.equal(found[i], plain[i]) != yes
        # One look; then the negative for the last three steps of those that need it.
        assert calls[i] - plain_calls[i] == 1 + 3 * yes
    assert {n["gate"]["opened"][1] for n in notes if n["gate"]["opened"]} == {"fire"}


def test_scores_are_those_of_the_probe_on_what_the_run_saw(tiny_parts, gate):
    seen = {}

    def keep(step):
        seen[step.index] = (step.x_t.clone(), float(step.t))

    prompts, seeds = list(PROMPTS[:1]), list(SEEDS[:1])
    guidance = Gated(METHOD, replace(gate, threshold=math.inf))
    _, notes, _ = sample_latents(tiny_parts, prompts, seeds, guidance, SETTINGS, keep)
    step, _, score = notes[0]["gate"]["probes"][0]
    assert step == 3
    x_t, t = seen[3]
    # Noise of power 0 leaves x_t as it is.
    features = noised_features(tiny_parts, x_t, t, 1.0, torch.Generator())
    assert float(gate.probes[0].scores(features)) == pytest.approx(score, abs=1e-3)


def test_a_batch_is_its_pictures(tiny_parts, gate):
    _, together, _ = sample(tiny_parts, Gated(METHOD, gate))
    for i in range(4):
        _, alone, _ = sample(tiny_parts, Gated(METHOD, gate), [i])
        one, other = together[i]["gate"]["probes"][0][2], alone[0]["gate"]["probes"][0][2]
        assert one == pytest.approx(other, abs=2e-3)


def test_a_gate_survives_its_file(tmp_path, gate):
    file = tmp_path / "fire.gate.json"
    scores = [float(i) for i in range(100)]
    write_calibration(calibrated(gate, scores, 0.05), file)
    found = read_calibration(file).gate
    assert found.probes == gate.probes
    assert found.threshold == 95.0
    assert describe(found) == describe(replace(gate, threshold=95.0))
    other = Probe(gate.probes[0].weight + 1e-3, 0.0)
    assert describe(replace(gate, probes=(other,))) != describe(gate)


@pytest.mark.parametrize("damage", [{"weight": "x", "bias": 0}, {"bias": 0}, {"weight": [None]}])
def test_a_damaged_probe_is_refused(tmp_path, gate, damage):
    file = tmp_path / "fire.gate.json"
    write_calibration(calibrated(gate, [0.0] * 100, 0.05), file)
    data = json.loads(file.read_text())
    data["settings"]["probes"] = [damage]
    file.write_text(json.dumps(data))
    with pytest.raises(IneError, match="calibrate again"):
        read_calibration(file)


# --- the restart --------------------------------------------------------------------------------


def test_pictures_that_stay_closed_are_undefended_and_the_rest_steered_from_the_start(
    tiny_parts, gate
):
    plain, _, _ = sample(tiny_parts, ClassifierFree())
    found, notes, calls = sample(tiny_parts, Restart(METHOD, gate, (1.0,)))
    opened = [note["attempts"][0]["gate"]["opened"] is not None for note in notes]
    assert sorted(opened) == [False, False, True, True]
    again = [i for i in range(4) if opened[i]]
    steered, _, _ = sample(tiny_parts, METHOD, again)
    for i in range(4):
        if not opened[i]:
            assert torch.equal(found[i], plain[i])
            assert (len(notes[i]["attempts"]), calls[i], notes[i]["left"]) == (1, 2 * 6 + 1, False)
    assert torch.equal(found[again], steered)
    for i in again:
        # The rest of a mixed first attempt is dragged along; then three predictions a step.
        assert calls[i] == 13 + 3 * 6 + 1


def test_the_ladder_is_climbed_while_the_gate_opens(tiny_parts, gate, beginning_with):
    always = replace(gate, threshold=-math.inf)
    found, notes, calls = sample(tiny_parts, Restart(METHOD, always, (1.0, 2.0)))
    with beginning_with(1):
        strongest, _, _ = sample(tiny_parts, Additive(FIRE, strength=4.0))
    assert torch.equal(found, strongest)
    assert all(len(n["attempts"]) == 3 and n["left"] for n in notes)
    # Attempts that all pictures leave end at the look, step 3 of 6; the last is finished.
    assert calls == [(4 * 2 + 1) + (4 * 3 + 1) + (6 * 3 + 1)] * 4


def test_a_method_without_a_strength_is_tried_from_other_noise(tiny_parts, gate, beginning_with):
    always = replace(gate, threshold=-math.inf)
    found, notes, _ = sample(tiny_parts, Restart(ClassifierFree(FIRE), always))
    assert all(len(n["attempts"]) == 4 for n in notes)
    with beginning_with(2):
        last, _, _ = sample(tiny_parts, ClassifierFree(FIRE))
    assert torch.equal(found, last)


def test_from_the_own_noise_nothing_is_tried_twice(tiny_parts, gate):
    always = replace(gate, threshold=-math.inf)
    own = Restart(METHOD, always, (1.0, 1.0, 2.0, 2.0), other_noise=False)
    found, notes, _ = sample(tiny_parts, own)
    assert all(len(n["attempts"]) == 3 for n in notes)
    strongest, _, _ = sample(tiny_parts, METHOD.scaled(2.0))
    assert torch.equal(found, strongest)


def test_noises_are_different_samples_of_the_same_length():
    own = noise(2, 4, 32, 32)
    made = [noise_of(own, number) for number in range(len(NOISES))]
    assert torch.equal(made[0], own)
    assert torch.equal(made[1], -own)
    for i, one in enumerate(made):
        assert torch.equal(one.abs().flatten().sort().values, own.abs().flatten().sort().values)
        for other in made[:i]:
            # As unlike as independent ones, but for those that are the opposite of each other.
            likeness = torch.cosine_similarity(one.flatten(1), other.flatten(1))
            assert (likeness < 0.1).all()
    # A ladder and a last resort never begin with the same noise twice.
    longest = Restart(METHOD, Window(), (1.0,) * LONGEST, METHOD)
    noises = [attempt.noise for attempt in longest.attempts]
    assert noises == [0, *range(len(NOISES))]
    with pytest.raises(IneError, match="a ladder of 8 strengths; give at most 7"):
        replace(longest, ladder=(1.0,) * 8)


def test_strength_reaches_into_a_window():
    inside = Gated(METHOD, Window(0.0, 0.5))
    assert inside.scaled(3.0) == Gated(Additive(FIRE, strength=6.0), Window(0.0, 0.5))


def test_restart_within_a_window_acts_there_only(tiny_parts, gate):
    always = replace(gate, threshold=-math.inf)
    method = Gated(METHOD, Window(0.0, 0.5))
    found, _, _ = sample(tiny_parts, Restart(method, always, (1.0,)))
    windowed, _, _ = sample(tiny_parts, method)
    assert torch.equal(found, windowed)


def test_a_loop_that_cannot_restart_is_an_error(tiny_parts, gate):
    with (
        pytest.raises(IneError, match="cannot restart a picture"),
        Restart(METHOD, gate).begin(None),
    ):
        pass


def taught(parts, detector, folder, **given):
    settings = SamplerSettings(steps=2, batch=16)
    recipe, rule = load_recipe("fire"), find_rule("mini-fire@0.5")
    about = (parts, recipe, FIRE.embeddings, settings, (0.5,), rule, detector)
    return teach_probes(*about, count=64, folder=folder, **given)


def every_other(pictures):
    return [{"fire": float(i % 2)} for i in range(len(pictures))]


def test_only_the_look_ahead_learns_from_prompts_that_imply_the_concept(tiny_parts, tmp_path):
    plain = taught(tiny_parts, every_other, tmp_path / "plain", implying=())
    assert plain.ahead == plain.late
    found = taught(tiny_parts, every_other, tmp_path / "implied")
    assert found.late == plain.late
    assert found.ahead != found.late
    assert found.record[IMPLIED] == {"drawn": 64, "kept": 32}
    others = taught(tiny_parts, every_other, tmp_path / "others", implying=["a cat", "a dog"])
    assert others.ahead not in (found.ahead, others.late)

    # Where none of them shows it there is nothing to learn.
    seen = iter([every_other] * 8 + [lambda pictures: [{"fire": 0.0}] * len(pictures)] * 4)
    none = taught(tiny_parts, lambda pictures: next(seen)(pictures), tmp_path / "none")
    assert none.record[IMPLIED] == {"drawn": 64, "kept": 0}
    assert none.ahead == none.late == plain.late


def test_too_few_examples_are_refused(tiny_parts, tmp_path):
    blind = lambda pictures: [{"fire": 0.0}] * len(pictures)  # noqa: E731
    seen_rows = []
    with pytest.raises(PicturesError, match="only 0 of 64 pictures show fire"):
        taught(tiny_parts, blind, tmp_path, progress=seen_rows.append)
    assert sum(seen_rows) == 3 * 64
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert len(kept) == 12
    assert all(p.endswith(".safetensors") for p in kept)
    # Only activations are kept: nothing there has the shape of a latent.
    from safetensors.torch import load_file

    shapes = {t.ndim for p in tmp_path.iterdir() for t in load_file(p).values()}
    assert shapes == {1, 2}
