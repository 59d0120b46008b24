"""Prompts refined by what is seen: what a model is asked, what it answers, who may answer."""

from dataclasses import replace

import numpy as np
import pytest
from observer_stub import serving
from tiny_vlm import save_llava

from ine.errors import ObserverError, RecipeError
from ine.observers.asking import Reply
from ine.observers.table import ObserverSettings, load_asker
from ine.refining.answers import read_answer
from ine.refining.asking import AskingRewriter, conversation_of
from ine.refining.settings import PRESETS, RefineSettings, preset
from ine.refining.table import load_rewriter, rewriter_name
from ine.refining.teacher import Teacher, TeacherRewriter, teacher_of

OURS = RefineSettings()
RELEASED = PRESETS["as-released"]
AWKWARD = "a sign that says \"stop\"\nand a 'second' line {prompt} %s \\n"


def said(raw, settings=OURS, **given):
    found = read_answer(raw, settings, **given)
    return found.kind, found.prompt or found.why


# --- keep ---------------------------------------------------------------------------------------


KEPT = (
    *("keep", "Keep", " KEEP.\n", '"keep"', "'keep.'", "**keep**", "`keep`", "\u201ckeep\u201d"),
    *("keep!", "Keep - both are safe.", "keep\n\nThe picture is safe.", "Answer: keep"),
    *('"keep".', "**Keep.**", '"Answer: keep".', "**Answer:** `keep`", "keep (both are safe)"),
)


@pytest.mark.parametrize("raw", KEPT)
def test_keep_is_recognised_without_regard_to_case_quotes_and_marks(raw):
    found = read_answer(raw, OURS)
    assert (found.kind, found.raw) == ("keep", raw)


def decorated(word, rng, most=6):
    """Return a word with quotes, emphasis, brackets and stops around it, in any order."""
    around = [*"\"'`*_ \n.,!;:?#()[]\u201c\u201d\u2018\u2019\u00ab\u00bb\u2026", "**", "```", "- "]
    before = "".join(rng.choice(around, rng.integers(most)))
    cased = "".join(c.upper() if rng.random() < 0.5 else c for c in word)
    return before + cased + "".join(rng.choice(around, rng.integers(most)))


def test_keep_is_keep_in_whatever_marks_and_no_other_word_is():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        raw, other = decorated("keep", rng), decorated("a dog", rng)
        assert said(raw) == ("keep", None), repr(raw)
        assert said(other)[0] == "rewrite", repr(other)
        assert read_answer(raw, RELEASED).kind == ("keep" if raw.strip().lower() == "keep" else
                                                   "rewrite")  # fmt: skip


def test_marks_without_end_are_read_in_no_time():
    for raw in ("\n" * 20_000 + "kee", "keep" + " " * 20_000 + "the dog", '"' * 20_000):
        assert said(raw)[0] != "keep"


KEPT_WORD = (
    *("keep the dog away from the fire", "keepsake box", "a keep", "keep-fit class"),
    *("keeper, at night", "upkeep"),
)


@pytest.mark.parametrize("raw", KEPT_WORD)
def test_a_prompt_with_the_word_keep_is_a_prompt(raw):
    assert said(raw) == ("rewrite", raw)


def test_as_released_only_the_bare_word_is_keep():
    assert said(" Keep\n", RELEASED) == ("keep", None)
    assert said("keep.", RELEASED) == ("rewrite", "keep.")
    assert read_answer("keep.", OURS).is_bare is False
    assert read_answer("KEEP ", OURS).is_bare is True


# --- rewrites, and what is none -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        ("a dog in a meadow", "a dog in a meadow"),
        ('"a dog"', "a dog"),
        ('"a dog".', "a dog"),
        ("**a dog**.", "a dog"),
        ("a dog.", "a dog."),
        ('a sign that says "stop".', 'a sign that says "stop".'),
        ("Rewritten Prompt: a dog", "a dog"),
        ("**The revised safe prompt:** 'a dog'", "a dog"),
        ("there was a dog", "there was a dog"),
        ('a sign that says "open" and a dog', 'a sign that says "open" and a dog'),
    ],
)
def test_a_rewrite_is_read_without_label_and_quotes(raw, prompt):
    assert said(raw) == ("rewrite", prompt)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("", "empty"),
        (' "." ', "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I cannot rewrite this prompt", "refusal"),
        ("The image shows a dog on fire.", "description"),
        ("This prompt is unsafe", "description"),
        ("In the picture, a dog burns", "description"),
        ("Sure! a dog", "prose"),
        ("I would suggest a dog in a meadow instead.", "prose"),
        ("a dog\n\nThis removes the fire.", "prose"),
        ("dog " * 76, "too long"),
        ("a naked child", "screened"),
    ],
)
def test_what_is_no_prompt_is_unusable_and_never_keep(raw, why):
    assert said(raw) == ("unusable", why)


def test_as_released_whatever_is_said_is_the_prompt_but_screening_holds():
    assert said("The image shows a dog on fire.", RELEASED)[0] == "rewrite"
    assert said("dog " * 500, RELEASED)[0] == "rewrite"
    assert said("a naked child", RELEASED) == ("unusable", "screened")
    assert said("  ", RELEASED) == ("unusable", "empty")


def test_the_prompt_of_the_picture_is_no_rewrite_unless_the_noise_is_another():
    first = {"original": "a dog on fire", "current": "a dog on fire"}
    assert said("A dog, on fire.", **first) == ("unusable", "unchanged")
    rewritten = {"original": "a dog on fire", "current": "a dog"}
    assert said("a dog.", **rewritten) == ("repeat", "a dog")
    current = RefineSettings(query="current")
    assert said("a dog.", current, **rewritten) == ("unusable", "unchanged")
    fresh = RefineSettings(fresh_noise=True)
    assert said("a dog on fire", fresh, current="a dog on fire") == ("rewrite", "a dog on fire")


def test_a_long_or_many_lined_prompt_may_stay_as_long():
    long = "a dog and a cat " * 30
    assert said(long.strip(), original=long + "more")[0] == "rewrite"
    assert said("a dog,\nat night", original="a dog,\non fire")[0] == "rewrite"
    assert said("a dog,\nat night", original="a dog on fire") == ("unusable", "prose")


# --- how many are asked at a time ---


def test_a_batch_decides_answers_only_with_padding_on_the_right():
    few, many = preset("ine", batch=2), preset("ine", batch=40)
    assert few.deciding == many.deciding
    few, many = preset("as-released", batch=2), preset("as-released", batch=40)
    assert few.deciding != many.deciding
    with pytest.raises(RecipeError, match="the others 1 or more"):
        preset("ine", batch=0)


def test_a_local_model_is_asked_as_many_at_a_time_as_said_and_on_a_side(tmp_path):
    """Left, a batch is answered as each alone; right, replies of a batch are never kept."""
    folder = save_llava(tmp_path / "llava")
    how = ObserverSettings(device="cpu", cache=tmp_path / "kept")
    prompts = ["a dog", "fire " * 30, "a cat", "what is there in the picture of a dog ?"]
    seen = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    said, sizes = {}, {}
    for padding, batch in (("left", 1), ("left", 4), ("right", 4)):
        settings = preset("ine", padding=padding, batch=batch, max_tokens=12)
        here = replace(how, cache=how.cache / f"{padding}{batch}")
        rewriter = load_rewriter(f"vlm:{folder}", settings, here)
        said[padding, batch] = [reply.text for reply in rewriter(prompts, seen)]
        asker = getattr(rewriter.asker, "asker", rewriter.asker)
        sizes[padding, batch] = (asker.batch, asker.tokenizer.padding_side, here.cache.exists())
    assert said["left", 4] == said["left", 1]
    assert sizes == {
        ("left", 1): (1, "left", True),
        ("left", 4): (4, "left", True),
        ("right", 4): (4, "right", False),
    }


def test_a_model_is_asked_about_words_alone(tmp_path):
    folder = save_llava(tmp_path / "llava")
    rewriter = load_rewriter(f"vlm:{folder}", preset("ine", picture=False, max_tokens=6))
    one, other = (np.full((2, 32, 32, 3), value, np.uint8) for value in (0, 255))
    assert rewriter(["a dog", "a cat"], one) == rewriter(["a dog", "a cat"], other)


# --- what is asked ------------------------------------------------------------------------------


def test_prompts_are_asked_about_as_they_stand():
    picture = np.zeros((8, 8, 3), np.uint8)
    system, user = conversation_of(AWKWARD, picture).turns
    assert system.role == "system"
    assert user.text == f"Original Prompt: {AWKWARD}"
    assert user.picture is picture


def test_without_pictures_the_prompt_alone_is_asked_about():
    settings = RefineSettings(picture=False, system="")
    [user] = conversation_of("x", np.zeros((8, 8, 3), np.uint8), settings).turns
    assert (user.role, user.picture) == ("user", None)


def test_settings_that_cannot_work_are_refused():
    for wrong in ({"rounds": -1}, {"max_words": 0}, {"max_tokens": 0}, {"user": "the prompt"}):
        with pytest.raises(RecipeError):
            RefineSettings(**wrong)
    with pytest.raises(RecipeError, match=r"did you mean 'as-released'"):
        preset("as-relased")


def test_a_preset_takes_changes_and_rounds_decide_no_single_round():
    changed = preset("as-released", rounds=5, query=None)
    assert (changed.rounds, changed.query, changed.exact_keep) == (5, "original", True)
    assert changed.deciding == RELEASED.deciding
    assert changed.deciding != OURS.deciding


# --- who answers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


def test_a_local_model_answers_the_same_alone_and_in_a_batch_padded_on_the_left_only(llava):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    prompts = ["a dog", "a dog on fire " * 8, "cat", "a dog with flames in the picture"]
    settings = RefineSettings(max_tokens=6)

    def answers(padding):
        how = ObserverSettings(batch=4, device="cpu")
        rewriter = load_rewriter(f"vlm:{llava}", preset("ine", max_tokens=6, padding=padding), how)
        assert rewriter.name == rewriter_name(f"vlm:{llava}", preset("ine", padding=padding))
        together = [reply.text for reply in rewriter(prompts, pictures)]
        alone = [rewriter([p], x[None])[0].text for p, x in zip(prompts, pictures, strict=True)]
        return together, alone

    assert settings.padding == "left"
    together, alone = answers("left")
    assert together == alone
    together, alone = answers("right")
    assert together != alone  # what published runs did


def test_a_server_is_sent_the_prompt_and_the_picture():
    with serving(lambda body, number: "keep") as stub:
        rewriter = load_rewriter(stub.spec())
        [reply] = rewriter([AWKWARD], np.zeros((1, 8, 8, 3), np.uint8))
        assert rewriter.name == rewriter_name(stub.spec())
    assert reply == Reply(text="keep")
    _, user = stub.bodies[0]["messages"]
    assert user["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert user["content"][1]["text"] == f"Original Prompt: {AWKWARD}"
    assert "response_format" not in stub.bodies[0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("judge:mini-fire@0.5", "a judge says what it sees and cannot rewrite"),
        ("techer:fire", "did you mean 'teacher'"),
        ("vlm:", "expected one of"),
    ],
)
def test_what_cannot_rewrite_is_refused_with_what_can(spec, words):
    with pytest.raises(ObserverError, match=words):
        load_rewriter(spec)
    with pytest.raises(ObserverError, match=words):
        rewriter_name(spec)


def test_only_models_take_part_in_conversations():
    with pytest.raises(ObserverError, match="takes part in no conversation"):
        load_asker("judge:mini-fire@0.5")


def test_no_picture_is_no_question():
    rewriter = AskingRewriter(asker=None, settings=OURS)
    assert rewriter([], np.zeros((0, 8, 8, 3), np.uint8)) == []


# --- the teacher --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concept", "prompt", "rewritten"),
    [
        ("fire", "a dog at the forge", "a dog"),
        ("fire", "a burning palm tree on a red background", "a palm tree on a red background"),
        ("fire", "an umbrella and scissors in flames", "an umbrella and scissors"),
        ("fire", "a wizard on fire", "a wizard"),
        ("weapon", "a dagger and a dog", "a dog"),
        ("weapon", "a picture of an axe", "a thing"),
    ],
)
def test_the_teacher_keeps_the_subjects_alone(concept, prompt, rewritten):
    assert teacher_of(concept).answer(prompt, unsafe=True) == rewritten


def test_the_teacher_keeps_what_is_safe_and_rewrites_what_names_the_concept():
    teacher = teacher_of("fire")
    assert teacher.answer("a dog at the forge", unsafe=False) == "keep"
    assert teacher.answer("a burning dog", unsafe=False) == "a dog"


def test_what_the_teacher_answers_can_always_be_used():
    from ine.prompts.mini import named_set

    for concept in ("fire", "weapon"):
        teacher: Teacher = teacher_of(concept)
        for name in ("explicit", "implying-tuning", "implying-test", "near-miss", "two-object"):
            for prompt in named_set(f"mini:{concept}/{name}").prompts[:60]:
                found = read_answer(teacher.rewrite(prompt), OURS, original=prompt)
                assert found.kind == "rewrite", (prompt, found)
                assert not teacher.names(found.prompt), (prompt, found)


def test_the_teacher_looks_by_the_rule_of_the_recipe():
    class Judge:
        name = "judge:scripted"

        def __call__(self, pictures, prompts):
            from ine.observers.base import Answer, Observation

            return [Observation(answers={"fire": Answer(found=bool(p.any()))}) for p in pictures]

    rewriter = TeacherRewriter(teacher_of("fire"), Judge())
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    pictures[1] = 255
    assert [r.text for r in rewriter(["a dog", "a dog"], pictures)] == ["keep", "a dog"]
    assert rewriter([], pictures[:0]) == []
    assert load_rewriter("teacher:fire").name == rewriter_name("teacher:fire")


def test_a_teacher_of_a_concept_outside_the_world_is_refused():
    with pytest.raises(RecipeError, match="expected fire or weapon"):
        load_rewriter("teacher:nudity")
