"""DUO: the loss, the LoRA, SDEdit and the pairs that it makes, the file, resuming, the command."""

import json
import math
import re
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import build_tiny

import ine.unlearning.duo as module
from ine.cli.erasing import METHOD_OPTIONS
from ine.detectors.table import DETECTORS
from ine.errors import IneError, PicturesError, RecipeError
from ine.files import sha256_of
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative, PerPicture
from ine.inversion.images import ConceptPictures
from ine.models.loading import load_parts
from ine.recipe import check_recipe, load_recipe
from ine.sampling import SamplerSettings, edit_latents, make_scheduler, run_unet, sample_latents
from ine.text.encode import encode_nothing
from ine.unlearning.duo import DuoSettings, chosen_pairs, duo, preference_loss
from ine.unlearning.duo_lora import adapted, with_lora
from ine.unlearning.duo_pairs import Pairs, make_pairs
from ine.unlearning.duo_units import remove_units
from ine.unlearning.pairs import pair_prompts
from ine.unlearning.run import SETTINGS, check_settings, unlearn_concept
from ine.weights.apply import apply_weights

# DPM-Solver++ in diffusers hands a tensor to numpy in a way that numpy 2 announces the end of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DATA = {
    "kind": "concept",
    "version": 1,
    "name": "fire",
    "base": "tiny",
    "words": {"explicit": ["on fire"]},
    "pictures": {
        "prompts": ["a {}"],
        "rule": "mini-fire@0.5",
        "steps": 2,
        "guidance_scale": 2.0,
        "batch": 2,
    },
    "erase": {
        "concepts": ["a {} on fire", "a burning {}"],
        "targets": ["a {}", "a {}"],
        "nouns": ["ox", "elk"],
    },
}
QUICK = {"iterations": 2, "pairs": 2, "rank": 2, "batch": 2, "tries": 8, "strength": 0.7}


class Killed(Exception):
    """Stands for a kill at a certain moment."""


class Coin:
    """Finds fire in half of all pictures, always in the same."""

    def __init__(self):
        self.seen = 0

    def __call__(self, pictures):
        self.seen += len(pictures)
        return [{"fire": float(sha256_of(p.tobytes())[0] in "01234567")} for p in pictures]


def recipe_of(**erase):
    return check_recipe({**DATA, "erase": DATA["erase"] | erase}, "fire.yaml")


def random_pairs(parts, count=4, seed=0):
    """Pairs of noise; the halves differ in their mean."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *parts.latent_shape)

    def half(mean):
        return ConceptPictures(
            mean=mean + torch.randn(shape, generator=generator),
            std=torch.full(shape, 0.1),
            captions=None,
            names=tuple(f"{i:06d}" for i in range(count)),
        )

    return Pairs(unsafe=half(1.0), safe=half(-1.0))


def state_of(unet):
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ------------------------------------------------------------------------------ the preference


def test_a_model_that_equals_the_reference_loses_log_2():
    zeros = torch.zeros(3)
    assert preference_loss(zeros, zeros, 500.0).item() == pytest.approx(math.log(2))
    same = torch.tensor([0.3, -0.2, 7.0])
    assert preference_loss(same, same, 500.0).item() == pytest.approx(math.log(2))


def test_the_loss_is_what_the_formula_gives_by_hand():
    safe, unsafe = torch.tensor([0.01, -0.02]), torch.tensor([0.03, -0.01])
    # beta (safe - unsafe) is -2 and -1.
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert preference_loss(safe, unsafe, 100.0).item() == pytest.approx(wanted, rel=1e-5)
    # It stays finite and straight where exp would not.
    far = preference_loss(torch.tensor([1e4]), torch.tensor([0.0]), 500.0)
    assert far.item() == pytest.approx(5e6)
    assert preference_loss(torch.tensor([0.0]), torch.tensor([1e4]), 500.0).item() == 0.0


def test_it_pays_to_be_worse_at_the_unsafe_and_better_at_the_safe():
    safe, unsafe = (torch.tensor([0.01], requires_grad=True) for _ in range(2))
    preference_loss(safe, unsafe, 200.0).backward()
    # d/dm log(1 + exp(beta m)) = beta sigmoid(beta m), at m = 0 half of beta.
    assert safe.grad.item() == pytest.approx(100.0)
    assert unsafe.grad.item() == pytest.approx(-100.0)


def test_what_depends_on_beta_is_as_the_authors_have_it():
    for beta, lr, weight in ((100, 3e-4, 1e6), (500, 6e-5, 5e6), (2000, 1.5e-5, 2e7)):
        settings = DuoSettings(beta=beta).resolved()
        assert (settings.lr, settings.prior_weight) == pytest.approx((lr, weight))
    other = DuoSettings(beta=200, base_lr=1e-3, base_prior=10.0).resolved()
    assert (other.lr, other.prior_weight) == pytest.approx((5e-4, 20.0))
    given = DuoSettings(beta=100, lr=1.0, prior_weight=0.0).resolved()
    assert (given.lr, given.prior_weight) == (1.0, 0.0)
    assert replace(DuoSettings(), beta=100).resolved().lr == pytest.approx(3e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_whole_loss_has_its_closed_form(tiny_parts, monkeypatch, kind):
    """With U-Nets that answer numbers, the loss can be written down."""
    parts = replace(
        tiny_parts, scheduler_config={**tiny_parts.scheduler_config, "prediction_type": kind}
    )
    pairs, student = random_pairs(parts), torch.nn.Identity()
    settings = DuoSettings(beta=3.0, prior_weight=0.7, batch=2, t_max=20).resolved()
    asked = []

    def answer(unet, x, t, condition):
        asked.append((x, t, condition))
        return torch.full_like(x, 0.5 if unet is student else 0.2)

    monkeypatch.setattr(module, "run_unet", answer)
    alpha_bar = make_scheduler("ddim", parts.scheduler_config, 1).alphas_cumprod
    batch = module._batch(pairs, settings, alpha_bar, kind, 5, 0)
    loss = module._loss(parts, student, encode_nothing(parts), batch, settings)
    inputs, t, condition = asked[0]
    assert torch.equal(inputs, asked[1][0])
    # No prompt for anybody, the last timestep for pure noise, early ones for the pictures.
    assert all(torch.equal(row, encode_nothing(parts).states[0]) for row in condition.states)
    assert t[4:].tolist() == [999, 999]
    assert max(t[:4].tolist()) < 20
    # Both halves of a pair have the same noise, which is also what the last rows are.
    a = alpha_bar[t[:4]].view(-1, 1, 1, 1)
    noise = inputs[4:].repeat(2, 1, 1, 1)
    x_0 = (inputs[:4] - (1 - a).sqrt() * noise) / a.sqrt()
    index = chosen_pairs(4, 2, 5, 0)
    means = torch.cat([pairs.unsafe.mean[index], pairs.safe.mean[index]])
    assert 0.05 < (x_0 - means).std() < 0.2  # a sample of the posterior, spread .1
    target = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * x_0
    excess = ((0.5 - target) ** 2 - (0.2 - target) ** 2).mean((1, 2, 3))
    unsafe, safe = excess[:2], excess[2:]
    wanted = torch.log1p(torch.exp(3.0 * (safe - unsafe))).mean() + 0.7 * 0.3**2
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)


def test_timesteps_are_drawn_from_0_to_749_each_its_own(tiny_parts):
    pairs = random_pairs(tiny_parts)
    alpha_bar = make_scheduler("ddim", tiny_parts.scheduler_config, 1).alphas_cumprod
    settings = DuoSettings(batch=500)
    times = module._batch(pairs, settings, alpha_bar, "epsilon", 0, 0).times[:1000]
    assert (times.min().item(), times.max().item()) == pytest.approx((0, 749), abs=8)
    assert (times[:500] == times[500:]).float().mean() < 0.02


def test_every_pair_comes_once_before_any_comes_again():
    seen = [chosen_pairs(5, 2, 0, number) for number in range(10)]
    flat = [p for chosen in seen for p in chosen]
    epochs = [flat[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert chosen_pairs(5, 2, 0, 7) == seen[7]
    assert [chosen_pairs(5, 2, 1, number) for number in range(10)] != seen
    # More pairs in a pass than there are.
    assert sorted(chosen_pairs(2, 4, 0, 3)) == [0, 0, 1, 1]


# ------------------------------------------------------------------------------------ the LoRA


def ask(unet, parts, seed=0):
    x = torch.randn((2, *parts.latent_shape), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return run_unet(unet, x, torch.tensor([10, 900]), encode_nothing(parts).repeat(2))


def test_it_is_on_self_attention_only_and_begins_as_the_base_to_the_bit(tiny_parts):
    before, wanted = state_of(tiny_parts.unet), ask(tiny_parts.unet, tiny_parts)
    student, parameters = with_lora(tiny_parts.unet, 3, seed=0)
    assert torch.equal(ask(student, tiny_parts), wanted)
    layers = {re.fullmatch(r"unet\.(.+)\.lora\.(down|up)\.weight", k)[1] for k in parameters}
    linear = [n for n in before if ".attn1." in n and n.endswith("weight")]
    assert layers == {n.removesuffix(".weight") for n in linear}
    assert len(parameters) == 2 * len(layers)
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.requires_grad
            if name.endswith("up.weight"):
                assert not parameter.any()
                parameter += 0.1
    # What is trained is felt by the student, and by nobody else.
    assert not torch.allclose(ask(student, tiny_parts), wanted, atol=1e-4)
    assert torch.equal(ask(tiny_parts.unet, tiny_parts), wanted)
    assert equal(state_of(tiny_parts.unet), before)
    assert not any(p.requires_grad for p in student.parameters())
    assert not any(p._forward_hooks for p in tiny_parts.unet.modules())
    # The copy takes no memory for what stays.
    assert student.conv_in.weight.data_ptr() == tiny_parts.unet.conv_in.weight.data_ptr()


def test_down_matrices_have_spread_1_over_rank(tiny_parts):
    for rank in (4, 16):
        _, parameters = with_lora(tiny_parts.unet, rank, seed=0)
        downs = [p.detach() for n, p in parameters.items() if n.endswith("down.weight")]
        assert torch.cat([d.flatten() for d in downs]).std().item() == pytest.approx(
            1 / rank, rel=0.1
        )
    assert equal(with_lora(tiny_parts.unet, 4, 1)[1], with_lora(tiny_parts.unet, 4, 1)[1])
    assert not equal(with_lora(tiny_parts.unet, 4, 1)[1], with_lora(tiny_parts.unet, 4, 2)[1])


def test_stable_diffusion_1_has_as_many_tensors_as_the_published_layout():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert len(adapted(unet)) == 64


def test_a_lora_learns_in_float32_over_a_half_model(tiny_parts):
    half = replace(tiny_parts, unet=with_lora(tiny_parts.unet, 1, 0)[0].bfloat16())
    found = duo(half, random_pairs(half), DuoSettings(**QUICK_TRAINING))
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert any(x.any() for n, x in found.items() if n.endswith("up.weight"))


# -------------------------------------------------------------------------------- the training

QUICK_TRAINING = {"iterations": 2, "rank": 2, "batch": 2}


def test_the_base_never_changes_and_the_loss_begins_at_log_2(tiny_parts):
    before, losses = state_of(tiny_parts.unet), []
    found = duo(
        tiny_parts,
        random_pairs(tiny_parts),
        DuoSettings(**QUICK_TRAINING),
        on_step=lambda done, loss: losses.append(loss),
    )
    # The term that holds the output weighs 5e6, and is nothing at the start.
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert equal(state_of(tiny_parts.unet), before)
    assert all(p.grad is None and not p.requires_grad for p in tiny_parts.unet.parameters())
    assert not any(x.requires_grad for x in found.values())
    # AdamW's first step moves what has a gradient by the learning rate; then "up" is not zero.
    ups = [x for n, x in found.items() if n.endswith("up.weight")]
    assert all(x.any() for x in ups)
    assert max(x.abs().max().item() for x in ups) < 3 * 6e-5


def test_the_same_seed_gives_the_same_bytes(tiny_parts):
    pairs, settings = random_pairs(tiny_parts), DuoSettings(**QUICK_TRAINING)
    one = duo(tiny_parts, pairs, settings, seed=1)
    assert equal(one, duo(tiny_parts, pairs, settings, seed=1))
    assert not equal(one, duo(tiny_parts, pairs, settings, seed=2))
    assert not equal(one, duo(tiny_parts, pairs, replace(settings, accumulation=2), seed=1))


def test_training_widens_the_preference_and_the_term_at_the_end_holds_it_back(tiny_parts):
    """Positive control: the loss falls, and what falls is the preference."""
    pairs, t = random_pairs(tiny_parts), torch.tensor([100, 300, 500, 700])
    alpha_bar = make_scheduler("ddim", tiny_parts.scheduler_config, 1).alphas_cumprod
    a = alpha_bar[t].view(-1, 1, 1, 1)
    noise = torch.randn(pairs.unsafe.mean.shape, generator=torch.Generator().manual_seed(9))

    def excess(unet, half):
        x_t = a.sqrt() * half.mean + (1 - a).sqrt() * noise
        with torch.no_grad():
            condition = encode_nothing(tiny_parts).repeat(4)
            out, frozen = (run_unet(u, x_t, t, condition) for u in (unet, tiny_parts.unet))
        return ((out - noise) ** 2 - (frozen - noise) ** 2).mean().item()

    def trained(lr, weight):
        losses = []
        settings = DuoSettings(
            beta=100.0, iterations=12, rank=8, batch=2, lr=lr, prior_weight=weight
        )
        found = duo(tiny_parts, pairs, settings, on_step=lambda done, loss: losses.append(loss))
        student, parameters = with_lora(tiny_parts.unet, 8, 0)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(found[name])
        drift = (ask(student, tiny_parts) - ask(tiny_parts.unet, tiny_parts)).pow(2).mean().item()
        return losses, excess(student, pairs.unsafe) - excess(student, pairs.safe), drift

    losses, margin, drift = trained(1e-2, 0.0)
    assert sum(losses[-4:]) / 4 < 0.7 * math.log(2)
    assert margin > 0.005
    still, none, _ = trained(1e-12, 0.0)
    assert sum(still[-4:]) / 4 == pytest.approx(math.log(2), rel=1e-3)
    assert abs(none) < 1e-5
    _, held_margin, held = trained(1e-2, 1e5)
    assert held < 0.5 * drift
    assert held_margin < margin


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "inpainting", "lcm"])
def test_other_families_are_trained_by_the_same_code(tmp_path, kind):
    folder = tmp_path / kind
    build_tiny(kind).save_pretrained(folder)
    parts = load_parts(folder)
    losses = []
    found = duo(
        parts,
        random_pairs(parts),
        DuoSettings(**QUICK_TRAINING),
        on_step=lambda done, loss: losses.append(loss),
    )
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert len(found) == 2 * len(adapted(parts.unet))


@pytest.mark.parametrize("kills", [(1,), (2, 4, 5)])
def test_a_killed_training_ends_byte_equal(tiny_parts, tmp_path, kills):
    pairs, settings = random_pairs(tiny_parts), DuoSettings(iterations=5, rank=2, batch=1)

    def go(state, kill=None):
        def on_step(done, loss):
            steps.append(done)
            if done == kill:
                raise Killed

        steps.clear()
        return duo(tiny_parts, pairs, settings, state=state, on_step=on_step, save_every=2)

    steps = []
    whole = go(tmp_path / "whole")
    for kill in kills:
        with pytest.raises(Killed):
            go(tmp_path / "killed", kill)
    assert equal(go(tmp_path / "killed"), whole)
    last = kills[-1]
    assert steps == ([] if last == 5 else list(range(last // 2 * 2 + 1, 6)))
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_states_of_other_runs_and_other_files_are_refused(tiny_parts, tmp_path):
    state, pairs = tmp_path / "state", random_pairs(tiny_parts)
    settings = DuoSettings(iterations=1, rank=2, batch=1)
    duo(tiny_parts, pairs, settings, state=state)
    for other in (
        {"settings": replace(settings, beta=100.0)},
        {"seed": 1},
        {"pairs": random_pairs(tiny_parts, seed=1)},
    ):
        arguments = {"pairs": pairs, "settings": settings} | other
        with pytest.raises(IneError, match="belongs to a run with other settings"):
            duo(tiny_parts, state=state, **arguments)
    duo(tiny_parts, pairs, settings, state=state, seed=1, force=True)
    save_file({"x": torch.zeros(1)}, state)
    with pytest.raises(IneError, match="is not a state of `ine unlearn`"):
        duo(tiny_parts, pairs, settings, state=state)


def test_a_training_that_diverges_stops(tiny_parts):
    settings = DuoSettings(iterations=5, rank=2, batch=1, lr=1e30)
    with pytest.raises(IneError, match=r"duo: the loss is \S+ at step 2 of 5.*than 1e\+30"):
        duo(tiny_parts, random_pairs(tiny_parts), settings)


def test_a_model_without_self_attention_is_refused(tiny_parts):
    class Empty(torch.nn.Module):
        pass

    with pytest.raises(IneError, match="no self-attention"):
        duo(replace(tiny_parts, unet=Empty()), random_pairs(tiny_parts))


# -------------------------------------------------------------------------------------- SDEdit

PROMPTS, SEEDS = ["a dog", "a cat"], [3, 4]
SAMPLER = SamplerSettings(steps=8, guidance_scale=7.5, batch=2)


def clean(parts, seed=1):
    return torch.randn((2, *parts.latent_shape), generator=torch.Generator().manual_seed(seed))


def predicting(parts, kind):
    return replace(parts, scheduler_config={**parts.scheduler_config, "prediction_type": kind})


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "pndm"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_edit_is_that_of_diffusers(tiny_folder, tiny_parts, scheduler, kind):
    parts, x_0 = predicting(tiny_parts, kind), clean(tiny_parts)
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make_scheduler(scheduler, parts.scheduler_config, 8)
    wanted = pipe(
        PROMPTS,
        image=x_0,
        strength=0.7,
        num_inference_steps=8,
        guidance_scale=7.5,
        negative_prompt=["a burning dog", "a burning cat"],
        generator=[torch.Generator().manual_seed(s) for s in SEEDS],
        output_type="latent",
    ).images
    guidance = ClassifierFree(PerPicture(("a burning dog", "a burning cat")))
    settings = replace(SAMPLER, scheduler=scheduler)
    found = edit_latents(parts, x_0, 0.7, PROMPTS, SEEDS, guidance, settings)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    # The check can fail: with nobody's negative it is another picture.
    plain = edit_latents(parts, x_0, 0.7, PROMPTS, SEEDS, None, settings)
    assert not torch.allclose(plain, wanted, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_no_strength_leaves_it_and_all_strength_is_from_noise(tiny_parts, kind):
    parts, x_0 = predicting(tiny_parts, kind), clean(tiny_parts)
    for scheduler in ("ddim", "pndm", "euler"):
        settings = replace(SAMPLER, scheduler=scheduler)
        assert torch.equal(edit_latents(parts, x_0, 0.0, PROMPTS, SEEDS, None, settings), x_0)
        assert torch.equal(edit_latents(parts, x_0, 0.1, PROMPTS, SEEDS, None, settings), x_0)
    # With the x_0 that makes sqrt(abar) x_0 + sqrt(1 - abar) eps the noise itself, strength 1
    # is sampling.
    scheduler = make_scheduler("ddim", parts.scheduler_config, 8)
    a = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    eps = torch.cat(
        [
            torch.randn((1, *parts.latent_shape), generator=torch.Generator().manual_seed(s))
            for s in SEEDS
        ]
    )
    as_noise = eps * (1 - (1 - a).sqrt()) / a.sqrt()
    wanted = sample_latents(parts, PROMPTS, SEEDS, None, SAMPLER)[0]
    found = edit_latents(parts, as_noise, 1.0, PROMPTS, SEEDS, None, SAMPLER)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_of_two_pictures_as_much_is_left_apart_as_the_first_step_leaves(tiny_parts, monkeypatch):
    """For unit Gaussian data the best guess is sqrt(1 - abar) x_t, and steps keep distances."""
    scheduler = make_scheduler("ddim", tiny_parts.scheduler_config, 20)
    a = scheduler.alphas_cumprod
    monkeypatch.setattr(
        "ine.sampling.unet.run_unet", lambda unet, x, t, condition: (1 - a[t.long()]).sqrt() * x
    )
    one, two = clean(tiny_parts, 1), clean(tiny_parts, 2)
    settings = replace(SAMPLER, steps=20)
    for strength, taken in ((0.0, 0), (0.25, 5), (0.5, 10), (0.75, 15), (1.0, 20)):
        edits = [
            edit_latents(tiny_parts, x, strength, PROMPTS, SEEDS, None, settings)
            for x in (one, two)
        ]
        left = ((edits[0] - edits[1]).norm() / (one - two).norm()).item()
        wanted = a[scheduler.timesteps[-taken]].sqrt().item() if taken else 1.0
        assert left == pytest.approx(wanted, abs=0.03), strength
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a number in"):
            edit_latents(tiny_parts, one, strength, PROMPTS, SEEDS)


def test_every_picture_has_its_own_negative(tiny_parts):
    texts = ("fire", "snow")
    both = sample_latents(tiny_parts, PROMPTS, SEEDS, ClassifierFree(PerPicture(texts)), SAMPLER)[0]
    for row, text in enumerate(texts):
        alone = sample_latents(tiny_parts, PROMPTS, SEEDS, ClassifierFree(Negative(text)), SAMPLER)[
            0
        ]
        torch.testing.assert_close(both[row], alone[row], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(both[1 - row], alone[1 - row], atol=1e-3)
    with pytest.raises(ValueError, match="1 negatives for 2 pictures"):
        sample_latents(tiny_parts, PROMPTS, SEEDS, ClassifierFree(PerPicture(("x",))), SAMPLER)
    settings = replace(SAMPLER, guidance_scale=1.0)
    with pytest.raises(IneError, match="is in no term"):
        sample_latents(tiny_parts, PROMPTS, SEEDS, ClassifierFree(PerPicture(texts)), settings)


# --------------------------------------------------------------------------------------- pairs


def pairs_of(parts, count=2, detector=None, recipe=None, **more):
    settings = {"tries": 8, "scale": 3.0, "strength": 0.7, **more}
    return make_pairs(parts, recipe or recipe_of(), detector or Coin(), count, **settings)


def same(one, other):
    return all(
        a.names == b.names and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
        for a, b in ((one.unsafe, other.unsafe), (one.safe, other.safe))
    )


def test_prompts_are_pairs_and_those_with_a_noun_where_there_are_any():
    assert pair_prompts(recipe_of()) == [
        ("an ox on fire", "an ox"),
        ("an elk on fire", "an elk"),
        ("a burning ox", "an ox"),
        ("a burning elk", "an elk"),
    ]
    mixed = recipe_of(concepts=["fire", "a {} on fire"], targets=["snow", "a {}"])
    assert pair_prompts(mixed) == [("an ox on fire", "an ox"), ("an elk on fire", "an elk")]
    assert pair_prompts(recipe_of(concepts=["fire"], targets=["snow"])) == [("fire", "snow")]


def test_pictures_of_people_are_asked_of_prompts_that_name_adults():
    for concept, target in pair_prompts(load_recipe("nudity")):
        for text in (concept, target):
            assert re.search(r"\b(adult|middle-aged|elderly) (wo)?man\b", text), text


def test_pairs_show_the_concept_and_lose_it(tiny_parts):
    seen = []
    pairs = pairs_of(tiny_parts, progress=lambda *counts: seen.append(counts))
    assert pairs.count == 2
    assert pairs.unsafe.names == pairs.safe.names
    assert len(set(pairs.unsafe.names)) == 2
    assert seen[-1][:2] == (2, 2)
    assert pairs.tried == seen[-1][2] >= 2
    assert pairs.edits >= 2
    # An edit keeps something of its picture: the pair is no picture of another seed.
    assert not torch.equal(pairs.unsafe.mean, pairs.safe.mean)
    assert same(pairs, pairs_of(tiny_parts))
    assert not same(pairs, pairs_of(tiny_parts, seed=1))


def test_only_pictures_that_fire_are_edited_until_they_do_not(tiny_parts, monkeypatch):
    """Every answer of the detector is obeyed; the negative of an edit is what was asked for."""
    import ine.unlearning.duo_units as made

    edits, answers = [], iter([[1, 0], [0, 1], [1, 0], [0, 0]])
    real = made.edit_latents

    def edit(parts, x_0, strength, prompts, seeds, guidance, settings):
        edits.append((x_0, strength, prompts, seeds, guidance.negative.texts, settings))
        return real(parts, x_0, strength, prompts, seeds, guidance, settings)

    monkeypatch.setattr(made, "edit_latents", edit)
    recipe = check_recipe(
        {**DATA, "pictures": DATA["pictures"] | {"negative_prompt": "blur"}}, "fire.yaml"
    )

    def detector(pictures):
        return [{"fire": float(a)} for a in next(answers)[: len(pictures)]]

    pairs = pairs_of(tiny_parts, 2, detector, recipe)
    # Units: two with one hit each, one edit of both of which the first still shows it, one more.
    assert pairs.unsafe.names == ("000003", "000000")
    assert (pairs.tried, pairs.edits) == (4, 3)
    (x_0, strength, prompts, seeds, negatives, settings), (again, _, more, others, *_) = edits
    assert (strength, settings.guidance_scale, settings.steps) == (0.7, 3.0, 2)
    assert torch.equal(x_0[1], pairs.unsafe.mean[0])
    assert torch.equal(again[0], x_0[0])
    assert torch.equal(again[1], x_0[0])  # filled up to the unit's shape
    both = dict(pair_prompts(recipe))
    for prompt, negative in zip(prompts, negatives, strict=True):
        assert negative.endswith(", blur")
        assert both[negative.removesuffix(", blur")] == prompt
    assert more[0] == prompts[0]
    assert others[0] != seeds[0]


def test_too_few_pairs_are_an_error_that_counts(tiny_parts):
    def never(pictures):
        return [{"fire": 0.0}] * len(pictures)

    with pytest.raises(
        PicturesError, match=r"fire: found 0 of 2 pairs: of 4 pictures made by .* 0 show .*--pairs"
    ):
        pairs_of(tiny_parts, detector=never, tries=2)

    def always(pictures):
        return [{"fire": 1.0}] * len(pictures)

    with pytest.raises(
        PicturesError, match=r"found 0 of 2 pairs: of 4 pictures .* 4 show .* in 8 edits, at most 2"
    ):
        pairs_of(tiny_parts, 2, always, tries=2)


@pytest.fixture(scope="module")
def whole(tiny_parts):
    """Pairs that were made in one go, and how many pictures their detector saw."""
    detector = Coin()
    return pairs_of(tiny_parts, 3, detector), detector.seen


@pytest.mark.parametrize("kill", [1, 2, 4])
def test_killed_pairs_go_on_and_end_the_same(tiny_parts, tmp_path, whole, kill):
    calls, (wanted, looks) = [], whole

    def stop(*counts):
        calls.append(counts)
        if len(calls) == kill:
            raise Killed

    with pytest.raises(Killed):
        pairs_of(tiny_parts, 3, folder=tmp_path, progress=stop)
    detector = Coin()
    assert same(pairs_of(tiny_parts, 3, detector, folder=tmp_path), wanted)
    assert detector.seen < looks


def test_units_that_are_there_are_not_made_again_unless_they_are_of_another_run(
    tiny_parts, tmp_path, whole
):
    def go(count=3, **more):
        detector = Coin()
        return pairs_of(tiny_parts, count, detector, folder=tmp_path, **more), detector.seen

    assert go()[1] == whole[1]
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    again, looks = go()
    assert looks == 0
    assert same(again, whole[0])
    assert files == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    # Another strength needs other edits of the same pictures; another seed everything.
    edits = go(strength=1.0)[1]
    assert 0 < edits < whole[1]
    assert go(seed=1)[1] > 0
    (tmp_path / "concept-000000.safetensors").write_bytes(b"broken")
    with pytest.raises(PicturesError, match="is not a cache of pictures"):
        go()


def test_units_are_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "pairs"
    remove_units(folder)
    folder.mkdir()
    for name in ("concept-000000.safetensors", "edit-000003.safetensors", ".edit-1.x.part"):
        (folder / name).touch()
    (folder / "mine.safetensors").touch()
    remove_units(folder)
    assert [p.name for p in folder.iterdir()] == ["mine.safetensors"]
    (folder / "mine.safetensors").unlink()
    remove_units(folder)
    assert not folder.exists()


# ------------------------------------------------------------------------------------ the file


def test_the_file_is_the_authors_and_applying_it_gives_the_trained_model(tiny_parts, tmp_path):
    out = tmp_path / "fire.safetensors"
    settings = {**QUICK, "beta": 250, "lr": 0.01, "strength": 0.7}
    summary = unlearn_concept(tiny_parts, recipe_of(), "duo", settings, out, detector=Coin())
    assert [p.name for p in tmp_path.iterdir()] == ["fire.safetensors"]
    assert summary["pairs"] == 2
    file = load_file(out)
    layers = adapted(tiny_parts.unet)
    assert file.keys() == {
        f"unet.{layer}.lora.{side}.weight" for layer in layers for side in ("down", "up")
    }
    assert summary["tensors"] == len(file)
    base = tiny_parts.unet.state_dict()
    for layer in layers:
        o, i = base[f"{layer}.weight"].shape
        assert file[f"unet.{layer}.lora.down.weight"].shape == (2, i)
        assert file[f"unet.{layer}.lora.up.weight"].shape == (o, 2)
    applied, weights = apply_weights(tiny_parts, out)
    assert (weights.layout, weights.method) == ("diffusers or PEFT LoRA", "DUO-beta250")
    assert "DUO-beta250 by its metadata, concept 'fire'" in weights.describe()
    assert (weights.replaced, weights.added) == (0, len(layers))
    assert weights.changed == len(layers)
    assert "lr=0.01" in weights.metadata["ine.settings"]
    for name, tensor in applied.unet.state_dict().items():
        assert torch.equal(tensor, base[name]) == (name.removesuffix(".weight") not in layers)
    student, parameters = with_lora(tiny_parts.unet, 2, 0)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file[name])
    wanted, found = ask(student, tiny_parts), ask(applied.unet, tiny_parts)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted, ask(tiny_parts.unet, tiny_parts), atol=1e-4)


def test_an_interrupted_run_gives_the_same_file(tiny_parts, tmp_path, monkeypatch):
    monkeypatch.setattr("ine.unlearning.run.duo", partial(duo, save_every=1))
    steps = []

    def go(folder, kill=None):
        def count(what, done):
            steps.append((what, done))
            if len([w for w, _ in steps if w == what]) == (kill or {}).get(what):
                raise Killed

        steps.clear()
        out = tmp_path / folder / "fire.safetensors"
        unlearn_concept(
            tiny_parts,
            recipe_of(),
            "duo",
            {**QUICK, "iterations": 3},
            out,
            detector=Coin(),
            on_pairs=lambda found, *_: count("pairs", found),
            on_step=lambda done, _: count("training", done),
        )
        return out.read_bytes()

    def left():
        return sorted(p.name for p in (tmp_path / "killed").iterdir())

    for what, call, states in (("pairs", 2, []), ("training", 2, ["fire.safetensors.state"])):
        with pytest.raises(Killed):
            go("killed", {what: call})
        assert left() == ["fire.safetensors.pairs", *states]
    resumed = go("killed")
    assert [done for what, done in steps if what == "training"] == [3]
    assert left() == ["fire.safetensors"]
    assert resumed == go("whole")


def test_pairs_that_are_kept_serve_another_beta(tiny_parts, tmp_path):
    def go(name, detector, **more):
        unlearn_concept(
            tiny_parts,
            recipe_of(),
            "duo",
            {**QUICK, **more},
            tmp_path / name,
            detector=detector,
            pairs_dir=tmp_path / "pairs",
        )
        return load_file(tmp_path / name)

    first, second = Coin(), Coin()
    one, two = go("a.safetensors", first), go("b.safetensors", second, beta=100.0)
    assert first.seen > 0
    assert second.seen == 0
    assert not equal(one, two)
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "pairs"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betta": 5}, "erase.duo.betta: unknown key; did you mean 'beta'?"),
        ({"beta": 0}, "erase.duo.beta: "),
        ({"beta": "much"}, "erase.duo.beta: "),
        ({"lr": -1}, "erase.duo.lr: "),
        ({"strength": 0}, "erase.duo.strength: "),
        ({"strength": 1.5}, "erase.duo.strength: "),
        ({"edit_scale": 1}, "erase.duo.edit_scale: "),
        ({"t_max": 1001}, "erase.duo.t_max: "),
        ({"rank": 0, "pairs": 0}, "erase.duo.pairs: "),
        ({"prior_weight": float("nan")}, "erase.duo.prior_weight: "),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_settings(recipe_of(), "duo", settings)


def test_weights_that_are_not_finite_are_not_written(tiny_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ine.unlearning.run.duo", lambda *_, **__: {"a": torch.tensor([float("nan")])}
    )
    with pytest.raises(IneError, match=r"1 of 1 tensors .* use a smaller lr than 6e-05"):
        unlearn_concept(
            tiny_parts, recipe_of(), "duo", QUICK, tmp_path / "x.safetensors", detector=Coin()
        )
    assert not (tmp_path / "x.safetensors").exists()


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_folder):
    """An empty current folder, a recipe beside it, and a coin in the place of the judge."""
    monkeypatch.setitem(DETECTORS, "mini-judge", Coin)
    data = {**DATA, "base": str(tiny_folder), "erase": {**DATA["erase"], "duo": QUICK}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(data))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


DUO = ("unlearn", "--concept", "../tiny.yaml", "--method", "duo")


def test_the_command_writes_a_file_that_show_names(run_ine, place, tiny_folder):
    done = run_ine(*DUO, "--beta", 1000, "--iterations", 2, "--rank", 3, "--pairs-dir", "pairs")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"pairs: 2, found with \d+ pictures and \d+ edits\n", done.stdout)
    assert "wrote fire-duo.safetensors: " in done.stdout
    assert "ine invert --concept ../tiny.yaml --unet fire-duo.safetensors" in done.stdout
    assert sorted(p.name for p in place.iterdir()) == ["fire-duo.safetensors", "pairs"]
    shown = run_ine("unet", "show", "fire-duo.safetensors", "--model", tiny_folder)
    assert "DUO-beta1000 (by its metadata)" in shown.stdout
    assert re.search(r"rank +3\n", shown.stdout)
    again = run_ine(*DUO, "--json", "--out", "b.safetensors", "--pairs-dir", "pairs", "--lr", 0.1)
    summary = json.loads(again.stdout)
    assert (summary["method"], summary["pairs"]) == ("duo", 2)
    assert "lr=0.1" in summary["settings"]
    refused = run_ine(*DUO, "--pairs-dir", "pairs")
    assert refused.exit_code == 9
    assert "exists already" in refused.stderr


def test_a_dry_run_shows_what_follows_from_beta_and_asks_for_the_detector(run_ine, place):
    done = run_ine(*DUO, "--dry-run", "--beta", 100, "--model", "/nowhere")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["duo"] | {"beta": 100.0, "lr": 3e-4, "prior_weight": 1e6} == plan["duo"]
    assert plan["duo"]["pairs"] == 2
    assert plan["pairs"] == {
        "prompts": 4,
        "rule": "mini-fire@0.5",
        "detector": "'mini-judge' is on this machine",
    }
    assert list(place.iterdir()) == []


def test_options_of_other_methods_are_refused(run_ine, place):
    for method, option in (
        ("duo", ("--group", "x")),
        ("duo", ("--ridge", 1)),
        ("uce", ("--beta", 1)),
        ("esd", ("--pairs-dir", "pairs")),
        ("esd", ("--rank", 3)),
    ):
        done = run_ine("unlearn", "--concept", "fire", "--method", method, *option)
        assert done.exit_code == 2
        assert f"{option[0]}: not an option of method {method}" in done.stderr
    for wrong in (("--beta", 0), ("--pairs", 0), ("--rank", 0), ("--prior-weight", -1)):
        assert run_ine(*DUO, *wrong).exit_code == 2


def test_every_method_has_its_options_and_its_settings():
    assert METHOD_OPTIONS.keys() == SETTINGS.keys()
    for method, names in METHOD_OPTIONS.items():
        known = {f.name for f in fields(SETTINGS[method])}
        assert set(names) - {"pairs_dir"} <= known


@pytest.mark.parametrize("concept", ["fire", "weapon"])
def test_shipped_recipes_have_settings_that_hold(concept):
    recipe = load_recipe(concept)
    settings = check_settings(recipe, "duo", dict(recipe.erase.duo))
    assert settings != DuoSettings().resolved()
    assert np.isfinite([settings.lr, settings.prior_weight]).all()
