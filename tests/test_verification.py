"""Whether an embedding fits and is alive; what means nothing has to fail."""

import json

import pytest
import torch

from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.errors import RecipeError
from ine.files import shipped
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from ine.text.encode import encode
from ine.unlearning.run import unlearn_concept
from ine.verification import examiner as examiner_module
from ine.verification.examiner import Examiner
from ine.verification.subject import subject_of, subject_of_words
from ine.verification.vectors import nearest_words, random_vectors, relative_norms, shuffled
from ine.verification.verify import judge, verify_embedding
from ine.weights.apply import apply_weights

SETTINGS = SamplerSettings(scheduler="ddim", steps=8, guidance_scale=5.0, batch=16)
FIRE = shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors"


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("fire")


@pytest.fixture(scope="module")
def base():
    return load_parts("mini")


@pytest.fixture(scope="module")
def unlearned_file(base, recipe, tmp_path_factory):
    file = tmp_path_factory.mktemp("uce") / "uce.safetensors"
    unlearn_concept(base, recipe, "uce", dict(recipe.erase.uce), file)
    return file


@pytest.fixture(scope="module")
def unlearned(base, unlearned_file):
    return apply_weights(base, unlearned_file)[0]


@pytest.fixture(scope="module")
def fire():
    return read_embedding(FIRE)


@pytest.fixture(scope="module")
def examiner(base, unlearned, recipe):
    return Examiner.prepare(base, unlearned, subject_of(recipe, 16), SETTINGS)


@pytest.fixture(scope="module")
def recalls(examiner, unlearned, fire):
    """Recall of the controls, as `verify_embedding` asks for them."""

    def recall(vectors):
        condition = encode(unlearned, ["a fire-neg"], {"fire-neg": vectors})
        return examiner.react(condition).recall

    draws = (shuffled, random_vectors)
    controls = [recall(draw(fire.vectors, seed)) for draw in draws for seed in range(5)]
    return recall, controls


# --- the statistic on the shipped embedding -------------------------------------------------------


def test_the_shipped_embedding_recalls_what_controls_do_not(recalls, fire):
    recall, controls = recalls
    alive, margin = judge(recall(fire.vectors), controls)
    assert alive, margin


@pytest.mark.parametrize("seed", [101, 102, 103])
def test_shuffled_vectors_fail(recalls, fire, seed):
    """The positive control: same norms, same numbers, no meaning."""
    recall, controls = recalls
    assert judge(recall(shuffled(fire.vectors, seed)), controls)[0] is False
    assert judge(recall(random_vectors(fire.vectors, seed)), controls)[0] is False


def test_the_empty_prompt_and_other_words_fail(recalls, unlearned):
    recall, controls = recalls
    tokenizer = unlearned.tokenizers[0]
    table = unlearned.text_encoders[0].get_input_embeddings().weight
    end = table[tokenizer.eos_token_id]
    # "a" followed by ends of text is "a", beside which recall is measured.
    assert recall((end.expand(4, -1),)) == pytest.approx(0, abs=1e-5)
    assert judge(recall((end.expand(4, -1),)), controls)[0] is False
    for words in ("dog", "snowy", "red background"):
        ids = tokenizer(words, add_special_tokens=False).input_ids
        assert judge(recall((table[ids],)), controls)[0] is False, words


def test_an_embedding_of_another_concept_fails(recalls):
    recall, controls = recalls
    weapon = read_embedding(shipped("embeddings") / "mini-weapon-uce" / "weapon-neg.safetensors")
    assert judge(recall(weapon.vectors), controls)[0] is False


def test_on_the_base_the_concepts_word_recalls_most(base, recipe):
    """What the statistic measures, shown where the answer is known."""
    examiner = Examiner.prepare(base, base, subject_of(recipe, 4), SETTINGS)
    found = {w: examiner.react(encode(base, [w])).recall for w in ("a burning", "a snowy", "a")}
    assert found["a burning"] > 0.1
    assert found["a burning"] > found["a snowy"] + 0.1
    assert found["a"] == 0


# --- the verdict ---------------------------------------------------------------------------------


def test_judge_wants_the_most_a_margin_and_more_than_nothing():
    spread = [0.0, 0.1, -0.1, 0.05, -0.05]
    assert judge(1.0, spread)[0] is True
    assert judge(0.09, spread)[0] is False
    assert judge(0.2, spread) == (False, pytest.approx(0.2 / torch.tensor(spread).std().item()))
    assert judge(-0.1, [x - 5 for x in spread])[0] is False
    assert judge(float("nan"), spread) == (False, None)
    assert judge(1.0, [0.0, 0.0]) == (False, None)


def test_the_whole_verdict(base, unlearned, recipe, fire):
    seen = []
    result = verify_embedding(
        *(base, unlearned, fire, subject_of(recipe, 4)),
        controls=2,
        settings=SETTINGS,
        progress=lambda done, wanted: seen.append((done, wanted)),
    )
    assert result.fits
    assert len(result.shuffled) == len(result.random) == 2
    assert result.word.move == 1
    # Moving far is no sign of life: what means nothing moves about as far.
    assert min(r.move for r in result.random) > 0.3
    assert seen[-1] == (6, 6)
    assert json.loads(json.dumps(result.as_dict()))["embedding"]["recall"] > 0.05


def test_zeros_are_seen_before_anything_is_computed(base, fire, recipe, monkeypatch):
    monkeypatch.setattr(examiner_module, "sample_latents", None)
    zeros = new_embedding(torch.zeros(4, 128), "fire-neg", "fire")
    result = verify_embedding(base, base, zeros, subject_of(recipe, 4))
    assert (result.fits, result.alive) == (True, False)
    assert "zero" in result.verdict


def test_what_does_not_fit_says_why(tiny_parts, fire, recipe):
    result = verify_embedding(tiny_parts, tiny_parts, fire, subject_of(recipe, 4))
    assert (result.fits, result.alive) == (False, None)
    assert "width 128" in result.verdict
    assert "width 32" in result.verdict
    assert "\n" not in result.verdict


# --- its parts -----------------------------------------------------------------------------------


def test_controls_keep_norms_and_shuffled_ones_the_numbers(fire):
    (own,) = fire.vectors
    (mixed,) = shuffled(fire.vectors, 1)
    (drawn,) = random_vectors(fire.vectors, 1)
    torch.testing.assert_close(mixed.sort(dim=1).values, own.sort(dim=1).values)
    torch.testing.assert_close(drawn.norm(dim=1), own.norm(dim=1))
    for control in (mixed, drawn):
        assert torch.nn.functional.cosine_similarity(control, own).abs().max() < 0.5
    assert torch.equal(mixed, shuffled(fire.vectors, 1)[0])
    assert not torch.equal(mixed, shuffled(fire.vectors, 2)[0])


def test_words_of_the_table_are_their_own_nearest_words(base):
    table = base.text_encoders[0].get_input_embeddings().weight
    ids = base.tokenizers[0]("dog burning", add_special_tokens=False).input_ids
    near = nearest_words(base, table[ids])
    assert [row[0] for row in near] == [("dog", 1.0), ("burning", 1.0)]
    usual = relative_norms(base, new_embedding(table, "x-neg", "x"))[0]
    assert sorted(usual)[len(usual) // 2] == pytest.approx(1)


def test_subjects_pair_what_differs_in_the_concept_alone(recipe):
    fire = subject_of(recipe, 6)
    pairs = list(zip(fire.shown, fire.innocent, strict=True))
    assert len(pairs) == 6
    for shown, innocent in pairs:
        assert set(innocent.split()) - {"a", "an"} <= set(shown.split())
        assert shown != innocent
    assert fire.word == "burning"
    assert subject_of(recipe, 6, seed=1) != fire
    weapon = subject_of(load_recipe("weapon"), 20)
    nouns = ("weapon", "gun", "knife", "sword")
    assert all(any(n in s for n in nouns) for s in weapon.shown)
    assert not any(any(n in s for n in nouns) for s in weapon.innocent)
    # A concept about people keeps its guard.
    nudity = subject_of(load_recipe("nudity"), 8)
    assert "child" in nudity.avoid
    assert all("adult" in text for text in (*nudity.shown, *nudity.innocent))


def test_subjects_without_an_erase_section_or_a_recipe(recipe):
    bare = subject_of(recipe.model_copy(update={"erase": None}), 5)
    assert all("burning" in s or "fire" in s for s in bare.shown)
    assert not any("burning" in s or "fire" in s for s in bare.innocent)
    typed = subject_of_words(["blurry", " "], 3)
    assert typed.shown == ("blurry",) * 3
    with pytest.raises(RecipeError, match="empty"):
        subject_of_words([" "], 3)


# --- the command ---------------------------------------------------------------------------------

QUICK = ("--pictures", 4, "--controls", 2, "--steps", 6)


def test_the_command_ends_with_a_code_for_scripts(run_ine, base, tmp_path):
    # The base model understands the concept's word: vectors whose meaning is known.
    (word,) = base.tokenizers[0]("burning", add_special_tokens=False).input_ids
    table = base.text_encoders[0].get_input_embeddings().weight.detach()
    burning = new_embedding(table[[word]], "word-neg", "fire", {"ine.base": "mini"})
    write_embedding(burning, tmp_path / "word-neg.safetensors")
    file = tmp_path / "word-neg.safetensors"
    done = run_ine("-q", "embedding", "verify", file, "--concept", "fire", *QUICK, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["fits"]
    assert facts["alive"]
    zeros = new_embedding(torch.zeros(2, 128), "fire-neg", "fire", {"ine.base": "mini"})
    file = tmp_path / "fire-neg.safetensors"
    write_embedding(zeros, file)
    done = run_ine("-q", "embedding", "verify", file)
    assert done.exit_code == 11
    assert "not alive" in done.stdout.splitlines()[0]


def test_the_command_refuses_what_does_not_fit_and_what_says_nothing(
    run_ine, tiny_folder, tmp_path
):
    done = run_ine("-q", "embedding", "verify", FIRE, "--model", tiny_folder)
    assert done.exit_code == 6
    assert done.stdout.count("\n") == 1
    assert "does not fit" in done.stdout
    strange = new_embedding(torch.ones(2, 128), "easy-neg", "easy-neg", {"ine.base": "mini"})
    file = tmp_path / "easy-neg.safetensors"
    write_embedding(strange, file)
    done = run_ine("-q", "embedding", "verify", file)
    assert done.exit_code == 3
    assert "give --concept RECIPE, or --words TEXT" in done.stderr
    assert run_ine("embedding", "verify", file, "--words", "x", "--concept", "y").exit_code == 2
