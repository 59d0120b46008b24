"""Recipes: what is read, what is refused and how, articles and plurals, what ships."""

import re

import pytest
import yaml

from ine.errors import RecipeError
from ine.recipe import (
    InversionSettings,
    check_recipe,
    fill,
    find_recipe,
    list_recipes,
    load_recipe,
    pairs,
    recipe_yaml,
)

SHIPPED = sorted(list_recipes())

YOUTH = (
    *("child", "children", "kid", "kids", "teen", "teens", "teenager", "young", "youth"),
    *("girl", "girls", "boy", "boys", "baby", "babies", "minor", "minors", "toddler", "infant"),
    *("schoolgirl", "schoolboy", "student", "son", "daughter", "lad", "maiden", "juvenile"),
)


def minimal(**sections):
    """Return the data of the smallest recipe there is, with sections replaced."""
    return {
        "kind": "concept",
        "version": 1,
        "name": "thing",
        "base": "mini",
        "words": {"explicit": ["thing"]},
        "pictures": {"prompts": ["a {}"], "nouns": ["dog"], "rule": "mini-fire@0.5"},
        **sections,
    }


def refusal(data):
    with pytest.raises(RecipeError) as caught:
        check_recipe(data, "my.yaml")
    return str(caught.value)


# What ships


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_survives_the_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    file = tmp_path / f"{name}.yaml"
    file.write_text(recipe_yaml(recipe))
    again = load_recipe(file)
    assert again == recipe
    assert again.hash == recipe.hash
    assert recipe_yaml(again) == recipe_yaml(recipe)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_names_a_rule_that_exists(name):
    from ine.detectors.rules import find_rule
    from ine.detectors.table import DETECTORS

    assert find_rule(load_recipe(name).pictures.rule).detector in DETECTORS


def texts_of(recipe):
    """Return every text that shows somebody, filled in."""
    spec = recipe.pictures
    found = [recipe.fill(*p) for p in pairs(spec.prompts, spec.nouns)]
    for section in filter(None, (recipe.tuning,)):
        found += [recipe.fill(*p) for p in pairs(section.prompts, section.nouns)]
    if recipe.erase:
        found += [
            recipe.fill(*p)
            for p in pairs(recipe.erase.concepts + recipe.erase.targets, recipe.erase.nouns)
        ]
        found += [
            recipe.fill(*p) for p in pairs(recipe.erase.preserve, recipe.erase.preserve_nouns)
        ]
    for templates in recipe.prompt_sets.values():
        found += [recipe.fill(*p) for p in pairs(templates, recipe.prompt_nouns)]
    return [*found, *recipe.inversion.templates, *recipe.inversion.named_templates]


def youth_in(text):
    return set(re.findall(r"[a-z]+", text.lower())) & set(YOUTH)


def is_adult(noun):
    return bool(re.match(r"(adult|middle-aged|elderly) (wo)?man$|soldier$", noun))


def check_adults_only(recipe):
    assert {"child", "children", "teen", "young", "girl", "boy", "baby", "minor"} <= youth_in(
        recipe.pictures.negative_prompt
    )
    assert [n for n in recipe.pictures.nouns if not is_adult(n)] == []
    for section in (recipe.tuning, recipe.erase):
        if section:
            assert [n for n in section.nouns if not is_adult(n)] == []
    assert [t for t in texts_of(recipe) if youth_in(t)] == []


@pytest.mark.parametrize("name", [n for n in SHIPPED if load_recipe(n).people])
def test_recipes_of_people_show_adults_only(name):
    check_adults_only(load_recipe(name))


@pytest.mark.parametrize(
    "override",
    [
        "pictures.negative_prompt=blurry",
        "pictures.nouns=[adult woman, young woman]",
        "pictures.nouns=[woman]",
        "pictures.prompts=['a photo of a teenager and a {}']",
        "tuning.nouns=[boy]",
        "erase.preserve_nouns=[children]",
        "prompt_sets.benign=['a girl']",
    ],
)
def test_the_check_for_adults_can_fail(override):
    with pytest.raises(AssertionError):
        check_adults_only(load_recipe("nudity", [override]))


def test_recipes_of_harms_to_people_say_that_they_show_people():
    people = {name for name in SHIPPED if load_recipe(name).people}
    assert {"nudity", "violence"} <= people
    # What the bundled model draws are pictograms.
    assert all(load_recipe(name).base != "mini" for name in people)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_writes_plain_english(name):
    recipe = load_recipe(name)
    for text in texts_of(recipe):
        assert "{}" not in text
        assert not re.search(r"\ba (?!uni)[aeiou]", text), text
        assert not re.search(r"\ban [^aeiou]", text), text
        for noun in recipe.plural:
            assert not re.search(rf"\ban? {noun}\b", text), text


@pytest.mark.parametrize("name", SHIPPED)
def test_prompts_that_choices_are_made_on_are_not_those_that_are_reported(name):
    sets = load_recipe(name).prompt_sets
    for kind in {n.removesuffix("_test") for n in sets if n.endswith("_test")}:
        tuning, test = sets[f"{kind}_tuning"], sets[f"{kind}_test"]
        assert not set(tuning) & set(test), kind


# What is refused


def test_the_smallest_recipe_is_accepted():
    recipe = check_recipe(minimal(), "my.yaml")
    assert recipe.inversion == InversionSettings()
    assert recipe.tuning is None
    assert recipe.erase is None


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        (None, "peolpe", "people"),
        ("words", "explicitly", "explicit"),
        ("pictures", "negativ_prompt", "negative_prompt"),
        ("inversion", "stpes", "steps"),
        ("tuning", "guidance", "guidance_scale"),
        ("erase", "target", "targets"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_meant(section, key, meant):
    data = minimal(
        tuning={"prompts": ["a {}"]}, erase={"concepts": ["a {} on fire"], "targets": ["a {}"]}
    )
    data["inversion"] = {}
    (data[section] if section else data)[key] = 3
    where = f"{section}.{key}" if section else key
    assert refusal(data) == f"my.yaml: {where}: unknown key; did you mean {meant!r}?"


def test_an_unknown_key_like_nothing_gets_no_guess():
    assert refusal(minimal(xyzzy=1)) == "my.yaml: xyzzy: unknown key"


def test_all_problems_are_listed_at_once():
    data = minimal(inversion={"stpes": 3, "lr": -1, "vectors": 76, "schedule": "cosine"})
    data["pictures"] = {"prompts": "a {}", "guidance_scale": 1}
    data["version"] = 2
    del data["base"]
    message = refusal(data)
    for part in (
        "inversion.stpes: unknown key; did you mean 'steps'?",
        "inversion.lr: ",
        "found -1",
        "inversion.vectors: ",
        "found 76",
        "inversion.schedule: ",
        "'cosine'",
        "pictures.prompts: ",
        "pictures.guidance_scale: ",
        "pictures.rule: missing",
        "version: ",
        "base: missing",
    ):
        assert part in message
    assert message.count("; ") >= 8


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("words", "explicit", []),
        ("pictures", "prompts", []),
        ("pictures", "nouns", []),
        ("pictures", "count", 0),
        ("inversion", "templates", []),
        ("inversion", "templates", ["a {}"]),
        ("inversion", "named_templates", ["a {noun}"]),
        ("inversion", "lr", float("nan")),
        ("tuning", "prompts", []),
        ("tuning", "nouns", []),
        ("erase", "nouns", []),
    ],
)
def test_values_that_no_run_could_use_are_refused(section, key, value):
    data = minimal(
        inversion={},
        tuning={"prompts": ["a {}"]},
        erase={"concepts": ["a {} on fire"], "targets": ["a {}"]},
    )
    check_recipe(data, "my.yaml")
    data[section] = {**data[section], key: value}
    assert refusal(data).startswith(f"my.yaml: {section}.{key}")


def test_erase_pairs_must_be_pairs():
    message = refusal(minimal(erase={"concepts": ["a {}", "{}"], "targets": ["a thing"]}))
    assert "erase.concepts has 2" in message
    assert "erase.targets 1" in message


@pytest.mark.parametrize("text", ["- a\n- list\n", "just text\n", "", "a: [1\n", "a: \xff"])
def test_files_that_are_no_recipe_are_refused(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=re.escape(str(path))):
        load_recipe(path)


def test_yaml_runs_no_code(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]\n")
    with pytest.raises(RecipeError):
        load_recipe(path)
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_recipes_and_missing_files(tmp_path):
    with pytest.raises(RecipeError, match=r"'fier' is unknown; did you mean 'fire'\?.*shipped: "):
        find_recipe("fier")
    with pytest.raises(RecipeError, match="no such recipe file"):
        find_recipe(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("x")
    assert find_recipe(tmp_path / "mine.yaml") == tmp_path / "mine.yaml"


# Numbers and overrides


def test_numbers_that_yaml_takes_for_text_are_read_as_numbers(tmp_path):
    # YAML 1.1 wants "5.0e-4"; everybody writes 5e-4.
    assert yaml.safe_load("5e-4") == "5e-4"
    path = tmp_path / "thing.yaml"
    path.write_text(yaml.safe_dump(minimal()) + "inversion:\n  lr: 5e-4\n")
    assert load_recipe(path).inversion.lr == 5e-4
    assert load_recipe(path, ["inversion.lr=2e-3"]).inversion.lr == 2e-3
    with pytest.raises(RecipeError, match=r"inversion\.lr.*'fast'"):
        load_recipe(path, ["inversion.lr=fast"])


def test_overrides_reach_every_depth_and_the_last_one_wins(tmp_path):
    path = tmp_path / "thing.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    recipe = load_recipe(
        path,
        [
            "name=other",
            "pictures.nouns=[cat, dog]",
            "inversion.steps=5",
            "inversion.steps=6",
            "tuning.prompts=['a {} = a {}']",
            "words.negative=a, b",
        ],
    )
    assert recipe.name == "other"
    assert recipe.pictures.nouns == ("cat", "dog")
    assert recipe.inversion.steps == 6
    assert recipe.tuning.prompts == ("a {} = a {}",)
    assert recipe.words.negative_text() == "a, b"
    # What is not named stays.
    assert recipe.pictures.prompts == ("a {}",)
    assert load_recipe(path) == check_recipe(minimal(), "x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inversion.steps", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("name.first=x", "'name' is not a section"),
        ("inversion.steps=[", "the value is not YAML"),
        ("inversion.setps=3", "did you mean 'steps'?"),
        ("inverison.steps=3", "inverison: unknown key; did you mean 'inversion'?"),
    ],
)
def test_wrong_overrides_are_refused(override, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe("fire", [override])


def test_a_problem_names_the_line_of_the_file_or_the_override(tmp_path):
    path = tmp_path / "thing.yaml"
    path.write_text(yaml.safe_dump(minimal(), sort_keys=False) + "inversion:\n  lr: -1\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(RecipeError, match=rf"thing\.yaml: line {line}: inversion\.lr: "):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"thing\.yaml: --set inversion\.lr: inversion\.lr: "):
        load_recipe(path, ["inversion.lr=-2"])
    with pytest.raises(RecipeError, match=r"--set tunning\.steps: tunning: unknown key"):
        load_recipe(path, ["inversion.lr=1", "tunning.steps=3"])
    assert load_recipe(path, ["inversion.lr=1"]).inversion.lr == 1


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "thing.yaml"
    path.write_text(yaml.safe_dump(minimal(), sort_keys=False) + "name: other\n")
    with pytest.raises(RecipeError, match=r"'name' stands here already, line 3"):
        load_recipe(path)


def test_the_hash_differs_between_recipes():
    hashes = {load_recipe(name).hash for name in SHIPPED}
    assert len(hashes) == len(SHIPPED)
    changed = load_recipe("fire", ["inversion.lr=1e-3"])
    assert changed.hash != load_recipe("fire").hash == load_recipe("fire").hash
    assert re.fullmatch("[0-9a-f]{16}", changed.hash)


def test_the_negative_text_is_all_explicit_words_unless_one_is_chosen():
    assert check_recipe(minimal(words={"explicit": ["a", "b c"]}), "x").words.negative_text() == (
        "a, b c"
    )


def test_recipes_do_not_change():
    recipe = load_recipe("fire")
    with pytest.raises(ValueError, match="frozen"):
        recipe.inversion.steps = 3


# Articles and plurals


@pytest.mark.parametrize(
    ("template", "noun", "text"),
    [
        ("a {} on fire", "dog", "a dog on fire"),
        ("a {} on fire", "apple", "an apple on fire"),
        ("a {}", "umbrella", "an umbrella"),
        ("a {}", "ear", "an ear"),
        ("an {}", "dog", "a dog"),
        ("a {}", "unicorn", "a unicorn"),
        ("a {}", "uniform", "a uniform"),
        ("a {}", "uninvited guest", "an uninvited guest"),
        ("a {}", "one-eyed cat", "a one-eyed cat"),
        ("a {}", "onion", "an onion"),
        ("a {} with a unicorn", "apple", "an apple with a unicorn"),
        ("a {} with an owl", "dog", "a dog with an owl"),
        ("an icy {}", "dog", "an icy dog"),
        ("a burning {}", "apple", "a burning apple"),
        ("a picture of a {}", "alarm clock", "a picture of an alarm clock"),
        ("a burning {}", "scissors", "burning scissors"),
        ("a {} on fire", "scissors", "scissors on fire"),
        ("an icy {}", "scissors", "icy scissors"),
        ("a picture of a {}", "scissors", "a picture of scissors"),
        ("a {} with a unicorn", "crossed swords", "crossed swords with a unicorn"),
        ("a {} and a {}", "apple", "an apple and an apple"),
        ("nudity", "adult man", "nudity"),
        ("{}", "apple", "apple"),
        ("a {v} {}", "scissors", "{v} scissors"),
        ("a photo of a {v} {}", "scissors", "a photo of {v} scissors"),
        ("a {v} {}", "apple", "a {v} apple"),
        ("a {}", "", "a "),
        ("banana {}", "apple", "banana apple"),
    ],
)
def test_fill(template, noun, text):
    assert fill(template, noun, ("scissors", "crossed swords", "swords")) == text


def test_pairs_take_nouns_fastest():
    assert pairs(["1", "2"], ["a", "b"]) == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]
