"""`ine invert` from recipe to file: pictures, inversion, embedding, each step resumable."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ine.detectors.rule import AnyOf, Rule
from ine.detectors.rules import find_rule
from ine.detectors.table import Detector, load_detector
from ine.embeddings.embedding import ConceptEmbedding, new_embedding, write_embedding
from ine.embeddings.names import check_trigger
from ine.files import check_free, check_suffix, sha256_of, write_json
from ine.inversion.folder import check_ours, drop_others, remove_folder
from ine.inversion.header import image_steps, metadata_of, run_summary
from ine.inversion.history import Inversion, read_state
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import Progress, invert
from ine.inversion.preview import Previews
from ine.inversion.runs import best_of_runs, run_seed, run_state
from ine.inversion.sources import OnPictures, RunOptions, concept_pictures, picture_key
from ine.inversion.steering import check_steering
from ine.inversion.templates import check_room
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.weights.fingerprint import exact_digest

log = logging.getLogger("ine")

Summary = dict[str, Any]
"""What `--json` prints."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run with its concept pictures, ready to be inverted."""

    base: DiffusionParts
    unlearned: DiffusionParts
    recipe: ConceptRecipe
    options: RunOptions
    rule: Rule | AnyOf
    detector: Detector
    pictures: ConceptPictures
    counts: dict[str, int]
    """{"tried": ..., "kept": ...}."""

    key: str
    """What the pictures depend on."""

    def invert(self, on_step: Callable[[Progress], None] | None = None) -> Inversion:
        """Learn the vectors in all runs of the recipe; states are kept in the run folder."""
        recipe, options, spec = self.recipe, self.options, self.recipe.inversion
        previews = Previews(
            parts=self.unlearned,
            recipe=recipe,
            rule=self.rule,
            detector=self.detector,
            trigger=options.trigger,
            seed=options.seed,
        )
        keys = state_keys(self.unlearned, recipe, self.key, options.trigger)
        for run, key in enumerate(keys, 1):
            read_state(run_state(options.folder, run), key)  # another run's is refused before work

        def once(run: int, on_step: Callable[[Progress], None]) -> Inversion:
            return invert(
                self.unlearned,
                self.pictures,
                spec,
                trigger=options.trigger,
                seed=run_seed(options.seed, run),
                plural=recipe.plural,
                preview=previews,
                state=run_state(options.folder, run),
                key=keys[run - 1],
                on_step=on_step,
            )

        result = best_of_runs(spec.runs, once, spec.target_preservation, on_step)
        kept = result.kept
        if kept is None or kept.recovery is not None:
            return result
        # Of the kept vectors alone: nothing is chosen by it.
        return replace(result, kept=replace(kept, recovery=previews.recovery(result.vectors)))

    def embedding(self, result: Inversion) -> ConceptEmbedding:
        """Return the `ConceptEmbedding` of an `Inversion`."""
        about = metadata_of(
            self.base,
            self.unlearned,
            self.recipe,
            result,
            rule=self.rule.name,
            pictures=self.pictures.count,
            seed=self.options.seed,
        )
        return new_embedding(result.vectors, self.options.trigger, self.recipe.name, about)

    def summary(self, embedding: ConceptEmbedding, result: Inversion) -> Summary:
        """Return what `--json` prints about the embedding."""
        kept = result.kept
        return {
            "embedding": str(self.options.out),
            "trigger": embedding.trigger,
            "vectors": embedding.count,
            "pictures": self.counts,
            "loss": result.loss,
            "steps": result.steps,
            "image_steps": image_steps(self.recipe, result),
            "kept_step": kept.step if kept else None,
            "recovery": kept.recovery if kept else None,
            "tuning_left": kept.left if kept else None,
            "tuning_undefended": kept.undefended if kept else None,
            "tuning_preservation": kept.preservation if kept else None,
            "run": result.run,
            "runs": [run_summary(one) for one in result.runs or (result,)],
        }

    def finish(self, summary: Summary) -> None:
        """Write the summary into the run folder, or remove the folder with `--purge`."""
        write_json(self.options.folder / "run.json", summary)
        if self.options.purge:
            remove_folder(self.options.folder)


def state_keys(
    unlearned: DiffusionParts, recipe: ConceptRecipe, picture_key: str, trigger: str
) -> tuple[str, ...]:
    """Return what the state of each run of a recipe depends on, 16 hex digits.

    How many runs there are is no part of it: more can be asked for later, finished ones are kept.
    """
    alone = recipe.inversion.model_copy(update={"runs": 1})
    own = [
        picture_key.encode(),
        recipe.model_copy(update={"inversion": alone}).deciding,
        exact_digest([unlearned.unet, *unlearned.text_encoders]).encode(),
        trigger.encode(),
    ]
    later = [[b"run %d" % run] for run in range(2, recipe.inversion.runs + 1)]
    return tuple(sha256_of(*own, *more)[:16] for more in [[], *later])


def prepare(
    base: DiffusionParts,
    unlearned: DiffusionParts,
    recipe: ConceptRecipe,
    options: RunOptions,
    detector: Detector | None = None,
    on_pictures: OnPictures | None = None,
) -> Prepared:
    """Check everything that needs no pictures, then make the concept pictures or read them back.

    Args:
        base: Parts of the base model; it makes the concept pictures.
        unlearned: Parts of the model that is inverted.
        recipe: The concept.
        options: The settings that are not in the recipe.
        detector: The detector of the recipe's rule; by default it is loaded.
        on_pictures: Called with (tried, kept, wanted).
    """
    check_trigger(options.trigger, base.tokenizers[0])
    check_suffix(options.out)
    check_free(options.out, options.force)
    check_room(base, recipe, options.trigger)
    check_steering(recipe.inversion)
    if options.purge:
        check_ours(options.folder)
    rule = find_rule(recipe.pictures.rule)
    key = picture_key(base, recipe, options)
    detector = detector or load_detector(rule.detector)
    if options.force:
        drop_others(options.folder, key, state_keys(unlearned, recipe, key, options.trigger))
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


def run_inversion(
    base: DiffusionParts,
    unlearned: DiffusionParts,
    recipe: ConceptRecipe,
    options: RunOptions,
    detector: Detector | None = None,
    on_pictures: OnPictures | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[ConceptEmbedding, Inversion, Summary]:
    """Run an inversion and write the embedding.

    Args:
        base: Parts of the base model; it makes the concept pictures.
        unlearned: Parts of the model that is inverted.
        recipe: The concept.
        options: The settings that are not in the recipe.
        detector: The detector of the recipe's rule; by default it is loaded.
        on_pictures: Called with (tried, kept, wanted).
        on_step: Called with `Progress`.

    Returns:
        (ConceptEmbedding, Inversion, summary): the summary is what `--json` prints.

    Raises:
        IneError: Anything that a user can fix; whatever can be checked first is checked first.
    """
    run = prepare(base, unlearned, recipe, options, detector, on_pictures)
    result = run.invert(on_step)
    _check_target(recipe, result)
    embedding = run.embedding(result)
    write_embedding(embedding, options.out, force=options.force)
    summary = run.summary(embedding, result)
    run.finish(summary)
    return embedding, result, summary


def _check_target(recipe: ConceptRecipe, result: Inversion) -> None:
    """Log a warning where no preview reached the recipe's target preservation."""
    kept, target = result.kept, recipe.inversion.target_preservation
    if kept is None or kept.preservation is None or kept.reaches(target):
        return
    log.warning(
        "no vectors preserve %.2f on benign tuning prompts; kept those of step %d, which preserve "
        "most, %.2f. To have others, set a smaller inversion.target_preservation or, for vectors "
        "of earlier steps, a smaller inversion.preview_every",
        target,
        kept.step,
        kept.preservation,
    )
