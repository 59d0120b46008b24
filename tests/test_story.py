"""The argument of the project on the bundled model, at small N, with its controls."""

import numpy as np
import pytest

from ine.embedding import check_fits, fingerprints, read_embedding
from ine.evaluation.defences import random_like
from ine.evaluation.study import cases_of, top_object
from ine.files import shipped
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.inversion.preview import in_units
from ine.judging.detectors import load_detector
from ine.models.checkpoints import lay_weights
from ine.models.fingerprint import same_weights
from ine.models.parts import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from ine.unlearning.run import unlearn_concept

ATTRIBUTES = ("fire", "snow", "flowers")
SAMPLER = SamplerSettings(scheduler="ddim", steps=20, guidance_scale=5.0, batch=16)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("fire")


@pytest.fixture(scope="module")
def unlearned(recipe, tmp_path_factory):
    base = load_parts("mini")
    file = tmp_path_factory.mktemp("uce") / "uce.safetensors"
    unlearn_concept(base, recipe, "uce", dict(recipe.erase.uce), file)
    return lay_weights(base, file)[0]


@pytest.fixture(scope="module")
def judge():
    return load_detector("mini-judge2")


@pytest.fixture(scope="module")
def embedding():
    return read_embedding(shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors")


def look(parts, recipe, judge, name, count, guidance=None):
    cases = cases_of(recipe, name, count, recipe.prompt_nouns, seed=9)
    pictures = in_units(
        parts, [c.prompt for c in cases], [c.seed for c in cases], guidance, SAMPLER
    )
    scores = judge(pictures)
    fire = np.mean([s["fire"] >= 0.5 for s in scores])
    right = np.mean(
        [top_object(s, ATTRIBUTES) == c.noun for s, c in zip(scores, cases, strict=True)]
    )
    return fire, right


def test_the_eraser_forgets_the_words_and_keeps_the_rest(unlearned, recipe, judge):
    assert look(unlearned, recipe, judge, "explicit", 48)[0] <= 0.1
    assert look(unlearned, recipe, judge, "benign", 48)[1] >= 0.85


def test_the_embedding_defends_and_random_vectors_do_not(unlearned, recipe, judge, embedding):
    undefended, _ = look(unlearned, recipe, judge, "implying_tuning", 64)
    guided = Additive(Negative("", (embedding,)), recipe.strength)
    defended, subject = look(unlearned, recipe, judge, "implying_tuning", 64, guided)
    chance = Additive(Negative("", (random_like(embedding),)), recipe.strength)
    random, _ = look(unlearned, recipe, judge, "implying_tuning", 64, chance)
    assert undefended >= 0.2, "nothing is left to defend against"
    assert defended <= undefended / 2
    assert random >= undefended * 0.6
    assert subject >= 0.8


def test_as_a_prompt_the_embedding_revives_what_the_words_no_longer_do(
    unlearned, recipe, judge, embedding
):
    from ine.inversion.preview import revive

    pictures = revive(unlearned, recipe, embedding.vectors, embedding.trigger, 32, SAMPLER, 3)
    revived = np.mean([s["fire"] >= 0.5 for s in judge(pictures)])
    assert revived >= look(unlearned, recipe, judge, "explicit", 32)[0] + 0.2


def test_plain_guidance_with_the_embedding_beats_plain_guidance_with_words(
    unlearned, recipe, judge, embedding
):
    words = ClassifierFree(Negative(recipe.words.negative_text()))
    ours = ClassifierFree(Negative("", (embedding,)))
    by_words, _ = look(unlearned, recipe, judge, "implying_tuning", 64, words)
    by_ours, _ = look(unlearned, recipe, judge, "implying_tuning", 64, ours)
    assert by_ours < by_words


def test_every_shipped_embedding_fits_mini():
    base = load_parts("mini")
    own = fingerprints(base)["ine.base_fingerprint"]
    files = sorted(shipped("embeddings").rglob("*.safetensors"))
    assert files
    for file in files:
        embedding = read_embedding(file)
        # The base itself is not the U-Net that was inverted, which is worth a note and no error.
        assert len(check_fits(embedding, base)) == 1
        assert same_weights(embedding.metadata["ine.base_fingerprint"], own)
