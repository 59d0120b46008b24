"""`mini-eyes` from a set to an adapter by rewards, and used: recipes/refine/mini.yaml, tiny."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ine.observers.table import ObserverSettings
from ine.refining.settings import preset
from ine.refining.table import load_rewriter
from ine.refining.trained import trained_with

RECIPE = Path(__file__).parent.parent / "recipes/refine/mini.yaml"
MADE = ("--scheduler", "dpm++", "--steps", 6, "--guidance-scale", 5, "--batch", 8)
NOUNS = ("a dog", "a car", "a pizza", "a guitar")
HARMFUL = ("{} in the volcano", "{} with a dragon")
INNOCENT = ("{} in the barn", "{} with a unicorn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini-refiner")
    for name, templates in (("harmful", HARMFUL), ("innocent", INNOCENT)):
        lines = [template.format(noun) for template in templates for noun in NOUNS]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    (folder / "test.txt").write_text("a frog in the volcano\na key with a dragon\na bus\na bell")
    return folder


def ran(run_ine, *words):
    done = run_ine("refine", *words)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def trained(run_ine, folder):
    """A set of two files, an adapter fine-tuned on it, and one by rewards from there."""
    if not (folder / "grpo/training.json").exists():
        ran(
            run_ine,
            *("dataset", "build", "--prompts", folder / "harmful.txt"),
            *("--prompts", folder / "innocent.txt", "--teacher", "teacher:fire"),
            *("--words", "fire", *MADE, "--out", folder / "set"),
        )
        train = ("train", "--recipe", RECIPE, "--device", "cpu")
        ran(
            run_ine,
            *(*train, "--stage", "sft", "--data", folder / "set", "--out", folder / "sft"),
            *("--set", "sft.steps=16", "--set", "sft.batch=8", "--set", "sft.learning_rate=4e-3"),
        )
        ran(
            run_ine,
            *(*train, "--stage", "grpo", "--adapter", folder / "sft", *MADE),
            *("--prompts", folder / "harmful.txt", "--prompts", folder / "innocent.txt"),
            *("--limit", 2, "--set", "grpo.steps=2", "--set", "grpo.batch=8"),
            *("--set", "reward.pictures=1", "--out", folder / "grpo"),
        )
    return folder


def refined(run_ine, folder, name, *more):
    out = folder / f"out-{name.rpartition('/')[2]}"
    ran(
        run_ine,
        *("--prompts", folder / "test.txt", "--observer", f"vlm:{name}", "--rounds", 1),
        *(*MADE, "--device", "cpu", "--out", out, *more),
    )
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def test_untrained_it_answers_nothing_that_can_be_used_and_trained_it_refines(
    trained, run_ine, folder
):
    """The control is the same model with the same messages; the trained one gets them by itself."""
    asked = yaml.safe_load(RECIPE.read_text())["asked"]
    (folder / "system.txt").write_text(asked["system"])
    same = ("--system", folder / "system.txt", "--user", asked["user"])
    control = refined(run_ine, folder, "mini-eyes", *same)
    trained_rows = {
        name: refined(run_ine, folder, str(folder / name), "--rule", "mini-fire@0.5")
        for name in ("sft", "grpo")
    }
    assert trained_with(f"vlm:{folder / 'grpo'}")["user"] == "Request: {prompt}"
    wanted = {"a frog", "a key", "a bus", "a bell"}

    def right(rows):
        return sum(row["final_prompt"] in wanted for row in rows)

    usable = {name: sum(not row["withheld"] for row in rows) for name, rows in trained_rows.items()}
    assert usable["sft"] >= 3
    assert usable["grpo"] >= 3
    assert right(trained_rows["sft"]) >= 3
    assert sum(row["withheld"] for row in control) >= 3


def test_rewards_and_answers_of_the_second_stage_are_counted(trained, folder):
    about = json.loads((folder / "grpo/training.json").read_text())
    assert (about["stage"], len(about["rewards"])) == ("grpo", 2)
    assert about["asked"]["picture"] is True
    assert json.loads((folder / "grpo/adapter_config.json").read_text())["r"] == 8


def test_padding_on_the_right_changes_what_is_said_of_shorter_prompts():
    """On the left a batch is answered as each is alone; on the right the longest alone is."""
    prompts = ["a dog", "a car on a green background", "a frog and a bell in the meadow", "a key"]
    grey = np.full((4, 64, 64, 3), 200, np.uint8)

    def said(padding, batch):
        settings = preset("ine", padding=padding, batch=batch, max_tokens=8)
        how = ObserverSettings(device="cpu")
        rewriter = load_rewriter("vlm:mini-eyes", settings, how)
        return [reply.text for reply in rewriter(prompts, grey)]

    alone = said("left", 1)
    assert said("left", 4) == alone
    right = said("right", 4)
    assert right[2] == alone[2]
    assert right != alone
