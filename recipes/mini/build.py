"""Rebuild the bundled model from the npm icon packages: `python build.py --work DIR`."""

import argparse
from pathlib import Path

from world import World, load_icons, render_icons, save_icons

HERE = Path(__file__).parent


def archive_name(package):
    """Return the file name `npm pack` gives to "@scope/name@version"."""
    name, version = package.lstrip("@").rsplit("@", 1)
    return f"{name.replace('/', '-')}-{version}.tgz"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", required=True)
    args = parser.parse_args()
    world = World(HERE / "world.yaml")
    icons = args.work / "icons.npz"
    if not icons.exists():
        archives = {s: args.work / "npm" / archive_name(v["package"]) for s, v in world.sets.items()}
        save_icons(render_icons(world, archives), icons)
    world.icons = load_icons(icons)
    if args.stage == "vae":
        import train_vae

        train_vae.run(world, args.work)


if __name__ == "__main__":
    main()
