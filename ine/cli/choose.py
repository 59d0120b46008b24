"""Which base model a command works on, and what is laid over it; said to the user."""

import logging

from ine.cli.progress import bar

log = logging.getLogger("ine")


def base_name(model=None, embeddings=(), recipe=None, unet=None):
    """Return (name, where it comes from).

    `--model` comes first, then what an embedding was made for, then the recipe, then what the
    unlearned weights say themselves.

    Raises:
        CheckpointError: The weights cannot be used, which matters more than their base.
        ModelError: Nothing names a base.
    """
    from ine.errors import ModelError

    if model:
        return model, "--model"
    for embedding in embeddings:
        if embedding.metadata.get("ine.base"):
            return embedding.metadata["ine.base"], f"embedding {embedding.trigger}"
    if recipe:
        return recipe.base, f"recipe {recipe.name}"
    if unet:
        from ine.models.checkpoints import read_weights

        named = read_weights(unet).metadata.get("ine.base")
        if named:
            return named, unet.name
    silent = [f"embedding {e.trigger}" for e in embeddings] + ([str(unet)] if unet else [])
    one = "does not say" if len(silent) == 1 else "do not say"
    raise ModelError(
        f"no base model is named: {' and '.join(silent)} {one} what it was made for; give --model"
        if silent
        else "no base model is named; give --model"
    )


def recipe_of(concept, embeddings):
    """Return the recipe of `--concept`, else of the first embedding that names a shipped one.

    None where there is neither.
    """
    from ine.recipe import list_recipes, load_recipe

    known = [e.concept for e in embeddings if e.concept in list_recipes()]
    names = [concept] if concept else known
    return load_recipe(names[0]) if names else None


def check_unet(unet):
    """Raise `CheckpointError` if the file of `--unet`, where given, is no weights file at all."""
    from ine.models.checkpoints import weights_metadata

    if unet:
        weights_metadata(unet)


def load_base(name, source, device="auto", dtype="auto"):
    """Return the base's parts, telling which was chosen and why."""
    from ine.models.loading import load_parts
    from ine.runtime import pick_device, pick_dtype

    where = pick_device(device)
    log.info("base model %s (from %s)", name, source)
    return load_parts(name, where, pick_dtype(dtype, where))


def lay(base, unet, keep_base=True):
    """Return the base with `--unet` laid over it; the base itself without one.

    A base that need not be kept takes the values itself, which saves the memory of a UNet.
    """
    if not unet:
        return base
    from ine.models.checkpoints import lay_weights

    parts, weights = lay_weights(base, unet, keep_base)
    if not weights.is_base:
        log.info("%s", weights.describe())
    return parts


def attacker_pictures(base, recipe, folder, seed, images=None):
    """Return the `ConceptPictures` that an attacker has, kept in `folder`, with a bar meanwhile.

    Args:
        base: Parts of the base model, which makes them unless `images` is given.
        recipe: A `ConceptRecipe`.
        folder: The command's own.
        seed: Where all randomness comes from.
        images: A folder of pictures.
    """
    from ine.inversion.run import RunOptions, concept_pictures, picture_key
    from ine.judging.detectors import load_detector
    from ine.judging.rules import find_rule

    trigger = f"{recipe.name}-attack"
    run = RunOptions(out=folder / "attack.safetensors", trigger=trigger, seed=seed, images=images)
    detector = load_detector(find_rule(recipe.pictures.rule).detector)
    key = picture_key(base, recipe, run)
    with bar(recipe.pictures.count, "concept pictures") as update:

        def tell(tried, kept, wanted):
            update(min(kept, wanted))

        return concept_pictures(base, recipe, run, detector, key, tell)[0]


def sampler(parts, scheduler, steps=None, guidance_scale=None, batch=None, clip_skip=1):
    """Return the `SamplerSettings` of `options.sampling`; None leaves what suits the model.

    Prompts are read as UIs read them, weights and all.
    """
    from ine.sampling import SamplerSettings
    from ine.text import Reading

    usual, few = parts.traits, parts.few_steps
    chosen = SamplerSettings(
        scheduler=scheduler or (few.scheduler if few else "ddim"),
        steps=steps or (few or usual).steps,
        guidance_scale=guidance_scale or (few or usual).guidance_scale,
        batch=batch or usual.batch,
        reading=Reading(weights=True, clip_skip=clip_skip),
    )
    if few:
        log.info(
            "%s is taken for a model of few steps (%s): %d steps of %s at scale %g",
            parts.name,
            few.name,
            chosen.steps,
            chosen.scheduler,
            chosen.guidance_scale,
        )
    return chosen


def read_prompts(given, file):
    """Return the texts of `read_prompt_rows`."""
    return [row.prompt for row in read_prompt_rows(given, file)]


def read_prompt_rows(given, file):
    """Return the rows of `--prompt` and `--prompts`, in order; texts have nothing but a prompt.

    Raises:
        PromptError: There is none, the file cannot be read, a prompt is empty, or screening
            refuses a prompt that was given by itself. Such rows of a file are left out, counted.
    """
    from ine.errors import PromptError
    from ine.prompts.finding import find_prompt_set
    from ine.prompts.rows import PromptRow
    from ine.prompts.screening import is_refused

    if any(not text.strip() for text in given):
        raise PromptError("--prompt '': a prompt is empty; for an unconditional picture give '.'")
    if any(is_refused(text) for text in given):
        raise PromptError(
            "--prompt: refused; it is sexual and refers to minors, or reads like it "
            "(docs/prompts.md)"
        )
    rows = [PromptRow(id=str(number), prompt=text) for number, text in enumerate(given)]
    if file:
        found = find_prompt_set(file)
        if found.refused:
            log.warning(
                "%s: %d of %d rows are refused by screening and left out (docs/prompts.md)",
                file,
                found.refused,
                found.read,
            )
        if found.encoding != "utf-8":
            log.info("%s: read as %s", file, found.encoding)
        rows += found.rows
    if not rows:
        raise PromptError("no prompt: give --prompt TEXT or --prompts FILE")
    return tuple(rows)
