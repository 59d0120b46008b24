"""`ine refine dataset` and `ine refine train`, from prompts to an adapter that answers."""

import json
from pathlib import Path

import pytest
from tiny_vlm import save_llava

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("refiner")


@pytest.fixture
def built(run_ine, folder):
    """A set of three prompts, two steps a picture: the words decide what is kept."""
    if (folder / "said.txt").exists():
        return (folder / "said.txt").read_text()
    (folder / "prompts.txt").write_text("a burning dog\na cat\na car on fire\n")
    done = run_ine(
        *("refine", "dataset", "build", "--prompts", folder / "prompts.txt"),
        *("--teacher", "teacher:fire", "--rule", "mini-fire@0.5", "--words", "fire"),
        *("--steps", 2, "--batch", 3, "--out", folder / "set"),
    )
    assert done.exit_code == 0, done.output
    (folder / "said.txt").write_text(done.stdout)
    return done.stdout


def test_a_set_is_built_with_answers_and_what_was_seen(built, folder):
    rows = [json.loads(line) for line in (folder / "set/rows.jsonl").read_text().splitlines()]
    assert rows[0]["response"] == "a dog"
    assert rows[2]["response"] == "a car"
    assert [one["textual"][0]["unsafe"] for one in rows] == [True, False, True]
    assert all(one["visual"][0]["rule"] == "mini-fire@0.5" for one in rows)
    assert "3 rows" in built


def test_a_check_names_what_is_wrong_and_ends_with_8(built, run_ine, folder):
    (folder / "test.txt").write_text("a cat\n")
    done = run_ine("refine", "dataset", "check", folder / "set", "--test", folder / "test.txt")
    assert done.exit_code == 8
    assert "1 prompts are among the test prompts (row 2)" in done.stdout


def test_a_page_is_written(built, run_ine, folder):
    done = run_ine("refine", "dataset", "show", folder / "set", "--out", folder / "page")
    assert done.exit_code == 0, done.output
    assert "a burning dog" in (folder / "page/report.html").read_text()


def test_a_set_is_learned_and_the_adapter_answers_as_an_observer(built, run_ine, folder):
    save_llava(folder / "llava")
    train = ["refine", "train", "--stage", "sft", "--base", folder / "llava"]
    train += ["--data", folder / "set", "--out", folder / "sft"]
    done = run_ine(*train, "--set", "sft.steps=2", "--set", "sft.batch=3", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert f"--observer vlm:{folder / 'sft'}" in done.stdout
    about = json.loads((folder / "sft/training.json").read_text())
    assert len(about["losses"]) == 2
    from ine.observers.vlm_loading import load_vlm

    asker = load_vlm(str(folder / "sft"), "cpu")
    assert asker.name != load_vlm(str(folder / "llava"), "cpu").name


def test_what_a_stage_needs_is_said(run_ine, folder):
    done = run_ine("refine", "train", "--stage", "grpo", "--out", folder / "x")
    assert done.exit_code == 2
    assert "--stage grpo needs --base (or base in the recipe) and --prompts" in done.output


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("mini", "mini-eyes"),
    ],
)
def test_a_shipped_recipe_is_resolved_without_weights(name, base, stage, run_ine, folder):
    path = ROOT / f"recipes/refine/{name}.yaml"
    more = ["--data", "set"] if stage == "sft" else ["--prompts", "file"]
    done = run_ine(
        *("refine", "train", "--recipe", path, "--stage", stage, "--out", folder / "y"),
        *(*more, "--dry-run"),
    )
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["base"] == base
    assert "{prompt}" in plan["asked"]["user"]
    assert plan[stage]["lora"]["rank"] == 8
