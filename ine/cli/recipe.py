"""`ine recipe`: list, show, check and copy concept recipes."""

import json
from pathlib import Path

import click

from ine.cli import options
from ine.cli.command import IneSubgroup
from ine.errors import IneError, RecipeError
from ine.files import check_free, write_text


@click.group(cls=IneSubgroup)
def recipe() -> None:
    """List, show, check and copy concept recipes.

    A recipe says what a concept is, which base model it is for and how it is inverted. NAME is
    a shipped recipe or a file.
    """


@recipe.command("list")
@options.json_output
def list_(as_json: bool) -> None:
    """List the shipped recipes: name, base model, and what each is for."""
    from ine.recipe import list_recipes, load_recipe

    paths = list_recipes()
    recipes = {name: load_recipe(path) for name, path in paths.items()}
    if as_json:
        rows = {
            name: {"path": str(paths[name]), "base": r.base, "about": r.about}
            for name, r in recipes.items()
        }
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    name_width = max(map(len, recipes))
    base_width = max(len(r.base) for r in recipes.values())
    for name, r in recipes.items():
        click.echo(f"{name:{name_width}}  {r.base:{base_width}}  {r.about}".rstrip())


@recipe.command()
@click.argument("name")
@options.overrides
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe with all defaults filled in and overrides applied.

    NAME is a shipped recipe or a file.
    """
    from ine.recipe import load_recipe, recipe_yaml

    click.echo(recipe_yaml(load_recipe(name, overrides)), nl=False)


@recipe.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files: tuple[str, ...]) -> None:
    """Check recipe files; the exit code is 3 if one of them is wrong."""
    from ine.recipe import load_recipe

    problems = []
    for file in files:
        try:
            load_recipe(file)
        except IneError as error:
            problems.append(str(error))
        else:
            click.echo(f"{file}: ok")
    if problems:
        raise RecipeError("\n".join(problems))


@recipe.command()
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path), required=False)
@options.force
def copy(name: str, dest: Path | None, force: bool) -> None:
    """Copy a shipped recipe, comments included, to start your own.

    DEST is a file or a folder; without it, NAME.yaml in the current folder.
    """
    from ine.recipe import find_recipe

    source = find_recipe(name)
    target = dest or Path(source.name)
    if target.is_dir():
        target = target / source.name
    check_free(target, force)
    write_text(target, source.read_text(encoding="utf-8"))
    click.echo(target)
