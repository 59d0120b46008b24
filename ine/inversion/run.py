"""`ine invert` from recipe to file: pictures, inversion, embedding, each step resumable."""

import logging
from dataclasses import dataclass
from pathlib import Path

from ine import __version__
from ine.embedding import check_trigger, fingerprints, new_embedding, write_embedding
from ine.files import check_free, check_suffix, sha256_of, write_json
from ine.inversion.concept import make_pictures
from ine.inversion.folder import check_ours, drop_others, remove_folder
from ine.inversion.images import list_pictures, load_pictures, read_folder, save_pictures
from ine.inversion.invert import check_room, invert
from ine.inversion.preview import make_preview
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.models.fingerprint import exact_digest
from ine.runtime import library_versions

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `ine invert` was asked for besides the recipe."""

    out: Path
    trigger: str
    seed: int = 0
    images: Path | None = None
    skip_bad: bool = False
    keep_images: bool = False
    purge: bool = False
    force: bool = False

    @property
    def folder(self):
        """The run folder: cached latents, the state, what happened."""
        return self.out.with_name(self.out.name + ".run")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has its pictures: what one inversion of them, or of a part of them, needs."""

    base: object
    unlearned: object
    recipe: object
    options: RunOptions
    rule: object
    detector: object
    pictures: object
    """`ConceptPictures`."""

    counts: dict
    """{"tried": ..., "kept": ...}."""

    key: str
    """What the pictures depend on."""

    def invert(self, pictures, trigger, state, on_step=None):
        """Return the `Inversion` of pictures; `state` is the name of its file in the run folder."""
        recipe, options = self.recipe, self.options
        return invert(
            self.unlearned,
            pictures,
            recipe.inversion,
            trigger=trigger,
            seed=options.seed,
            plural=recipe.plural,
            preview=make_preview(
                self.unlearned, recipe, self.rule, self.detector, trigger, options.seed
            ),
            state=options.folder / state,
            key=state_key(self.unlearned, recipe, self.key, trigger),
            on_step=on_step,
        )

    def embedding(self, result, trigger, metadata=None):
        """Return the `ConceptEmbedding` of an `Inversion`; `metadata` comes on top."""
        recipe, base, kept = self.recipe, self.base, result.kept
        return new_embedding(
            result.vectors,
            trigger,
            recipe.name,
            {
                "ine.version": __version__,
                "ine.base": base.name,
                "ine.unet": self.unlearned.unet_name,
                **fingerprints(self.unlearned),
                "ine.method": "textual inversion",
                "ine.recipe_hash": recipe.hash,
                "ine.steps": recipe.inversion.steps,
                "ine.kept_step": kept.step if kept else recipe.inversion.steps,
                "ine.recovery": f"{kept.recovery:.3f}" if kept else None,
                "ine.tuning_left": f"{kept.left:.3f}" if kept and kept.left is not None else None,
                "ine.tuning_undefended": (
                    f"{kept.undefended:.3f}" if kept and kept.undefended is not None else None
                ),
                "ine.rule": self.rule.name,
                "ine.people": "true" if recipe.people else None,
                "ine.strength": recipe.strength,
                "ine.pictures": self.pictures.count,
                "ine.seed": self.options.seed,
                "ine.versions": library_versions(),
                "modelspec.prediction_type": "v"
                if base.prediction_type != "epsilon"
                else "epsilon",
                "modelspec.is_negative_embedding": "true",
                **(metadata or {}),
            },
        )

    def summary(self, out, embedding, result):
        """Return what `--json` prints about one embedding."""
        kept = result.kept
        return {
            "embedding": str(out),
            "trigger": embedding.trigger,
            "vectors": embedding.count,
            "pictures": self.counts,
            "loss": result.loss,
            "kept_step": kept.step if kept else None,
            "recovery": kept.recovery if kept else None,
            "tuning_left": kept.left if kept else None,
            "tuning_undefended": kept.undefended if kept else None,
        }

    def finish(self, summary):
        """Write what happened beside the states, or remove the run folder where that is asked."""
        write_json(self.options.folder / "run.json", summary)
        if self.options.purge:
            remove_folder(self.options.folder)


def state_key(unlearned, recipe, picture_key, trigger):
    """Return what an inversion's state depends on, 16 hex digits."""
    return sha256_of(
        picture_key.encode(),
        recipe.model_dump_json().encode(),
        exact_digest([unlearned.unet, *unlearned.text_encoders]).encode(),
        trigger.encode(),
    )[:16]


def prepare(base, unlearned, recipe, options, targets, detector=None, on_pictures=None):
    """Check what can be checked at once, then make the concept pictures or read them back.

    Args:
        base: Parts of the base model; it makes the concept pictures.
        unlearned: Parts that are inverted.
        recipe: A `ConceptRecipe`.
        options: `RunOptions`.
        targets: {trigger: file} of what is to be written.
        detector: The detector of the recipe's rule; loaded when it is not given.
        on_pictures: Called with (tried, kept, wanted).
    """
    for trigger, out in targets.items():
        check_trigger(trigger, base.tokenizers[0])
        check_suffix(out)
        check_free(out, options.force)
        check_room(base, recipe, trigger)
    if options.purge:
        check_ours(options.folder)
    rule = find_rule(recipe.pictures.rule)
    key = picture_key(base, recipe, options)
    detector = detector or load_detector(rule.detector)
    if options.force:
        drop_others(
            options.folder, key, [state_key(unlearned, recipe, key, trigger) for trigger in targets]
        )
    pictures, counts = concept_pictures(base, recipe, options, detector, key, on_pictures)
    return Prepared(
        base=base,
        unlearned=unlearned,
        recipe=recipe,
        options=options,
        rule=rule,
        detector=detector,
        pictures=pictures,
        counts=counts,
        key=key,
    )


def run_inversion(base, unlearned, recipe, options, detector=None, on_pictures=None, on_step=None):
    """Run an inversion and write the embedding.

    Args:
        base: Parts of the base model; it makes the concept pictures.
        unlearned: Parts that are inverted.
        recipe: A `ConceptRecipe`.
        options: `RunOptions`.
        detector: The detector of the recipe's rule; loaded when it is not given.
        on_pictures: Called with (tried, kept, wanted).
        on_step: Called with `Progress`.

    Returns:
        (ConceptEmbedding, Inversion, summary): the summary is what `--json` prints.

    Raises:
        IneError: Anything that a user can mend; what can be told beforehand is, before any work.
    """
    targets = {options.trigger: options.out}
    run = prepare(base, unlearned, recipe, options, targets, detector, on_pictures)
    result = run.invert(run.pictures, options.trigger, "state.safetensors", on_step)
    embedding = run.embedding(result, options.trigger)
    write_embedding(embedding, options.out, force=options.force)
    summary = run.summary(options.out, embedding, result)
    run.finish(summary)
    return embedding, result, summary


def picture_key(base, recipe, options):
    """Return what concept pictures depend on, 16 hex digits."""
    return sha256_of(
        recipe.pictures.model_dump_json().encode(),
        exact_digest([base.unet, base.vae, *base.text_encoders]).encode(),
        repr((options.seed, folder_key(options.images), options.skip_bad)).encode(),
    )[:16]


def folder_key(folder):
    """Return what changes when pictures or captions of a user's folder do; "" without one."""
    if folder is None:
        return ""
    place = list_pictures(folder)[0].parent
    files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
    about = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return repr((str(folder), about))


def concept_pictures(base, recipe, options, detector, key, on_pictures):
    """Return (ConceptPictures, {"tried": ..., "kept": ...}), from the cache where it is there."""
    cache = options.folder / "pictures.safetensors"
    if options.images:
        found = load_pictures(cache, key) or read_folder(base, options.images, options.skip_bad)
        save_pictures(found, cache, key)
        return found, {"tried": found.count, "kept": found.count}
    made = make_pictures(
        base,
        recipe,
        detector,
        seed=options.seed,
        folder=options.folder / "pictures",
        key=key,
        keep_images=options.folder / "images" if options.keep_images else None,
        progress=on_pictures,
    )
    return made.pictures, {"tried": made.tried, "kept": made.kept}
