"""Guidance: algebra of the formulas, what the U-Net is asked, and what is done to nothing."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tiny import counted_rows, noise

from ine.embeddings.embedding import new_embedding
from ine.errors import EmbeddingError, IneError
from ine.guidance.additive import Additive, additive
from ine.guidance.cfg import ClassifierFree, classifier_free
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import Step, UNetQuery
from ine.guidance.sld import SafeLatent
from ine.guidance.strength import suggested_strength
from ine.guidance.table import METHODS, build_guidance, read_settings
from ine.sampling import SamplerSettings, sample_latents

PROMPTS = ("a dog", "a burning cat", "a house")
SEEDS = (3, 4, 5)
SETTINGS = SamplerSettings(steps=3, guidance_scale=5.0)


@pytest.fixture(scope="module")
def embedding():
    return new_embedding(noise(3, 32, seed=1), "fire-neg", "fire")


def sample(parts, guidance, settings=SETTINGS, prompts=PROMPTS):
    return sample_latents(parts, prompts, SEEDS[: len(prompts)], guidance, settings)


class Probe(Method, MethodSession):
    """A guidance of one function of (prompts, step, query_unet)."""

    def __init__(self, predict):
        self.function = predict

    @contextmanager
    def begin(self, prompts):
        self.prompts = prompts
        yield self

    def predict(self, step, query_unet, pictures=None):
        return self.function(self.prompts, step, query_unet)

    def notes(self):
        return [{} for _ in self.prompts.texts]


# --- formulas ---------------------------------------------------------------------------------


def test_classifier_free_guidance_at_scale_zero_one_and_with_equal_sides():
    negative, positive = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    assert torch.equal(classifier_free(negative, positive, 0.0), negative)
    torch.testing.assert_close(classifier_free(negative, positive, 1.0), positive)
    assert torch.equal(classifier_free(positive, positive, 7.5), positive)


def test_additive_guidance_has_plain_guidance_in_it():
    empty, positive, negative = (noise(2, 4, 8, 8, seed=s) for s in range(3))
    w = 5.0
    assert torch.equal(
        additive(empty, positive, negative, w, 0.0), classifier_free(empty, positive, w)
    )
    # At s = w - 1 the empty text cancels: w pos - (w - 1) neg.
    torch.testing.assert_close(
        additive(empty, positive, negative, w, w - 1), classifier_free(negative, positive, w)
    )
    torch.testing.assert_close(
        additive(empty, positive, empty, w, 3.0), classifier_free(empty, positive, w)
    )


@pytest.mark.parametrize("alpha_bar", [0.9991, 0.5, 0.0047])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_step_gives_back_the_noise_and_the_picture_it_was_made_of(kind, alpha_bar):
    x_0, eps = noise(2, 4, 8, 8).double(), noise(2, 4, 8, 8, seed=1).double()
    a = torch.tensor(alpha_bar, dtype=torch.float64)
    # Salimans and Ho 2022, appendix D, with alpha = sqrt(abar), sigma = sqrt(1 - abar).
    output = {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x_0}[kind]
    step = Step(
        index=0,
        count=1,
        t=torch.tensor(500),
        x_t=a.sqrt() * x_0 + (1 - a).sqrt() * eps,
        alpha_bar=a,
        prediction_type=kind,
    )
    torch.testing.assert_close(step.noise(output), eps)
    torch.testing.assert_close(step.preview(output), x_0)


# --- what stands in the negative slot -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", "fire-neg"),
        ("  ", "fire-neg"),
        ("blurry", "blurry, fire-neg"),
        ("blurry, fire-neg, ugly", "blurry, fire-neg, ugly"),
        ("Fire-Neg", "Fire-Neg"),
        ("fire-negative", "fire-negative, fire-neg"),
        ("xfire-neg", "xfire-neg, fire-neg"),
    ],
)
def test_a_trigger_joins_the_text_once(embedding, text, prompt):
    assert Negative(text, (embedding,)).prompt() == prompt


def test_several_embeddings_join_in_order(embedding):
    other = new_embedding(noise(2, 32), "snow-neg", "snow")
    negative = Negative("blurry", (embedding, other))
    assert negative.prompt() == "blurry, fire-neg, snow-neg"
    assert negative.vectors().keys() == {"fire-neg", "snow-neg"}
    assert Negative("snow-neg", (embedding, other)).prompt() == "snow-neg, fire-neg"
    assert Negative().prompt() == ""


def test_two_embeddings_of_one_trigger_are_refused(embedding):
    twin = new_embedding(noise(2, 32), "Fire-Neg", "fire")
    with pytest.raises(EmbeddingError, match="two embeddings have the trigger 'Fire-Neg'"):
        Negative("", (embedding, twin))


# --- in the loop --------------------------------------------------------------------------------


def test_a_negative_equal_to_the_prompt_leaves_the_prompts_prediction(tiny_parts):
    def positive_only(prompts, _step, query_unet):
        return query_unet([UNetQuery("positive", prompts.positive())])["positive"]

    latents, _, _ = sample(tiny_parts, ClassifierFree(Negative("a dog")), prompts=["a dog"])
    alone, _, calls = sample(tiny_parts, Probe(positive_only), prompts=["a dog"])
    plain, _, _ = sample(tiny_parts, ClassifierFree(), prompts=["a dog"])
    assert calls == [SETTINGS.steps]
    torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
    assert (plain - alone).abs().max() > 1e-2


def test_additive_without_a_strength_is_as_strong_as_plain_guidance(tiny_parts, embedding):
    negative = Negative("", (embedding,))
    free, _, _ = sample(tiny_parts, Additive(negative))
    tied, _, _ = sample(tiny_parts, ClassifierFree(negative))
    assert torch.allclose(free, tied, atol=1e-5)


def test_an_embedding_suggests_the_strength_that_its_header_states(embedding):
    stated = [
        replace(embedding, trigger=f"t-{s}", metadata={"ine.strength": s}) for s in ("3.0", "2.5")
    ]
    assert suggested_strength(stated) == 3.0
    assert suggested_strength([embedding]) is None
    broken = replace(embedding, metadata={"ine.strength": "strong"})
    assert suggested_strength([broken]) is None


def test_additive_at_strength_zero_is_plain_guidance(tiny_parts, embedding):
    negative = Negative(embeddings=(embedding,))
    plain, _, _ = sample(tiny_parts, ClassifierFree())
    off, _, _ = sample(tiny_parts, Additive(negative, strength=0.0))
    on, _, _ = sample(tiny_parts, Additive(negative, strength=2.0))
    torch.testing.assert_close(off, plain, atol=1e-4, rtol=0)
    assert (on - plain).abs().max() > 1e-2


def test_additive_at_scale_minus_one_is_guidance_from_the_negative(tiny_parts, embedding):
    negative = Negative("blurry", (embedding,))
    cfg, _, _ = sample(tiny_parts, ClassifierFree(negative))
    tied, _, _ = sample(tiny_parts, Additive(negative, strength=SETTINGS.guidance_scale - 1))
    torch.testing.assert_close(tied, cfg, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("method", "conditions"), [(ClassifierFree, 2), (Additive, 3)])
def test_unet_rows_per_picture_and_step(tiny_parts, embedding, method, conditions):
    for negative in (Negative(), Negative("blurry", (embedding,))):
        with counted_rows(tiny_parts.unet) as rows:
            _, notes, calls = sample(tiny_parts, method(negative))
        assert rows == [conditions * len(PROMPTS)] * SETTINGS.steps
        assert calls == [conditions * SETTINGS.steps] * len(PROMPTS)
        assert notes == [{}] * len(PROMPTS)


def test_asking_about_some_pictures_computes_only_those(tiny_parts):
    checked = []

    def predict(prompts, step, query_unet):
        positive, empty = prompts.positive(), prompts.encode([""])
        full = query_unet([UNetQuery("positive", positive), UNetQuery("empty", empty)])
        some = query_unet(
            [
                UNetQuery("one", positive.rows([2]), pictures=(2,)),
                UNetQuery("two", empty, pictures=(2, 0)),
                UNetQuery("none", empty, pictures=()),
            ]
        )
        assert [len(some[name]) for name in ("one", "two", "none")] == [1, 2, 0]
        close = {"atol": 1e-5, "rtol": 0}
        torch.testing.assert_close(some["one"], full["positive"][[2]], **close)
        torch.testing.assert_close(some["two"], full["empty"][[2, 0]], **close)
        assert (full["empty"][2] - full["empty"][0]).abs().max() > 1e-2
        assert (full["empty"] - full["positive"]).abs().max() > 1e-3
        checked.append(step.index)
        return full["positive"]

    with counted_rows(tiny_parts.unet) as rows:
        _, _, calls = sample(tiny_parts, Probe(predict))
    assert checked == [0, 1, 2]
    assert rows == [6, 3] * SETTINGS.steps
    assert sum(calls) == 9 * SETTINGS.steps


def test_a_condition_of_all_pictures_is_not_quietly_used_for_some(tiny_parts):
    def predict(prompts, _step, query_unet):
        return query_unet([UNetQuery("positive", prompts.positive(), pictures=(2,))])["positive"]

    with pytest.raises(ValueError, match="3 rows cannot be asked of 1"):
        sample(tiny_parts, Probe(predict))


def test_sampling_with_an_embedding_leaves_the_model_as_it_was(tiny_parts, embedding):
    modules = (*tiny_parts.text_encoders, tiny_parts.unet)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    for method in (ClassifierFree, Additive):
        sample(tiny_parts, method(Negative(embeddings=(embedding,))))
    for module, weights in zip(modules, before, strict=True):
        assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())
    assert not tiny_parts.text_encoders[0].get_input_embeddings()._forward_hooks
    assert not tiny_parts.unet._forward_hooks


def test_the_table_builds_every_method():
    negative = Negative("blurry")
    assert build_guidance("cfg", negative) == ClassifierFree(negative)
    assert build_guidance("additive", negative) == Additive(negative)
    assert build_guidance("additive", negative, None, {"strength": 0.0}) == Additive(negative, 0.0)
    assert build_guidance("sld", negative, "max", {"warmup": 2}) == SafeLatent.preset(
        "max", negative, warmup=2
    )
    assert build_guidance("safree", negative, None, {"slot": False}).negative == Negative()
    for method in METHODS.values():
        needs = (
            {"observer": "judge:mini-fire@0.5", "concept": "fire"}
            if "observer" in method.settings
            else {}
        )
        built = build_guidance(method.name, negative, None, needs)
        assert isinstance(built, method.kind)
        assert "negative" not in method.settings


@pytest.mark.parametrize(
    ("name", "preset", "settings", "words"),
    [
        ("sdl", None, {}, "did you mean 'sld'"),
        ("cfg", "max", {}, "has no presets"),
        ("sld", "stong", {}, "did you mean 'strong'"),
        ("sld", None, {"treshold": 1}, "did you mean 'threshold'"),
        ("cfg", None, {"strength": 1.0}, "known: none"),
        ("additive", None, {"strength": float("nan")}, "strength"),
        ("additive", None, {"strength": -1.0}, "strength"),
    ],
)
def test_what_the_table_refuses(name, preset, settings, words):
    with pytest.raises(IneError, match=words):
        build_guidance(name, Negative("blurry"), preset, settings)


def test_settings_are_read_as_what_they_are():
    assert read_settings(["a=1", "b=5e-3", "c=true", "d=pooled"]) == {
        "a": 1,
        "b": 0.005,
        "c": True,
        "d": "pooled",
    }
    with pytest.raises(IneError, match="setting=value"):
        read_settings(["a"])
