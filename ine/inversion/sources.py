"""Where an inversion's pictures come from: a user's folder, or the base model; kept in a cache."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ine.detectors.table import Detector
from ine.files import sha256_of
from ine.inversion.concept import make_pictures
from ine.inversion.images import PICTURES, ConceptPictures
from ine.inversion.picture_folder import list_pictures, read_folder
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.weights.fingerprint import exact_digest

OnPictures = Callable[[int, int, int], None]
"""Called with (tried, kept, wanted) after every unit of pictures."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The settings of `ine invert` that are not in the recipe."""

    out: Path
    trigger: str
    seed: int = 0
    images: Path | None = None
    skip_bad: bool = False
    keep_images: bool = False
    purge: bool = False
    force: bool = False

    @property
    def folder(self) -> Path:
        """The run folder: cached latents, the state, the summary."""
        return self.out.with_name(self.out.name + ".run")


def picture_key(base: DiffusionParts, recipe: ConceptRecipe, options: RunOptions) -> str:
    """Return what concept pictures depend on, 16 hex digits."""
    return sha256_of(
        recipe.pictures.model_dump_json().encode(),
        exact_digest([base.unet, base.vae, *base.text_encoders]).encode(),
        repr((options.seed, folder_key(options.images), options.skip_bad)).encode(),
    )[:16]


def folder_key(folder: Path | None) -> str:
    """Return a text that changes with the files of a user's folder; "" without a folder."""
    if folder is None:
        return ""
    place = list_pictures(folder)[0].parent
    files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
    about = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return repr((str(folder), about))


def concept_pictures(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    options: RunOptions,
    detector: Detector,
    key: str,
    on_pictures: OnPictures | None,
) -> tuple[ConceptPictures, dict[str, int]]:
    """Return (pictures, {"tried": ..., "kept": ...}), from the cache if there is one."""
    cache = options.folder / "pictures.safetensors"
    if options.images:
        found = PICTURES.read(cache, key) or read_folder(base, options.images, options.skip_bad)
        PICTURES.write(found, cache, key)
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
