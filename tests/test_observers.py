"""Observers: what they say, how replies are read, what unknown answers mean, names, the cache."""

import json
import random
import re

import numpy as np
import pytest

from ine.errors import MissingDependency, ObserverError, PicturesError, RecipeError
from ine.observers.asking import AskingObserver, Reply
from ine.observers.base import Answer, Observation, unknown_counts
from ine.observers.cache import CachedAsker
from ine.observers.parsing import Vocabulary, parse_reply
from ine.observers.question import question_of
from ine.observers.table import ObserverSettings, load_observer, parse_spec
from ine.observers.unknown import is_found
from ine.recipe import Observe, load_recipe

PROMPTS = ["a burning dog", "a knife", "a dog", "a cat on a blue background"]


def drawn(*seeds):
    """Return noise, uint8 (B, 16, 16, 3); the same seed gives the same picture."""
    shape = (16, 16, 3)
    return np.stack([np.random.default_rng(s).integers(0, 256, shape, np.uint8) for s in seeds])


def questions(*names):
    return [question_of(load_recipe(name)) for name in names]


FIRE = Vocabulary(
    words=("fire", "on fire", "flames"),
    yes=Observe().yes,
    no=Observe().no,
    refusals=Observe().refusals,
)


def read(text, vocabulary=FIRE):
    """Return "yes", "no", or why the reply is unknown."""
    answer = parse_reply(text, vocabulary)
    assert answer.raw == text
    return answer.unknown or ("yes" if answer.found else "no")


# ------------------------------------------------------------------------------- the parser

REPLIES = {
    "yes": [
        "yes", "Yes.", '"YES"', "'yes'", "**Yes**", "yes, fire", "Yes - flames are visible.",
        "The answer is yes.", "Answer: Yes", "fire", "Fire.", "There is a dog on fire.",
        "fire, flames", "- flames", '{"found": true, "words": ["fire"]}',
        'Sure! ```json\n{"found": true, "words": []}\n```', '{"FOUND": "yes"}',
        '{"words": ["Flames"]}', '{"answer": "Yes."}', 
        "It has no smoke, but there are flames.", "Yes, I'm sorry to say there is fire.",
        'I think {this} is: {"found": true, "words": ["fire"]} as asked',
    ],
    "no": [
        "no", "No.", "NO!", '"no"', "none", "None of these.", "Nothing.", "Not visible.",
        "No, there is no fire.", "There is no fire in this picture.", "The dog is not on fire.",
        "I don't see any flames.", "I cannot see any fire.", "fire: no", "Fire is not visible.",
        "The scene is free of fire or flames.", '{"found": false, "words": []}',
        '{"found": "no"}', '{"words": []}', '{"found": false, "words": ["fire"]}',
        "A dog without flames.", "Neither fire nor flames.",
    ],
    "refusal": [
        "I'm sorry, but I can't help with that.", "I can\u2019t assist with this picture of fire.",
        "As an AI, I do not judge pictures.", "Sorry, I am unable to help. fire",
        "No, I can't help with that.",
    ],
    "nonsense": [
        "", "  \n", "a bluebird", "<image> <image>", "42", "{", "{}", "[]", '{"found": 7}',
        '{"found": null}', "firefly", "campfires", '{"words": ["smoke"]}', "{" * 5000,
        "No smoke. But I see fire.", "maybe", "yesterday", "nothingness",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", REPLIES)
def test_replies_are_read_as(kind):
    assert {text: read(text) for text in REPLIES[kind]} == dict.fromkeys(REPLIES[kind], kind)


def test_words_are_named_in_the_order_of_the_vocabulary_and_as_whole_words():
    parts = Vocabulary(words=("male part", "female part"), yes=("yes",), no=("no",), refusals=())
    assert parse_reply("female part", parts).words == ("female part",)
    assert parse_reply("Yes: female  part and male-part", parts).words == parts.words
    assert parse_reply("a female part, no male part", parts).words == ("female part",)
    assert parse_reply('{"found": true, "words": ["FEMALE PART"]}', parts).words == ("female part",)
    assert parse_reply("no female part", parts).words == ()


MARKS = [
    *((mark, mark) for mark in ('"', "'", "**", " ", "\n", "`")),
    *(("", "."), ("", "!"), ("(", ")"), ("> ", "")),
]


def mutated(text, rng):
    """Return a text with harmless changes: case, marks around it, spaces, a fence."""
    text = "".join(rng.choice((c.lower(), c.upper())) for c in text)
    for _ in range(rng.randrange(4)):
        left, right = rng.choice(MARKS)
        text = left + text + right
    return text


def test_marks_and_case_do_not_change_an_answer():
    rng = random.Random(0)
    plain = {t: k for k in ("yes", "no") for t in REPLIES[k] if "{" not in t}
    for text, kind in plain.items():
        for _ in range(40):
            changed = mutated(text, rng)
            assert read(changed) == kind, changed


def test_json_in_prose_is_the_same_answer():
    rng = random.Random(1)
    for _ in range(300):
        found = rng.random() < 0.5
        words = [w for w in FIRE.words if rng.random() < 0.5]
        value = json.dumps({"found": found, "words": words}, indent=rng.choice((None, 2)))
        before = rng.choice(("", "Here it is: ", "```json\n", "no {idea} ", "{", "I'm sorry, "))
        answer = parse_reply(before + value + rng.choice(("", "\n```", " }", " yes")), FIRE)
        assert answer.found is found
        assert answer.words == (tuple(words) if found else ())


def test_the_parser_takes_anything():
    rng = random.Random(2)
    pieces = [
        *'{}[]"\\:,.\n\t',
        *("found", "words", "yes", "no", "fire", "I'm sorry", "true", "\x00", "not", "n't"),
    ]
    kinds = {read("".join(rng.choices(pieces, k=rng.randrange(30)))) for _ in range(3000)}
    assert kinds == {"yes", "no", "refusal", "nonsense"}
    assert read("fire " * 2000) == "yes"


# ------------------------------------------------------------------------- unknown answers


def test_an_answer_is_known_or_unknown():
    with pytest.raises(ValueError, match="give one"):
        Answer(found=None)
    with pytest.raises(ValueError, match="give one"):
        Answer(found=True, unknown="error")


@pytest.mark.parametrize("kind", ["refusal", "nonsense", "time-out", "error"])
def test_an_unknown_answer_is_decided_by_the_rule(kind):
    unknown = Answer(found=None, unknown=kind, why="HTTP 500")
    assert is_found(unknown)
    assert is_found(unknown, "steer", before=False)
    assert is_found(unknown, "hold", before=True)
    assert not is_found(unknown, "hold", before=False)
    with pytest.raises(ObserverError, match=rf"{kind}: HTTP 500.*steer"):
        is_found(unknown, "abort")
    with pytest.raises(ValueError, match="expected hold, steer or abort"):
        is_found(unknown, "never")


def test_a_known_answer_needs_no_rule():
    for rule in ("hold", "steer", "abort"):
        for before in (True, False):
            assert is_found(Answer(found=True), rule, before)
            assert not is_found(Answer(found=False), rule, before)


def test_an_observation_sums_up_its_answers():
    one = Observation(
        answers={
            "fire": Answer(found=True, words=("burning",)),
            "weapon": Answer(found=False, score=0.25),
            "storm": Answer(found=None, unknown="nonsense", raw="blue"),
        }
    )
    assert one.found == {"fire": True, "weapon": 0.25}
    assert one.shows == ("fire",)
    assert one.words == ("burning",)
    assert one.unknown == {"storm": "nonsense"}
    assert unknown_counts([one, one]) == {"nonsense": 2}


# ------------------------------------------------------------------------------ the question


def test_a_recipe_gives_the_question():
    question = question_of(load_recipe("fire"))
    assert question.concept == "fire"
    assert "burning" in question.vocabulary.words
    assert "{" not in question.text
    plain = load_recipe("weapon", ["observe.words=[]"])
    assert question_of(plain).vocabulary.words[:2] == ("weapon", "gun")
    assert "burning" in question.text
    (turn,) = question.conversation(drawn(0)[0], "a dog").turns
    assert (turn.role, turn.text) == ("user", question.text)


def test_every_field_of_the_section_changes_the_question(tmp_path):
    from ine.pictures import write_png

    write_png(tmp_path / "shown.png", drawn(1)[0])
    changes = (
        "question='Fire? {words} {prompt}'", "system=Be brief.", "words=[blaze]", "max_tokens=3",
        "structured=false", f"demonstrations=[{{picture: {tmp_path}/shown.png, answer: none}}]",
    )  # fmt: skip
    picture = drawn(0)[0]
    keys = {question_of(load_recipe("fire")).conversation(picture, "a dog").key}
    for change in changes:
        question = question_of(load_recipe("fire", [f"observe.{change}"]))
        keys.add(question.conversation(picture, "a dog").key)
    assert len(keys) == 1 + len(changes)
    own = question_of(load_recipe("fire", ["observe.question='{prompt}?'"]))
    assert own.conversation(picture, "a dog").turns[0].text == "a dog?"
    assert own.conversation(picture, "a dog").key != own.conversation(picture, "a cat").key
    for field in ("yes", "no", "refusals"):
        changed = question_of(load_recipe("fire", [f"observe.{field}=[ja]"]))
        assert getattr(changed.vocabulary, field) == ("ja",)


def test_a_question_does_not_change_what_a_recipe_makes():
    assert load_recipe("fire").hash == load_recipe("fire", ["observe.max_tokens=3"]).hash


def test_demonstrations_come_first_with_their_pictures(tmp_path):
    from ine.pictures import write_png

    write_png(tmp_path / "shown.png", drawn(1)[0])
    given = f"observe.demonstrations=[{{picture: {tmp_path}/shown.png, answer: none}}]"
    turns = question_of(load_recipe("fire", [given])).conversation(drawn(0)[0]).turns
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert np.array_equal(turns[0].picture, drawn(1)[0])
    assert turns[1].text == "none"


def test_a_demonstration_needs_its_picture(tmp_path):
    with pytest.raises(RecipeError, match=r"demonstrations.*picture"):
        load_recipe("fire", ["observe.demonstrations=[{answer: none}]"])
    lost = f"observe.demonstrations=[{{picture: {tmp_path}/lost.png, answer: none}}]"
    with pytest.raises(PicturesError, match=r"lost\.png"):
        question_of(load_recipe("fire", [lost]))


# --------------------------------------------------------------------------------- the names


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("judge:mini-fire@0.5", ("judge", "mini-fire@0.5")),
        ("judge:clip:fire|snow@0.5", ("judge", "clip:fire|snow@0.5")),
        ("vlm:~/models/llava", ("vlm", "~/models/llava")),
        ("openai:http://h:1/v1#a/b:c", ("openai", "http://h:1/v1#a/b:c")),
    ],
)
def test_a_name_is_parsed(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize("spec", ["", "judge", "judge:", "opnai:sk-secret", "mini", ":x"])
def test_a_wrong_name_is_refused_with_the_forms(spec):
    with pytest.raises(ObserverError, match=r"expected one of judge:RULE.*openai:URL#MODEL") as e:
        parse_spec(spec)
    assert "secret" not in str(e.value)
    if spec.startswith("opnai"):
        assert "did you mean 'openai'" in str(e.value)


# ---------------------------------------------------------------------------------- judges


@pytest.fixture(scope="module")
def mini_pictures():
    """(pictures of the bundled model, their prompts)."""
    from ine.inversion.preview import in_units
    from ine.models.loading import load_parts
    from ine.sampling import SamplerSettings

    settings = SamplerSettings(scheduler="ddim", steps=12, guidance_scale=5.0, batch=4)
    return in_units(load_parts("mini"), PROMPTS, range(4), None, settings), PROMPTS


@pytest.mark.parametrize("name", ["mini-judge", "mini-judge2"])
def test_a_judge_finds_what_is_there(name, mini_pictures):
    pictures, prompts = mini_pictures
    observer = load_observer(f"judge:{name}", questions("fire", "weapon"))
    seen = observer(pictures, prompts)
    expected = [("burning" in p, "knife" in p) for p in prompts]
    assert [tuple(a.found for a in one.answers.values()) for one in seen] == expected
    assert all(0 <= score <= 1 for one in seen for score in one.found.values())
    assert seen[0].words
    assert not any(one.unknown for one in seen)


def test_a_judge_says_of_each_picture_what_it_says_of_it_alone(mini_pictures):
    pictures, prompts = mini_pictures
    observer = load_observer("judge:mini-fire@0.5", questions("fire"))
    together = observer(pictures, prompts)
    for i, one in enumerate(together):
        (alone,) = observer(pictures[i : i + 1], prompts[i : i + 1])
        assert alone.answers["fire"].found == one.answers["fire"].found
        assert alone.found == pytest.approx(one.found, abs=1e-5)
    assert observer(pictures[:0], []) == []
    with pytest.raises(ValueError, match="1 prompts for 4 pictures"):
        observer(pictures, ["one"])


def test_one_rule_answers_for_one_concept():
    with pytest.raises(ObserverError, match="answers for one concept, and 2 are asked for"):
        load_observer("judge:mini-fire@0.5", questions("fire", "weapon"))
    with pytest.raises(RecipeError, match=r"did you mean 'mini-fire@0.5'"):
        load_observer("judge:mini-fir@0.5", questions("fire"))
    with pytest.raises(ValueError, match="one per concept"):
        load_observer("judge:mini-fire@0.5", [])


# ------------------------------------------------------------------------ asking, the cache


class Scripted:
    """Gives the next reply of a list, and counts what it was asked."""

    def __init__(self, replies, name="scripted"):
        self.replies, self.name, self.asked = list(replies), name, []

    def ask(self, conversations):
        self.asked += conversations
        return [self.replies.pop(0) for _ in conversations]


def texts(*replies):
    return [Reply(text=text) for text in replies]


def test_every_picture_gets_its_own_answers():
    asker = Scripted(texts("yes", "no", "no", "a knife"))
    observer = AskingObserver(asker, questions("fire", "weapon"))
    seen = observer(drawn(0, 1), ["a", "b"])
    assert [one.found for one in seen] == [
        {"fire": True, "weapon": False},
        {"fire": False, "weapon": True},
    ]
    assert seen[1].words == ("knife",)
    shown = [one.turns[-1].picture for one in asker.asked]
    assert [np.array_equal(picture, drawn(0)[0]) for picture in shown] == [True, True, False, False]
    assert observer(drawn(0)[:0], []) == []


def test_replies_are_kept_and_failures_are_not(tmp_path):
    asker = Scripted([*texts("yes", "blue"), Reply(failed="time-out", why="slow"), *texts("no")])
    observer = AskingObserver(CachedAsker(asker, tmp_path), questions("fire"))
    first = observer(drawn(0, 1, 2), ["", "", ""])
    assert [one.unknown for one in first] == [{}, {"fire": "nonsense"}, {"fire": "time-out"}]
    second = observer(drawn(2, 1, 0), ["", "", ""])
    assert len(asker.asked) == 4
    assert second[0].found == {"fire": False}
    assert second[1:] == [first[1], first[0]]


def test_pictures_alike_are_asked_about_once(tmp_path):
    asker = Scripted(texts("yes"))
    seen = AskingObserver(CachedAsker(asker, tmp_path), questions("fire"))(drawn(0, 0), ["", ""])
    assert [one.found for one in seen] == [{"fire": True}] * 2
    assert len(asker.asked) == 1


def test_the_cache_tells_models_questions_and_pictures_apart(tmp_path):
    def count(name, overrides=(), picture=0):
        asker = Scripted(texts("yes"), name)
        question = question_of(load_recipe("fire", overrides))
        AskingObserver(CachedAsker(asker, tmp_path), [question])(drawn(picture), [""])
        return len(asker.asked)

    assert count("a") == 1
    assert count("a") == 0
    assert count("b") == 1
    assert count("a", ["observe.max_tokens=3"]) == 1
    assert count("a", picture=1) == 1


def test_a_damaged_reply_is_named(tmp_path):
    observer = AskingObserver(CachedAsker(Scripted(texts("yes")), tmp_path), questions("fire"))
    observer(drawn(0), [""])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ObserverError, match=r"safetensors: is not a model's reply, or is damaged"):
        observer(drawn(0), [""])


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependency, match=r'pip install "ine\[vlm\]"'):
        load_observer("openai:http://127.0.0.1:9/v1#m", questions("fire"), ObserverSettings())


# -------------------------------------------------------------------- observers as detectors


def test_an_observer_is_a_detector_with_a_rule(mini_pictures):
    from ine.detectors.rules import find_rule
    from ine.detectors.table import check_detector, load_detector

    rule = find_rule("vlm@judge:mini-judge2:fire")
    assert find_rule("vlm@judge:mini-judge2:fire@0.9").threshold == 0.9
    check_detector(rule.detector)
    detector = load_detector(rule.detector)
    flags = [rule.fires(scores) for scores in detector(mini_pictures[0])]
    assert flags == ["burning" in prompt for prompt in PROMPTS]
    other = load_detector("vlm@judge:mini-judge2:weapon")
    assert other.settings != detector.settings


def test_a_refusal_counts_as_found_and_a_failure_gives_no_score():
    from ine.detectors.observed import observed_rule
    from ine.observers.detector import ObserverDetector

    (question,) = questions("fire")
    replies = [*texts("no", "yes", "I'm sorry", "blue"), Reply(failed="error", why="HTTP 500")]
    observer = AskingObserver(Scripted(replies), [question])
    detector = ObserverDetector(observer, question, "fire")
    rule = observed_rule("r", "vlm@vlm:x:fire")
    found = detector(drawn(0, 1, 2, 3))
    assert [rule.fires(scores) for scores in found] == [False, True, True, True]
    assert "unknown: refusal" in found[2]
    assert "unknown: nonsense" in found[3]
    with pytest.raises(ObserverError, match=r"HTTP 500.*which resumes"):
        detector(drawn(4))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vlm@vlm:x", "vlm@SPEC:CONCEPT"),
        ("vlm@openai:http://h:80/v1#m", "vlm@SPEC:CONCEPT"),
        ("vlm@eye:x:fire", "expected one of judge:RULE"),
        ("vlm@vlm:x:fier", "did you mean 'fire'"),
    ],
)
def test_a_wrong_name_of_such_a_detector_is_refused_before_it_runs(name, said):
    from ine.detectors.table import check_detector

    with pytest.raises((ObserverError, RecipeError), match=re.escape(said)):
        check_detector(name)


def test_judging_resumes_and_keeps_unknown_answers_apart(run_ine, tmp_path, mini_pictures):
    from ine.pictures import write_png

    for i, picture in enumerate(mini_pictures[0]):
        write_png(tmp_path / f"{i}.png", picture)
    done = run_ine("judge", "run", tmp_path, "--rule", "vlm@judge:mini-judge2:fire", "--json")
    assert done.exit_code == 0, done.output
    (figure,) = json.loads(done.stdout)["rules"]
    assert (figure["flagged"], figure["pictures"]) == (1, 4)
