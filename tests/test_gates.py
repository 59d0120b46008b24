"""Gates: what stays closed is the undefended model to the bit, and nothing is computed twice."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny import probe_gate

from ine.embeddings.embedding import new_embedding, read_embedding
from ine.errors import IneError
from ine.files import shipped
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window, query_steps, remembering
from ine.guidance.method import Method
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.protocol import Step, UNetQuery
from ine.models.loading import load_parts
from ine.sampling import SamplerSettings, sample_latents
from ine.text.condition import Condition

PROMPTS = ("a dog", "a burning cat", "a house", "snow")
SEEDS = (3, 4, 5, 6)
STEPS = 4
SETTINGS = SamplerSettings(steps=STEPS, guidance_scale=5.0)
QUERIES = (0.0, 0.5)
CLOSED = probe_gate(math.inf, QUERIES)
OPEN = probe_gate(-math.inf, QUERIES)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_negatives():
    fire = new_embedding(noise(2, 32, seed=1), "fire-neg", "fire")
    snow = new_embedding(noise(2, 32, seed=2), "snow-neg", "snow")
    return Negative("blurry", (fire,)), Negative("", (snow,))


FIRE, SNOW = make_negatives()
METHODS = {
    "cfg": ClassifierFree(FIRE),
    "additive": Additive(FIRE, strength=2.0),
    "joined": ClassifierFree(Negative("", (*FIRE.embeddings, *SNOW.embeddings))),
}


def sample(parts, guidance, settings=SETTINGS, pictures=range(4)):
    prompts, seeds = [PROMPTS[i] for i in pictures], [SEEDS[i] for i in pictures]
    return sample_latents(parts, prompts, seeds, guidance, settings)


class Recording(Method):
    """A guidance that keeps what was asked at every step: [(name, pictures), ...]."""

    def __init__(self, guidance):
        self.guidance, self.asked = guidance, []

    @contextmanager
    def begin(self, prompts):
        with self.guidance.begin(prompts) as session:

            def predict(step, query_unet, pictures=None):
                def recorded(wanted):
                    self.asked.append((step.index, [(w.name, w.pictures) for w in wanted]))
                    return query_unet(wanted)

                return session.predict(step, recorded, pictures)

            yield SimpleNamespace(predict=predict, notes=session.notes, again=())


# --- in the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_closed_pictures_are_bit_identical_to_the_undefended_model(tiny_parts, name):
    plain, _, _ = sample(tiny_parts, None)
    latents, notes, calls = sample(tiny_parts, Gated(METHODS[name], CLOSED))
    assert torch.equal(latents, plain)
    assert calls == [2 * STEPS + len(QUERIES)] * 4
    assert all(n["gate"]["opened"] is None for n in notes)
    assert all([p[0] for p in n["gate"]["probes"]] == [0, 2] for n in notes)
    ungated, _, _ = sample(tiny_parts, METHODS[name])
    assert (ungated - plain).abs().max() > 1e-2


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_closed_pictures_of_mini_are_bit_identical(scheduler):
    parts = load_parts("mini")
    path = shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors"
    method = Additive(Negative("", (read_embedding(path),)))
    settings = SamplerSettings(steps=3, guidance_scale=5.0, scheduler=scheduler)
    prompts, seeds = ["a dog in the volcano", "a cat", "a house"], [1, 2, 3]
    plain, _, _ = sample_latents(parts, prompts, seeds, None, settings)
    gate = probe_gate(math.inf, QUERIES, features=768)
    latents, _, _ = sample_latents(parts, prompts, seeds, Gated(method, gate), settings)
    assert torch.equal(latents, plain)


@pytest.mark.parametrize("gate", [OPEN, Window()], ids=["probe", "window"])
@pytest.mark.parametrize("name", METHODS)
def test_an_open_gate_is_no_gate(tiny_parts, name, gate):
    ungated, _, _ = sample(tiny_parts, METHODS[name])
    latents, _, calls = sample(tiny_parts, Gated(METHODS[name], gate))
    # Calls of other shapes round differently: 1e-5 of the latents' size, which is about 10.
    torch.testing.assert_close(latents, ungated, atol=1e-5 * float(ungated.abs().max()), rtol=0)
    # An open gate looks once and never again; no other answer is paid for twice.
    assert calls == [3 * STEPS + (gate is OPEN)] * 4


@pytest.mark.parametrize("name", METHODS)
def test_each_picture_of_a_mixed_batch_equals_its_own_run(tiny_parts, name):
    method = METHODS[name]
    _, notes, _ = sample(tiny_parts, Gated(method, CLOSED))
    first = [n["gate"]["probes"][0][2] for n in notes]
    every = sorted(max(s for _, _, s in n["gate"]["probes"]) for n in notes)
    threshold = (every[1] + every[2]) / 2
    gate = probe_gate(threshold, QUERIES)
    latents, notes, calls = sample(tiny_parts, Gated(method, gate))
    plain, _, _ = sample(tiny_parts, None)
    opened = [n["gate"]["opened"] for n in notes]
    assert [o is not None for o in opened].count(True) == 2
    for i in range(4):
        alone, note, call = sample(tiny_parts, Gated(method, gate), pictures=[i])
        torch.testing.assert_close(latents[[i]], alone, atol=1e-4, rtol=0)
        assert (opened[i] or [])[:2] == (note[0]["gate"]["opened"] or [])[:2]
        assert call == [calls[i]]
        assert torch.equal(latents[i], plain[i]) == (opened[i] is None)
        assert (opened[i] is not None and opened[i][0] == 0) == (first[i] > threshold)


def test_conditions_that_no_picture_needs_are_not_asked(tiny_parts):
    _, notes, _ = sample(tiny_parts, Gated(METHODS["cfg"], CLOSED))
    scores = [n["gate"]["probes"][0][2] for n in notes]
    most = scores.index(max(scores))
    gate = probe_gate(sorted(scores)[-2])
    recording = Recording(Gated(METHODS["cfg"], gate))
    sample(tiny_parts, recording)
    plain = [("empty", None), ("positive", None)]
    wanted = [(0, plain), (0, [("look:0", None)]), (0, [("negative", (most,))])]
    for index in range(1, STEPS):
        wanted += [(index, plain), (index, [("negative", (most,))])]
    assert recording.asked == wanted


def test_a_window_acts_in_its_part_of_the_run_only(tiny_parts):
    recording = Recording(Gated(METHODS["cfg"], Window(0.25, 0.75)))
    latents, notes, calls = sample(tiny_parts, recording)
    assert [index for index, names in recording.asked if names == [("negative", None)]] == [1, 2]
    assert calls == [2 * STEPS + 2] * 4
    assert notes == [{}] * 4
    plain, _, _ = sample(tiny_parts, None)
    assert (latents - plain).abs().max() > 1e-2
    early = Gated(METHODS["cfg"], probe_gate(-math.inf, window=Window(0.0, 0.5)))
    by_window, _, _ = sample(tiny_parts, Gated(METHODS["cfg"], Window(0.0, 0.5)))
    assert torch.equal(sample(tiny_parts, early)[0], by_window)


# --- when a gate opens --------------------------------------------------------------------------


def step_at(index, count=10):
    return Step(
        index=index,
        count=count,
        t=torch.tensor(1),
        x_t=torch.zeros(2, 1, 1, 2),
        alpha_bar=torch.tensor(0.5),
        prediction_type="epsilon",
    )


class Scripted(torch.nn.Module):
    """A block whose output at a step is what a script says, one number per picture."""

    def forward(self, scores):
        return torch.tensor(scores).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)


def play(gate, script, count=10):
    """Run a gate that scores picture i with script[i][step].

    Returns ([open pictures per step], [(step, pictures) of its looks], notes).
    """
    # Of the second block nothing is read: its weight in the probe is zero.
    unet = SimpleNamespace(mid_block=Scripted(), up_blocks=[Scripted()])
    prompts = SimpleNamespace(
        parts=SimpleNamespace(unet=unet), empty=lambda: Condition(states=torch.zeros(1, 1, 1))
    )
    prompts.texts = ("",) * len(script)
    session = gate.begin(prompts)
    opened, looked = [], []
    for index in range(count):

        def query_unet(wanted, index=index):
            (wish,) = wanted
            rows = tuple(range(len(script)) if wish.pictures is None else wish.pictures)
            looked.append((index, rows))
            for block in (unet.mid_block, *unet.up_blocks):
                block([script[i][index] for i in rows])

        opened.append(session.open(step_at(index, count), query_unet))
    return opened, looked, session.notes()


def scripted_gate(threshold, window=None):
    """A gate of probes that read the mean of the first block and nothing else."""
    probe = Probe(torch.tensor([1.0, 0, 0, 0, 0, 0]), 0.0)
    window = window or Window()
    return ProbeGate(threshold, (probe,) * len(QUERY), QUERY, "fire", window)


RISE_AND_FALL = [0.0, 0.0, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]
LOW = [0.1] * 10
QUERY = (0.0, 0.2, 0.5, 0.8)


def test_a_gate_is_held_from_its_query_and_stays_open():
    opened, looked, notes = play(scripted_gate(0.5), [RISE_AND_FALL, LOW])
    assert opened == [()] * 2 + [(0,)] * 8
    # Once open it is not looked at again; the closed one is.
    assert looked == [(0, (0, 1)), (2, (0, 1)), (5, (1,)), (8, (1,))]
    assert notes[0]["gate"] == {
        "opened": [2, "fire", 0.9],
        "probes": [[0, "fire", 0.0], [2, "fire", 0.9]],
    }
    assert notes[1]["gate"]["opened"] is None
    assert [p[0] for p in notes[1]["gate"]["probes"]] == [0, 2, 5, 8]


def test_a_window_shuts_an_open_gate_and_nothing_is_looked_at_outside():
    opened, looked, _ = play(scripted_gate(0.5, Window(0.1, 0.6)), [RISE_AND_FALL, LOW])
    assert opened == [()] * 2 + [(0,)] * 4 + [()] * 4
    assert [index for index, _ in looked] == [2, 5]


def test_the_threshold_itself_stays_closed():
    exact = float(torch.tensor(0.1))
    assert play(scripted_gate(exact), [LOW])[0] == [()] * 10
    assert play(scripted_gate(exact - 1e-4), [LOW])[0] == [(0,)] * 10


@pytest.mark.parametrize(
    ("queries", "count", "steps"),
    [
        ((0.0, 0.1, 0.25), 20, [0, 2, 5]),
        ((0.0, 0.1, 0.25), 50, [0, 5, 13]),
        ((0.0, 0.1, 0.25), 1, [0]),
        ((0.99,), 3, [2]),
        ((0.0, 0.001), 1000, [0, 1]),
    ],
)
def test_query_steps(queries, count, steps):
    assert query_steps(queries, count) == steps


@pytest.mark.parametrize("count", range(1, 60))
def test_a_query_at_the_start_of_a_window_is_asked_inside_it(count):
    for first in (0.1, 0.25, 0.3, 0.5, 0.7):
        if any(first <= k / count for k in range(count)):
            assert query_steps((first,), count)[0] / count >= first


# --- not asking twice ---------------------------------------------------------------------------


def test_remembering_asks_only_what_is_new():
    asked = []

    def query_unet(wanted):
        asked.append([(w.name, w.pictures, w.condition.states.flatten().tolist()) for w in wanted])
        return {
            w.name: 10
            * w.condition.states.view(-1, 1).expand(4 if w.pictures is None else len(w.pictures), 1)
            for w in wanted
        }

    condition = Condition(states=torch.arange(4.0).view(4, 1, 1))
    asking = remembering(query_unet, 4)
    one = asking([UNetQuery.of("positive", condition, (2, 1))])["positive"]
    assert one.flatten().tolist() == [20, 10]
    every = asking([UNetQuery("positive", condition), UNetQuery("other", condition.rows([3]))])
    assert every["positive"].flatten().tolist() == [0, 10, 20, 30]
    assert every["other"].flatten().tolist() == [30] * 4
    some = asking([UNetQuery.of("positive", condition, (3, 0, 2, 1))])["positive"]
    assert some.flatten().tolist() == [30, 0, 20, 10]
    assert asked == [
        [("positive", (2, 1), [2, 1])],
        [("positive", (0, 3), [0, 3]), ("other", None, [3])],
    ]
    # All pictures in another order are not all pictures in order.
    turned = asking([UNetQuery.of("new", condition, (3, 2, 1, 0))])["new"]
    assert turned.flatten().tolist() == [30, 20, 10, 0]
    assert asked[-1] == [("new", (3, 2, 1, 0), [3, 2, 1, 0])]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: probe_gate(math.nan), "threshold is NaN; give a number"),
        (lambda: probe_gate(0.5, ()), "give fractions of the run"),
        (lambda: probe_gate(0.5, (0.0, 1.0)), "give fractions of the run"),
        (lambda: probe_gate(0.5, (math.nan,)), "give fractions of the run"),
        (lambda: probe_gate(0.5, window=Window(0.5, 1)), "none is inside the window 0.5..1"),
        (lambda: Window(-0.1, 0.5), "gate window -0.1..0.5: give two fractions"),
        (lambda: Window(0.5, 1.1), "gate window 0.5..1.1"),
        (lambda: Window(0.5, 0.5), "gate window 0.5..0.5"),
        (lambda: Window(math.nan, 1), "gate window nan..1"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(IneError) as caught:
        make()
    assert words in str(caught.value)


def test_a_gate_behind_a_gate_is_refused(tiny_parts):
    one = [n["gate"]["probes"][0][2] for n in sample(tiny_parts, Gated(METHODS["cfg"], CLOSED))[1]]
    outer = probe_gate(sorted(one)[-2])
    with pytest.raises(ValueError, match="cannot stand behind another gate"):
        sample(tiny_parts, Gated(Gated(METHODS["cfg"], OPEN), outer))
