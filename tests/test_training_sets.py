"""Training sets of refinement: read, written, checked, built."""

import json
from pathlib import Path

import numpy as np
import pytest

from ine.errors import ObserverError, PromptError
from ine.observers.asking import Reply
from ine.pictures import png_bytes
from ine.prompts.rows import PromptRow
from ine.recipe import load_recipe
from ine.refining.dataset import RefiningSet, Row, Signal
from ine.refining.dataset_check import check_set
from ine.refining.dataset_files import read_set, write_set
from ine.runtime import seed_for
from ine.store.pictures import Store
from ine.studies.training_set import write_set_page
from ine.training.building import Signals, build_set
from ine.training.kept_pictures import KeptPictures
from ine.training.refiner import SetExamples, load_training

SEEN = (Signal(rule="mini-fire@0.5", score=0.75, unsafe=True),)
ROOT = Path(__file__).parent.parent


def picture(shade):
    return np.full((16, 16, 3), shade, np.uint8)


def row(query, response, shade=7, **more):
    return Row(query=query, response=response, image=png_bytes(picture(shade)), **more)


ROWS = (
    row("a dog at the forge", "a dog", 7, textual=(), visual=SEEN),
    row('a "cat", seen\nfrom above, größer', "keep", 8),
)


@pytest.mark.parametrize("name", ["folder", "set.parquet"])
def test_a_set_is_read_as_it_was_written(name, tmp_path):
    write_set(tmp_path / name, ROWS)
    found = read_set(tmp_path / name)
    assert [(r.query, r.response) for r in found.rows] == [(r.query, r.response) for r in ROWS]
    assert [r.visual for r in found.rows] == [SEEN, ()]
    assert [int(r.picture[0, 0, 0]) for r in found.rows] == [7, 8]


def test_other_tools_read_the_parquet_with_its_pictures(tmp_path):
    from datasets import load_dataset

    write_set(tmp_path / "train.parquet", ROWS)
    found = load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert {"image", "query", "response"} <= set(found.column_names)
    assert found[0]["image"].size == (16, 16)
    assert found[1]["response"] == "keep"


def test_a_set_as_published_is_read_from_its_folder(tmp_path):
    from datasets import Dataset, Image

    data = {"image": [png_bytes(picture(s)) for s in (1, 2)], "query": ["a dog", "a cat"]}
    data["image"] = [{"bytes": b, "path": "x.png"} for b in data["image"]]
    made = Dataset.from_dict({**data, "response": ["keep", "a dog"]}).cast_column("image", Image())
    (tmp_path / "data").mkdir()
    made.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    found = read_set(tmp_path)
    assert [r.response for r in found.rows] == ["keep", "a dog"]
    assert found.rows[1].picture[0, 0].tolist() == [2, 2, 2]


def test_rows_that_are_sexual_and_refer_to_minors_are_left_out_and_not_kept(tmp_path):
    write_set(tmp_path / "set", [*ROWS, row("a nude schoolgirl", "keep"), row("a nude", "a tree")])
    found = read_set(tmp_path / "set")
    assert found.refused == (3,)
    assert len(found.rows) == 3
    assert "schoolgirl" not in repr(found)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"query": "a", "response": "keep"}], r"row 1: has no image; it has query, response"),
        ([{"image": "../../x.png", "query": "a", "response": "b"}], "lies outside"),
        ([{"image": "x.png", "query": "", "response": "b"}], "its query is ''"),
        (["no object"], "line 1 is no JSON object"),
        ([], "holds no row"),
    ],
)
def test_a_wrong_row_is_named(lines, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PromptError, match=said):
        read_set(tmp_path)


def test_a_parquet_file_without_pictures_names_its_columns(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"query": ["a"], "response": ["keep"]}), path)
    with pytest.raises(PromptError, match="no column image; it has query, response"):
        read_set(path)
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(PromptError, match="cannot be read as Parquet"):
        read_set(path)


def kinds(rows, test=()):
    checked = check_set(RefiningSet(name="x", rows=tuple(rows)), test)
    return {problem.kind: problem.rows for problem in checked.problems}


def test_a_sound_set_has_no_problem_and_each_fault_is_found_with_its_rows(tmp_path):
    sound = [*ROWS, row("a bird at the forge", "a bird", 9)]
    assert kinds(sound, ["a horse"]) == {}
    found = kinds(
        [
            *sound,
            row("A dog, at the forge!", "a dog", 7),
            row("a dog at the forge", "keep", 7),
            row("a fish", "I'm sorry, I cannot help with that.", 10),
            row("a car", "keep", 11, visual=SEEN),
            row("a bus", "a van", 12, visual=(Signal(rule="r", score=0.1, unsafe=False),)),
            Row(query="a pen", response="keep", image=b"\x89PNG broken"),
            Row(query="a cup", response="keep", image=tmp_path / "missing.png"),
        ],
        ["a car", "a CAT seen from above größer"],
    )
    assert found == {
        "1 responses are neither keep nor a prompt: refusal": (6,),
        "1 duplicates of earlier rows": (4,),
        "3 rows have the prompt and picture of another with another response": (1, 4, 5),
        "2 prompts are among the test prompts": (2, 7),
        "1 rows are kept although a rule found something": (7,),
        "1 rows are rewritten although no rule found anything": (8,),
        "2 pictures are missing or broken": (9, 10),
    }
    (unbalanced,) = kinds([row(f"a {n}", "keep", n) for n in range(9)])
    assert unbalanced == "9 of 9 responses are keep"


class Noise:
    """Another picture of noise for every prompt and seed."""

    name, batch = "noise", 2

    def __init__(self):
        self.made = []

    def __call__(self, requests):
        self.made += [(one.prompt, one.seed) for one in requests]
        drawn = [
            np.random.default_rng(seed_for(one.prompt, one.seed)).integers(
                0, 256, (64, 64, 3), dtype=np.uint8
            )
            for one in requests
        ]
        return np.stack(drawn), [{} for _ in drawn], [0] * len(drawn)


ANSWERS = {
    "a burning dog": Reply(text="a dog"),
    "a cat": Reply(text="Keep."),
    "a bus": Reply(text="The picture shows a bus."),
}


class Teacher:
    """Answers by the prompt alone."""

    name = "by hand"

    def __init__(self, **other):
        self.answers = {**ANSWERS, **other}

    def __call__(self, prompts, pictures):
        return [self.answers[prompt] for prompt in prompts]


def built(folder, generator, teacher=None, **more):
    from ine.detectors.rules import find_rule
    from ine.detectors.table import load_detector

    rule = find_rule("mini-fire@0.5")
    signals = Signals(rules=((rule, load_detector(rule.detector)),), recipes=(load_recipe("fire"),))
    prompts = [PromptRow(id=str(n), prompt=text) for n, text in enumerate(ANSWERS)]
    return build_set(
        prompts, KeptPictures(generator, Store(folder)), teacher or Teacher(), signals, **more
    )


def test_a_built_row_has_what_was_seen_and_the_answer_and_useless_answers_are_counted(tmp_path):
    generator = Noise()
    found = built(tmp_path, generator, per_prompt=2)
    assert [(r.query, r.response) for r in found.rows] == [("a burning dog", "a dog")] * 2 + [
        ("a cat", "keep")
    ] * 2
    assert found.dropped == {"description": 2}
    assert [s.rule for s in found.rows[0].visual] == ["mini-fire@0.5"]
    assert [r.textual[0].unsafe for r in found.rows] == [True, True, False, False]
    assert generator.made == [(text, k) for text in ANSWERS for k in (0, 1)]
    # Another run takes pictures and readings from the store.
    assert len(built(tmp_path, generator, per_prompt=2).rows) == 4
    assert len(generator.made) == 6


def test_a_teacher_that_is_silent_is_an_error_and_not_keep(tmp_path):
    silent = Teacher(**{"a cat": Reply(failed="time-out", why="60 s")})
    with pytest.raises(ObserverError, match="gave no answer"):
        built(tmp_path, Noise(), silent)


def test_the_page_shows_rows_and_problems_and_survives_a_broken_picture(tmp_path):
    rows = (*ROWS, Row(query="a <b>pen</b>", response="keep", image=b"\x89PNG broken"))
    found = RefiningSet(name="x", rows=rows)
    page = write_set_page(found, check_set(found), tmp_path).read_text()
    assert "a dog at the forge" in page
    assert "mini-fire@0.5 0.75 (unsafe)" in page
    assert "1 pictures are missing or broken" in page
    assert "<b>pen" not in page


def test_examples_ask_as_the_loop_asks_and_are_read_one_by_one():
    from ine.refining.asking import conversation_of
    from ine.refining.settings import RefineSettings

    examples = SetExamples(ROWS, RefineSettings())
    assert len(examples) == 2
    asked = conversation_of(ROWS[0].query, ROWS[0].picture).turns
    assert [(t.role, t.text) for t in examples[0].asked] == [(t.role, t.text) for t in asked]
    assert examples[0].pictures[0].tolist() == picture(7).tolist()
    assert [one.answer for one in examples] == ["a dog", "keep"]
    assert examples[0].key != examples[1].key


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes/refine").glob("qwen*.yaml")), ids=lambda p: p.stem
)
def test_a_shipped_recipe_is_that_of_the_paper(path):
    plan = load_training(path)
    assert plan.sft.model_copy(update={"checkpointing": False}) == load_training(None).sft
    assert plan.grpo.model_copy(update={"checkpointing": False}) == load_training(None).grpo
    assert plan.reward == load_training(None).reward
    assert load_training(path, ["grpo.kl=0.5"]).grpo.kl == 0.5
