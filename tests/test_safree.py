"""SAFREE against a float64 NumPy computation written another way, and what it must not change."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import counted_rows, noise

from ine.embeddings.embedding import new_embedding
from ine.errors import EmbeddingError, IneError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.reattention import Reattention, reattend, reattending
from ine.guidance.safree import Safree, safree_against
from ine.guidance.safree_rewrite import (
    change,
    distances,
    find_triggers,
    last_step,
    project,
    rewrite,
)
from ine.guidance.safree_subspace import (
    MASK,
    closing,
    concept_columns,
    pooled_states,
    projector,
)
from ine.models.loading import load_parts
from ine.sampling import SamplerSettings, run_unet, sample_latents
from ine.text.encode import encode
from ine.text.tokens import tokenize

FIRE = ("fire", "burning", "in flames", "ablaze")
PROMPTS = ("a dog on fire", "a cat", "a burning red house in the snow", "", "fire")
SETTINGS = SamplerSettings(steps=3, guidance_scale=5.0)
# The filter says 1, so that steps 0 and 1 are projected and step 2 is not.
TWO = {"up_t": 1, "t": -100.0}
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def exact(mini):
    """mini with a text encoder in float64: the algebra is compared, not the rounding before it."""
    return mini.with_text_encoders([copy.deepcopy(mini.text_encoders[0]).double()])


@pytest.fixture(scope="module")
def embedding():
    return new_embedding(noise(3, 32, seed=1), "fire-neg", "fire")


def sample(parts, guidance, prompts=("ab cd", "x", "", "yes no"), seeds=None, **settings):
    seeds = seeds or range(len(prompts))
    return sample_latents(parts, prompts, seeds, guidance, replace(SETTINGS, **settings))


# --- an independent computation -----------------------------------------------------------------


def pooler(parts, ids):
    """The pooled state as transformers gives it, one row at a time, whole context."""
    out = parts.text_encoders[0](torch.tensor([ids]))
    return out.pooler_output[0].numpy().astype(np.float64)


def fitted(basis, wanted):
    """The part of `wanted` that columns of `basis` explain, by least squares."""
    return basis @ np.linalg.lstsq(basis, wanted, rcond=1e-6)[0]


def by_hand(parts, prompt, phrases, alpha, k, t, up_t):
    """(trigger positions, last step, text states) in float64, token by token."""
    tokenizer = parts.tokenizers[0]

    def padded(text):
        return tokenizer(text, padding="max_length", truncation=True).input_ids

    concept = np.stack([pooler(parts, padded(p)) for p in phrases], axis=1)
    ids = padded(prompt)
    count = len(tokenizer(prompt, truncation=True).input_ids) - 2
    inputs = np.stack(
        [pooler(parts, [*ids[:i], 0, *ids[i + 1 :]]) for i in range(1, count + 1)], axis=1
    )
    far = np.linalg.norm(inputs - fitted(concept, inputs), axis=0)
    triggers = []
    for i in range(count):
        others = np.delete(far, i)
        if not len(others):
            whole = pooler(parts, ids)
            others = np.linalg.norm(whole - fitted(concept, whole))
        if far[i] >= (1 + alpha) * np.mean(others):
            triggers.append(i + 1)
    states = parts.text_encoders[0](torch.tensor([ids])).last_hidden_state[0].numpy()
    states = states.astype(np.float64)
    within = fitted(inputs, states.T)
    moved = (within - fitted(concept, within)).T
    seen = range(count + 2)
    cosines = [
        states[i] @ moved[i] / np.linalg.norm(states[i]) / np.linalg.norm(moved[i]) for i in seen
    ]
    beta = 1 - sum(cosines) / len(cosines)
    last = int(np.rint(up_t / (1 + np.exp(-2 * k * (10 * beta - t)))))
    new = states.copy()
    new[triggers] = moved[triggers]
    return triggers, last, new, beta


@pytest.mark.parametrize("phrases", [FIRE, FIRE[:1], (*FIRE, "fire")])
def test_it_equals_an_independent_computation(exact, phrases):
    method = Safree(phrases=phrases, alpha=0.05, t=6.5)
    concept = method.concept(exact)
    found = set()
    with torch.no_grad():
        for prompt in [p for p in PROMPTS if p]:
            triggers, last, states, beta = by_hand(exact, prompt, phrases, 0.05, 2.5, 6.5, 10)
            ours = rewrite(exact, prompt, encode(exact, [prompt]).states[0], concept, method.alpha)
            assert list(ours.triggers) == triggers
            assert last_step(ours.beta, 2.5, 6.5, 10) == last
            assert ours.beta == pytest.approx(beta, abs=1e-9)
            np.testing.assert_allclose(ours.states, states, atol=1e-7)
            found.add(len(triggers))
    assert len(found) > 1


# --- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4, 32])
def test_a_projector_is_one(count):
    columns = noise(32, count)
    found = projector(columns)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found @ found, found)
    torch.testing.assert_close(found @ columns.double(), columns.double())
    assert float(found.trace()) == pytest.approx(count)
    if count:
        gram = columns.double().T @ columns.double()
        explicit = columns.double() @ torch.linalg.inv(gram) @ columns.double().T
        torch.testing.assert_close(found, explicit, atol=1e-8, rtol=0)


def test_a_column_given_twice_counts_once():
    columns = noise(32, 3)
    rounded = columns[:, :1] * (1 + 3e-8 * noise(32, 1, seed=1))
    for again in (columns, rounded, columns[:, :1] + columns[:, 1:2]):
        torch.testing.assert_close(projector(torch.cat([columns, again], 1)), projector(columns))


def test_projected_states_have_nothing_of_the_concept():
    columns, states = noise(32, 4), noise(7, 32, seed=1)
    concept, prompt = projector(columns), projector(noise(32, 9, seed=2))
    new = project(states, concept, prompt)
    assert new.dtype == states.dtype
    assert float((new.double() @ columns.double()).abs().max()) < 1e-5
    expected = (torch.eye(32).double() - concept) @ prompt @ states.double().T
    torch.testing.assert_close(new.double(), expected.T, atol=1e-5, rtol=0)
    assert float(distances(new, concept)[0]) == pytest.approx(float(new[0].norm()), rel=1e-5)


def test_triggers_at_the_edge():
    one = torch.tensor(1.0, dtype=torch.float64)
    far = torch.tensor([1.0, 1.0, 1.5], dtype=torch.float64)
    found, ratios = find_triggers(far, one, 0.5)
    assert found.tolist() == [False, False, True]  # >=, as in the released code
    assert ratios.tolist() == pytest.approx([0.8, 0.8, 1.5])
    assert not find_triggers(far, one, 0.51)[0].any()
    for alone, expected in ((0.9, False), (1.0, False), (1.2, True)):
        far = torch.tensor([alone], dtype=torch.float64)
        assert find_triggers(far, one, 0.01)[0].tolist() == [expected]
    found, ratios = find_triggers(torch.empty(0, dtype=torch.float64), one, 0.01)
    assert len(found) == len(ratios) == 0
    assert find_triggers(torch.zeros(2, dtype=torch.float64), one, 0.01)[1].isfinite().all()


def test_the_filter():
    assert last_step(0.5333, 2.5, 5.333, 10) == 5
    assert [last_step(b, 2.5, 5.333, 10) for b in (0.0, 2.0)] == [0, 10]
    assert [last_step(b, 1e6, 5.333, 10) for b in (-1e9, 1e9)] == [0, 10]
    betas = np.arange(100) / 100
    for k in (2.5, 3.5):
        expected = np.rint(10 / (1 + np.exp(-2 * k * (10 * betas - 5.333))))
        assert [last_step(float(b), k, 5.333, 10) for b in betas] == expected.tolist()
    states = noise(4, 8)
    assert change(states, states) == pytest.approx(0)
    assert change(states, -states) == pytest.approx(2)
    assert change(states, states * 0) == 1


def test_the_position_of_the_end(tiny_parts):
    tokenizer = tiny_parts.tokenizers[0]
    for text, end in (("", 1), ("ab", 3), ("a <|endoftext|> b", 4), ("a" * 99, 76)):
        assert closing(tokenizer, tokenize(tokenizer, [text]).ids[0].tolist()) == end


def test_masking_replaces_one_token_at_a_time(mini, embedding):
    tokenizer = mini.tokenizers[0]
    assert tokenizer.convert_ids_to_tokens(MASK) == "!"
    with torch.no_grad():
        states, ids = pooled_states(mini, "a dog on fire", masked=True)
        assert tokenizer.convert_ids_to_tokens(ids.tolist())[-1] == "fire</w>"
        for i in range(len(ids)):
            row = [tokenizer.bos_token_id, *ids.tolist(), tokenizer.eos_token_id]
            row[i + 1] = 0
            row += [tokenizer.pad_token_id] * (32 - len(row))
            np.testing.assert_allclose(states[i + 1], pooler(mini, row), atol=1e-4)
        np.testing.assert_allclose(
            states[0],
            pooler(mini, tokenize(tokenizer, ["a dog on fire"]).ids[0].tolist()),
            atol=1e-4,
        )


def test_a_learned_vector_is_masked_too(tiny_parts, embedding):
    vectors = {"fire-neg": embedding.vectors}
    other = embedding.vectors[0].clone()
    other[1] += 1
    first, ids = pooled_states(tiny_parts, "a fire-neg", vectors, masked=True)
    second, _ = pooled_states(tiny_parts, "a fire-neg", {"fire-neg": other}, masked=True)
    assert len(ids) == 4
    # Row 0 is the whole text; row 3 has the second vector, the one that differs, masked.
    same = [bool(torch.equal(a, b)) for a, b in zip(first, second, strict=True)]
    assert same == [False, False, False, True, False]


def test_columns_of_an_embedding(tiny_parts, embedding):
    pooled = concept_columns(tiny_parts, ["ab"], [embedding])
    each = concept_columns(tiny_parts, [], [embedding], columns="vectors")
    assert pooled.shape == (32, 2)
    assert each.shape == (32, 3)
    vectors = {"fire-neg": embedding.vectors}
    whole = encode(tiny_parts, ["fire-neg"], vectors).states[0, 4]
    torch.testing.assert_close(pooled[:, 1], whole, atol=1e-5, rtol=0)
    single = {"fire-neg": embedding.vectors[0][2:]}
    alone = encode(tiny_parts, ["fire-neg"], single).states[0, 2]
    torch.testing.assert_close(each[:, 2], alone, atol=1e-5, rtol=0)


# --- in the loop --------------------------------------------------------------------------------


def always(**settings):
    """Two projected steps for whatever has a trigger."""
    return Safree(**{"phrases": ("fire", "hot"), "alpha": 0.0, **TWO, **settings})


def test_without_triggers_it_is_plain_guidance(tiny_parts, embedding):
    for negative in (Negative(), Negative("blurry", (embedding,))):
        plain, _, calls = sample(tiny_parts, ClassifierFree(negative))
        found, notes, ours = sample(tiny_parts, always(negative=negative, alpha=1e6))
        assert torch.equal(found, plain)
        assert ours == calls
        assert all(n["safree"]["triggers"] == [] for n in notes)
        assert all(n["safree"]["last"] == -1 for n in notes)
    on, notes, ours = sample(tiny_parts, always())
    assert ours == calls
    assert [bool(n["safree"]["triggers"]) for n in notes] == [True, True, False, True]
    plain, _, _ = sample(tiny_parts, ClassifierFree())
    moved = (on - plain).abs().amax((1, 2, 3))
    assert moved[[0, 1, 3]].min() > 1e-3
    assert moved[2] < 1e-4


def test_new_states_are_used_up_to_the_last_step(tiny_parts):
    def late(step):
        inputs = sent[step][-1]
        own = encode(tiny_parts, ["ab cd"]).states[0]
        return bool(torch.allclose(inputs, own, atol=1e-4))

    for settings, expected in (
        ({}, [False, False, True]),
        ({"up_t": 0}, [False, True, True]),
        ({"validate": False}, [False, False, False]),
    ):
        sent = []
        handle = tiny_parts.unet.register_forward_pre_hook(
            lambda _m, _a, kwargs, sent=sent: sent.append(kwargs["encoder_hidden_states"]),
            with_kwargs=True,
        )
        try:
            sample(tiny_parts, always(**settings), ["ab cd"])
        finally:
            handle.remove()
        assert [late(i) for i in range(3)] == expected


@pytest.mark.parametrize("lra", [False, True])
def test_a_batch_is_its_pictures(tiny_parts, embedding, lra):
    # float64: the filter compares coefficients, and where two nearly tie, float32 rounds one way
    # in a batch and the other way alone.
    text = copy.deepcopy(tiny_parts.text_encoders[0]).double()
    unet = copy.deepcopy(tiny_parts.unet).double()
    parts = replace(tiny_parts.with_text_encoders([text]), unet=unet)
    prompts = ["ab cd", "x", "", "on and on " * 30, "ab cd"]
    method = always(embeddings=(embedding,), columns="vectors", reattention=lra)
    together, notes, calls = sample(parts, method, prompts)
    assert together.isfinite().all()
    assert calls == ([8, 8, 6, 8, 8] if lra else [6] * 5)
    for i, prompt in enumerate(prompts):
        alone, note, _ = sample(parts, method, [prompt], [i])
        torch.testing.assert_close(together[i], alone[0], atol=1e-8, rtol=0)
        assert note == notes[i : i + 1]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("lra", [False, True])
def test_a_subset_of_pictures(tiny_parts, embedding, kind, lra):
    config = {**tiny_parts.scheduler_config, "prediction_type": kind}
    parts = replace(tiny_parts, scheduler_config=config)
    method = always(negative=Negative("x", (embedding,)), reattention=lra)
    seen = []

    class Some(Method):
        @contextmanager
        def begin(self, prompts):
            with method.begin(prompts) as inner:
                yield Session(inner)

    class Session(MethodSession):
        def __init__(self, inner):
            self.inner = inner
            self.notes = inner.notes

        def predict(self, step, query_unet, pictures=None):
            full = self.inner.predict(step, query_unet)
            some = self.inner.predict(step, query_unet, (3, 2))
            torch.testing.assert_close(some, full[[3, 2]], atol=1e-3, rtol=0)
            seen.append(some)
            return full

    latents, _, _ = sample(parts, Some())
    assert len(seen) == 3
    assert latents.isfinite().all()
    open_gate, _, _ = sample(parts, Gated(method, Window()))
    torch.testing.assert_close(open_gate, latents, atol=1e-3, rtol=0)
    shut, _, _ = sample(parts, Gated(method, Window(0.9, 1.0)))
    assert torch.equal(shut, sample(parts, Gated(ClassifierFree(), Window(0.9, 1.0)))[0])


# --- latent re-attention ------------------------------------------------------------------------


def test_the_filter_of_features_by_hand():
    rewritten, original = noise(2, 3, 4, 6), noise(2, 3, 4, 6, seed=1)
    found = reattend(rewritten, original, 0.2)
    for i in range(2):
        for channel in range(3):
            ours = np.fft.fft2(rewritten[i, channel].double().numpy())
            theirs = np.fft.fft2(original[i, channel].double().numpy())
            for row in (0, -1):
                for column in (0, -1):
                    if abs(ours[row, column]) > abs(theirs[row, column]):
                        ours[row, column] *= 0.2
            np.testing.assert_allclose(found[i, channel], np.fft.ifft2(ours).real, atol=1e-5)
    torch.testing.assert_close(reattend(rewritten, original, 1.0), rewritten)
    torch.testing.assert_close(reattend(rewritten, rewritten, 0.0), rewritten)
    torch.testing.assert_close(reattend(rewritten, 1e6 * rewritten, 0.0), rewritten)
    assert reattend(rewritten.half(), original.half(), 0.2).dtype == torch.float16


def test_the_unet_is_as_before_also_after_an_exception(tiny_parts):
    unet = tiny_parts.unet
    condition = encode(tiny_parts, ["ab", "fire", "hot"])
    x, t = noise(3, 4, 8, 8), torch.tensor(500)

    def output():
        with torch.no_grad():
            return run_unet(unet, x, t, condition)

    before, weights = output(), {k: v.clone() for k, v in unet.state_dict().items()}
    with reattending(unet, Reattention(), 1):
        inside = output()
    with pytest.raises(ZeroDivisionError), reattending(unet, Reattention(), 1):
        raise ZeroDivisionError
    broken = always(reattention=True, negative=Negative())
    with pytest.raises(KeyboardInterrupt):
        sample_latents(tiny_parts, ["ab cd"], [0], broken, SETTINGS, on_step=_interrupt_at(1))
    # Only the row of the rewritten prompt differs inside, and nothing afterwards.
    assert torch.equal(inside[[0, 2]], before[[0, 2]])
    assert (inside[1] - before[1]).abs().max() > 1e-4
    assert torch.equal(output(), before)
    assert all(torch.equal(v, weights[k]) for k, v in unet.state_dict().items())
    assert not any(b._forward_pre_hooks or b._forward_hooks for b in unet.modules())


def _interrupt_at(index):
    def on_step(step):
        if step.index == index:
            raise KeyboardInterrupt

    return on_step


def test_reattention_costs_a_row_where_states_are_new_and_nothing_at_one(tiny_parts):
    off, _, _ = sample(tiny_parts, always())
    with counted_rows(tiny_parts.unet) as rows:
        on, _, calls = sample(tiny_parts, always(reattention=True))
    assert rows == [11, 11, 8]
    assert calls == [8, 8, 6, 8]
    assert (on - off).abs().max() > 1e-3
    still, _, _ = sample(tiny_parts, always(reattention=Reattention((1.0, 1.0))))
    torch.testing.assert_close(still, off, atol=1e-4, rtol=0)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phrases": ()}, "give phrases or an embedding"),
        ({"phrases": ("", " ")}, "give phrases or an embedding"),
        ({"phrases": "fire"}, "give a list"),
        ({"columns": "pooling"}, "did you mean 'pooled'"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"k": 0}, "k is 0"),
        ({"t": float("inf")}, "t is inf"),
        ({"up_t": -1}, "up_t is -1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(IneError, match=message):
        Safree(**{"phrases": ("fire",), **settings})


@pytest.mark.parametrize("s", [(0.9,), (0.9, float("nan")), (1.5, 0.2), (-0.1, 0.2)])
def test_factors_that_make_no_sense(s):
    with pytest.raises(IneError, match="give two factors"):
        Reattention(s)


def test_what_does_not_fit_the_model_is_refused(tiny_parts, embedding, monkeypatch):
    wide = new_embedding(noise(2, 768), "wide-neg", "wide")
    with pytest.raises(EmbeddingError, match="'wide-neg' has width 768"):
        Safree(embeddings=(wide,)).concept(tiny_parts)
    monkeypatch.setattr("ine.guidance.safree.concept_columns", lambda *_: torch.eye(32))
    with pytest.raises(IneError, match="span the whole text width"):
        Safree(embeddings=(embedding,)).concept(tiny_parts)


def test_the_subspace_of_a_negative(embedding):
    negative = Negative("fire, burning ,fire, fire-neg", (embedding,))
    both = safree_against(negative)
    assert both.phrases == ("fire", "burning")
    assert both.embeddings == (embedding,)
    assert both.negative == negative
    assert safree_against(negative, slot=False, alpha=0.1).negative == Negative()
