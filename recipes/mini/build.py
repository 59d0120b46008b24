"""Rebuild the bundled model from the npm icon packages.

    python build.py --work DIR                # every stage, in order
    python build.py --work DIR --stage vae    # one stage
    python build.py --work DIR --dry-run      # every stage for 20 steps, to see that all is there

DIR/npm must hold the archives that `npm pack` fetches (see README.md). Every stage can be
killed; it goes on at its last saved state. Stages that are finished are not run again.
"""

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path

from world import World, archive_name, load_icons, render_icons, save_icons

HERE = Path(__file__).parent
DRY_STEPS = 20
DRY_SCENES = 640


@dataclass(frozen=True)
class Stage:
    """One step of the build: a function of a module that is imported when it is needed."""

    module: str
    function: str
    output: str | None
    """Folder in DIR that says the stage is finished; without one it decides for itself."""

    trains: bool = False
    """Takes `steps`."""

    draws: bool = False
    """Takes `scenes`."""

    def run(self, world, work, dry=False):
        """Run the stage; a dry run makes a little of everything."""
        options = {}
        if dry and self.trains:
            options["steps"] = DRY_STEPS
        if dry and self.draws:
            options["scenes"] = DRY_SCENES
        getattr(importlib.import_module(self.module), self.function)(world, work, **options)


STAGES = {
    "tokenizer": Stage("tokens", "run", "tokenizer"),
    "vae": Stage("train_vae", "run", "vae", trains=True),
    "latents": Stage("train_diffusion", "write_latents", None, draws=True),
    "reconstructions": Stage("train_judges", "write_reconstructions", None, draws=True),
    "judge": Stage("train_judges", "run_clip", "judge", trains=True),
    "judge2": Stage("train_judges", "run_resnet", "judge2", trains=True),
    "strict": Stage("train_judges", "run_strict", "strict", trains=True),
    "decoder": Stage("train_vae", "run_decoder", "vae_tuned", trains=True),
    "diffusion": Stage("train_diffusion", "run", "unet", trains=True),
    "again": Stage("train_diffusion", "run_again", "unet_tuned", trains=True),
    "export": Stage("export", "run", None),
    "previews": Stage("eyes_pictures", "run", None, draws=True),
    "eyes": Stage("train_eyes", "run", "eyes", trains=True),
    "measure": Stage("measure", "run", None),
    "measure_eyes": Stage("measure_eyes", "run", None),
    "embeddings": Stage("embeddings", "run", None),
}
AFTER_A_REAL_BUILD = ("measure", "measure_eyes", "embeddings")
"""Stages that a dry run leaves out: the last would overwrite the checkout's embeddings."""


def load_world(work):
    """Return the world with its icons, rendered on first use and kept in DIR/icons.npz."""
    world = World(HERE / "world.yaml")
    icons = work / "icons.npz"
    if not icons.exists():
        archives = {
            style: work / "npm" / archive_name(world.sets[style]["package"])
            for style in world.designers
        }
        save_icons(render_icons(world, archives), icons)
    world.icons = load_icons(icons)
    return world


def main():
    """Run the chosen stages, or all that are not finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    world = load_world(args.work)
    for name, stage in STAGES.items():
        if args.stage and name not in args.stage:
            continue
        if not args.stage and stage.output and (args.work / stage.output).exists():
            continue
        if args.dry_run and name in AFTER_A_REAL_BUILD:
            continue
        stage.run(world, args.work, args.dry_run)


if __name__ == "__main__":
    main()
