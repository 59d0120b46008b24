"""The prompts, the recipe and the concept pictures that a command works on."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ine.cli.progress import bar

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.inversion.concept import ConceptPictures
    from ine.models.parts import DiffusionParts
    from ine.prompts.rows import PromptRow
    from ine.recipe import ConceptRecipe

log = logging.getLogger("ine")


def recipe_of(
    concept: str | None, embeddings: Sequence["ConceptEmbedding"]
) -> "ConceptRecipe | None":
    """Return the recipe of `--concept`, else of the first embedding that names a shipped one."""
    from ine.recipe import list_recipes, load_recipe

    known = [e.concept for e in embeddings if e.concept in list_recipes()]
    names = [concept] if concept else known
    return load_recipe(names[0]) if names else None


def attacker_pictures(
    base: "DiffusionParts",
    recipe: "ConceptRecipe",
    folder: Path,
    seed: int,
    images: Path | None = None,
    skip_bad: bool = False,
) -> "ConceptPictures":
    """Return the concept pictures that an attacker has, with a progress bar.

    Args:
        base: The base model, which makes them unless `images` is given.
        recipe: The concept.
        folder: Folder of the command, which keeps them.
        seed: Seed of all random numbers.
        images: A folder of pictures.
        skip_bad: Leave out those that cannot be read.
    """
    from ine.detectors.rules import find_rule
    from ine.detectors.table import load_detector
    from ine.inversion.sources import RunOptions, concept_pictures, picture_key

    trigger = f"{recipe.name}-attack"
    out = folder / "attack.safetensors"
    run = RunOptions(out=out, trigger=trigger, seed=seed, images=images, skip_bad=skip_bad)
    detector = load_detector(find_rule(recipe.pictures.rule).detector)
    key = picture_key(base, recipe, run)
    with bar(recipe.pictures.count, "concept pictures") as update:

        def on_unit(tried: int, kept: int, wanted: int) -> None:
            update(min(kept, wanted))

        return concept_pictures(base, recipe, run, detector, key, on_unit)[0]


def read_prompts(
    given: Sequence[str], file: Path | None, filters: Mapping | None = None
) -> list[str]:
    """Return the texts of `read_prompt_rows`."""
    return [row.prompt for row in read_prompt_rows(given, file, filters)]


def read_prompt_file(file: Path, filters: Mapping | None = None) -> list[str]:
    """Return the prompts of a file or named set; rows as in `read_prompt_rows`."""
    return [row.prompt for row in rows_of(file, filters or {})]


def read_prompt_rows(
    given: Sequence[str],
    file: Path | None,
    filters: Mapping | None = None,
    unconditional: bool = False,
) -> tuple["PromptRow", ...]:
    """Return the rows of `--prompt` and `--prompts`, in order.

    Args:
        given: Texts of `--prompt`.
        file: `--prompts`: a file or a named set.
        filters: Values of `options.prompt_rows`, which choose rows of the file.
        unconditional: Whether an empty text of `--prompt` is allowed; it asks for an
            unconditional picture.

    Raises:
        PromptError: There is no prompt, the file cannot be read, `filters` are given without a
            file, or a text of `--prompt` is empty or refused by screening. Refused rows of a file
            are left out and counted.
    """
    from ine.errors import PromptError
    from ine.prompts.rows import PromptRow
    from ine.prompts.screening import is_refused

    check_filters(filters, [file])
    if any(is_refused(text) for text in given):
        raise PromptError(
            "--prompt: refused; it is sexual and refers to minors, or reads like it "
            "(docs/prompts.md)"
        )
    for text in given:
        if not text.strip() and (text or not unconditional):
            also = ", or --prompt '' for an unconditional picture" if unconditional else ""
            raise PromptError(f"--prompt {text!r}: a prompt is empty; give words{also}")
    if empty := given.count(""):
        log.info("note: %d of the prompts given with --prompt are empty: unconditional", empty)
    rows = [PromptRow(id=str(number), prompt=text.strip()) for number, text in enumerate(given)]
    rows += rows_of(file, filters or {}) if file else ()
    if not rows:
        raise PromptError("no prompt: give --prompt TEXT or --prompts FILE")
    return tuple(rows)


def check_filters(filters: Mapping | None, files: Sequence) -> None:
    """Raise `PromptError` if options choose rows of a prompt file and no file is given."""
    from ine.errors import PromptError

    asked = [f"--{name.replace('_', '-')}" for name, value in (filters or {}).items() if value]
    if asked and not any(files):
        raise PromptError(
            f"{', '.join(asked)}: chooses rows of a prompt file, but no file is given; add "
            "--prompts FILE"
        )


def rows_of_all(
    files: Sequence[Path], filters: Mapping, limit: int | None = None
) -> list["PromptRow"]:
    """Return the rows of several files or named sets, of each the first `limit`."""
    return [row for file in files for row in rows_of(file, filters)[:limit]]


def rows_of(file: Path, filters: Mapping) -> tuple["PromptRow", ...]:
    """Return the rows of a file or named set, and log which rows were left out."""
    from ine.prompts.reading import find_prompt_set

    found = find_prompt_set(file, **filters)
    if found.refused:
        log.warning(
            "%s: %d of %d rows are refused by screening and left out (%s): docs/prompts.md; "
            "`ine prompts show` names all of them",
            *(file, found.refused, found.read, found.refused_summary(10)),
        )
    if found.empty:
        log.info("%s: %d rows without a prompt are left out", file, len(found.empty))
    if found.encoding != "utf-8":
        log.info("%s: read as %s", file, found.encoding)
    return found.rows
