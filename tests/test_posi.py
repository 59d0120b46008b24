"""Pairs of prompts, families, rewriters, and the commands `ine posi pairs` and `rewrite`."""

import json

import pytest
from click.testing import CliRunner

from ine.cli import cli
from ine.errors import IneError, ObserverError, PromptError
from ine.observers.asking import Reply
from ine.posi.families import families_of, held_back
from ine.posi.making import make_pairs
from ine.posi.pair_files import INSTRUCTION, Pair, read_pairs, write_pairs
from ine.posi.rewriters import AskingRewriter, read_rewrite
from ine.posi.table import load_rewriter
from ine.prompts.mini import named_set
from ine.prompts.rows import PromptRow
from tests.observer_stub import serving

PAIRS = (Pair(toxic="a burning dog", clean="a dog"), Pair(toxic="a cat ablaze", clean="a cat"))


def rows(*prompts, **extra):
    return [PromptRow(id=str(k), prompt=prompt, extra=extra) for k, prompt in enumerate(prompts)]


def run(*args, code=0):
    done = CliRunner().invoke(cli, ["posi", *map(str, args)], prog_name="ine")
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


# ------------------------------------------------------------------------------- POSI's JSON


def test_pairs_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "pairs.json"
    write_pairs(path, PAIRS)
    assert set(json.loads(path.read_text())[0]) == {"instruction", "input", "output"}
    found = read_pairs(path)
    assert (found.pairs, found.instruction) == (PAIRS, INSTRUCTION)
    assert (found.refused, found.duplicates, found.equal) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": "  "}, "row 2: output is empty"),
        ({"input": ""}, "row 2: input is empty"),
        ({"instruction": None}, "row 2: instruction is empty or no text"),
        ({"instruction": "other"}, "row 2 has another instruction than row 1"),
        ({"output": "a cat ablaze"}, "1 of 2 pairs have equal sides, the first in row 2"),
    ],
)
def test_a_row_that_teaches_nothing_is_named(tmp_path, change, said):
    path = tmp_path / "pairs.json"
    write_pairs(path, PAIRS)
    read = json.loads(path.read_text())
    read[1] |= change
    path.write_text(json.dumps(read))
    with pytest.raises(PromptError, match=said):
        read_pairs(path)


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", '[{"input": "a"}]', "no JSON"])
def test_a_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(PromptError, match=r"pairs\.json"):
        read_pairs(path)


def test_equal_sides_are_kept_or_dropped_as_asked(tmp_path):
    path = tmp_path / "pairs.json"
    write_pairs(path, [*PAIRS, Pair(toxic="a pear", clean="a pear")])
    assert [read_pairs(path, equal).equal for equal in ("keep", "drop")] == [1, 1]
    assert [len(read_pairs(path, equal).pairs) for equal in ("keep", "drop")] == [3, 2]


def test_pairs_are_screened_and_each_prompt_is_kept_once(tmp_path):
    path = tmp_path / "pairs.json"
    screened = Pair(toxic="a nude portrait", clean="a portrait of a child")
    write_pairs(path, [*PAIRS, PAIRS[0], screened])
    found = read_pairs(path)
    assert found.pairs == PAIRS
    assert (found.refused, found.duplicates) == (1, 1)


# ---------------------------------------------------------------------------------- families


def test_prompts_that_share_most_words_are_a_family_and_sisters_of_sisters_too():
    prompts = [
        "a red car on a long road",
        "a blue car on a long road",
        "a blue car on a short road",
        "two penguins at night",
    ]
    found = families_of(prompts)
    assert found[0] == found[1] == found[2] != found[3]


def test_prompts_of_one_phrase_are_a_family_whatever_their_words():
    prompts = ["a burning dog", "a burning cat", "a burning house"]
    one, two, other = families_of(prompts, ["a burning {}", "a burning {}", "another"])
    assert one == two != other


def test_whole_families_are_held_back_and_at_least_the_share():
    prompts = [f"{word} {k}" for word in ("one", "two", "three", "four") for k in range(5)]
    families = [k // 5 for k in range(20)]
    back = held_back(families, prompts, 0.3, seed=0)
    assert len(back) == 10
    assert all((k in back) == (5 * (k // 5) in back) for k in range(20))
    assert held_back(families, prompts, 0, seed=0) == set()
    assert len({frozenset(held_back(families, prompts, 0.3, seed)) for seed in range(9)}) > 1


def test_no_sister_of_a_test_prompt_is_trained_on():
    toxic = [
        row for name in ("explicit", "synonyms") for row in named_set(f"mini:fire/{name}").rows
    ]
    benign = named_set("mini:fire/twins-tuning").rows
    made = make_pairs(toxic[:400], benign, load_rewriter("teacher:fire"), test_share=0.25)
    phrase = {row.prompt: row.extra["phrase"] for row in (*toxic, *benign)}
    trained, held = ({phrase[p.toxic] for p in some} for some in (made.train, made.test))
    assert trained
    assert held
    assert not trained & held
    for some in (made.train, made.test):  # both kinds are on both sides
        assert {pair.toxic == pair.clean for pair in some} == {True, False}


# ------------------------------------------------------------------------- teachers, rewriters


class Says:
    """A model that gives the same replies every time."""

    name = "says"

    def __init__(self, *replies):
        self.replies, self.asked = replies, []

    def ask(self, conversations):
        self.asked += conversations
        return list(self.replies[: len(conversations)])


def test_the_rules_leave_the_subject():
    teacher = load_rewriter("teacher:fire")
    found = teacher(["a burning dog", "a cat in the volcano", "a pear"])
    assert [one.rewritten for one in found] == ["a dog", "a cat", "a pear"]


def test_a_model_is_asked_with_the_instruction_and_its_answer_is_read():
    asker = Says(
        Reply(text='Rewritten prompt: "a dog"'),
        Reply(text="keep"),
        Reply(text="I'm sorry, I can't help with that."),
        Reply(failed="time-out", why="60 s"),
    )
    found = AskingRewriter(asker, "Make it safe.")(["w", "x", "y", "z"])
    assert [(one.rewritten, one.unusable) for one in found] == [
        ("a dog", ""),
        ("x", ""),
        ("", "refusal"),
        ("", "time-out"),
    ]
    assert [turn.text for turn in asker.asked[0].turns] == ["Make it safe.", "w"]


def test_a_teacher_that_never_answers_is_an_error():
    asker = Says(*[Reply(failed="error", why="401")] * 2)
    with pytest.raises(
        ObserverError, match=r"none of 2 prompts was answered \(the last: error: 401"
    ):
        AskingRewriter(asker)(["x", "y"])


def test_an_answer_that_screening_refuses_is_unusable():
    assert read_rewrite("a portrait", "a nude child").unusable == "screened"
    assert read_rewrite("a portrait", "a portrait of a dog").rewritten == "a portrait of a dog"


def test_what_the_teacher_left_as_it_was_or_did_not_answer_is_no_pair():
    asker = Says(Reply(text="a dog"), Reply(text="keep"), Reply(text=""), Reply(text="a fox"))
    made = make_pairs(
        rows("a burning dog", "a hot cat", "a lit pear", "a fox in flames"),
        rows("a rose"),
        AskingRewriter(asker),
        test_share=0,
    )
    assert [(pair.toxic, pair.clean) for pair in made.train] == [
        ("a burning dog", "a dog"),
        ("a fox in flames", "a fox"),
        ("a rose", "a rose"),
    ]
    assert (made.unchanged, made.unusable, made.test) == (1, {"empty": 1}, ())


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(PromptError, match="no pair to train on is left of 1 prompts"):
        make_pairs(rows("a cat"), [], AskingRewriter(Says(Reply(text="keep"))))


@pytest.mark.parametrize("spec", ["judge:x", "teacher:", "openai", "sk-secret"])
def test_an_unknown_rewriter_is_refused(spec):
    with pytest.raises(IneError, match=r"expected teacher:CONCEPT, openai:URL#MODEL or model:BASE"):
        load_rewriter(spec)


# -------------------------------------------------------------------------------- commands


def test_pairs_of_the_bundled_world_are_made_and_read_again(tmp_path):
    out = tmp_path / "pairs.json"
    sets = ("--toxic", "mini:fire/explicit", "--benign", "mini:fire/benign", "--limit", 40)
    done = run("pairs", *sets, "--teacher", "teacher:fire", "--out", out)
    found = read_pairs(out, "keep")
    held = read_pairs(tmp_path / "pairs-test.json", "keep")
    assert f"{len(found.pairs)} pairs to train on" in done.stdout
    assert len(found.pairs) + len(held.pairs) == 80
    assert not {p.toxic for p in found.pairs} & {p.toxic for p in held.pairs}
    again = run("pairs", *sets, "--teacher", "teacher:fire", "--out", out, code=9)
    assert "exists already" in again.stderr


def test_a_server_rewrites_prompts_and_what_it_declines_is_not_passed_on(tmp_path):
    def act(body, number):
        asked = body["messages"][-1]["content"]
        return "a dog" if asked == "a burning dog" else "I can't help with that."

    with serving(act) as server:
        done = run("rewrite", "a burning dog", "a bomb", "--by", server.spec())
        run("rewrite", "a bomb", "--by", server.spec(), code=8)
    one, two = map(json.loads, done.stdout.splitlines())
    assert one == {"prompt": "a burning dog", "rewritten": "a dog", "unusable": ""}
    assert (two["rewritten"], two["unusable"]) == ("", "refusal")
    assert "1 of 2 prompts were not rewritten: 1 refusal" in done.stderr


def test_rewrites_go_to_a_file(tmp_path):
    out = tmp_path / "rows.jsonl"
    run("rewrite", "--prompts", "mini:fire/explicit", "--by", "teacher:fire", "--out", out)
    read = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(read) == len(named_set("mini:fire/explicit").rows)
    assert not any("fire" in row["rewritten"] or "burning" in row["rewritten"] for row in read)
