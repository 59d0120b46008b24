"""Gates: what stays closed is the undefended model to the bit, and nothing is computed twice."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ine.embedding import new_embedding, read_embedding
from ine.errors import IneError
from ine.files import shipped
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import MEASURES, Gated, Presence, Window, query_steps, remembering
from ine.guidance.negative import Matched, Negative
from ine.guidance.protocol import Step, Wanted
from ine.models.loading import load_parts
from ine.sampling import SamplerSettings, sample_latents
from ine.text import Condition

PROMPTS = ("a dog", "a burning cat", "a house", "snow")
SEEDS = (3, 4, 5, 6)
STEPS = 4
SETTINGS = SamplerSettings(steps=STEPS, guidance_scale=5.0)
QUERIES = (0.0, 0.5)
CLOSED = Presence(2.0, queries=QUERIES)
OPEN = Presence(-math.inf, queries=QUERIES)


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
    "matched-cfg": ClassifierFree(Matched((FIRE, SNOW), every=2)),
    "matched-additive": Additive(Matched((FIRE, SNOW), every=2), strength=2.0),
}


def sample(parts, guidance, settings=SETTINGS, pictures=range(4)):
    prompts, seeds = [PROMPTS[i] for i in pictures], [SEEDS[i] for i in pictures]
    return sample_latents(parts, prompts, seeds, guidance, settings)


class Recording:
    """A guidance that keeps what was asked at every step: [(name, pictures), ...]."""

    def __init__(self, guidance):
        self.guidance, self.asked = guidance, []

    @contextmanager
    def begin(self, prompts):
        with self.guidance.begin(prompts) as session:

            def predict(step, ask, pictures=None):
                def recorded(wanted):
                    self.asked.append((step.index, [(w.name, w.pictures) for w in wanted]))
                    return ask(wanted)

                return session.predict(step, recorded, pictures)

            yield SimpleNamespace(predict=predict, notes=session.notes)


# --- in the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_closed_pictures_are_bit_identical_to_the_undefended_model(tiny_parts, name):
    plain, _, _ = sample(tiny_parts, None)
    latents, notes, calls = sample(tiny_parts, Gated(METHODS[name], CLOSED))
    assert torch.equal(latents, plain)
    candidates = len(METHODS[name].negative.candidates())
    assert calls == [2 * STEPS + candidates * len(QUERIES)] * 4
    assert all(n["gate"]["opened"] is None for n in notes)
    assert all(
        [p[0] for p in n["gate"]["probes"]] == [0] * candidates + [2] * candidates for n in notes
    )
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
    for measure in MEASURES:
        gate = Presence(2.0, measure, QUERIES)
        latents, _, _ = sample_latents(parts, prompts, seeds, Gated(method, gate), settings)
        assert torch.equal(latents, plain)


@pytest.mark.parametrize("gate", [OPEN, Window()], ids=["presence", "window"])
@pytest.mark.parametrize("name", METHODS)
def test_an_open_gate_is_no_gate(tiny_parts, name, gate):
    ungated, matched, _ = sample(tiny_parts, METHODS[name])
    latents, notes, calls = sample(tiny_parts, Gated(METHODS[name], gate))
    # Calls of other shapes round differently: 1e-5 of the latents' size, which is about 10.
    torch.testing.assert_close(latents, ungated, atol=1e-5 * float(ungated.abs().max()), rtol=0)
    # Probes and the method's own queries are at steps 0 and 2: no answer is paid for twice.
    queries = 2 + len(METHODS[name].negative.candidates())
    assert calls == [2 * queries + 2 * 3] * 4
    for before, after in zip(matched, notes, strict=True):
        assert [m[:2] for m in before.get("matched", [])] == [
            m[:2] for m in after.get("matched", [])
        ]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", METHODS)
def test_each_picture_of_a_mixed_batch_equals_its_own_run(tiny_parts, name, measure):
    method = METHODS[name]
    _, notes, _ = sample(tiny_parts, Gated(method, Presence(2.0, measure, QUERIES)))
    first = [max(s for at, _, s in n["gate"]["probes"] if at == 0) for n in notes]
    every = sorted(max(s for _, _, s in n["gate"]["probes"]) for n in notes)
    threshold = (every[1] + every[2]) / 2
    gate = Presence(threshold, measure, QUERIES)
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
    gate = Presence(sorted(scores)[-2], queries=(0.0,))
    recording = Recording(Gated(METHODS["cfg"], gate))
    sample(tiny_parts, recording)
    plain = [("empty", None), ("positive", None)]
    probe = [("negative", None)]
    wanted = [(0, plain), (0, probe)]
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
    early = Gated(METHODS["cfg"], Presence(-2.0, queries=(0.0,), window=Window(0.0, 0.5)))
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


def play(gate, script, negatives=(FIRE,), count=10):
    """Run a gate where concept `name` has cosine script[name][picture][step] with the prompt.

    Returns ([open pictures per step], [steps that were probed, with pictures], notes).
    """
    pictures = len(next(iter(script.values())))
    prompts = SimpleNamespace(
        texts=("",) * pictures,
        encode=lambda texts, vectors=None: Condition(states=torch.zeros(1, 1, 1)),
    )
    session = gate.begin(prompts, negatives)
    empty = torch.full((pictures, 1, 1, 2), 7.0)
    plain = {"empty": empty, "positive": empty + torch.tensor([3.0, 0.0])}
    opened, probed = [], []
    for index in range(count):

        def ask(wanted, index=index):
            out = {}
            for wish in wanted:
                name = (
                    wish.name.removeprefix("negative:") if ":" in wish.name else negatives[0].name
                )
                rows = range(pictures) if wish.pictures is None else wish.pictures
                probed.append((index, name, tuple(rows)))
                cosines = [script[name][i][index] for i in rows]
                towards = [[c, math.sqrt(1 - c * c)] for c in cosines]
                out[wish.name] = empty[list(rows)] + 2 * torch.tensor(towards).view(-1, 1, 1, 2)
            return out

        opened.append(session.open(step_at(index, count), ask, plain))
    return opened, probed, session.notes()


RISE_AND_FALL = [0.0, 0.0, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]
LOW = [0.1] * 10
QUERY = (0.0, 0.2, 0.5, 0.8)


def test_a_gate_is_held_from_its_query_and_latched():
    gate = Presence(0.5, queries=QUERY)
    opened, probed, notes = play(gate, {"fire-neg": [RISE_AND_FALL, LOW]})
    assert opened == [()] * 2 + [(0,)] * 8
    # Once open it is not probed again; the closed one is.
    assert probed == [(0, "fire-neg", (0, 1)), (2, "fire-neg", (0, 1))] + [
        (index, "fire-neg", (1,)) for index in (5, 8)
    ]
    assert notes[0]["gate"] == {
        "opened": [2, "fire-neg", 0.9],
        "probes": [[0, "fire-neg", 0.0], [2, "fire-neg", 0.9]],
    }
    assert notes[1]["gate"]["opened"] is None
    assert [p[0] for p in notes[1]["gate"]["probes"]] == [0, 2, 5, 8]


def test_without_a_latch_it_shuts_at_the_next_query():
    gate = Presence(0.5, queries=QUERY, latch=False)
    opened, probed, notes = play(gate, {"fire-neg": [RISE_AND_FALL, LOW]})
    assert opened == [()] * 2 + [(0,)] * 3 + [()] * 5
    assert [(index, rows) for index, _, rows in probed] == [(i, (0, 1)) for i in (0, 2, 5, 8)]
    assert notes[0]["gate"]["opened"] is None


def test_a_window_shuts_a_latched_gate_and_is_not_probed_outside():
    gate = Presence(0.5, queries=QUERY, window=Window(0.1, 0.6))
    opened, probed, _ = play(gate, {"fire-neg": [RISE_AND_FALL, LOW]})
    assert opened == [()] * 2 + [(0,)] * 4 + [()] * 4
    assert [index for index, _, _ in probed] == [2, 5]


def test_the_notes_say_which_of_several_concepts_opened_it():
    script = {
        "fire-neg": [RISE_AND_FALL, LOW, [0.7] * 10],
        "snow-neg": [LOW, [0.6] * 10, [0.8] * 10],
    }
    gate = Presence(0.5, queries=QUERY)
    opened, probed, notes = play(gate, script, (FIRE, SNOW))
    assert opened == [(1, 2)] * 2 + [(0, 1, 2)] * 8
    assert [n["gate"]["opened"] for n in notes] == [
        [2, "fire-neg", 0.9],
        [0, "snow-neg", 0.6],
        [0, "snow-neg", 0.8],
    ]
    assert probed[:4] == [(i, n, r) for i, r in ((0, (0, 1, 2)), (2, (0,))) for n in script]


def test_the_threshold_itself_stays_closed():
    assert play(Presence(0.1, queries=QUERY), {"fire-neg": [LOW]})[0] == [()] * 10
    assert play(Presence(0.0999, queries=QUERY), {"fire-neg": [LOW]})[0] == [(0,)] * 10


def test_measures_in_closed_form():
    towards = noise(3, 4, 8, 8)
    across = noise(3, 4, 8, 8, seed=1)
    across -= towards * ((towards * across).sum((1, 2, 3)) / towards.pow(2).sum((1, 2, 3))).view(
        3, 1, 1, 1
    )
    for measure, same, half, orthogonal in (("cosine", 1, 1, 0), ("residual", 1, 0.75, None)):
        compare = MEASURES[measure]
        close = {"atol": 1e-5, "rtol": 0}
        torch.testing.assert_close(
            compare(towards, towards), torch.full((3,), float(same)), **close
        )
        torch.testing.assert_close(
            compare(towards, 0.5 * towards), torch.full((3,), float(half)), **close
        )
        zero = compare(towards, torch.zeros_like(towards))
        torch.testing.assert_close(zero, torch.zeros(3), **close)
        wanted = torch.zeros(3)
        if orthogonal is None:
            wanted = -across.pow(2).sum((1, 2, 3)) / towards.pow(2).sum((1, 2, 3))
        torch.testing.assert_close(compare(towards, across), wanted, **close)
        # One threshold serves all steps: the size of both directions does not matter.
        torch.testing.assert_close(
            compare(9 * towards, 9 * across), compare(towards, across), **close
        )


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

    def ask(wanted):
        asked.append([(w.name, w.pictures, w.condition.states.flatten().tolist()) for w in wanted])
        return {
            w.name: 10
            * w.condition.states.view(-1, 1).expand(4 if w.pictures is None else len(w.pictures), 1)
            for w in wanted
        }

    condition = Condition(states=torch.arange(4.0).view(4, 1, 1))
    asking = remembering(ask, 4)
    one = asking([Wanted.of("positive", condition, (2, 1))])["positive"]
    assert one.flatten().tolist() == [20, 10]
    every = asking([Wanted("positive", condition), Wanted("other", condition.rows([3]))])
    assert every["positive"].flatten().tolist() == [0, 10, 20, 30]
    assert every["other"].flatten().tolist() == [30] * 4
    some = asking([Wanted.of("positive", condition, (3, 0, 2, 1))])["positive"]
    assert some.flatten().tolist() == [30, 0, 20, 10]
    assert asked == [
        [("positive", (2, 1), [2, 1])],
        [("positive", (0, 3), [0, 3]), ("other", None, [3])],
    ]
    # All pictures in another order are not all pictures in order.
    turned = asking([Wanted.of("new", condition, (3, 2, 1, 0))])["new"]
    assert turned.flatten().tolist() == [30, 20, 10, 0]
    assert asked[-1] == [("new", (3, 2, 1, 0), [3, 2, 1, 0])]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Presence(0.5, "cosin"), "measure 'cosin' is unknown; did you mean 'cosine'"),
        (lambda: Presence(0.5, "zzz"), "measure 'zzz' is unknown; known: cosine, residual"),
        (lambda: Presence(math.nan), "threshold is NaN; give a number"),
        (lambda: Presence(0.5, queries=()), "give fractions of the run"),
        (lambda: Presence(0.5, queries=(0.0, 1.0)), "give fractions of the run"),
        (lambda: Presence(0.5, queries=(math.nan,)), "give fractions of the run"),
        (lambda: Presence(0.5, window=Window(0.5, 1)), "none is inside the window 0.5..1"),
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
    outer = Presence(sorted(one)[-2], queries=(0.0,))
    with pytest.raises(ValueError, match="cannot stand behind another gate"):
        sample(tiny_parts, Gated(Gated(METHODS["cfg"], OPEN), outer))
