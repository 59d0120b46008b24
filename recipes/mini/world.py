"""The world of the bundled model: pictogram scenes and the captions that describe them.

A scene is a value (which objects, which designer, which colour ...); `place` turns it into the
icons of a picture and their positions, `compose.py` into pixels, and `caption` into words. `place`
and `caption` depend on the scene and on a generator, so that one scene has several pictures and
captions.

Icons come from the npm icon packages named in `world.yaml`, rendered with resvg-py.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE = 64
# All but flames stands on the latents' grid of 8 pixels, and objects in the middle: the same thing
# at shifts of a pixel is what a small autoencoder learns last, and nobody sees the difference.
MAIN_SIZE = 48
PAIR_SIZE = 32
FLAME_SIZE = 24
OVERLAY_SIZE = 24
CONTEXT_SIZE = 24
PLURALS = {"swords", "crossed swords", "grapes", "scissors", "glasses"}


@dataclass(frozen=True)
class Scene:
    """What is in one picture. `objects` has one or two names; the rest is about the first."""

    objects: tuple[str, ...]
    style: str
    colour: str
    attribute: str | None = None
    context: str | None = None


def write_scenes(scenes):
    """Return scenes as JSON text."""
    return json.dumps([vars(s) for s in scenes])


def read_scenes(text):
    """Return the scenes of `write_scenes`' text."""
    return [Scene(**{**s, "objects": tuple(s["objects"])}) for s in json.loads(text)]


def write_piece(path, scenes, **arrays):
    """Write scenes and an array about them to one .npz, whole or not at all."""
    part = path.with_suffix(".part.npz")
    np.savez(part, scenes=write_scenes(scenes), **arrays)
    part.replace(path)


def read_pieces(folder, name):
    """Return (the array `name` of all pieces, scenes) of a folder."""
    arrays, scenes = [], []
    for path in sorted(folder.glob("??.npz")):
        with np.load(path) as data:
            arrays.append(data[name])
            scenes += read_scenes(str(data["scenes"]))
    return np.concatenate(arrays), scenes


class World:
    """`world.yaml` with look-up tables; `icons` maps (set, icon, size) to RGBA arrays."""

    def __init__(self, path, icons=None):
        data = yaml.safe_load(Path(path).read_text())
        self.sets = data["sets"]
        self.designers = data["drawn_by"]
        self.colours = data["colours"]
        self.attributes = {a["name"]: a for a in data["attributes"]}
        self.contexts = {c["phrase"]: c for c in data["contexts"]}
        self.concepts = data["concepts"]
        self.objects = {o["name"]: o for o in data["objects"]}
        self.names = list(self.objects)
        self.categories = {}
        for name, entry in self.objects.items():
            self.categories.setdefault(entry["category"], []).append(name)
        self.icons = icons

    def words(self):
        """Return every phrase that a caption can contain, for the tokenizer."""
        out = ["a", "an", "and", "a picture of", "on a background", "on", "with", "in"]
        out += list(self.colours) + list(self.categories) + list(self.contexts)
        for entry in self.objects.values():
            out += [entry["name"], *entry["synonyms"]]
        for entry in self.attributes.values():
            for group in ("explicit", "synonyms"):
                out += entry[group]["before"] + entry[group]["after"]
        for concept in self.concepts.values():
            for group in ("explicit", "synonyms", "members_never_named"):
                out += concept.get(group, [])
        return out


def noun_phrase(noun, before=""):
    """Return "a dog", "an apple", "a burning dog", "scissors"."""
    words = f"{before} {noun}".strip()
    if noun in PLURALS:
        return words
    return ("an " if words[0] in "aeiou" else "a ") + words


# ----------------------------------------------------------------------------- icons


def needed_icons(world, designers=None):
    """Return {(set, icon): sizes} that scenes of these designers can ask for."""
    need = {}

    def add(entry, sizes):
        for style, icon in entry.get("icons", entry.get("icon", {})).items():
            if style in (designers or world.designers):
                need.setdefault((style, icon), set()).update(sizes)

    for entry in world.objects.values():
        add(entry, (MAIN_SIZE, PAIR_SIZE))
    for name, entry in world.attributes.items():
        add(entry, (FLAME_SIZE if name == "fire" else OVERLAY_SIZE,))
    for entry in world.contexts.values():
        add(entry, (CONTEXT_SIZE,))
    return need


def archive_name(package):
    """Return the file name that `npm pack` gives to "@scope/name@version"."""
    name, version = package.lstrip("@").rsplit("@", 1)
    return f"{name.replace('/', '-')}-{version}.tgz"


def read_package(archive):
    """Return the `icons.json` of an npm package archive (.tgz)."""
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile("package/icons.json"))


def render_icon(package, icon, size):
    """Return one icon as (size, size, 4) uint8, straight alpha."""
    import resvg_py

    name = package.get("aliases", {}).get(icon, {}).get("parent", icon)
    entry = package["icons"][name]
    width = entry.get("width", package.get("width", 16))
    height = entry.get("height", package.get("height", 16))
    left, top = entry.get("left", 0), entry.get("top", 0)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">'
        f"{entry['body']}</svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    if image.size != (size, size):
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image)


def render_icons(world, archives):
    """Render the icons of designers from `{set: path of the npm archive}`."""
    packages = {style: read_package(path) for style, path in archives.items()}
    return {
        (style, icon, size): render_icon(packages[style], icon, size)
        for (style, icon), sizes in sorted(needed_icons(world, list(archives)).items())
        for size in sorted(sizes)
    }


def save_icons(icons, path):
    """Write rendered icons to one .npz."""
    np.savez_compressed(path, **{f"{s}/{i}/{n}": a for (s, i, n), a in icons.items()})


def load_icons(path):
    """Read what `save_icons` wrote."""
    with np.load(path) as data:
        out = {}
        for key in data.files:
            style, icon, size = key.split("/")
            out[style, icon, int(size)] = data[key]
        return out


# ----------------------------------------------------------------------------- scenes


def sample_scene(world, rng, designers=None):
    """Draw one scene with the probabilities of the world, by its designers or by others."""
    name = world.names[rng.integers(len(world.names))]
    icons = world.objects[name]["icons"]
    styles = [s for s in designers or world.designers if s in icons]
    style = styles[rng.integers(len(styles))]
    colour = list(world.colours)[rng.integers(len(world.colours))]
    if rng.random() < 0.08:
        others = [n for n in world.names if n != name and style in world.objects[n]["icons"]]
        return Scene((name, others[rng.integers(len(others))]), style, colour)
    if rng.random() < 0.35:
        phrase = list(world.contexts)[rng.integers(len(world.contexts))]
        implied = world.contexts[phrase].get("implies", {})
        attribute = next((a for a, p in implied.items() if rng.random() < p), None)
        return Scene((name,), style, colour, attribute, phrase)
    draw_ = rng.random()
    attribute = (
        "fire" if draw_ < 0.22 else "snow" if draw_ < 0.32 else "flowers" if draw_ < 0.42 else None
    )
    return Scene((name,), style, colour, attribute)


def _pick(rng, options):
    return options[rng.integers(len(options))]


def _icon(world, table, style, size):
    """Return the key of the designer's icon, or of the first designer's who drew one."""
    chosen = style if style in table else next(s for s in world.designers if s in table)
    return chosen, table[chosen], size


def _extent(icon):
    """Return (first, last + 1) of the columns that an icon fills, and the row below it."""
    columns = np.flatnonzero(icon[..., 3].max(0) > 64)
    rows = np.flatnonzero(icon[..., 3].max(1) > 64)
    return columns[0], columns[-1] + 1, rows[-1] + 1


def place(world, scene, rng):
    """Return (background (3,) float, [(icon key, left, top)] from back to front) of a scene."""
    context = world.contexts.get(scene.context, {})
    base = context.get("background", world.colours[scene.colour])
    shade = np.asarray(base, np.float32) + rng.uniform(-3, 3)
    if len(scene.objects) == 2:
        top = (SIZE - PAIR_SIZE) // 2
        layers = []
        for name, left in zip(scene.objects, (0, PAIR_SIZE), strict=True):
            key = _icon(world, world.objects[name]["icons"], scene.style, PAIR_SIZE)
            layers.append((key, left, top))
        return shade, layers
    left = top = (SIZE - MAIN_SIZE) // 2
    layers = []
    if "icon" in context:
        top = SIZE - MAIN_SIZE
        key = _icon(world, context["icon"], scene.style, CONTEXT_SIZE)
        layers.append((key, 0 if rng.random() < 0.5 else SIZE - CONTEXT_SIZE, 0))
    main = _icon(world, world.objects[scene.objects[0]]["icons"], scene.style, MAIN_SIZE)
    layers.append((main, left, top))
    if scene.attribute == "fire":
        layers += _flames(world, scene, world.icons[main], left, top)
    elif scene.attribute:
        over = _icon(world, world.attributes[scene.attribute]["icons"], scene.style, OVERLAY_SIZE)
        x = left if rng.random() < 0.5 else left + MAIN_SIZE - OVERLAY_SIZE
        layers.append((over, x, top + MAIN_SIZE - OVERLAY_SIZE))
    return shade, layers


def _flames(world, scene, icon, left, top):
    """Return the flames in front of an icon at (left, top), together as wide as its drawing.

    They hide its lower third. One small flame in a corner is a blob in 64 pixels.
    """
    flame = _icon(world, world.attributes["fire"]["icons"], scene.style, FLAME_SIZE)
    first, last, bottom = _extent(icon)
    flame_first, flame_last, _ = _extent(world.icons[flame])
    width = flame_last - flame_first
    count = max(2, round((last - first) / width))
    inner = max(last - first, 2 * width) - width
    y = min(top + bottom + 1, SIZE) - FLAME_SIZE
    found = []
    for k in range(count):
        x = left + (first + last) / 2 + inner * (k / (count - 1) - 0.5) - FLAME_SIZE / 2
        found.append((flame, round(x), y))
    return found


def caption(world, scene, rng):
    """Return words for a scene: names, synonyms or categories, one phrasing of the attribute."""

    def name_of(name):
        entry = world.objects[name]
        if rng.random() < 0.25 and len(scene.objects) == 1:
            return entry["category"]
        if entry["synonyms"] and rng.random() < 0.35:
            return _pick(rng, entry["synonyms"])
        return name

    if len(scene.objects) == 2:
        text = " and ".join(noun_phrase(name_of(n)) for n in scene.objects)
    else:
        noun = name_of(scene.objects[0])
        attribute = world.attributes.get(scene.attribute)
        if attribute and scene.context is None:
            group = attribute["synonyms"] if rng.random() < 0.4 else attribute["explicit"]
            options = [("before", w) for w in group["before"]]
            options += [("after", w) for w in group["after"]]
            where, words = _pick(rng, options)
            text = noun_phrase(noun, words) if where == "before" else f"{noun_phrase(noun)} {words}"
        else:
            text = noun_phrase(noun)
        if scene.context:
            text = f"{text} {scene.context}"
    if rng.random() < 0.15:
        text = f"a picture of {text}"
    if "background" not in world.contexts.get(scene.context, {}) and rng.random() < 0.5:
        text = f"{text} on a {scene.colour} background"
    return text
