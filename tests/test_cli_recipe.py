import json

import pytest

from ine.recipe import list_recipes, load_recipe, recipe_yaml


def test_list_names_every_shipped_recipe(run_ine):
    text = run_ine("recipe", "list").stdout
    assert [line.split()[0] for line in text.splitlines()] == list(list_recipes())
    rows = json.loads(run_ine("recipe", "list", "--json").stdout)
    assert {name: row["path"] for name, row in rows.items()} == {
        name: str(path) for name, path in list_recipes().items()
    }
    for name, row in rows.items():
        line = next(x for x in text.splitlines() if x.split()[0] == name)
        assert line.split(maxsplit=2) == [name, row["base"], row["about"]]


@pytest.mark.parametrize("name", list(list_recipes()))
def test_every_shipped_recipe_is_sound_and_says_what_it_is_for(run_ine, name):
    path = list_recipes()[name]
    assert run_ine("recipe", "check", path).stdout == f"{path}: ok\n"
    assert load_recipe(name).about
    assert load_recipe(name).name == name


def test_show_prints_a_recipe_that_loads_to_the_same(run_ine, tmp_path):
    name = next(iter(list_recipes()))
    text = run_ine("recipe", "show", name).stdout
    assert load_recipe(name).base in text
    file = tmp_path / "shown.yaml"
    file.write_text(text)
    assert recipe_yaml(load_recipe(file)) == text


def test_show_applies_overrides_and_refuses_wrong_ones(run_ine):
    assert "  steps: 7\n" in run_ine("recipe", "show", "fire", "--set", "inversion.steps=7").stdout
    wrong = run_ine("recipe", "show", "fire", "--set", "inversion.stpes=7")
    assert wrong.exit_code == 3
    assert "did you mean 'steps'?" in wrong.stderr


def test_check_reports_all_wrong_files_and_exits_3(run_ine, tmp_path):
    good = next(iter(list_recipes().values()))
    bad = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file in bad:
        file.write_text("nonsense: 1\n")
    result = run_ine("recipe", "check", bad[0], good, bad[1])
    assert result.exit_code == 3
    assert result.stdout == f"{good}: ok\n"
    assert str(bad[0]) in result.stderr
    assert str(bad[1]) in result.stderr


def test_copy_keeps_comments_and_never_replaces_unasked(run_ine, tmp_path):
    name, path = next(iter(list_recipes().items()))
    assert run_ine("recipe", "copy", name, tmp_path).exit_code == 0
    copied = tmp_path / path.name
    assert copied.read_text() == path.read_text()
    copied.write_text("mine")
    result = run_ine("recipe", "copy", name, tmp_path)
    assert result.exit_code == 9
    assert "--force" in result.stderr
    assert copied.read_text() == "mine"
    assert run_ine("recipe", "copy", name, copied, "--force").exit_code == 0
    assert copied.read_text() == path.read_text()


def test_copy_of_an_unknown_recipe_suggests_a_known_one(run_ine, tmp_path):
    name = next(iter(list_recipes()))
    result = run_ine("recipe", "copy", name + "x", tmp_path)
    assert result.exit_code == 3
    assert f"did you mean {name!r}?" in result.stderr
    assert list(tmp_path.iterdir()) == []
