"""Rebuild the bundled model from the npm icon packages.

    python build.py --work DIR                                    # every stage, in order
    torchrun --nproc_per_node 2 build.py --work DIR --stage vae   # one stage, several processes

DIR/npm must hold the archives that `npm pack` fetches (see README.md). Every stage can be
killed; it goes on at its last saved state. Stages that are finished are not run again.
"""

import argparse
from pathlib import Path

from world import World, archive_name, load_icons, render_icons, save_icons

HERE = Path(__file__).parent


def load_world(work):
    """Return the world with its icons, rendered on first use and kept in DIR/icons.npz."""
    world = World(HERE / "world.yaml")
    icons = work / "icons.npz"
    if not icons.exists():
        archives = {
            style: work / "npm" / archive_name(entry["package"])
            for style, entry in world.sets.items()
        }
        save_icons(render_icons(world, archives), icons)
    world.icons = load_icons(icons)
    return world


def tokenizer(world, work):
    """Write DIR/tokenizer."""
    import tokens

    tokens.build(world, work / "tokenizer")


def vae(world, work):
    """Train DIR/vae."""
    import train_vae

    train_vae.run(world, work)


def latents(world, work):
    """Encode scenes for the U-Net, decode disturbed ones for the judges."""
    import train_diffusion
    import train_judges

    train_diffusion.write_latents(world, work)
    train_judges.write_reconstructions(world, work)


def judge(world, work):
    """Train DIR/judge, the one that filters and tunes."""
    import train_judges

    train_judges.run_clip(world, work)


def judge2(world, work):
    """Train DIR/judge2, the one that reports."""
    import train_judges

    train_judges.run_resnet(world, work)


def decoder(world, work):
    """Train the decoder of DIR/vae on, encoder frozen: DIR/vae_tuned."""
    import train_vae

    train_vae.run_decoder(world, work)


def diffusion(world, work):
    """Train DIR/text_encoder and DIR/unet."""
    import train_diffusion

    train_diffusion.run(world, work)


def export(world, work):
    """Write DIR/mini, what the package ships: float16, loadable as a pipeline."""
    import export

    export.run(work, work / "mini")


def measure(world, work):
    """Write the model card's figures, DIR/mini/figures.json; needs `ine` installed."""
    import measure

    measure.run(world, work, work / "mini")


def embeddings(world, work):
    """Write the shipped embeddings into this checkout; needs `ine` with the exported model."""
    import embeddings

    embeddings.run(work, HERE.parents[1] / "embeddings")


STAGES = {
    "tokenizer": (tokenizer, "tokenizer"),
    "vae": (vae, "vae"),
    "latents": (latents, None),
    "judge": (judge, "judge"),
    "judge2": (judge2, "judge2"),
    "decoder": (decoder, "vae_tuned"),
    "diffusion": (diffusion, "unet"),
    "export": (export, None),
    "measure": (measure, None),
    "embeddings": (embeddings, None),
}
"""Stage -> (function, folder that says it is finished)."""


def main():
    """Run the chosen stage, or all that are not finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, action="append")
    args = parser.parse_args()
    world = load_world(args.work)
    for name, (run, folder) in STAGES.items():
        if args.stage and name not in args.stage:
            continue
        if not args.stage and folder and (args.work / folder).exists():
            continue
        run(world, args.work)


if __name__ == "__main__":
    main()
