"""GRPO with real trl on a tiny vision-language model, pictures of noise, and a simple reward."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_vlm import save_llava

from ine.errors import IneError, MissingDependency, PromptError
from ine.observers.vlm_loading import load_vlm
from ine.pictures import png_bytes
from ine.refining.answers import Verdict
from ine.refining.asking import AskingRewriter
from ine.refining.dataset import Row
from ine.refining.settings import RefineSettings
from ine.refining.trained import asked_of, settings_for, trained_with
from ine.runtime import seed_for
from ine.store.pictures import Store
from ine.training.grpo import Groups, groups_of, reinforce
from ine.training.kept_pictures import KeptPictures
from ine.training.pool import Pool
from ine.training.refiner import SetExamples
from ine.training.refining_reward import IPR, RefiningReward, Scored
from ine.training.rewards import load_judges
from ine.training.running import quiet
from ine.training.settings import GrpoSettings, LoraSettings, SftSettings
from ine.training.sft import fine_tune

QUICK = GrpoSettings(
    lora=LoraSettings(dropout=0, targets=("q_proj", "v_proj", "o_proj", "down_proj")),
    steps=16,
    batch=4,
    accumulation=2,
    learning_rate=2e-2,
    max_tokens=4,
    max_grad_norm=1.0,
    save_every=3,
)
PNG = png_bytes(np.zeros((32, 32, 3), np.uint8))
PROMPTS = ["a dog", "fire on the cat", "a cat with flames"]


class Noise:
    """Another picture of noise for every prompt and seed."""

    name, batch, side = "noise", 4, 32

    def __call__(self, requests):
        drawn = [
            np.random.default_rng(seed_for(one.prompt, one.seed)).integers(
                0, 256, (self.side, self.side, 3), dtype=np.uint8
            )
            for one in requests
        ]
        return np.stack(drawn), [{} for _ in drawn], [0] * len(drawn)


class Large(Noise):
    """Noise of the size that the bundled judges look at."""

    side = 64


class Words:
    """Rewards words from the first half of the alphabet, in the place of pictures' judges."""

    settings, reading = IPR, RefineSettings(system="a picture", user="what is {prompt}")

    def __init__(self, folder):
        self.pictures, self.seen = KeptPictures(Noise(), Store(folder)), []

    def __call__(self, query, answers, current):
        self.seen.append((query, tuple(current)))
        return [
            Scored(
                verdict=Verdict(kind="rewrite", raw=text, prompt=text or "a"),
                reward=sum(word < "is" for word in text.split()) / 4,
            )
            for text in answers
        ]


class Killed(BaseException):
    pass


def killed_after(step):
    def on_step(done, total, figures):
        if done == step:
            raise Killed

    return on_step


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("vlm") / "llava")


@pytest.fixture(scope="module")
def trained(llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    reward = Words(folder / "store")
    result = reinforce(llava, PROMPTS, reward, QUICK, folder / "out", device="cpu")
    return result, reward


def test_answers_that_earn_more_are_given_more_often(trained):
    result, _ = trained
    assert len(result.rewards) == QUICK.steps
    assert np.mean(result.rewards[-5:]) > np.mean(result.rewards[:4]) + 0.1
    assert result.answers == {"rewrite": QUICK.steps * 8}


def test_a_group_looks_at_one_picture_of_its_prompt_and_at_rewritten_ones_later(trained):
    _, reward = trained
    assert all(len(set(current)) == 1 for _, current in reward.seen)
    first = {(query, current[0][0]) for query, current in reward.seen[:2]}
    assert all(query == prompt for query, prompt in first)
    assert any(query != current[0][0] for query, current in reward.seen)


def test_a_killed_run_goes_on_to_the_same_rewards_and_bytes(llava, trained, tmp_path):
    result, _ = trained
    reward, out = Words(tmp_path / "store"), tmp_path / "out"
    with pytest.raises(Killed):
        reinforce(llava, PROMPTS, reward, QUICK, out, device="cpu", on_step=killed_after(5))
    resumed = reinforce(llava, PROMPTS, reward, QUICK, out, device="cpu")
    assert resumed.rewards == result.rewards
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (result.out / weights).read_bytes()
    assert not (out / "ref").exists()


@pytest.mark.parametrize(("reference", "moved"), [("start", False), ("base", True)])
def test_the_reference_is_the_adapter_it_starts_from_or_the_base(
    reference, moved, llava, trained, tmp_path
):
    """At the first step the divergence is 0 from the start, and not 0 from the base."""
    kl = []
    settings = QUICK.model_copy(update={"steps": 1, "kl": 0.1, "reference": reference})
    reinforce(
        llava, PROMPTS, Words(tmp_path / "store"), settings, tmp_path / "out", device="cpu",
        adapter=trained[0].out, on_step=lambda done, total, one: kl.append(one["kl"]),
    )  # fmt: skip
    assert (abs(kl[0]) > 1e-3) is moved


def test_steps_of_broken_groups_and_too_few_prompts_are_refused(llava, tmp_path):
    with pytest.raises(ValidationError, match="is no multiple of generations 4"):
        GrpoSettings(batch=3, accumulation=2)
    with pytest.raises(PromptError, match="1 prompts, and a step takes 2"):
        reinforce(llava, ["a"], Words(tmp_path), QUICK, tmp_path / "out", device="cpu")


def test_a_rewrite_earns_what_its_pictures_gain_and_keep_its_fixed_reward(tmp_path):
    settings = IPR.model_copy(
        update={"rules": ("mini-fire@0.5",), "clip": "mini-judge", "pictures": 2}
    )
    judges = load_judges(settings)
    kept = KeptPictures(Large(), Store(tmp_path))
    reward = RefiningReward(settings=settings, pictures=kept, judges=judges, reading=Words.reading)
    query, seen = "a burning dog", ("a burning dog", 5)
    answers = ["keep", "a dog", "The picture shows a dog.", "a dog"]
    keep, rewrite, prose, again = reward(query, answers, [seen] * 4)
    assert (keep.reward, prose.reward) == (0.3, -1.0)
    assert again == rewrite

    def worth(pictures):
        cosine = judges.clip.alignment(judges.clip.features(pictures), [query] * len(pictures))
        toxic = [judges.rules[0][0].score(one) for one in judges.rules[0][1](pictures)]
        return float(np.mean(np.asarray(cosine) + 5 * (1 - np.asarray(toxic))))

    new, old = kept.pictures([("a dog", 0), ("a dog", 1)]), kept.pictures([seen])
    assert rewrite.reward == pytest.approx(worth(new) - worth(old), abs=1e-5)


def test_a_pool_grows_by_one_rewrite_of_a_group_and_is_packed_whole():
    pool = Pool(("a", "b"))
    assert pool.choose(0, 3) == pool.of(0)[0]
    first = pool.of(0)
    assert pool.add(0, 3, []) is None
    new = pool.add(0, 3, ["x", "y"])
    assert new in pool.of(0)
    assert new[0] in ("x", "y")
    assert pool.of(0, 3) == pool.of(0, 4) == first
    assert pool.of(0, 5) == pool.of(0)
    assert {pool.choose(0, step) for step in range(20)} == set(pool.of(0))
    other = Pool(("a", "b"))
    other.unpack(json.loads(json.dumps(pool.pack())))
    assert other.of(0) == pool.of(0)
    assert other.of(1) == pool.of(1)


def test_a_trainer_that_reads_too_far_ahead_is_refused():
    """A resumed run would look at other pictures than one that was not interrupted."""
    pool = Pool(("a", "b"))
    pool.check_ready(1)
    with pytest.raises(IneError, match="step 2 were asked for before the answers of step 0"):
        pool.check_ready(2)
    pool.scored.add(0)
    pool.check_ready(2)
    later = Pool(("a", "b"))
    later.unpack(json.loads(json.dumps(pool.pack())))
    later.check_ready(2)


def test_a_group_shows_one_picture_or_each_answer_its_own(tmp_path):
    shown = {}
    for pictures in ("one", "each"):
        settings = QUICK.model_copy(update={"pictures": pictures})
        groups = Groups(Words(tmp_path), Pool(("a dog", "a cat")), settings)
        groups.pool.more[0] = [(0, (f"a dog {k}", k)) for k in range(9)]
        groups.pool.scored.add(9)
        number = 10 * groups_of(settings)
        staged = groups.shown({"row": [0] * 4 + [1] * 4, "number": [number] * 4 + [number + 1] * 4})
        assert staged["step"] == [10] * 8
        assert all("a dog" in one[-1]["content"] for one in staged["prompt"][:4])
        shown[pictures] = len(set(staged["current"][:4]))
    assert shown["one"] == 1
    assert shown["each"] > 1


def test_a_refiner_of_words_alone_is_trained_without_pictures(llava, tmp_path):
    reward = Words(tmp_path / "store")
    reward.reading = RefineSettings(system="a picture", user="what is {prompt}", picture=False)
    settings = QUICK.model_copy(update={"steps": 2})
    done = reinforce(llava, PROMPTS, reward, settings, tmp_path / "out", device="cpu")
    assert len(done.rewards) == 2
    assert trained_with(f"vlm:{tmp_path / 'out'}") == asked_of(reward.reading)
    rows = [Row(query=p, response=a, image=PNG) for p, a in (("fire", "a dog"), ("cat", "keep"))]
    examples = SetExamples(rows, reward.reading)
    sft = SftSettings(steps=2, batch=2, accumulation=1)
    asked = asked_of(reward.reading)
    learned = fine_tune(llava, examples, sft, tmp_path / "sft", device="cpu", asked=asked)
    assert len(learned.losses) == 2
    settings = settings_for(f"vlm:{tmp_path / 'sft'}")
    assert (settings.picture, settings.user) == (False, "what is {prompt}")
    assert settings_for(f"vlm:{tmp_path / 'sft'}", user="{prompt} ?").user == "{prompt} ?"
    asker = load_vlm(str(tmp_path / "sft"), "cpu")
    seen = np.zeros((2, 32, 32, 3), np.uint8)
    assert len(AskingRewriter(asker, settings)(["fire", "a dog"], seen)) == 2


def test_reports_of_a_trainer_are_off_or_refused(monkeypatch):
    class Known:
        def _send_telemetry(self):
            raise AssertionError("it reported")

    class Renamed:
        pass

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert quiet(Known)()._send_telemetry() is None
    with pytest.raises(MissingDependency, match="set HF_HUB_DISABLE_TELEMETRY=1"):
        quiet(Renamed)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    assert issubclass(quiet(Renamed), Renamed)
