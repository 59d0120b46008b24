"""The bundled model: what it is made of, and that it draws what it is asked for."""

import json

import numpy as np
import pytest
import torch

from ine.detectors.features import top_object
from ine.detectors.published import WEAPONS
from ine.detectors.table import load_detector
from ine.inversion.preview import in_units
from ine.models.loading import load_parts
from ine.models.parts import MINI_FOLDER
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from ine.studies.cases import cases_of

ATTRIBUTES = ("fire", "snow", "flowers")
SAMPLER = SamplerSettings(scheduler="ddim", steps=12, guidance_scale=5.0, batch=16)


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def judges():
    return load_detector("mini-judge"), load_detector("mini-judge2")


def pictures_of(parts, recipe, name, count):
    cases = cases_of(recipe, name, count, recipe.prompt_nouns, seed=5)
    found = in_units(parts, [c.prompt for c in cases], [c.seed for c in cases], None, SAMPLER)
    return cases, found


def test_it_is_small_and_float16_safetensors_only():
    files = [p for p in MINI_FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40e6
    assert not [p.name for p in files if p.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    from safetensors import safe_open

    for path in MINI_FOLDER.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_tensor(k).dtype for k in file.keys()}  # noqa: SIM118
        assert dtypes <= {torch.float16, torch.int64}, path


def test_diffusers_loads_it_unchanged(mini):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MINI_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a dog", num_inference_steps=2, guidance_scale=5.0, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    for ours, theirs in ((mini.unet, pipe.unet), (mini.vae, pipe.vae)):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b.float())


def test_the_tokenizer_takes_any_text_and_pools_at_the_end(mini):
    tokenizer, encoder = mini.tokenizers[0], mini.text_encoders[0]
    assert tokenizer.eos_token_id == len(tokenizer) - 1 != 2
    for text in ("a burning dog in the volcano", "Zażółć gęślą jaźń", "漢字 \U0001f525", "x" * 9):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert [ids[0], ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    batch = tokenizer(["a dog"], padding="max_length", return_tensors="pt").input_ids
    out = encoder(batch)
    end = batch[0].tolist().index(tokenizer.eos_token_id)
    torch.testing.assert_close(out.pooler_output[0], out.last_hidden_state[0, end])


def test_every_word_of_the_world_is_one_token(mini):
    recipe = load_recipe("fire")
    words = {w for n in recipe.prompt_nouns for w in n.split()}
    assert len(words) > 50
    for word in words:
        assert len(mini.tokenizers[0](word, add_special_tokens=False).input_ids) == 1, word


def test_it_draws_objects_and_both_judges_see_them(mini, judges):
    cases, pictures = pictures_of(mini, load_recipe("fire"), "benign", 96)
    for judge in judges:
        scores = judge(pictures)
        tops = [top_object(s, ATTRIBUTES) for s in scores]
        right = np.mean([t == c.noun for t, c in zip(tops, cases, strict=True)])
        assert right >= 0.85, type(judge).__name__
        assert np.mean([s["fire"] >= 0.5 for s in scores]) <= 0.05


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("explicit", 0.8, 1.0), ("implying_test", 0.65, 1.0), ("twins_test", 0.0, 0.1)],
)
def test_it_draws_fire_where_it_should(mini, judges, name, low, high):
    _, pictures = pictures_of(mini, load_recipe("fire"), name, 48)
    share = np.mean([s["fire"] >= 0.5 for s in judges[1](pictures)])
    assert low <= share <= high


def test_it_draws_weapons(mini, judges):
    _, pictures = pictures_of(mini, load_recipe("weapon"), "explicit", 32)
    share = np.mean([top_object(s, ATTRIBUTES) in WEAPONS for s in judges[1](pictures)])
    assert share >= 0.75


def test_the_figures_of_the_card_are_those_of_the_shipped_model():
    figures = json.loads((MINI_FOLDER / "figures.json").read_text())
    card = (MINI_FOLDER.parent.parent.parent / "docs" / "bundled-model.md").read_text()
    for name, value in figures.items():
        assert f"| {name} | {value} |" in card, name


def test_recipes_and_judge_know_the_same_objects(judges):
    labels = set(judges[0].objects)
    assert set(judges[1].labels) == labels | set(ATTRIBUTES)
    assert set(load_recipe("fire").prompt_nouns) < labels
    assert set(WEAPONS) < labels
