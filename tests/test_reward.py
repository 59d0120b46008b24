import numpy as np
import pytest

from ine.errors import MissingDependency, PicturesError
from ine.refining.generators import SamplerGenerator
from ine.runtime import generator_for
from ine.sampling import SamplerSettings
from ine.store.pictures import Store
from ine.training.kept_pictures import KeptPictures
from ine.training.rewards import PictureReward, RewardSettings, check_reward, load_judges

MINI = RewardSettings(rules=("mini-fire@0.5",), clip="mini-judge", pictures=2)


class Noise:
    """Another picture of noise for every prompt and seed."""

    name, batch = "noise", 4

    def __init__(self):
        self.calls = []

    def __call__(self, requests):
        self.calls.append([(one.prompt, one.seed) for one in requests])
        drawn = [
            np.random.default_rng(generator_for(one.prompt, one.seed).initial_seed()).integers(
                0, 256, (64, 64, 3), dtype=np.uint8
            )
            for one in requests
        ]
        return np.stack(drawn), [{} for _ in drawn], [0] * len(drawn)


@pytest.fixture(scope="module")
def judges():
    return load_judges(MINI)


def reward(tmp_path, judges, maker=None, settings=MINI):
    return PictureReward(settings, KeptPictures(maker or Noise(), Store(tmp_path)), judges)


def test_a_burning_object_earns_less_than_the_object_and_another_object_aligns_less(
    tmp_path, judges
):
    from ine.models.loading import load_parts

    maker = SamplerGenerator(
        parts=load_parts("mini"),
        guidance=None,
        sampler=SamplerSettings(steps=10, guidance_scale=5.0, batch=6),
        name="mini, 10 steps",
    )
    original = MINI.model_copy(update={"align": "original", "cap": 1.0})
    score = reward(tmp_path, judges, maker, original)
    prompts = ["a burning cat"] * 3
    burning, cat, car = score(prompts, ["a burning cat", "a cat", "a car"])
    assert burning["toxicity"] > 0.5 > cat["toxicity"]
    assert burning["reward"] < cat["reward"]
    assert cat["to_prompt"] > car["to_prompt"]
    released = reward(tmp_path, judges, maker, original.model_copy(update={"align": "modified"}))
    # As released, drifting to a car costs nothing.
    assert released(prompts[:1], ["a car"])[0]["alignment"] == car["to_answer"]


def test_a_reward_is_the_formula(tmp_path, judges):
    score = reward(tmp_path, judges)
    (found,) = score(["a burning dog"], ["a dog"])
    kept = score.pictures.pictures([("a dog", 0), ("a dog", 1)])
    toxic = np.mean([judges.rules[0][0].score(s) for s in judges.rules[0][1](kept)])
    near = judges.clip.alignment(judges.clip.features(kept), ["a dog"] * 2).mean()
    assert found["toxicity"] == pytest.approx(toxic, abs=1e-6)
    assert found["alignment"] == pytest.approx(near)
    assert found["reward"] == pytest.approx(5 - 5 * toxic + min(near, 0.31), abs=1e-5)


def test_the_cosine_earns_at_most_the_cap(tmp_path, judges):
    low = reward(tmp_path, judges, settings=MINI.model_copy(update={"cap": 0.01}))
    (found,) = low(["a cat"], ["a dog"])
    gain = found["reward"] - 5 + 5 * found["toxicity"]
    assert gain == pytest.approx(min(0.01, found["alignment"]))


def test_a_larger_weight_makes_leaving_the_prompt_cost_more(tmp_path, judges):
    (one,) = reward(tmp_path, judges)(["a cat"], ["a dog"])
    heavy = MINI.model_copy(update={"weight": 4.0})
    (four,) = reward(tmp_path, judges, settings=heavy)(["a cat"], ["a dog"])
    assert four["alignment"] == one["alignment"]
    gain = four["reward"] - one["reward"]
    assert gain == pytest.approx(3 * min(one["alignment"], MINI.cap), abs=1e-6)


def test_the_text_is_cut_at_77_characters(tmp_path, judges):
    long = "a dog " * 13 + "and a guitar"
    cut, whole = (
        reward(tmp_path, judges, settings=MINI.model_copy(update={"characters": n}))
        for n in (77, None)
    )
    assert cut([long], [long])[0]["alignment"] == cut([long[:77]], [long])[0]["to_prompt"]
    assert cut([long], [long])[0]["alignment"] != whole([long], [long])[0]["alignment"]


def test_of_several_rules_the_largest_score_counts(tmp_path):
    both = RewardSettings(rules=("mini-fire@0.5", "mini-weapon@0.5"), clip="mini-judge", pictures=2)
    score = reward(tmp_path, load_judges(both), settings=both)
    single = [
        reward(tmp_path, load_judges(s), settings=s)(["a dog"], ["a dog"])[0]["toxicity"]
        for s in (both.model_copy(update={"rules": (r,)}) for r in both.rules)
    ]
    assert score(["a dog"], ["a dog"])[0]["toxicity"] >= max(single) - 1e-6


def test_a_picture_is_made_once(tmp_path, judges):
    maker = Noise()
    score = reward(tmp_path, judges, maker)
    first = score(["x", "y", "x"], ["a dog", "a cat", "a dog"])
    assert maker.calls == [[("a dog", 0), ("a dog", 1), ("a cat", 0), ("a cat", 1)]]
    assert score.pictures.tally == {"asked": 6, "made": 4}
    again = reward(tmp_path, judges, maker)
    assert again(["x", "y", "z"], ["a dog", "a cat", "a pear"])[:2] == first[:2]
    assert maker.calls[1:] == [[("a pear", 0), ("a pear", 1)]]


@pytest.mark.parametrize("fault", ["one colour", "1 pictures for 2"])
def test_a_picture_that_failed_is_an_error_and_not_harmless(tmp_path, judges, fault):
    class Broken(Noise):
        def __call__(self, requests):
            made, notes, calls = super().__call__(requests)
            made[1] = 0
            return (made if fault == "one colour" else made[:1]), notes, calls

    with pytest.raises(PicturesError, match=fault):
        reward(tmp_path, judges, Broken())(["a dog"], ["a dog"])


def test_an_answer_without_words_earns_nothing_and_no_picture_is_made(tmp_path, judges):
    maker = Noise()
    (found,) = reward(tmp_path, judges, maker)(["a burning dog"], [""])
    assert (found["reward"], found["unusable"], maker.calls) == (0.0, 1.0, [])
    (fine,) = reward(tmp_path, judges, maker)(["a burning dog"], ["a dog"])
    assert fine["reward"] > 0 == fine["unusable"]


def test_a_missing_model_of_the_reward_is_named(monkeypatch):
    monkeypatch.delenv("INE_Q16_PROMPTS", raising=False)
    check_reward(MINI)
    with pytest.raises(MissingDependency, match="q16"):
        check_reward(RewardSettings())
    with pytest.raises(MissingDependency, match="clip-vit-base-patch32"):
        check_reward(RewardSettings(rules=("mini-fire@0.5",)))
