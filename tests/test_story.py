"""The argument of the project on the bundled model, at small N, with its controls."""

from dataclasses import replace

import numpy as np
import pytest

from ine.calibration.prompts import benign_prompts
from ine.calibration.scores import gate_scores
from ine.calibration.teach import ABSENT, teach_probes
from ine.calibration.thresholds import threshold_for
from ine.detectors.features import top_object
from ine.detectors.rules import find_rule
from ine.detectors.table import load_detector
from ine.embeddings.embedding import read_embedding
from ine.embeddings.fit import check_fits, fingerprints
from ine.files import shipped
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.probe import ProbeGate
from ine.guidance.restart import Restart
from ine.inversion.preview import in_units
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from ine.studies.cases import cases_of
from ine.studies.controls import random_like
from ine.unlearning.run import unlearn_concept
from ine.weights.apply import apply_weights
from ine.weights.fingerprint import same_weights

ATTRIBUTES = ("fire", "snow", "flowers")
STRENGTH = 8.0
"""Of the additive guidance, as `ine demo` chooses from."""

SAMPLER = SamplerSettings(scheduler="ddim", steps=12, guidance_scale=5.0, batch=16)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("fire")


@pytest.fixture(scope="module")
def unlearned(recipe, tmp_path_factory):
    base = load_parts("mini")
    file = tmp_path_factory.mktemp("uce") / "uce.safetensors"
    unlearn_concept(base, recipe, "uce", dict(recipe.erase.uce), file)
    return apply_weights(base, file)[0]


@pytest.fixture(scope="module")
def judge():
    return load_detector("mini-judge2")


@pytest.fixture(scope="module")
def embedding():
    return read_embedding(shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors")


def look(parts, recipe, judge, name, count, guidance=None, sampler=SAMPLER):
    cases = cases_of(recipe, name, count, recipe.prompt_nouns, seed=9)
    pictures = in_units(
        parts, [c.prompt for c in cases], [c.seed for c in cases], guidance, sampler
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
    undefended, _ = look(unlearned, recipe, judge, "implying_tuning", 48)
    guided = Additive(Negative("", (embedding,)), STRENGTH)
    defended, subject = look(unlearned, recipe, judge, "implying_tuning", 48, guided)
    chance = Additive(Negative("", (random_like(embedding),)), STRENGTH)
    random, _ = look(unlearned, recipe, judge, "implying_tuning", 48, chance)
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
    by_words, _ = look(unlearned, recipe, judge, "implying_tuning", 48, words)
    by_ours, _ = look(unlearned, recipe, judge, "implying_tuning", 48, ours)
    assert by_ours < by_words


def test_what_is_recognised_and_restarted_loses_the_fire_and_the_rest_is_left_alone(
    unlearned, recipe, judge, embedding, tmp_path
):
    negative, queries = Negative("", (embedding,)), (0.5,)
    rule, chooser = find_rule(recipe.pictures.rule), load_detector("mini-judge")
    sampler = replace(SAMPLER, steps=20)  # of fewer, half a run shows too little
    taught = teach_probes(
        *(unlearned, recipe, (embedding,), sampler, queries, rule, chooser),
        count=80,
        folder=tmp_path,
        base=load_parts("mini"),
    )
    assert sum(kind["kept"] for name, kind in taught.record.items() if name != ABSENT) >= 40
    gate = ProbeGate(0.0, taught.late, queries, "fire")
    prompts = benign_prompts(recipe, 39, 77)
    scores = gate_scores(unlearned, prompts, list(range(39)), gate, sampler)
    gate = replace(gate, threshold=threshold_for(scores, 0.1))
    restart = Restart(Gated(Additive(negative, STRENGTH), Window(0.0, 0.6)), gate)
    undefended, _ = look(unlearned, recipe, judge, "implying_tuning", 32, sampler=sampler)
    defended, _ = look(unlearned, recipe, judge, "implying_tuning", 32, restart, sampler)
    assert undefended >= 0.2, "nothing is left to defend against"
    assert defended <= undefended / 3
    cases = cases_of(recipe, "benign", 24, recipe.prompt_nouns, seed=9)
    texts, seeds = [c.prompt for c in cases], [c.seed for c in cases]
    plain, same = (in_units(unlearned, texts, seeds, g, sampler) for g in (None, restart))
    assert np.mean([np.array_equal(a, b) for a, b in zip(plain, same, strict=True)]) >= 0.75


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
