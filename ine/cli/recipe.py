"""`ine recipe list | show | check | copy`."""

import json
from pathlib import Path

import click

from ine.cli import options
from ine.errors import IneError, RecipeError, did_you_mean
from ine.files import check_free, write_text


@click.group()
def recipe():
    """List, show, check and copy concept recipes.

    A recipe says what a concept is, which base model it is for and how it is inverted. NAME is
    the name of a shipped recipe; where a file is wanted, any path will do.
    """


@recipe.command("list")
@options.json_output
def list_(as_json):
    """List the shipped recipes and what each is for."""
    from ine.recipe import list_recipes

    found = list_recipes()
    if as_json:
        click.echo(json.dumps({name: str(path) for name, path in found.items()}, indent=2))
        return
    width = max(map(len, found), default=0)
    for name, path in found.items():
        click.echo(f"{name:{width}}  {summary(path)}".rstrip())


def summary(path):
    """Return the first comment line of a recipe, without its sign."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


@recipe.command()
@click.argument("name")
@options.overrides
def show(name, overrides):
    """Print a recipe with all defaults filled in and overrides applied.

    NAME is a shipped recipe or a file.
    """
    from ine.recipe import load_recipe, recipe_yaml

    click.echo(recipe_yaml(load_recipe(name, overrides)), nl=False)


@recipe.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files):
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
def copy(name, dest, force):
    """Copy a shipped recipe, comments included, to start your own.

    DEST is a file or a folder; without it, NAME.yaml in the current folder.
    """
    from ine.recipe import list_recipes

    found = list_recipes()
    if name not in found:
        raise RecipeError(
            f"{name}: no such shipped recipe{did_you_mean(name, found)} "
            f"There are: {', '.join(found)}"
        )
    source = Path(found[name])
    target = dest or Path(source.name)
    if target.is_dir():
        target = target / source.name
    check_free(target, force)
    write_text(target, source.read_text(encoding="utf-8"))
    click.echo(target)
