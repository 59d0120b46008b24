"""GRPO of a rewriter, by trl, on a tiny language model of the bundled world's words."""

import json

import pytest
from tiny_posi import Noise, made_in, ppo

from ine.posi.trained import load_trained, stages_of
from ine.training.answers import Drawing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, pairs, and an adapter for them."""
    return made_in(tmp_path_factory.mktemp("posi"))


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr("ine.posi.picture_stage.open_generator", lambda settings, device: Noise())


GROUPS = (
    *("--algorithm", "grpo", "--set", "grpo.steps=3", "--set", "grpo.batch=4"),
    *("--set", "grpo.generations=2", "--set", "grpo.max_tokens=6", "--set", "grpo.save_every=1"),
)


def test_grpo_has_the_same_reward_and_brings_the_first_stage(folder, tmp_path, noise):
    out = tmp_path / "grpo"
    done = ppo(folder, out, *GROUPS)
    assert "3 rollouts of 4 answers" in done.stdout
    rows = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        # Of usable answers: 5 - 5 toxicity + alignment, which is capped.
        most = 5 - 5 * row["toxicity"] + 0.31
        assert row["reward"] <= most + 1e-6
        assert row["unusable"] == 1 or row["to_answer"] != 0
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert stages_of([out]) == [out / "sft", out]
    [one] = load_trained(folder / "base", [out], drawing=Drawing(max_tokens=20))(["a cat"])
    assert bool(one.rewritten) != bool(one.unusable)
    assert "3 rollouts of 4 answers" in ppo(folder, out, *GROUPS).stdout  # finished: read again
    ppo(folder, out, *GROUPS, "--set", "grpo.kl=1", code=9)


def test_grpo_that_was_killed_ends_with_the_same_bytes(folder, tmp_path, monkeypatch, noise):
    store = ("--store", tmp_path / "pictures")
    ppo(folder, tmp_path / "whole", *store, *GROUPS)

    from ine.training.rewards import PictureReward

    called, score = [], PictureReward.__call__

    def killed(self, prompts, answers):
        called.append(1)
        if len(called) == 2:
            raise KeyboardInterrupt
        return score(self, prompts, answers)

    with monkeypatch.context() as patch:
        patch.setattr(PictureReward, "__call__", killed)
        ppo(folder, tmp_path / "cut", *store, *GROUPS, code=130)
    ppo(folder, tmp_path / "cut", *store, *GROUPS)
    for name in ("adapter_model.safetensors", "rollouts.jsonl"):
        whole, cut = (tmp_path / run / name for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name


def test_stages_are_merged_in_order_however_many_there_are(folder, tmp_path):
    from ine.posi.trained import bring_along

    second, third = tmp_path / "second", tmp_path / "third"
    for out, before in ((second, [folder / "sft"]), (third, [second])):
        out.mkdir()
        (out / "adapter_config.json").write_text("{}")
        bring_along(before, out)
    assert stages_of([third]) == [third / "sft" / "sft", third / "sft", third]
    assert stages_of([folder / "sft", second]) == [folder / "sft", second / "sft", second]


def test_a_reward_of_nan_stops_grpo(folder, tmp_path, monkeypatch, noise):
    from ine.training.rewards import PictureReward

    monkeypatch.setattr(
        PictureReward,
        "__call__",
        lambda self, asked, texts: [{"reward": float("nan")}] * len(texts),
    )
    done = ppo(folder, tmp_path / "out", *GROUPS, code=1)
    assert "a reward is nan; a picture or a judge failed" in done.stderr
