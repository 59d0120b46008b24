"""Several negatives, of which every picture uses the one that fits it best."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ine.embedding import new_embedding
from ine.errors import EmbeddingError, IneError
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Matched, Negative, cosine, join_or_match
from ine.guidance.protocol import Step
from ine.sampling import SamplerSettings, sample_latents
from ine.text import Condition

PROMPTS = ("a dog", "a burning cat", "a house", "snow")
SEEDS = (3, 4, 5, 6)
NAMES = ("fire-neg", "snow-neg", "rain-neg")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def embeddings():
    return tuple(
        new_embedding(noise(2, 32, seed=k), name, name.removesuffix("-neg"))
        for k, name in enumerate(NAMES)
    )


@pytest.fixture(scope="module")
def negatives(embeddings):
    return tuple(Negative("", (e,)) for e in embeddings)


def begin(negatives, every, count):
    """A matching slot of a batch whose text encoder is left out."""
    prompts = SimpleNamespace(
        texts=("",) * count,
        encode=lambda texts, vectors=None: Condition(states=torch.zeros(len(texts), 1, 1)),
    )
    return Matched(negatives, every).begin(prompts)


def step_at(index, count=8):
    return Step(
        index=index,
        count=count,
        t=torch.tensor(1),
        x_t=torch.zeros(4, 1, 2, 2),
        alpha_bar=torch.tensor(0.5),
        prediction_type="epsilon",
    )


def answers(index, count=4):
    """What a U-Net might say about every name and picture at a step."""
    names = ["empty", "positive", *(f"negative:{n}" for n in NAMES)]
    return {n: noise(count, 4, 2, 2, seed=100 * index + k) for k, n in enumerate(names)}


def predict(slot, index, pictures=None):
    """Run the slot at a step; return (its negative, {name: pictures asked about})."""
    told = answers(index)
    rows = range(4) if pictures is None else pictures
    out = {n: told[n][list(rows)] for n in ("empty", "positive")}
    asked = {}
    for wish in slot.wanted(step_at(index), pictures):
        asked[wish.name] = tuple(range(4)) if wish.pictures is None else wish.pictures
        out[wish.name] = told[wish.name][list(asked[wish.name])]
    return slot.settle(step_at(index), pictures, out), asked


def best_by_hand(index, picture):
    told = {n: a[picture].double().numpy().ravel() for n, a in answers(index).items()}
    towards = told["positive"] - told["empty"]
    fits = []
    for name in NAMES:
        concept = told[f"negative:{name}"] - told["empty"]
        fits.append(concept @ towards / np.linalg.norm(concept) / np.linalg.norm(towards))
    return int(np.argmax(fits)), max(fits)


# --- the choice -------------------------------------------------------------------------------


def test_cosine_of_directions():
    a = noise(3, 4, 2, 2)
    torch.testing.assert_close(cosine(a, 5 * a), torch.ones(3))
    torch.testing.assert_close(cosine(a, -a), -torch.ones(3))
    assert torch.equal(cosine(a, torch.zeros_like(a)), torch.zeros(3))
    # Small enough for their product to vanish in half precision.
    small = (1e-4 * a).half()
    torch.testing.assert_close(cosine(small, small), torch.ones(3))


def test_each_picture_uses_the_negative_of_the_largest_cosine(negatives):
    slot = begin(negatives, 1, 4)
    seen = set()
    for index in range(4):
        output, asked = predict(slot, index)
        assert asked == {f"negative:{n}": (0, 1, 2, 3) for n in NAMES}
        for i in range(4):
            best, fit = best_by_hand(index, i)
            seen.add(best)
            assert torch.equal(output[i], answers(index)[f"negative:{NAMES[best]}"][i])
            if index == 0:
                assert slot.notes()[i]["matched"] == [
                    [0, NAMES[best], pytest.approx(fit, abs=1e-4)]
                ]
    assert len(seen) > 1


def test_the_choice_is_held_between_queries_and_only_it_is_asked_about(negatives):
    slot = begin(negatives, 3, 4)
    held = None
    for index in range(6):
        output, asked = predict(slot, index)
        assert slot.needs_empty(step_at(index)) == (index % 3 == 0)
        if index % 3 == 0:
            held = [best_by_hand(index, i)[0] for i in range(4)]
            continue
        users = {n: tuple(i for i in range(4) if NAMES[held[i]] == n) for n in NAMES}
        assert asked == {f"negative:{n}": u for n, u in users.items() if u}
        for i in range(4):
            assert torch.equal(output[i], answers(index)[f"negative:{NAMES[held[i]]}"][i])


def test_a_picture_that_comes_late_chooses_alone(negatives):
    slot, alone = begin(negatives, 4, 4), begin(negatives, 4, 4)
    for index in range(2):
        predict(slot, index, (0, 2))
        predict(alone, index, (0, 2))
    before = slot.notes()
    output, asked = predict(slot, 2, (0, 1, 2))
    held = {i: best_by_hand(0, i)[0] for i in (0, 2)} | {1: best_by_hand(2, 1)[0]}
    for place, i in enumerate((0, 1, 2)):
        assert torch.equal(output[place], answers(2)[f"negative:{NAMES[held[i]]}"][i])
    # Those that had chosen are not asked about other negatives, nor do they choose anew.
    assert sum(len(users) for users in asked.values()) == 3 + 2
    assert [slot.notes()[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    assert slot.notes()[1]["matched"][0][0] == 2
    # At the next query all of them do.
    _, asked = predict(slot, 4, (0, 1, 2))
    assert set(asked.values()) == {(0, 1, 2)}


def test_state_of_pictures_that_are_left_out_does_not_move(negatives):
    slot = begin(negatives, 1, 4)
    predict(slot, 0)
    before = slot.notes()[3]
    for index in range(1, 6):
        predict(slot, index, (0, 1, 2))
    assert slot.notes()[3] == before
    assert any(len(n["matched"]) > 1 for n in slot.notes()[:3])


# --- in the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ClassifierFree, Additive])
def test_a_batch_equals_its_pictures(tiny_parts, negatives, method):
    guidance = method(Matched(negatives, every=2))
    settings = SamplerSettings(steps=4, guidance_scale=5.0)
    together, notes, _ = sample_latents(tiny_parts, PROMPTS, SEEDS, guidance, settings)
    assert len({n["matched"][0][1] for n in notes}) > 1
    for i in range(len(PROMPTS)):
        alone, note, _ = sample_latents(tiny_parts, [PROMPTS[i]], [SEEDS[i]], guidance, settings)
        torch.testing.assert_close(together[[i]], alone, atol=1e-4, rtol=0)
        assert [n[:2] for n in note[0]["matched"]] == [n[:2] for n in notes[i]["matched"]]


@pytest.mark.parametrize(("method", "query", "held"), [(ClassifierFree, 5, 2), (Additive, 5, 3)])
def test_unet_calls(tiny_parts, negatives, method, query, held):
    guidance = method(Matched(negatives, every=2))
    settings = SamplerSettings(steps=3, guidance_scale=5.0)
    _, _, calls = sample_latents(tiny_parts, PROMPTS, SEEDS, guidance, settings)
    assert calls == [2 * query + held] * 4


@pytest.mark.parametrize("method", [ClassifierFree, Additive])
def test_matching_of_one_negative_is_that_negative(tiny_parts, negatives, method):
    settings = SamplerSettings(steps=2, guidance_scale=5.0)
    alone = sample_latents(tiny_parts, PROMPTS, SEEDS, method(negatives[0]), settings)
    matched = sample_latents(tiny_parts, PROMPTS, SEEDS, method(Matched(negatives[:1])), settings)
    assert torch.equal(alone[0], matched[0])
    assert alone[1:] == matched[1:]


def test_matching_of_a_concept_with_itself_is_that_concept(tiny_parts, negatives, embeddings):
    twin = new_embedding(embeddings[0].vectors, "twin-neg", "twin")
    settings = SamplerSettings(steps=2, guidance_scale=5.0)
    matched = ClassifierFree(Matched((negatives[0], Negative("", (twin,))), every=1))
    found, _, _ = sample_latents(tiny_parts, PROMPTS, SEEDS, matched, settings)
    alone, _, _ = sample_latents(tiny_parts, PROMPTS, SEEDS, ClassifierFree(negatives[0]), settings)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


# --- what a user gives --------------------------------------------------------------------------


def test_join_or_match(embeddings):
    assert join_or_match("blurry", embeddings) == Negative("blurry", embeddings)
    assert join_or_match("blurry", []) == join_or_match("blurry", [], "match") == Negative("blurry")
    matched = join_or_match("blurry", embeddings, "match", every=2)
    assert matched.every == 2
    assert matched.negatives == tuple(Negative("blurry", (e,)) for e in embeddings)
    assert matched.embeddings == embeddings
    assert matched.candidates() == matched.negatives
    assert matched.prompt() == "blurry, fire-neg | blurry, snow-neg | blurry, rain-neg"


def test_bad_input(negatives, embeddings):
    with pytest.raises(IneError, match="no negative is given; give at least one"):
        Matched(())
    with pytest.raises(EmbeddingError, match=r"called the same \(fire-neg, fire-neg\)"):
        Matched((negatives[0], Negative("text", (embeddings[0],))))
    with pytest.raises(IneError, match="every is 0; give 1 or more"):
        Matched(negatives, every=0)
    with pytest.raises(IneError, match="several 'mach' is unknown; did you mean 'match'"):
        join_or_match("", embeddings, "mach")
