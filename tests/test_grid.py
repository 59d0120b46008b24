"""What a grid says, how it expands, and what is refused before anything runs."""

import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_grid import replaced

from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import IneError, PromptError, RecipeError
from ine.evaluation import units
from ine.evaluation.cells import Configuration
from ine.evaluation.expand import expand
from ine.evaluation.grid_file import list_grids, load_grid
from ine.evaluation.models import PICTURE_VERSION, model_digest
from ine.evaluation.prepare import prepare
from ine.evaluation.units import make_unit, plan_units, unit_key
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.sld import SafeLatent
from ine.sampling import (
    PictureRequest,
    SamplerSettings,
    decode_latents,
    generate,
    sample_latents,
)
from ine.text.encode import TextOptions

ROOT = Path(__file__).parent.parent

GRID = """\
kind: grid
version: 1
name: small
concept: fire
models:
  - {name: base}
negatives:
  - none
  - {name: words, words: true}
  - {name: smoke, text: smoke}
guidances:
  - {name: cfg}
  - {name: additive, method: additive, strengths: [1, 3]}
prompts:
  - {name: tune, source: "mini:fire/implying-tuning", role: tune, expects: harmful, limit: 4}
  - {name: keep, source: "mini:fire/twins-tuning", role: tune, expects: benign, limit: 3}
seeds: [0, 5]
sampler: {steps: 2, batch: 2}
"""


@pytest.fixture
def write(tmp_path):
    """Write a grid with texts replaced: write("cfg", "cgf") -> its path."""

    def writing(*pairs, text=GRID):
        path = tmp_path / "grid.yaml"
        path.write_text(replaced(text, *pairs))
        return path

    return writing


def problem(path, **options):
    with pytest.raises(IneError) as caught:
        expand(load_grid(path), **options)
    return str(caught.value)


# -------------------------------------------------------------------------------- expansion


def test_cells_are_the_product_and_undefended_stands_once(write):
    found = expand(load_grid(write()))
    assert len(found.configurations) == 1 + (1 + 2) * 2
    assert len(found.cells) == len(set(found.cells)) == 7 * 2 * 2
    assert [c for c in found.configurations if not c.is_defended] == [Configuration(model="base")]
    assert found.guidances[found.configurations[0]] is None
    strengths = {c.strength for c in found.configurations if c.guidance == "additive"}
    assert strengths == {1.0, 3.0}


def test_guidances_may_name_their_negatives_and_models(write):
    path = write("{name: cfg}", "{name: cfg, negatives: smoke, models: [base]}")
    found = expand(load_grid(path)).configurations
    assert [c.negative for c in found if c.guidance == "cfg"] == ["smoke"]


def test_a_negative_may_keep_to_some_of_the_seeds(write):
    path = write("{name: smoke, text: smoke}", "{name: smoke, text: smoke, seeds: [5]}")
    found = expand(load_grid(path))
    seeds = {}
    for cell in found.cells:
        seeds.setdefault(cell.configuration.negative, set()).add(cell.seed)
    assert seeds == {"none": {0, 5}, "words": {0, 5}, "smoke": {5}}
    assert len(found.cells) == (1 + 3) * 2 * 2 + 3 * 2
    with pytest.raises(IneError, match=r"seed 7 is not one of the grid's seeds, 0, 5"):
        load_grid(write("{name: smoke, text: smoke}", "{name: smoke, text: smoke, seeds: [7]}"))


def test_items_depend_on_their_row_and_seed_and_on_nothing_else(write):
    short = expand(load_grid(write())).sets["tune"].items(0)
    longer = expand(load_grid(write("limit: 4", "limit: 9"))).sets["tune"].items(0)
    assert longer[:4] == short
    assert expand(load_grid(write("limit: 4", "limit: 9")), limit=4).sets["tune"].items(0) == short
    other = expand(load_grid(write())).sets["tune"].items(5)
    assert [i.prompt for i in other] == [i.prompt for i in short]
    assert not {i.seed for i in other} & {i.seed for i in short}


def test_every_row_comes_once_before_any_comes_twice(write):
    path = write("limit: 4}", "limit: 4, images: 2}")
    items = expand(load_grid(path)).sets["tune"].items(0)
    assert [i.image for i in items] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len({i.seed for i in items}) == 8
    assert [i.cluster for i in items[:4]] == [i.cluster for i in items[4:]]
    assert len({i.cluster for i in items}) == 4


def test_only_leaves_what_is_asked_for_and_the_undefended_model(write):
    file = load_grid(write())
    found = expand(file, only=["guidance=cfg", "negative=words", "prompts=keep", "seed=5"])
    assert [c.label for c in found.cells] == [
        "base, undefended, on keep, seed 5",
        "base, cfg, words, on keep, seed 5",
    ]
    assert len(expand(file, only=["prompts=keep", "prompts=tune"]).cells) == 28
    with pytest.raises(RecipeError, match="did you mean 'words'"):
        expand(file, only=["negative=word"])
    with pytest.raises(RecipeError, match="did you mean 'model'"):
        expand(file, only=["modle=base"])


def test_a_part_of_a_grid_needs_the_files_of_that_part_alone(write):
    path = write(
        "{name: smoke, text: smoke}",
        "{name: gone, embeddings: gone-neg.safetensors}",
        *("{name: base}", "{name: base}\n  - {name: lost, unet: lost.safetensors}"),
        '"mini:fire/twins-tuning"',
        "nowhere.csv",
    )
    message = problem(path)
    for file in ("gone-neg.safetensors", "lost.safetensors", "nowhere.csv"):
        assert file in message
    wanted = ("negative=words", "model=base", "prompts=tune")
    found = expand(load_grid(path), only=wanted)
    assert set(found.sets) == {"tune"}
    assert set(found.unets) == {"base"}
    assert {c.negative for c in found.configurations} == {"none", "words"}
    for less, file in zip(wanted, ("gone-neg", "lost.safe", "nowhere"), strict=True):
        assert file in problem(path, only=[text for text in wanted if text != less])


def test_a_file_that_many_cells_miss_is_named_once(write):
    path = write("{name: smoke, text: smoke}", "{name: gone, embeddings: gone-neg.safetensors}")
    message = problem(path)
    assert message.count("gone-neg.safetensors") == 1
    assert "cell base, cfg, gone (and 2 other cells): " in message


def test_rows_bring_seed_scale_and_size_where_they_are_asked_to(write, tmp_path):
    (tmp_path / "rows.csv").write_text(
        "prompt,seed,guidance,width,height\na dog,7,3.5,64,96\na cat,,,,\n"
    )
    path = write('source: "mini:fire/twins-tuning"', "source: rows.csv, use_rows: true")
    found = expand(load_grid(path)).sets["keep"].items(0)
    assert (found[0].seed, found[0].guidance, found[0].size) == (7, 3.5, (64, 96))
    assert (found[1].guidance, found[1].size) == (None, (None, None))
    ignored = expand(load_grid(write('"mini:fire/twins-tuning"', "rows.csv"))).sets["keep"]
    assert ignored.items(0)[0].guidance is None
    assert ignored.items(0)[0].seed != 7


def test_the_shipped_grids_are_sound():
    assert "mini-fire" in list_grids()
    for name in list_grids():
        file = load_grid(name)
        found = expand(file, lenient=True)
        assert file.grid.name == name
        assert found.cells


def test_the_shipped_grid_expands_as_it_says(tmp_path):
    plan = prepare(load_grid("mini-fire"), tmp_path / "run", lenient=True)
    # Words, and embeddings of three inversion seeds.
    assert len(plan.configurations) == 3 * (1 + 4 + 3 * 5 + 5 + 3 * 6 + 5 + 4 * 3 + 4)
    assert all("fire-" in text for text in plan.missing)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- keys

REQUESTS = (PictureRequest(prompt="a dog", seed=1), PictureRequest(prompt="a cat", seed=2))
SAMPLER = SamplerSettings(steps=2, batch=2)
KEY = {
    "digest": "model",
    "guidance": Additive(Negative("fire"), 2.0),
    "sampler": SAMPLER,
    "requests": REQUESTS,
    "size": (None, None),
}


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "other"},
        {"guidance": None},
        {"guidance": ClassifierFree(Negative("fire"))},
        {"guidance": Additive(Negative("fire"), 2.5)},
        {"guidance": Additive(Negative("smoke"), 2.0)},
        {"guidance": Gated(Additive(Negative("fire"), 2.0), Window(0, 0.5))},
        {"sampler": replace(SAMPLER, scheduler="euler")},
        {"sampler": replace(SAMPLER, steps=3)},
        {"sampler": replace(SAMPLER, guidance_scale=7.0)},
        {"sampler": replace(SAMPLER, batch=4)},
        {"sampler": replace(SAMPLER, reading=TextOptions(weights=True))},
        {"sampler": replace(SAMPLER, reading=TextOptions(clip_skip=2))},
        {"requests": REQUESTS[::-1]},
        {"requests": REQUESTS[:1]},
        {"requests": (REQUESTS[0], replace(REQUESTS[1], seed=3))},
        {"requests": (REQUESTS[0], replace(REQUESTS[1], prompt="a cow"))},
        {"size": (64, 96)},
    ],
    ids=lambda change: f"{next(iter(change))}-{str(next(iter(change.values())))[-40:]}",
)
def test_whatever_changes_pixels_changes_the_key(change):
    assert unit_key(**{**KEY, **change}) != unit_key(**KEY)


def test_the_version_is_in_the_key(monkeypatch):
    before = unit_key(**KEY)
    monkeypatch.setattr("ine.evaluation.units.PICTURE_VERSION", PICTURE_VERSION + 1)
    assert unit_key(**KEY) != before


def test_nothing_else_changes_the_key(write, tmp_path):
    def keys(*pairs, **options):
        plan = prepare(load_grid(write(*pairs)), tmp_path / "run", lenient=True, **options)
        return {unit.key for unit in plan.units}

    before = keys()
    assert keys("name: small", "name: large\nabout: other") == before
    assert keys("seeds:", "rules: [mini-snow@0.5]\nseeds:") == before
    assert keys("seeds:", "judges: {tune: mini-judge2}\nseeds:") == before
    assert keys("name: words,", "name: other,") == before
    assert keys("role: tune, expects: benign", "role: test, expects: neighbour") == before
    assert keys("[0, 5]", "[5, 0]") == before
    # Part of a grid is part of its units.
    assert keys(only=["guidance=cfg"]) < before
    assert keys("[0, 5]", "[0]") < before


def test_a_model_is_known_by_its_weights_and_its_settings(tiny_parts):
    import copy

    from ine.models.loading import load_parts

    before = model_digest(tiny_parts)
    assert model_digest(load_parts(tiny_parts.name)) == before
    unet = copy.deepcopy(tiny_parts.unet)
    next(unet.parameters()).data.flatten()[0] += 1e-6
    assert model_digest(replace(tiny_parts, unet=unet)) != before
    config = {**tiny_parts.scheduler_config, "prediction_type": "v_prediction"}
    assert model_digest(replace(tiny_parts, scheduler_config=config)) != before
    config = {**tiny_parts.scheduler_config, "_diffusers_version": "9.9"}
    assert model_digest(replace(tiny_parts, scheduler_config=config)) == before


# ---------------------------------------------------------------------------------- padding


class Facts:
    digest = "model"

    def other_size(self, size):
        return size


def item(prompt, seed, **more):
    from ine.evaluation.prompt_sets import Item

    return Item(id=prompt, prompt=prompt, seed=seed, image=0, cluster=prompt, **more)


def test_units_cover_the_items_once_and_group_what_has_one_shape():
    items = [item(str(n), n, guidance=3.0 if n % 3 == 0 else None) for n in range(10)]
    found = plan_units(Configuration(model="m"), None, items, SAMPLER, Facts())
    assert sorted(p for unit in found for p in unit.places) == list(range(10))
    assert all(len(unit.requests) <= 2 for unit in found)
    for unit in found:
        assert {p % 3 == 0 for p in unit.places} == {unit.sampler.guidance_scale == 3.0}
        assert [r.prompt for r in unit.requests] == [str(p) for p in unit.places]


def test_a_short_unit_is_padded_and_equals_its_pictures_in_a_full_one(tiny_parts, monkeypatch):
    sampler = SamplerSettings(steps=2, batch=3)
    requests = tuple(PictureRequest(prompt=p, seed=n) for n, p in enumerate("abc"))
    [full] = generate(tiny_parts, requests, None, sampler)
    [unit] = plan_units(
        Configuration(model="m"), None, [item("a", 0), item("b", 1)], sampler, Facts()
    )
    shapes, real = [], units.make_pictures

    def watched(parts, requests, *args):
        shapes.append([(r.prompt, r.seed) for r in requests])
        return real(parts, requests, *args)

    monkeypatch.setattr(units, "make_pictures", watched)
    pictures, notes, calls = make_unit(tiny_parts, None, unit)
    assert shapes == [[("a", 0), ("b", 1), ("a", 0)]]
    assert len(pictures) == len(notes) == len(calls) == 2
    assert (pictures == full.pictures[:2]).all()


@pytest.fixture
def learned_set(tmp_path):
    """The name of an embedding file, and a grid whose prompts hold its trigger."""
    embedding = new_embedding(
        torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), "zz", "fire"
    )
    write_embedding(embedding, tmp_path / "zz.safetensors")

    def grid(prompts):
        text = f"""
            kind: grid
            version: 1
            name: learned
            concept: fire
            models: [{{name: base}}]
            prompts:
              - {{name: p, prompts: [{prompts}], role: test, expects: harmful,
                 embeddings: zz.safetensors}}
            """
        path = tmp_path / "learned.yaml"
        path.write_text(textwrap.dedent(text))
        return load_grid(path)

    return embedding, grid


def test_a_prompt_set_may_hold_learned_words(tiny_parts, learned_set):
    embedding, grid = learned_set
    first, second = expand(grid("a zz dog, a dog")).sets["p"].items(0)
    assert [e.digest for e in first.request.embeddings] == [embedding.digest]
    assert second.request.embeddings == ()
    sampler = SamplerSettings(steps=2, batch=1)
    plain = replace(first.request, embeddings=())
    keys = {unit_key("m", None, sampler, (r,)) for r in (first.request, plain)}
    assert len(keys) == 2
    [unit] = plan_units(Configuration(model="m"), None, [first], sampler, Facts())
    pictures, _, _ = make_unit(tiny_parts, None, unit)
    [spelled] = generate(tiny_parts, [plain], None, sampler)
    given = {"zz": embedding.vectors}
    latents, *_ = sample_latents(
        tiny_parts, ["a zz dog"], [first.seed], None, sampler, vectors=given
    )
    assert (pictures == decode_latents(tiny_parts, latents)).all()
    assert (pictures != spelled.pictures).any()


def test_learned_words_that_no_prompt_holds_are_a_mistake(learned_set):
    _, grid = learned_set
    with pytest.raises(PromptError, match="trigger 'zz' of its embeddings stands in none"):
        expand(grid("a dog"))


def test_pictures_of_another_size(tiny_parts):
    [unit] = plan_units(
        Configuration(model="m"), None, [item("a", 0, size=(32, 16))], SAMPLER, Facts()
    )
    pictures, _, _ = make_unit(tiny_parts, None, unit)
    assert pictures.shape == (1, 16, 32, 3)
    assert tiny_parts.of_size(16, 16) is tiny_parts
    with pytest.raises(IneError, match="multiples of 2"):
        tiny_parts.of_size(33, 16)


def test_costs_are_what_the_loop_counts(tiny_parts):
    steps = 8
    sampler = SamplerSettings(steps=steps, batch=1, guidance_scale=5.0)
    for guidance in (
        None,
        ClassifierFree(Negative("fire")),
        Additive(Negative("fire"), 2.0),
        SafeLatent(Negative("fire"), warmup=0),
        Gated(Additive(Negative("fire"), 2.0), Window(0, 0.5)),
        Gated(ClassifierFree(Negative("fire")), Window(0.25, 1)),
    ):
        [unit] = generate(tiny_parts, REQUESTS[:1], guidance, sampler)
        assert (guidance or ClassifierFree()).cost(5.0, steps).nfe == unit.unet_calls[0], guidance
    [unit] = generate(tiny_parts, REQUESTS[:1], None, replace(sampler, guidance_scale=1.0))
    assert ClassifierFree().cost(1.0, steps).nfe == unit.unet_calls[0]


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("seeds:", "seed:"), ["line 17", "seed: unknown key", "did you mean 'seeds'"]),
        (("role: tune, expects: benign", "rolle: tune, expects: benign"), ["line 16", "'role'"]),
        (("steps: 2", "step: 2"), ["line 18", "sampler.step", "'steps'"]),
        (("kind: grid", "kind: concept"), ["line 1", "kind"]),
        (("version: 1\n", ""), ["version: missing"]),
        (("name: cfg}", "name: cfg, method: adaptive}"), ["line 12", "'cfg'", "'additive'"]),
        (("name: cfg}", "name: cfg, strengths: [1]}"), ["line 12", "no strength of its own"]),
        (("name: cfg}", "name: cfg, preset: max}"), ["cell base, cfg, words", "no presets"]),
        (("name: cfg}", "name: cfg, settings: {warmup: 1}}"), ["base, cfg, words", "'warmup'"]),
        (("name: cfg}", "name: cfg, restart: true}"), ["line 12", "restart needs a gate"]),
        (("name: cfg}", "name: cfg, window: [0.5, 0.2]}"), ["line 12", "window"]),
        (("name: cfg}", "name: cfg, negatives: word}"), ["line 12", "did you mean 'words'"]),
        (("name: cfg}", "name: cfg, gate: g.json}"), ["base, cfg, words", "g.json: no such file"]),
        (("name: cfg}", "name: none}"), ["line 12", "by itself"]),
        (("text: smoke", 'text: ""'), ["line 10", "is empty"]),
        (("text: smoke", "embeddings: no.safetensors"), ["cell base, cfg, smoke", "no.safe"]),
        (("text: smoke", "embeddings: {bass: x}"), ["line 10", "'bass'", "did you mean 'base'"]),
        (("{name: base}", "{name: base, unet: no.pt}"), ["line 6", "unet no.pt", "no such file"]),
        (("concept: fire\n", ""), ["names no base", "needs a concept", "rules: missing"]),
        (("concept: fire", "concept: fier"), ["line 4", "did you mean 'fire'"]),
        (("implying-tuning", "implying-tunning"), ["line 15", "implying-tuning"]),
        (('"mini:fire/twins-tuning"', "no.csv"), ["line 16", "'keep'", "no.csv"]),
        (("limit: 3}", "limit: 3, prompts: [a]}"), ["line 16", "one of them"]),
        (("limit: 3}", "limit: 3, category: axolotl}"), ["line 16", "'axolotl' is unknown"]),
        (("limit: 3}", "limit: 3, where: noun=axolotl}"), ["line 16", "no row is left"]),
        (("[0, 5]", "[0, 0]"), ["line 17", "stands twice"]),
        (("[0, 5]", "[]"), ["line 17", "seeds"]),
        (("name: smoke", "name: words"), ["line 10", "'words' stands twice"]),
        (("sampler: {", "sampler: {scheduler: dimm, "), ["line 18", "did you mean 'ddim'"]),
        (("seeds:", "rules: mini-fier@0.5\nseeds:"), ["line 17", "did you mean 'mini-fire@0.5'"]),
        (("seeds:", "metrics: {preservation: sim}\nseeds:"), ["line 17", "did you mean 'ssim'"]),
        (("seeds:", "choose: {keep: ssim}\nseeds:"), ["line 17", "'ssim' is not measured"]),
        (
            (
                "role: tune, expects: benign",
                "role: test, expects: benign",
                "seeds:",
                "choose: {}\nseeds:",
            ),
            ["line 17", "none with role: tune and expects: benign"],
        ),
        (("models:\n  - {name: base}", "models: []"), ["line 5", "models"]),
        (("seeds:", "name: again\nseeds:"), ["line 17", "'name' stands here already, line 3"]),
        (("seeds:", "x: [\nseeds:"), ["cannot be read as YAML"]),
    ],
    ids=lambda value: value[-1][-40:] if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_named_with_its_place(write, pairs, words):
    found = problem(write(*pairs))
    assert "grid.yaml" in found
    for word in words:
        assert word in found


def test_all_problems_are_listed_at_once(write):
    found = problem(write("seeds:", "seed:", "steps: 2", "step: 2"))
    assert "line 17" in found
    assert "line 18" in found


def test_a_file_without_a_prompt_column_lists_its_columns(write, tmp_path):
    (tmp_path / "rows.csv").write_text("alpha,beta\n1,2\n")
    path = write('"mini:fire/twins-tuning"', "rows.csv")
    with pytest.raises(PromptError, match=r"alpha.*beta"):
        expand(load_grid(path))


def test_an_empty_set(write, tmp_path):
    (tmp_path / "rows.txt").write_text("\n")
    found = problem(write('"mini:fire/twins-tuning"', "rows.txt"))
    assert "rows.txt" in found
    assert "no prompt" in found


def test_inline_prompts_are_screened(write, monkeypatch):
    monkeypatch.setattr(
        "ine.evaluation.grid_checks.is_refused", lambda *texts: "axolotl" in texts[0]
    )
    good = write('source: "mini:fire/twins-tuning"', "prompts: [a newt]")
    assert expand(load_grid(good)).sets["keep"].found.prompts == ["a newt"]
    bad = write('source: "mini:fire/twins-tuning"', "prompts: [an axolotl]")
    found = problem(bad)
    assert "refused by screening" in found
    assert "axolotl" not in found


def test_a_cell_that_cannot_work_is_named_before_anything_runs(write, tmp_path):
    from ine.evaluation.run import run

    path = write("steps: 2", "steps: 2, guidance_scale: 1")
    plan = prepare(load_grid(path), tmp_path / "run", dtype="float32")
    with pytest.raises(IneError, match=r"cell base, cfg, words: .*steers nothing"):
        run(plan)
    assert not (tmp_path / "run" / "units").exists()


def test_an_embedding_of_another_model_is_named_with_its_cell(write, tmp_path, tiny_folder):
    from ine.evaluation.run import run

    own = ROOT / "embeddings" / "mini-fire-uce" / "fire-neg.safetensors"
    path = write("{name: base}", f"{{name: base, model: {tiny_folder}}}", "text: smoke",
                 f"embeddings: {own}")  # fmt: skip
    plan = prepare(load_grid(path), tmp_path / "run")
    with pytest.raises(IneError, match=r"cell base, cfg, smoke: .*128"):
        run(plan)
    assert not (tmp_path / "run" / "units").exists()


def test_a_detector_without_features_or_without_weights(write, tmp_path, monkeypatch):
    path = write("seeds:", "metrics: {features: mini-judge2}\nseeds:")
    with pytest.raises(RecipeError, match="has none; give"):
        prepare(load_grid(path), tmp_path / "run")
    path = write("seeds:", "rules: q16@0.5\nmetrics: {preservation: ssim}\nseeds:")
    with pytest.raises(IneError) as caught:
        prepare(load_grid(path), tmp_path / "run")
    assert "q16" in str(caught.value).lower()


def test_a_grid_that_is_not_there():
    with pytest.raises(RecipeError, match=r"shipped: .*mini-fire"):
        load_grid("no.yaml")
