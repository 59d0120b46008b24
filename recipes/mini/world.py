"""The world of the bundled model: pictogram scenes and the captions that describe them.

A scene is a value (which objects, which designer, which colour ...); `draw` turns it into
pixels and `caption` into words. Both are functions of the scene and of a generator, so the
same scene can be captioned anew in every epoch while its latents are computed once.

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
MAIN_SIZES = (42, 44, 46)
PAIR_SIZES = (29, 30, 31)
OVERLAY_SIZES = (23, 24, 25)
CONTEXT_SIZES = (23, 24, 25)
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


def needed_icons(world):
    """Return {(set, icon): sizes} that scenes can ask for."""
    need = {}

    def add(entry, sizes):
        for style, icon in entry.get("icons", entry.get("icon", {})).items():
            need.setdefault((style, icon), set()).update(sizes)

    for entry in world.objects.values():
        add(entry, MAIN_SIZES + PAIR_SIZES)
    for entry in world.attributes.values():
        add(entry, OVERLAY_SIZES)
    for entry in world.contexts.values():
        add(entry, CONTEXT_SIZES)
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
    """Render all icons of the world from `{set: path of the npm archive}`."""
    packages = {style: read_package(path) for style, path in archives.items()}
    return {
        (style, icon, size): render_icon(packages[style], icon, size)
        for (style, icon), sizes in sorted(needed_icons(world).items())
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


def sample_scene(world, rng):
    """Draw one scene with the probabilities of the world."""
    name = world.names[rng.integers(len(world.names))]
    styles = list(world.objects[name]["icons"])
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


def _paste(canvas, icon, left, top):
    size = icon.shape[0]
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(SIZE, left + size), min(SIZE, top + size)
    part = icon[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
    alpha = part[..., 3:] / 255.0
    window = canvas[y0:y1, x0:x1]
    window += (part[..., :3] - window) * alpha


def _pick(rng, options):
    return options[rng.integers(len(options))]


def _icon(world, table, style, size, rng):
    """Return the icon of the scene's designer, or of another one where that one drew none."""
    chosen = style if style in table else _pick(rng, list(table))
    return world.icons[chosen, table[chosen], size]


def draw(world, scene, rng):
    """Return the picture of a scene, (64, 64, 3) uint8."""
    context = world.contexts.get(scene.context, {})
    base = context.get("background", world.colours[scene.colour])
    shade = np.asarray(base, np.float32) + rng.uniform(-5, 5)
    canvas = np.broadcast_to(shade, (SIZE, SIZE, 3)).copy()
    if len(scene.objects) == 2:
        for name, centre in zip(scene.objects, (17, 47), strict=True):
            size = _pick(rng, PAIR_SIZES)
            icon = _icon(world, world.objects[name]["icons"], scene.style, size, rng)
            at = rng.integers(-1, 2, 2)
            _paste(canvas, icon, centre - size // 2 + at[0], 32 - size // 2 + at[1])
    else:
        size = _pick(rng, MAIN_SIZES)
        at = rng.integers(-2, 3, 2)
        left, top = 32 - size // 2 + at[0], 32 - size // 2 + at[1]
        if "icon" in context:
            top += 5
            small = _pick(rng, CONTEXT_SIZES)
            icon = _icon(world, context["icon"], scene.style, small, rng)
            _paste(canvas, icon, 1 if rng.random() < 0.5 else SIZE - small - 1, 1)
        main = _icon(world, world.objects[scene.objects[0]]["icons"], scene.style, size, rng)
        _paste(canvas, main, left, top)
        if scene.attribute:
            table = world.attributes[scene.attribute]["icons"]
            small = _pick(rng, OVERLAY_SIZES)
            over = _icon(world, table, scene.style, small, rng)
            x = left - 5 if rng.random() < 0.5 else left + size - small + 5
            _paste(canvas, over, x, top + size - small + 3)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


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
