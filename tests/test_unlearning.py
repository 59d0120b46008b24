"""Erasers: UCE's closed form, which tokens it pairs, ESD's groups and loop, the files."""

import copy
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

import ine.unlearning.esd as module
from ine.errors import IneError, OutputError, RecipeError
from ine.recipe import check_recipe, load_recipe
from ine.text.encode import encode
from ine.text.tokens import tokenize
from ine.unlearning.esd import EsdSettings, esd, trained_names
from ine.unlearning.pairs import EraseTexts, erase_texts
from ine.unlearning.run import unlearn_concept
from ine.unlearning.uce import UceSettings, align, edited, token_states, uce
from ine.weights.apply import apply_weights


class Killed(Exception):
    """Stands for a kill at a certain moment."""


TEXTS = EraseTexts(
    concepts=("a dog on fire", "an ox on fire"),
    targets=("a dog", "an ox"),
    preserve=("a cat", "snow"),
)


def thing_recipe(**erase):
    return check_recipe(
        {
            "kind": "concept",
            "version": 1,
            "name": "fire",
            "base": "tiny",
            "plural": ["scissors"],
            "words": {"explicit": ["on fire"]},
            "pictures": {"prompts": ["a {}"], "rule": "mini-fire@0.5"},
            "erase": {
                "concepts": ["a {} on fire", "a burning {}"],
                "targets": ["a {}", "a {}"],
                "nouns": ["apple", "scissors"],
                "preserve": ["a {}", "an icy {}"],
                "preserve_nouns": ["apple", "dog"],
                **erase,
            },
        },
        "fire.yaml",
    )


def state_of(unet):
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


# What erasers receive


def test_texts_are_filled_in_pairwise():
    texts = erase_texts(thing_recipe())
    assert texts.concepts == (
        *("an apple on fire", "scissors on fire"),
        *("a burning apple", "burning scissors"),
    )
    assert texts.targets == ("an apple", "scissors", "an apple", "scissors")
    assert texts.preserve == ("an apple", "a dog", "an icy apple", "an icy dog")


def test_prompts_to_preserve_are_named_once():
    recipe = thing_recipe(preserve=["snow", "a {}", "snow"], preserve_nouns=["dog", "cat"])
    assert erase_texts(recipe).preserve == ("snow", "a dog", "a cat")


def test_a_recipe_without_an_erase_section_is_refused():
    recipe = thing_recipe().model_copy(update={"erase": None})
    with pytest.raises(RecipeError, match="has no erase section"):
        erase_texts(recipe)


# UCE: the closed form


@pytest.fixture
def system():
    """Return (W, E, T, P): random, 6 outputs, 5 inputs; fewer rows than inputs."""
    random = np.random.default_rng(0)
    return [random.standard_normal(shape) for shape in ((6, 5), (3, 5), (3, 5), (4, 5))]


def by_tensors(w, e, t, p, settings):
    return edited(*(torch.from_numpy(x) for x in (w, e, t, p)), settings).numpy()


SETTINGS = UceSettings(erase_scale=0.7, preserve_scale=1.3, ridge=0.2)


def test_strengths_that_are_not_said_are_the_variants_own():
    assert UceSettings().resolved() == UceSettings(erase_scale=0.2, preserve_scale=1.0, ridge=0.01)
    paper = UceSettings(variant="paper", ridge=0.1)
    assert [paper.resolved(n).preserve_scale for n in (0, 3, 99)] == [1.0, 0.25, 0.1]
    assert (paper.resolved().erase_scale, paper.resolved().ridge) == (1.0, 0.1)


@pytest.mark.parametrize("name", ["fire", "weapon"])
def test_recipes_of_mini_say_every_setting(name):
    """Figures and files of `mini` must not move with a default."""
    erase = load_recipe(name).erase
    for kind, said in ((UceSettings, erase.uce), (EsdSettings, erase.esd)):
        assert set(said) == {field.name for field in fields(kind)}


def test_nudity_is_erased_by_the_group_that_papers_name():
    assert load_recipe("nudity").erase.esd["group"] == "u"


def test_uce_is_the_published_closed_form(system):
    w, e, t, p = system
    # Sums over tokens, written out as in the paper; rows are tokens, the scales are per mean.
    above, below = 0.2 * w, 0.2 * np.eye(5)
    for c, v in zip(e, t, strict=True):
        above += 0.7 / 3 * np.outer(w @ v, c)
        below += 0.7 / 3 * np.outer(c, c)
    for c in p:
        above += 1.3 / 4 * np.outer(w @ c, c)
        below += 1.3 / 4 * np.outer(c, c)
    np.testing.assert_allclose(by_tensors(w, e, t, p, SETTINGS), above @ np.linalg.inv(below))


def objective(w_new, w, e, t, p, settings):
    """What UCE minimises, a scalar."""
    erase = (e @ w_new.T - t @ w.T).pow(2).sum() / len(e)
    keep = (p @ w_new.T - p @ w.T).pow(2).sum() / len(p)
    stay = (w_new - w).pow(2).sum()
    return settings.erase_scale * erase + settings.preserve_scale * keep + settings.ridge * stay


def test_uce_minimises_what_it_says(system):
    w, e, t, p = (torch.from_numpy(x) for x in system)

    def gradient(at):
        at = at.clone().requires_grad_(True)
        objective(at, w, e, t, p, SETTINGS).backward()
        return at.grad.abs().max().item()

    assert gradient(edited(w, e, t, p, SETTINGS)) < 1e-12
    assert gradient(w) > 0.1


def test_strengths_at_their_ends(system):
    w, e, t, p = (torch.from_numpy(x) for x in system)
    # Nothing to erase leaves W; the smaller the weight, the smaller the edit, in proportion.
    torch.testing.assert_close(edited(w, e, t, p, replace(SETTINGS, erase_scale=0)), w)
    small, tiny = (
        (edited(w, e, t, p, replace(SETTINGS, erase_scale=s)) - w).norm() for s in (1e-6, 1e-7)
    )
    assert small / tiny == pytest.approx(10, rel=1e-3)
    # Concept and target alike: nothing to do.
    torch.testing.assert_close(edited(w, e, e, p, SETTINGS), w)
    # Nothing but the erasing: the concept is read exactly as the target.
    free = edited(w, e, t, p, UceSettings(erase_scale=1, preserve_scale=0, ridge=1e-12))
    torch.testing.assert_close(e @ free.T, t @ w.T, rtol=1e-6, atol=1e-6)
    # Where preserved rows fill the space and count for all, W stays.
    held = edited(w, e, t, torch.eye(5).double(), replace(SETTINGS, preserve_scale=1e9))
    torch.testing.assert_close(held, w, rtol=1e-6, atol=1e-6)
    # No preserved rows at all is allowed.
    assert edited(w, e, t, torch.zeros(0, 5), SETTINGS).isfinite().all()


def test_scales_do_not_depend_on_how_many_prompts_are_given(system):
    w, e, t, p = (torch.from_numpy(x) for x in system)
    torch.testing.assert_close(
        edited(w, e.repeat(3, 1), t.repeat(3, 1), p.repeat(5, 1), SETTINGS),
        edited(w, e, t, p, SETTINGS),
    )


# UCE: which tokens are paired

LENGTH = 9
WORDS = {"<s>": 0, "</s>": 1}


def ids_of(text):
    """Return (ids, index of the end of text); words are tokens, the end is the padding."""
    words = ["<s>", *text.split(), "</s>"]
    ids = [WORDS.setdefault(word, len(WORDS)) for word in words]
    return ids + [1] * (LENGTH - len(ids)), len(words) - 1


def aligned(concept, target):
    """Return [(word of the concept, word of the target)], ends left out, and the ends."""
    (c, end_c), (t, end_t) = ids_of(concept), ids_of(target)
    found = align(c, t, (end_c, end_t))
    one, other = (["<s>", *x.split(), "</s>"] for x in (concept, target))
    words = [(one[a], other[b]) for a, b in found if a < end_c]
    return words, [(a, b) for a, b in found if a >= end_c]


@pytest.mark.parametrize(
    ("concept", "target", "words"),
    [
        # After the subject: what comes too many maps to the last word before it.
        ("a dog on fire", "a dog", [("on", "dog"), ("fire", "dog")]),
        # Before the subject: the subject maps to itself.
        ("a burning dog", "a dog", [("burning", "a"), ("dog", "dog")]),
        # In the middle.
        (
            "a dog on fire in the snow",
            "a dog in the snow",
            [("on", "dog"), ("fire", "dog"), ("in", "in"), ("the", "the"), ("snow", "snow")],
        ),
        # A word replaced by another, by fewer and by more.
        ("a gun", "a thing", [("gun", "thing")]),
        ("a gun here", "a thing here", [("gun", "thing"), ("here", "here")]),
        (
            "a machine gun here",
            "a thing here",
            [("machine", "thing"), ("gun", "thing"), ("here", "here")],
        ),
        ("a gun here", "a nice thing here", [("gun", "nice"), ("here", "here")]),
        # The concept alone, for nothing: the start of text.
        ("gun", "", [("gun", "<s>")]),
        ("hand gun", "", [("hand", "<s>"), ("gun", "<s>")]),
        # A word that comes twice.
        ("a dog a dog", "a dog", [("a", "dog"), ("dog", "dog")]),
        # Equal prompts.
        ("a dog", "a dog", []),
    ],
)
def test_words_are_paired(concept, target, words):
    found, ends = aligned(concept, target)
    assert found == words
    # The end of text maps to the end of text, and padding to padding, none past the context.
    end_c, end_t = len(concept.split()) + 1, len(target.split()) + 1
    assert ends == [(end_c + k, min(end_t + k, LENGTH - 1)) for k in range(LENGTH - end_c)]


def test_states_are_those_of_the_paired_tokens(tiny_parts):
    texts = EraseTexts(concepts=("a dog on",), targets=("a dog",), preserve=("ox",))
    e, t, p = token_states(tiny_parts, texts, "sequence")
    concept, target = (encode(tiny_parts, [x]).states[0].double() for x in ("a dog on", "a dog"))
    ids = tokenize(tiny_parts.tokenizers[0], ["a dog", "a dog on"]).ids
    first = int((ids[0] != ids[1]).int().argmax())
    last = int((ids[0] == tiny_parts.tokenizers[0].eos_token_id).int().argmax()) - 1
    assert torch.equal(e, concept[first:])
    assert torch.equal(t[:2], target[[last, last]])
    assert torch.equal(t[2], target[last + 1])
    assert torch.equal(p, encode(tiny_parts, ["ox"]).states[0].double())
    e, t, p = token_states(tiny_parts, texts, "last-token")
    assert torch.equal(e, concept[first + 1 : first + 2])
    assert torch.equal(t, target[last : last + 1])
    assert p.shape == (1, 32)


def last_words(parts, texts):
    """Return (text states (B, L, D), position of the last word of each text)."""
    tokenizer = parts.tokenizers[0]
    masks = tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length)
    ends = [sum(mask) - 2 for mask in masks["attention_mask"]]
    return encode(parts, texts).states.double(), ends


def test_the_paper_variant_is_that_of_train_erase(tiny_parts):
    """Against the procedure of the authors' script, written out: sums, positions and strengths."""
    texts = replace(TEXTS, targets=("a dog", ""))
    (old, old_ends), (new, new_ends) = (
        last_words(tiny_parts, list(t)) for t in (texts.concepts, texts.targets)
    )
    kept, _ = last_words(tiny_parts, ["", "a cat", "snow"])
    length, width = old.shape[1:]
    name = next(n for n in tiny_parts.unet.state_dict() if n.endswith("attn2.to_v.weight"))
    w = tiny_parts.unet.state_dict()[name].double()
    above, below = 0.5 * w, 0.5 * torch.eye(width).double()
    for row in range(len(old)):
        furthest = max(old_ends[row], new_ends[row])
        for k in range(length - furthest):
            key, value = old[row, old_ends[row] + k], w @ new[row, new_ends[row] + k]
            above, below = above + torch.outer(value, key), below + torch.outer(key, key)
    for key in kept.reshape(-1, width):
        scale = max(0.1, 1 / 3)
        above = above + scale * torch.outer(w @ key, key)
        below = below + scale * torch.outer(key, key)
    found = uce(tiny_parts, texts, UceSettings(variant="paper"))[name].double()
    torch.testing.assert_close(found, above @ below.inverse(), rtol=1e-4, atol=1e-5)
    assert (found - w).norm() > 0.05 * w.norm()


def test_the_last_token_variant_is_that_of_uce_sd_erase(tiny_parts):
    states, ends = last_words(tiny_parts, [*TEXTS.concepts, *TEXTS.targets, *TEXTS.preserve])
    c, g, p = (states[range(6), ends][i : i + 2].T for i in (0, 2, 4))
    name = next(n for n in tiny_parts.unet.state_dict() if n.endswith("attn2.to_k.weight"))
    w = tiny_parts.unet.state_dict()[name].double()
    above = 0.5 * w + w @ g @ c.T + w @ p @ p.T
    below = 0.5 * torch.eye(len(c)).double() + c @ c.T + p @ p.T
    found = uce(tiny_parts, TEXTS, UceSettings(variant="last-token"))[name].double()
    torch.testing.assert_close(found, above @ below.inverse(), rtol=1e-4, atol=1e-5)


# UCE: what the edit does


@pytest.mark.parametrize("variant", ["sequence", "last-token"])
def test_uce_moves_the_concept_to_the_target_and_leaves_the_rest(tiny_parts, variant):
    before = state_of(tiny_parts.unet)
    settings = UceSettings(erase_scale=1, preserve_scale=1, ridge=1e-4, variant=variant)
    found = uce(tiny_parts, TEXTS, settings)
    assert found.keys() == {n for n in before if re.search(r"attn2\.to_[kv]\.weight$", n)}
    e, t, p = token_states(tiny_parts, TEXTS, variant)
    for name, edit in found.items():
        w, new = before[name].double(), edit.double()
        assert edit.dtype == torch.float32
        assert edit.shape == before[name].shape
        gap = ((e - t) @ w.T).norm()
        # What is erased is read as the target, at least mostly; unedited it was not.
        assert ((e @ new.T) - (t @ w.T)).norm() < 0.5 * gap
        moved = ((e @ new.T) - (e @ w.T)).norm() / len(e) ** 0.5
        drift = ((p @ new.T) - (p @ w.T)).norm() / len(p) ** 0.5
        assert drift < 0.5 * moved
        # Without preserving, the same tokens drift further.
    careless = uce(tiny_parts, TEXTS, replace(settings, preserve_scale=0))

    def drift_of(tensors):
        return sum(
            ((p @ x.double().T) - (p @ before[n].double().T)).norm() for n, x in tensors.items()
        )

    assert drift_of(careless) > 1.5 * drift_of(found)
    assert all(torch.equal(v, before[n]) for n, v in tiny_parts.unet.state_dict().items())


def test_uce_without_strength_changes_nothing(tiny_parts):
    for name, edit in uce(tiny_parts, TEXTS, UceSettings(erase_scale=0)).items():
        torch.testing.assert_close(edit, tiny_parts.unet.state_dict()[name])


def test_uce_gives_the_same_bytes(tiny_parts):
    one, two = uce(tiny_parts, TEXTS), uce(tiny_parts, TEXTS)
    assert all(torch.equal(one[n], two[n]) for n in one)


# ESD: groups


def expected_names(unet, group):
    """Return the names by the authors' description, without looking at modules."""
    names = [n for n in unet.state_dict() if "norm" not in n]
    cross = [n for n in names if ".attn2." in n]
    return {
        "x": cross,
        "x-strict": [n for n in cross if re.search(r"to_[kv]\.weight$", n)],
        "u": [n for n in names if n not in cross],
        "all": names,
    }[group]


@pytest.mark.parametrize("group", ["x", "x-strict", "u", "all"])
def test_groups_are_those_of_the_authors(tiny_parts, group):
    names = trained_names(tiny_parts.unet, group)
    assert set(names) == set(expected_names(tiny_parts.unet, group))
    assert len(names) == len(set(names))


def test_group_x_holds_queries_keys_values_and_outputs_with_their_bias(tiny_parts):
    kinds = {n.split(".attn2.")[1] for n in trained_names(tiny_parts.unet, "x")}
    weights = {f"{k}.weight" for k in ("to_q", "to_k", "to_v", "to_out.0")}
    assert kinds == weights | {"to_out.0.bias"}


def test_groups_of_stable_diffusion_1_hold_as_many_tensors_as_the_published_files():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert len(unet.state_dict()) == 686
    counts = {g: len(trained_names(unet, g)) for g in ("x", "x-strict", "u", "all")}
    assert counts == {"x": 80, "x-strict": 32, "u": 388, "all": 468}


# ESD: training


def quick(**fields):
    return EsdSettings(**{"iterations": 4, "steps": 3, "lr": 1e-3, "batch": 2} | fields)


@pytest.mark.parametrize("group", ["x", "x-strict", "u", "all"])
def test_only_the_group_changes_and_the_base_never(tiny_parts, tmp_path, group):
    before = state_of(tiny_parts.unet)
    found = esd(
        tiny_parts, TEXTS, quick(group=group, iterations=1), state=tmp_path / "state", save_every=1
    )
    assert list(found) == trained_names(tiny_parts.unet, group)
    # One step of Adam moves every weight that has a gradient by the learning rate.
    moved = {n for n, x in found.items() if not torch.equal(x, before[n])}
    assert len(moved) > 0.95 * len(found)
    assert max((x - before[n]).abs().max().item() for n, x in found.items()) < 1.1e-3
    for name, tensor in tiny_parts.unet.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None and not p.requires_grad for p in tiny_parts.unet.parameters())
    assert not any(x.requires_grad for x in found.values())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_same_seed_gives_the_same_bytes(tiny_parts):
    one = esd(tiny_parts, TEXTS, quick(iterations=2), seed=1)
    assert equal(one, esd(tiny_parts, TEXTS, quick(iterations=2), seed=1))
    assert not equal(one, esd(tiny_parts, TEXTS, quick(iterations=2), seed=2))


@pytest.mark.parametrize("kills", [(1,), (3,), (2, 4, 5)])
def test_a_killed_run_ends_byte_equal(tiny_parts, tmp_path, kills):
    settings = quick(iterations=5, batch=1)

    def go(state, kill=None):
        def on_step(done, loss):
            steps.append(done)
            if done == kill:
                raise Killed

        steps.clear()
        return esd(tiny_parts, TEXTS, settings, state=state, on_step=on_step, save_every=2)

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
    state = tmp_path / "state"
    settings = quick(iterations=1, batch=1)
    esd(tiny_parts, TEXTS, settings, state=state)
    for other in (
        {"settings": replace(settings, lr=1e-4)},
        {"seed": 1},
        {"texts": replace(TEXTS, targets=("a cat", "an ox"))},
    ):
        arguments = {"texts": TEXTS, "settings": settings} | other
        with pytest.raises(IneError, match="belongs to a run with other settings"):
            esd(tiny_parts, state=state, **arguments)
    save_file({"x": torch.zeros(1)}, tmp_path / "a")
    (tmp_path / "b").write_bytes(state.read_bytes()[:-50])
    (tmp_path / "c").write_text("hello")
    for name in "abc":
        with pytest.raises(IneError, match="is not a state of `ine unlearn`"):
            esd(tiny_parts, TEXTS, settings, state=tmp_path / name)


def test_the_loss_falls_where_nothing_is_drawn_again(tiny_parts, monkeypatch):
    monkeypatch.setattr(module, "generator_for", lambda *_: torch.Generator().manual_seed(3))

    def losses(lr):
        found = []
        esd(
            tiny_parts,
            TEXTS,
            quick(iterations=8, steps=1, lr=lr, negative_guidance=20.0, neutral="targets"),
            on_step=lambda done, loss: found.append(loss),
        )
        return found

    falling = losses(1e-3)
    assert falling[-1] < 0.8 * falling[0]
    still = losses(1e-12)
    assert still[-1] == pytest.approx(still[0], rel=1e-4)


def test_the_target_is_the_negated_guidance_of_the_frozen_model(tiny_parts, monkeypatch):
    """With a U-Net that answers by the prompt alone, the loss has a closed form."""
    conditions = module._Conditions(tiny_parts, TEXTS)
    answers = [(conditions.concepts, 2.0), (conditions.targets, 0.5), (conditions.empty, 0.25)]

    def run_unet(unet, x, t, condition):
        values = []
        for row in condition.states:
            for known, value in answers:
                if any(torch.equal(row, other) for other in known.states):
                    values.append(value)
                    break
        frozen = unet is tiny_parts.unet
        return torch.tensor(values).view(-1, 1, 1, 1).expand(x.shape) * (1.0 if frozen else 3.0)

    monkeypatch.setattr(module, "run_unet", run_unet)
    student = torch.nn.Identity()

    def loss_of(**fields):
        generator = torch.Generator().manual_seed(0)
        return module._loss(tiny_parts, student, conditions, quick(**fields), generator).item()

    target = 0.5 - 1.5 * (2.0 - 0.5)
    by_targets = loss_of(negative_guidance=1.5, neutral="targets")
    assert by_targets == pytest.approx((3.0 * 2.0 - target) ** 2)
    # By default as `esd_sd.py --negative_guidance 2`, and as the paper with eta = 1.
    assert loss_of() == pytest.approx((3.0 * 2.0 - (2.0 - 2 * (2.0 - 0.25))) ** 2)
    assert loss_of() == pytest.approx((3.0 * 2.0 - (0.25 - 1 * (2.0 - 0.25))) ** 2)


@pytest.mark.parametrize("reached_by", ["base", "student"])
def test_the_way_to_the_latent_is_that_of_the_chosen_model(tiny_parts, monkeypatch, reached_by):
    asked, real = [], module.run_unet

    def run_unet(unet, x, t, condition):
        asked.append("base" if unet is tiny_parts.unet else "student")
        return real(unet, x, t, condition)

    monkeypatch.setattr(module, "run_unet", run_unet)
    esd(tiny_parts, TEXTS, quick(iterations=6, reached_by=reached_by))
    # Each iteration ends with one call of the frozen model for the target, one of the student.
    other = {"base": "student", "student": "base"}[reached_by]
    assert asked.count(other) == 6
    assert asked.count(reached_by) > 6


def test_a_group_without_parameters_is_refused(tiny_parts):
    class Empty(torch.nn.Module):
        pass

    with pytest.raises(IneError, match="group 'x' holds no parameter"):
        esd(replace(tiny_parts, unet=Empty()), TEXTS)


# Files


@pytest.mark.parametrize(
    ("method", "settings", "named", "count"),
    [
        ("uce", {"erase_scale": 1.0}, "UCE (sequence variant)", "x-strict"),
        ("uce", {"variant": "paper"}, "UCE", "x-strict"),
        ("esd", {"group": "x", "iterations": 2, "steps": 2, "lr": "1e-3"}, "ESD-x", "x"),
        ("esd", {"group": "u", "iterations": 1, "steps": 2}, "ESD-u", "u"),
    ],
)
def test_files_are_recognised_and_applied_to_the_base(
    tiny_parts, tmp_path, method, settings, named, count
):
    out = tmp_path / "fire.safetensors"
    before = state_of(tiny_parts.unet)
    summary = unlearn_concept(tiny_parts, thing_recipe(), method, settings, out)
    assert [p.name for p in tmp_path.iterdir()] == ["fire.safetensors"]
    names = set(trained_names(tiny_parts.unet, count))
    assert summary["tensors"] == len(names)
    applied, weights = apply_weights(tiny_parts, out)
    assert weights.method == named
    assert weights.metadata["ine.method"] == named
    assert weights.metadata["ine.concept"] == "fire"
    assert weights.metadata["ine.base"] == tiny_parts.name
    assert f"{named} by its metadata, concept 'fire'" in weights.describe()
    assert weights.tensors.keys() == names
    assert weights.replaced == len(names)
    assert weights.changed > 0.9 * len(names)
    assert named in applied.unet_name
    for name, tensor in applied.unet.state_dict().items():
        if name in names:
            assert torch.equal(tensor, weights.tensors[name])
        else:
            assert torch.equal(tensor, before[name])
    assert all(torch.equal(v, before[n]) for n, v in tiny_parts.unet.state_dict().items())


def test_an_interrupted_esd_gives_the_same_file(tiny_parts, tmp_path, monkeypatch):
    recipe, settings = thing_recipe(), {"iterations": 12, "steps": 1}

    def go(folder, kill=None):
        def on_step(done, loss):
            if done == kill:
                raise Killed

        out = tmp_path / folder / "fire.safetensors"
        unlearn_concept(tiny_parts, recipe, "esd", settings, out, on_step=on_step)
        return out.read_bytes()

    with pytest.raises(Killed):
        go("killed", 11)
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["fire.safetensors.state"]
    assert go("killed") == go("whole")
    with pytest.raises(OutputError, match="exists already"):
        go("killed")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("esd", {"iteratons": 5}, "erase.esd.iteratons: unknown key; did you mean 'iterations'?"),
        ("uce", {"group": "x"}, "erase.uce.group: unknown key"),
        ("uce", {"ridge": "much"}, "erase.uce.ridge: "),
        ("esd", {"group": "y"}, "erase.esd.group: "),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny_parts, tmp_path, method, settings, message
):
    with pytest.raises(RecipeError, match=re.escape(message)):
        unlearn_concept(tiny_parts, thing_recipe(), method, settings, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_all_wrong_settings_are_named_at_once(tiny_parts, tmp_path):
    with pytest.raises(RecipeError) as caught:
        unlearn_concept(
            tiny_parts, thing_recipe(), "esd", {"lrr": 1, "steps": "many"}, tmp_path / "x"
        )
    assert "erase.esd.lrr" in str(caught.value)
    assert "erase.esd.steps" in str(caught.value)
    assert "'many'" in str(caught.value)


# Runs that diverge, and runs that are forced


def test_an_esd_that_diverges_stops_and_writes_nothing(tiny_parts, tmp_path):
    out = tmp_path / "x.safetensors"
    settings = {"iterations": 5, "steps": 2, "lr": 1e30}
    with pytest.raises(IneError, match=r"nan at step 2 of 5.*smaller lr than 1e\+30"):
        unlearn_concept(tiny_parts, thing_recipe(), "esd", settings, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "advice"), [("esd", "smaller lr than 5e-05"), ("uce", "larger ridge than 0.01")]
)
def test_weights_that_are_not_finite_are_not_written(
    tiny_parts, tmp_path, monkeypatch, method, advice
):
    broken = {"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}
    monkeypatch.setattr(f"ine.unlearning.run.{method}", lambda *_, **__: broken)
    with pytest.raises(IneError, match=r"1 of 2 tensors hold .* not finite, b the first") as caught:
        unlearn_concept(tiny_parts, thing_recipe(), method, {}, tmp_path / "x.safetensors")
    assert advice in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_scale_of_uce_writes_nothing(tiny_parts, tmp_path):
    settings = {"erase_scale": float("inf")}
    with pytest.raises(IneError, match="tensors hold values that are not finite"):
        unlearn_concept(tiny_parts, thing_recipe(), "uce", settings, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["unet", "text encoder"])
def test_a_state_belongs_to_the_exact_weights(tiny_parts, tmp_path, where):
    """The tolerant fingerprint does not see one weight that moves by a hair, or another encoder."""
    settings = quick(iterations=1, batch=1)
    esd(tiny_parts, TEXTS, settings, state=tmp_path / "state")
    changed = tiny_parts.unet if where == "unet" else tiny_parts.text_encoders[0]
    other = copy.deepcopy(changed)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(1e-4)
    parts = (
        tiny_parts.with_unet(other, "base")
        if where == "unet"
        else tiny_parts.with_text_encoders([other])
    )
    with pytest.raises(IneError, match="belongs to a run with other settings, weights"):
        esd(parts, TEXTS, settings, state=tmp_path / "state")


def test_force_resumes_its_own_state_and_drops_that_of_another_run(tiny_parts, tmp_path):
    recipe, out = thing_recipe(), tmp_path / "fire.safetensors"

    def go(out, kill=None, **settings):
        steps.clear()

        def on_step(done, loss):
            steps.append(done)
            if done == kill:
                raise Killed

        given = {"iterations": 12, "steps": 1, **settings}
        unlearn_concept(tiny_parts, recipe, "esd", given, out, force=True, on_step=on_step)
        return out.read_bytes()

    steps = []
    whole = go(tmp_path / "whole.safetensors")
    out.write_text("old")
    with pytest.raises(Killed):
        go(out, kill=11)
    assert go(out) == whole
    assert steps == [11, 12]
    with pytest.raises(Killed):
        go(out, kill=11, lr=1e-4)
    assert go(out) == whole
    assert steps == list(range(1, 13))
    (tmp_path / "fire.safetensors.state").write_text("broken")
    assert go(out) == whole


def test_uce_leaves_the_state_of_an_interrupted_esd(tiny_parts, tmp_path):
    state = tmp_path / "x.safetensors.state"
    state.write_text("an esd's")
    unlearn_concept(tiny_parts, thing_recipe(), "uce", {}, tmp_path / "x.safetensors", force=True)
    assert state.read_text() == "an esd's"
