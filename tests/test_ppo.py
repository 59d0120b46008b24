import math

import numpy as np
import pytest
import torch
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ine.errors import IneError, ModelError, PromptError
from ine.optim import StateFile
from ine.runtime import generator_for
from ine.training.advantages import (
    KlControl,
    advantages_of,
    policy_loss,
    token_rewards,
    value_loss,
    whitened,
)
from ine.training.answers import Drawing, draw, draw_answers, filtered
from ine.training.policy import policy_of, reference_of, rows_of
from ine.training.ppo import train_ppo
from ine.training.ppo_settings import PpoSettings
from ine.training.rollouts import asked_prompts
from tests.tiny_words import word_model, word_tokenizer

MASK = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def replace(settings, **changes):
    return settings.model_copy(update=changes)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator_for("test", seed), dtype=torch.float64)


# ----------------------------------------------------------------- advantages, against NumPy


def summed_advantages(rewards, values, length, gamma, decay):
    """Equation 16 of Schulman et al. 2016 as the sum that it is, one answer at a time."""
    found = np.zeros(len(rewards))
    for t in range(length):
        for later in range(t, length):
            following = values[later + 1] if later + 1 < length else 0.0
            error = rewards[later] + gamma * following - values[later]
            found[t] += (gamma * decay) ** (later - t) * error
    return found


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_advantages_are_the_sum_of_their_definition(gamma, decay):
    rewards, values = random(3, 5), random(3, 5, seed=1)
    advantages, returns = advantages_of(rewards, values, MASK.double(), gamma, decay)
    for row in range(3):
        length = int(MASK[row].sum())
        wanted = summed_advantages(rewards[row].numpy(), values[row].numpy(), length, gamma, decay)
        assert advantages[row].numpy() == pytest.approx(wanted)
        assert returns[row, :length].numpy() == pytest.approx(
            wanted[:length] + values[row, :length].numpy()
        )
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_with_lambda_one_the_return_is_the_discounted_sum_whatever_the_values_say():
    rewards = random(1, 5)
    _, returns = advantages_of(rewards, random(1, 5, seed=3), torch.ones(1, 5), 1.0, 1.0)
    assert returns[0].numpy() == pytest.approx(rewards[0].flip(0).cumsum(0).flip(0).numpy())


def test_the_score_stands_at_the_last_token_and_the_penalty_at_every_one():
    rewards = token_rewards(torch.tensor([5.0, 2.0, 1.0]), torch.full((3, 5), 0.5), MASK, 0.2)
    assert rewards.tolist()[0] == pytest.approx([-0.1, -0.1, -0.1, -0.1, 4.9])
    assert rewards.tolist()[1] == pytest.approx([-0.1, -0.1, 1.9, 0, 0])
    assert rewards.tolist()[2] == pytest.approx([0.9, 0, 0, 0, 0])


def test_whitened_advantages_have_mean_0_and_variance_1_where_there_are_tokens():
    found = whitened(random(3, 5) * 7 + 3, MASK.double())
    there = found[MASK.bool()]
    assert there.mean().item() == pytest.approx(0, abs=1e-9)
    assert there.var(unbiased=False).item() == pytest.approx(1)
    assert not found[~MASK.bool()].any()


# ---------------------------------------------------------------------- losses, closed forms


def test_the_policy_loss_of_an_unchanged_policy_is_minus_the_mean_advantage():
    old, advantages = random(3, 5), random(3, 5, seed=1)
    loss = policy_loss(old, old, advantages, MASK.double(), 0.2)
    assert loss.item() == pytest.approx(-advantages[MASK.bool()].mean().item())


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted"),
    [
        (1.5, 1.0, -1.2),  # gains are cut at 1 + clip
        (0.5, 1.0, -0.5),  # losses are not
        (1.5, -1.0, 1.5),
        (0.5, -1.0, 0.8),
        (1.1, 2.0, -2.2),
    ],
)
def test_the_policy_loss_is_equation_7(ratio, advantage, wanted):
    new, one = torch.tensor([[math.log(ratio)]], requires_grad=True), torch.ones(1, 1)
    loss = policy_loss(new, torch.zeros(1, 1), advantage * one, one, 0.2)
    assert loss.item() == pytest.approx(wanted)
    loss.backward()
    cut = (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    assert (new.grad.item() == 0) == cut


@pytest.mark.parametrize(
    ("new", "wanted"),
    [(0.1, 0.5 * 0.9**2), (0.5, 0.5 * 0.8**2), (-0.5, 0.5 * 1.5**2)],
)
def test_a_value_gains_nothing_beyond_its_clip(new, wanted):
    one = torch.ones(1, 1)
    assert value_loss(new * one, 0 * one, one, one, 0.2).item() == pytest.approx(wanted)


def test_padding_changes_no_loss():
    new, old, other = random(3, 5), random(3, 5, seed=1), random(3, 5, seed=2)
    mask = MASK.double()
    spoilt = torch.where(MASK.bool(), new, 3.0)
    for loss in (policy_loss, value_loss):
        assert loss(new, old, other, mask, 0.2) == loss(spoilt, old, other, mask, 0.2)


def test_the_weight_of_the_penalty_grows_above_the_target_and_falls_below():
    control = KlControl(weight=0.2, target=6.0, horizon=1000)
    assert control.after(12.0, 100).weight == pytest.approx(0.2 * 1.02)  # an error of 1 is cut
    assert control.after(6.6, 100).weight == pytest.approx(0.2 * 1.01)
    assert control.after(6.0, 100) == control
    assert control.after(0.0, 100).weight == pytest.approx(0.2 * 0.98)


# -------------------------------------------------------------------------- drawing answers


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (50, 0.7), (3, 0.9)])
def test_filtered_probabilities_are_those_of_transformers(top_k, top_p):
    logits = random(6, 100).float() * 3
    wanted = TemperatureLogitsWarper(0.95)(None, logits)
    wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
    wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
    found = filtered(logits, Drawing(temperature=0.95, top_k=top_k, top_p=top_p))
    assert torch.allclose(found, wanted.softmax(-1), atol=1e-6)
    assert ((found > 0) == (wanted > -math.inf)).all()


def test_draws_follow_the_probabilities_and_never_take_what_has_none():
    row = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    generator = generator_for("draws")
    found = [draw(row, [generator]).item() for _ in range(2000)]
    assert set(found) == {1, 3}
    assert found.count(3) / 2000 == pytest.approx(0.75, abs=0.04)


def test_an_answer_is_the_same_alone_and_beside_a_longer_prompt():
    tokenizer = word_tokenizer()
    model, drawing = word_model(tokenizer), Drawing(max_tokens=8, top_p=1.0)
    prompts = ["a cat", "the dog in the rain left right"]
    both = draw_answers(model, tokenizer, prompts, [generator_for(k) for k in (1, 2)], drawing)
    alone = draw_answers(model, tokenizer, prompts[:1], [generator_for(1)], drawing)
    assert both.texts[0] == alone.texts[0]
    assert both.texts[0]


def test_an_answer_ends_with_its_end_of_text_and_padding_follows():
    tokenizer = word_tokenizer()
    model = word_model(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[0] += 0.3 * model.model.norm.weight  # ends soon, not at once
    seeds = [generator_for(k) for k in range(8)]
    found = draw_answers(model, tokenizer, ["a cat"] * 8, seeds, Drawing(max_tokens=12, top_p=1.0))
    ends = (found.answer_tokens == 0) & found.answer_mask.bool()
    assert ends.sum(dim=1).tolist() == [int(ended) for ended in found.ended]
    assert any(found.ended)
    assert not found.answer_tokens[found.answer_mask == 0].any()
    assert all("</s>" not in text for text in found.texts)


def test_log_probabilities_are_those_of_the_model_without_padding():
    tokenizer = word_tokenizer()
    model = word_model(tokenizer)
    prompts = ["a cat", "the dog in the rain"]
    seeds = [generator_for(k) for k in range(2)]
    found = draw_answers(model, tokenizer, prompts, seeds, Drawing(max_tokens=6, top_p=1.0))
    read, _ = policy_of(model, tokenizer).read(found)
    for row, prompt in enumerate(prompts):
        start = len(tokenizer(prompt).input_ids)
        own = found.tokens[row][found.mask[row].bool()][None]
        logits = model(input_ids=own).logits[0, start - 1 : -1].log_softmax(-1)
        wanted = logits.gather(-1, own[0, start:, None])[:, 0]
        assert torch.allclose(read[row, : len(wanted)], wanted, atol=1e-5)


def test_a_tokenizer_without_end_of_text_is_refused():
    tokenizer = word_tokenizer(end=False)
    with pytest.raises(ModelError, match="end of text"):
        draw_answers(word_model(tokenizer), tokenizer, ["a cat"], [generator_for(0)])


def test_a_prompt_longer_than_the_context_is_named():
    tokenizer = word_tokenizer()
    prompts = ["a cat", "a dog " * 10]
    with pytest.raises(PromptError, match=r"1 of 2 prompts .* prompt 2 has 20 tokens"):
        draw_answers(
            *(word_model(tokenizer), tokenizer, prompts, [generator_for(k) for k in range(2)]),
            Drawing(max_tokens=16),
        )


# --------------------------------------------------------------------------------- training

ARMS = PpoSettings(
    rollouts=14,
    batch=16,
    minibatch=16,
    accumulation=1,
    learning_rate=2e-2,
    kl=KlControl(weight=0.01, target=6.0),
    drawing=Drawing(temperature=1.0, top_k=0, top_p=1.0, max_tokens=1),
)


def pull(prompts, answers):
    """A bandit with two arms: the right one pays 1, the left one a tenth, other words nothing."""
    paid = {"right": 1.0, "left": 0.1}
    return [{"reward": paid.get(answer, 0.0)} for answer in answers]


def train(settings=ARMS, reward=pull, model=None, **more):
    tokenizer = word_tokenizer()
    policy = policy_of(model or word_model(tokenizer), tokenizer)
    prompts = ["a cat", "a dog", "the rain"]
    result = train_ppo(
        policy, reference_of(policy.model), prompts, lambda p: f"{p} in", reward, settings, **more
    )
    return policy, result


@pytest.fixture(scope="module")
def trained():
    return train()


def share_right(policy):
    with torch.no_grad():
        tokens = policy.tokenizer("a cat in", return_tensors="pt").input_ids
        after = policy.model(input_ids=tokens).logits[0, -1].softmax(-1)
    return after[policy.tokenizer.convert_tokens_to_ids("right")].item()


def test_the_better_arm_of_a_bandit_is_learnt(trained):
    before = share_right(policy_of(word_model(), word_tokenizer()))
    policy, result = trained
    assert before < 0.2
    assert share_right(policy) > 0.9
    assert result.rows[-1]["reward"] > 0.9 > result.rows[0]["reward"]
    assert result.rows[-1]["kl"] > result.rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert not result.stopped


def test_where_every_arm_pays_the_same_nothing_is_learnt():
    policy, _ = train(reward=lambda prompts, answers: [{"reward": 1.0}] * len(answers))
    assert share_right(policy) < 0.5


def test_a_heavy_penalty_keeps_the_policy_near_its_reference(trained):
    heavy = replace(ARMS, kl=KlControl(weight=20.0, target=0.001, horizon=10))
    assert train(heavy)[1].rows[-1]["kl"] < 0.3 * trained[1].rows[-1]["kl"]


def test_a_killed_training_ends_with_the_same_bytes(tmp_path):
    settings = replace(ARMS, rollouts=4, minibatch=4, accumulation=2, drawing=Drawing(max_tokens=3))
    whole = tmp_path / "whole"
    policy, result = train(settings, state=StateFile(path=whole, key="k"))

    class KilledError(Exception):
        pass

    calls = []

    def killed(prompts, answers):
        calls.append(1)
        if len(calls) > 2:
            raise KilledError
        return pull(prompts, answers)

    cut = tmp_path / "cut"
    with pytest.raises(KilledError):
        train(settings, killed, state=StateFile(path=cut, key="k"))
    assert cut.read_bytes() != whole.read_bytes()
    again, repeated = train(settings, state=StateFile(path=cut, key="k"))
    assert cut.read_bytes() == whole.read_bytes()
    assert repeated == result
    for name, parameter in policy.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


def test_a_reward_that_is_not_finite_is_an_error_and_what_was_done_stays(tmp_path):
    calls = []

    def broken(prompts, answers):
        calls.append(1)
        scores = pull(prompts, answers)
        return [{"reward": math.nan}, *scores[1:]] if len(calls) == 3 else scores

    state = StateFile(path=tmp_path / "state", key="k")
    with pytest.raises(IneError, match="reward of answer 1 in rollout 3 is nan"):
        train(reward=broken, state=state)
    assert state.read()[0] == 2 * ARMS.updates


def test_an_explosion_of_the_divergence_stops_and_keeps_the_best():
    wild = replace(ARMS, rollouts=30, learning_rate=0.5, max_kl=2.0)
    policy, result = train(wild)
    assert result.stopped
    assert len(result.rows) < 30
    best = max(range(len(result.rows)), key=lambda k: result.rows[k]["reward"])
    assert result.best == best
    if best == 0:  # drawn before any update
        fresh = word_model(word_tokenizer())
        assert all(
            torch.equal(a, b)
            for a, b in zip(policy.model.parameters(), fresh.parameters(), strict=True)
        )


def test_every_prompt_is_asked_once_before_any_is_asked_again():
    prompts = [str(k) for k in range(10)]
    asked = [
        p for r in range(5) for p in asked_prompts(prompts, r, replace(ARMS, batch=4, minibatch=2))
    ]
    assert sorted(asked[:10]) == sorted(asked[10:]) == prompts
    assert asked[:10] != asked[10:]


def test_rows_of_answers_stay_together():
    tokenizer = word_tokenizer()
    seeds = [generator_for(k) for k in range(3)]
    found = draw_answers(
        *(word_model(tokenizer), tokenizer, ["a", "a cat", "dog"], seeds, Drawing(max_tokens=3))
    )
    some = rows_of(found, torch.tensor([2, 0]))
    assert some.texts == (found.texts[2], found.texts[0])
    assert torch.equal(some.tokens[1], found.tokens[0])


def test_a_batch_that_minibatches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch of 10"):
        PpoSettings(batch=10)
