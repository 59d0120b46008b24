"""The tracked posterior: closed forms, an oracle from DDPM's densities, and the gate on it."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from ine.embedding import new_embedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Matched, Negative
from ine.guidance.posterior import Belief, Dynamic, Posterior, evidence, followed
from ine.guidance.protocol import Step
from ine.sampling import SamplerSettings, alpha_bar_at, make_scheduler, sample_latents
from ine.text import Condition

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ("a dog", "a burning cat", "a house")
SEEDS = (3, 4, 5)
SETTINGS = SamplerSettings(steps=4, guidance_scale=5.0)
SHAPE = (4, 8, 8)
SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FIRE = Negative("", (new_embedding(noise(2, 32, seed=1), "fire-neg", "fire"),))
SNOW = Negative("", (new_embedding(noise(2, 32, seed=2), "snow-neg", "snow"),))


# --- formulas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_what_was_followed_is_read_off_the_latents(name):
    scheduler = make_scheduler(name, SD, 10)
    eps = [noise(2, *SHAPE, seed=k) for k in range(10)]
    latents = noise(2, *SHAPE, seed=99) * scheduler.init_noise_sigma
    seen = []
    for index, t in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(latents, t)
        seen.append((x_t, float(alpha_bar_at(scheduler, index, t))))
        latents = scheduler.step(eps[index], t, latents, return_dict=False)[0]
    for index, (before, after) in enumerate(pairwise(seen)):
        torch.testing.assert_close(followed(*before, *after), eps[index], atol=1e-4, rtol=0)


def test_evidence_is_the_ratio_of_ddpm_transition_densities():
    before, after = 0.3, 0.45
    a = before / after
    x_t, eps_step, eps_0, eps_neg = (noise(2, *SHAPE, seed=k).double() for k in range(4))

    def mean(eps):
        # Ho et al. 2020, eq. 11, with alpha_t for a step from one abar to the other.
        return (x_t - (1 - a) / math.sqrt(1 - before) * eps) / math.sqrt(a)

    def density(eps):
        normal = torch.distributions.Normal(mean(eps), math.sqrt(1 - a))
        return normal.log_prob(mean(eps_step)).sum((1, 2, 3))

    found = evidence(eps_step, eps_0, eps_neg, before, after)
    torch.testing.assert_close(found, density(eps_neg) - density(eps_0))


def test_following_the_concept_or_its_absence_is_equal_evidence_for_each():
    eps_0, eps_neg = noise(2, *SHAPE).double(), noise(2, *SHAPE, seed=1).double()
    k = (1 - 0.5) / (2 * 0.5 * (1 - 0.2))
    wanted = k * (eps_neg - eps_0).pow(2).sum((1, 2, 3))
    torch.testing.assert_close(evidence(eps_neg, eps_0, eps_neg, 0.2, 0.4), wanted)
    torch.testing.assert_close(evidence(eps_0, eps_0, eps_neg, 0.2, 0.4), -wanted)
    halfway = (eps_0 + eps_neg) / 2
    torch.testing.assert_close(evidence(halfway, eps_0, eps_neg, 0.2, 0.4), 0 * wanted)


def test_belief():
    plain = Belief(prior=0.01, tau=1.0, delta=0.0, p_max=0.999)
    # Bayes: odds 1 : 99, a likelihood ratio of 99 makes them even.
    assert plain.after(0.01, math.log(99)) == pytest.approx(0.5)
    assert Belief(tau=0.5, delta=0.0).after(0.01, 2 * math.log(99)) == pytest.approx(0.5)
    assert Belief(delta=2e-4).after(0.3, 0.0) == pytest.approx(0.3002)
    belief = Belief()
    for extreme in (1e9, math.inf):
        assert belief.after(0.01, extreme) == 0.8
        assert belief.after(0.8, -extreme) == pytest.approx(2e-4)
        assert Belief(delta=0.0).after(0.0, extreme) <= 0.8
    assert belief.after(0.3, math.nan) == 0.3
    # What was ruled out can come back.
    low = belief.after(0.5, -1e9)
    assert belief.after(low, 100.0) > 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prior": 0.0}, "prior 0 and p_max 0.8"),
        ({"prior": 0.9}, "prior 0.9 and p_max 0.8"),
        ({"p_max": 1.0}, "p_max 1: give numbers"),
        ({"prior": math.nan}, "prior nan"),
        ({"tau": 0.0}, "tau 0 and delta"),
        ({"tau": math.nan}, "tau nan"),
        ({"delta": -1.0}, "delta -1"),
    ],
)
def test_bad_beliefs(values, words):
    with pytest.raises(IneError) as caught:
        Belief(**values)
    assert words in str(caught.value)


def test_bad_gates():
    with pytest.raises(IneError, match="threshold is NaN"):
        Posterior(math.nan)
    with pytest.raises(IneError, match=r"none is inside the window 0.5..1"):
        Posterior(window=Window(0.5, 1.0))
    with pytest.raises(IneError, match="give fractions of the run"):
        Posterior(queries=(1.5,))


# --- the gate on a made-up U-Net ----------------------------------------------------------------


def walk(gate, steers, steps=10, kind="epsilon", scheduler="ddim"):
    """Denoise 2 pictures under constant eps_0, eps_neg; picture i follows eps_0 + steers[i] b.

    Returns ([open pictures per step], steps probed, notes, the parts of the closed form).
    """
    prompts = SimpleNamespace(
        texts=("", ""),
        encode=lambda texts, vectors=None: Condition(states=torch.zeros(1, 1, 1)),
    )
    session = gate.begin(prompts, (FIRE,))
    scheduler = make_scheduler(scheduler, {**SD, "prediction_type": kind}, steps)
    eps_0, b = noise(2, *SHAPE), 0.3 * noise(2, *SHAPE, seed=1)
    eps_step = eps_0 + torch.tensor(steers).view(2, 1, 1, 1) * b
    latents = noise(2, *SHAPE, seed=2) * scheduler.init_noise_sigma
    opened, probed, bars = [], [], []
    for index, t in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(latents, t)
        a = torch.as_tensor(alpha_bar_at(scheduler, index, t)).float()
        bars.append(float(a))

        def output(eps, x_t=x_t, a=a):
            return eps if kind == "epsilon" else (eps - (1 - a).sqrt() * x_t) / a.sqrt()

        def ask(wanted, index=index, output=output):
            (wish,) = wanted
            rows = [0, 1] if wish.pictures is None else list(wish.pictures)
            probed.append((index, tuple(rows)))
            return {wish.name: output(eps_0 + b)[rows]}

        step = Step(
            index=index, count=len(scheduler.timesteps), t=t, x_t=x_t, alpha_bar=a,
            prediction_type=kind,
        )  # fmt: skip
        plain = {"empty": output(eps_0), "positive": output(eps_step)}
        opened.append(session.open(step, ask, plain))
        latents = scheduler.step(output(eps_step), t, latents, return_dict=False)[0]
    return opened, probed, session.notes(), (bars, b.pow(2).sum((1, 2, 3)).tolist())


EVERY = tuple(k / 10 for k in range(10))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_probability_follows_the_closed_form(kind):
    belief = Belief(tau=0.2)
    gate = Posterior(2.0, EVERY, belief)
    _, probed, notes, (bars, size) = walk(gate, [1.0, 0.0], kind=kind)
    # What is probed at the last step could not be judged.
    assert probed == [(index, (0, 1)) for index in range(9)]
    for picture, sign in ((0, 1), (1, -1)):
        p = belief.prior
        probes = notes[picture]["gate"]["probes"]
        assert [probe[:2] for probe in probes] == [[k, "fire-neg"] for k in range(1, 10)]
        for index in range(9):
            a = bars[index] / bars[index + 1]
            moved = sign * (1 - a) / (2 * a * (1 - bars[index])) * size[picture]
            p = belief.after(p, moved)
            assert probes[index][2] == pytest.approx(p, abs=5e-4)
        found = [probe[2] for probe in probes]
        assert all(0 <= f <= belief.p_max for f in found)
        assert found == sorted(found) or sign < 0
    assert notes[0]["gate"]["probes"][-1][2] > 0.3
    assert notes[1]["gate"]["probes"][-1][2] < 0.001


def test_it_opens_one_step_after_the_probe_that_shows_it():
    gate = Posterior(0.05, (0.0, 0.5), Belief(tau=5.0))
    opened, probed, notes, _ = walk(gate, [1.0, 0.0])
    assert opened == [()] + [(0,)] * 9
    assert probed == [(0, (0, 1)), (5, (1,))]
    assert notes[0]["gate"]["opened"][:2] == [1, "fire-neg"]
    assert notes[1]["gate"]["opened"] is None


def test_without_a_latch_it_shuts_when_the_probability_falls():
    belief = Belief(prior=0.3, tau=1.0)
    shut = walk(Posterior(0.2, EVERY, belief, latch=False), [1.0, 0.0])
    assert shut[0][0] == ()
    assert shut[0][-1] == (0,)
    assert all(rows == (0, 1) for _, rows in shut[1])


@pytest.mark.parametrize("scheduler", ["dpm++", "euler", "pndm"])
def test_other_schedulers_tell_the_same_story(scheduler):
    # Every step, also of PNDM, which has one more and stays at one noise level for two of them.
    gate = Posterior(2.0, tuple(k / 11 for k in range(11)))
    _, _, notes, _ = walk(gate, [1.0, 0.0], scheduler=scheduler)
    rising, falling = ([p[2] for p in n["gate"]["probes"]] for n in notes)
    assert rising[-1] > 0.3
    assert falling[-1] < 0.001
    assert max(falling) <= 0.011
    judged = [p[0] for p in notes[0]["gate"]["probes"]]
    assert judged == ([1, *range(3, 11)] if scheduler == "pndm" else list(range(1, 10)))


# --- in the loop --------------------------------------------------------------------------------


def sample(parts, guidance, pictures=range(3), settings=SETTINGS):
    prompts, seeds = [PROMPTS[i] for i in pictures], [SEEDS[i] for i in pictures]
    return sample_latents(parts, prompts, seeds, guidance, settings)


@pytest.mark.parametrize("negative", [FIRE, Matched((FIRE, SNOW))], ids=["one", "several"])
def test_closed_pictures_are_bit_identical(tiny_parts, negative):
    gate = Posterior(2.0, (0.0, 0.5, 0.99))
    plain, _, _ = sample(tiny_parts, None)
    latents, notes, calls = sample(tiny_parts, Gated(ClassifierFree(negative), gate))
    assert torch.equal(latents, plain)
    concepts = len(negative.candidates())
    assert calls == [2 * 4 + 2 * concepts] * 3
    assert [p[0] for p in notes[0]["gate"]["probes"]] == [1] * concepts + [3] * concepts


def test_each_picture_of_a_mixed_batch_equals_its_own_run(tiny_parts):
    queries, belief = (0.0, 0.25, 0.5), Belief(tau=20.0)
    method = Additive(FIRE, strength=2.0)
    _, notes, _ = sample(tiny_parts, Gated(method, Posterior(2.0, queries, belief)))
    most = sorted(max(p[2] for p in n["gate"]["probes"]) for n in notes)
    gate = Posterior((most[1] + most[2]) / 2, queries, belief)
    latents, notes, calls = sample(tiny_parts, Gated(method, gate))
    assert sum(n["gate"]["opened"] is not None for n in notes) == 1
    for i in range(3):
        alone, _, call = sample(tiny_parts, Gated(method, gate), [i])
        torch.testing.assert_close(latents[[i]], alone, atol=1e-4, rtol=0)
        assert call == [calls[i]]


def test_dynamic_strength(tiny_parts):
    plain, _, _ = sample(tiny_parts, None)
    off, _, calls = sample(tiny_parts, Dynamic(FIRE, strength=0.0))
    torch.testing.assert_close(off, plain, atol=1e-4, rtol=0)
    assert calls == [3 * 4] * 3
    # Evidence that moves nothing leaves the odds where they were.
    still = Belief(prior=0.5, tau=1e-12, delta=0.0)
    fixed, notes, _ = sample(tiny_parts, Dynamic(FIRE, 2.0, still))
    torch.testing.assert_close(fixed, sample(tiny_parts, Additive(FIRE, 2.0))[0], atol=1e-4, rtol=0)
    assert notes == [{"posterior": 0.5}] * 3


@pytest.mark.parametrize("negative", [FIRE, Matched((FIRE, SNOW), 2)], ids=["one", "several"])
def test_a_dynamic_batch_equals_its_pictures(tiny_parts, negative):
    guidance = Dynamic(negative, 2.0, Belief(prior=0.2))
    latents, notes, _ = sample(tiny_parts, guidance)
    for i in range(3):
        alone, note, _ = sample(tiny_parts, guidance, [i])
        torch.testing.assert_close(latents[[i]], alone, atol=1e-4, rtol=0)
        assert note[0]["posterior"] == pytest.approx(notes[i]["posterior"], abs=2e-4)
    assert len({n["posterior"] for n in notes}) > 1
