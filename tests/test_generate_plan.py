"""`ine generate --dry-run` says what the run would do, and does nothing."""

import json

import pytest

from ine.files import shipped

FIRE = min(shipped("embeddings").rglob("fire-neg.safetensors"))


def plan(run_ine, *args):
    done = run_ine("generate", *args, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_counts_and_writes_nothing(run_ine, place):
    given = ("--prompt", "a dog", "--prompt", "a cat", "--images-per-prompt", 20)
    given += ("--negative-embedding", FIRE, "--negative-prompt", "snow")
    found = plan(run_ine, *given)
    assert (found["pictures"], found["units"], found["there"]) == (40, 3, 0)
    assert found["prompts"] == ["a dog", "a cat"]
    assert found["model"] == {
        "name": "mini",
        "from": "embedding fire-neg",
        "place": "on this machine",
    }
    assert found["sampler"]["steps"] == 20
    assert found["negative"] == "snow, fire-neg"
    assert found["out"] == "pictures"
    text = run_ine("generate", *given, "--dry-run").stdout
    for words in ("40 in 3 units of 16", "- a cat", "mini (from embedding fire-neg)", "batch 16"):
        assert words in text
    assert not list(place.iterdir())


def test_the_run_does_what_was_said(run_ine, place, tiny_folder):
    given = ("--model", tiny_folder, "--prompt", "a dog", "--images-per-prompt", 3, "--batch", 2)
    given += ("--steps", 2, "--guidance", "sld", "--guidance-set", "warmup=1")
    given += ("--negative-prompt", "fire", "--out", "out")
    said = plan(run_ine, *given)
    assert said["there"] == 0
    done = run_ine("generate", *given)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (place / "out" / "index.jsonl").read_text().splitlines()]
    assert len(rows) == said["pictures"]
    made = rows[0]["settings"]
    for key in ("scheduler", "steps", "guidance_scale"):
        assert made[key] == said["sampler"][key]
    assert (made["guidance"], made["negative"]) == (said["guidance"]["settings"], said["negative"])
    assert plan(run_ine, *given)["there"] == 3


def test_a_model_that_is_not_here_is_no_hindrance(run_ine, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
    found = plan(run_ine, "--model", "CompVis/stable-diffusion-v1-4", "--prompt", "x")
    assert "hf download CompVis/stable-diffusion-v1-4" in found["model"]["place"]
    assert found["sampler"]["steps"] is found["units"] is None
    assert plan(run_ine, "--model", "a/b", "--prompt", "x", "--batch", 3)["units"] == 1


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--unet", "file"), 5, "file"),
        (("--out", "file"), 9, "file: is not a folder"),
        (("--guidance", "sld"), 1, "nothing to steer away from"),
        (("--negative-strength", "2"), 2, "cfg has none"),
    ],
)
def test_it_refuses_what_the_run_would(run_ine, place, args, code, words):
    (place / "file").write_text("text")
    done = run_ine("generate", "--prompt", "x", *args, "--dry-run")
    assert done.exit_code == code
    assert words in done.stderr
