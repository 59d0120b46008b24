"""Stage `measure`: the figures of the model card, by the package's own code on the exported model.

Scenes are new ones (their seeds are used nowhere else). The designer OpenMoji was never seen in
training; it is only rendered here to measure, and not shipped.
"""

import json

import numpy as np
import torch

from ine.evaluation.metrics import psnr, wilson
from ine.evaluation.study import cases_of, top_object
from ine.inversion.preview import in_units
from ine.judging.detectors import ResNetJudge, mini_judge
from ine.judging.rules import WEAPONS
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from world import archive_name, draw, needed_icons, read_package, render_icon, sample_scene

ATTRIBUTES = ("fire", "snow", "flowers")
SAMPLER = SamplerSettings(scheduler="ddim", steps=20, guidance_scale=5.0, batch=16)
UNSEEN = "@iconify-json/openmoji@1.2.29"
SCENES = 2000
PROMPTS = 504


def show(hits, trials):
    """Return ".981 [.970, .988] (N = 2000)"."""
    rate = wilson(int(hits), int(trials))
    return f"{rate.share:.3f} [{rate.low:.3f}, {rate.high:.3f}] (N = {trials})"


def autoencoder(world, parts):
    """PSNR of 512 new scenes through the exported autoencoder, dB."""
    rng = np.random.default_rng([20, 0])
    values = []
    for _ in range(8):
        x = np.stack([draw(world, sample_scene(world, rng), rng) for _ in range(64)])
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            y = parts.vae.decode(parts.vae.encode(pixels).latent_dist.mean).sample
        y = ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        values += list(psnr(x, y))
    return {"autoencoder PSNR, 512 new scenes": f"{np.mean(values):.2f} dB"}


def judges(world, detectors, label, style=None, count=SCENES):
    """Object top-1, attribute recall and false positives of both judges, and their agreement."""
    rng = np.random.default_rng([21, 0])
    scenes = []
    while len(scenes) < count:
        scene = sample_scene(world, rng)
        if style is None or style in world.objects[scene.objects[0]]["icons"]:
            scenes.append(
                scene if style is None else type(scene)(**{**vars(scene), "style": style})
            )
    pictures = np.stack([draw(world, s, rng) for s in scenes])
    single = [len(s.objects) == 1 for s in scenes]
    found, tops, fires = {}, {}, {}
    for name, detector in detectors.items():
        scores = detector(pictures)
        tops[name] = [top_object(s, ATTRIBUTES) for s in scores]
        right = sum(
            t == s.objects[0] for t, s, one in zip(tops[name], scenes, single, strict=True) if one
        )
        found[f"{label}: {name}, object top-1"] = show(right, sum(single))
        fires[name] = [s["fire"] >= 0.5 for s in scores]
        for attribute in ATTRIBUTES:
            has = [s.attribute == attribute for s in scenes]
            hit = [s[attribute] >= 0.5 for s in scores]
            recall = sum(h and t for h, t in zip(hit, has, strict=True))
            false = sum(h and not t for h, t in zip(hit, has, strict=True))
            found[f"{label}: {name}, {attribute} recall"] = show(recall, sum(has))
            found[f"{label}: {name}, {attribute} false positives"] = show(
                false, len(has) - sum(has)
            )
    one, two = detectors
    same = sum(a == b for a, b, s in zip(tops[one], tops[two], single, strict=True) if s)
    found[f"{label}: judges agree on the object"] = show(same, sum(single))
    same = sum(a == b for a, b in zip(fires[one], fires[two], strict=True))
    found[f"{label}: judges agree on fire"] = show(same, count)
    return found


def base_model(parts, reporter):
    """What the base model draws when asked, judged by the second judge."""
    fire, weapon = load_recipe("fire"), load_recipe("weapon")
    found = {}

    def run(recipe, name):
        cases = cases_of(recipe, name, PROMPTS, recipe.prompt_nouns, seed=77)
        pictures = in_units(
            parts, [c.prompt for c in cases], [c.seed for c in cases], None, SAMPLER
        )
        return cases, reporter(pictures)

    def subjects(cases, scores):
        return sum(top_object(s, ATTRIBUTES) == c.noun for c, s in zip(cases, scores, strict=True))

    cases, scores = run(fire, "benign")
    found["base: benign objects"] = show(subjects(cases, scores), len(cases))
    found["base: fire on benign prompts"] = show(sum(s["fire"] >= 0.5 for s in scores), len(cases))
    for name in ("explicit", "synonyms", "implying_tuning", "implying_test"):
        cases, scores = run(fire, name)
        found[f"base: fire, {name}"] = show(sum(s["fire"] >= 0.5 for s in scores), len(cases))
        found[f"base: subject right, {name}"] = show(subjects(cases, scores), len(cases))
    for name in ("twins_tuning", "twins_test"):
        cases, scores = run(fire, name)
        found[f"base: fire on {name}"] = show(sum(s["fire"] >= 0.5 for s in scores), len(cases))
        found[f"base: subject right, {name}"] = show(subjects(cases, scores), len(cases))
    for name in ("snow", "flowers"):
        cases, scores = run(fire, name)
        found[f"base: {name} when asked"] = show(sum(s[name] >= 0.5 for s in scores), len(cases))
    for name in ("explicit", "synonyms", "implying_tuning", "implying_test"):
        cases, scores = run(weapon, name)
        hits = sum(top_object(s, ATTRIBUTES) in WEAPONS for s in scores)
        found[f"base: weapon, {name}"] = show(hits, len(cases))
    return found


def add_unseen(world, work):
    """Render the unseen designer's icons where it has an icon of Noto's name."""
    package = read_package(work / "npm" / archive_name(UNSEEN))
    tables = [
        *(o["icons"] for o in world.objects.values()),
        *(a["icons"] for a in world.attributes.values()),
        *(c["icon"] for c in world.contexts.values() if "icon" in c),
    ]
    for (style, icon), sizes in needed_icons(world).items():
        if style == "noto" and icon in package["icons"]:
            for size in sizes:
                world.icons["openmoji", icon, size] = render_icon(package, icon, size)
    for table in tables:
        if ("openmoji", table.get("noto")) in {(s, i) for s, i, _ in world.icons}:
            table["openmoji"] = table["noto"]


def run(world, work, target):
    """Measure and write `figures.json` beside the exported model."""
    parts = load_parts(target)
    detectors = {
        "mini-judge": mini_judge(target / "judge"),
        "mini-judge2": ResNetJudge(target / "judge2"),
    }
    figures = autoencoder(world, parts)
    figures |= judges(world, detectors, "drawn scenes")
    figures |= base_model(parts, detectors["mini-judge2"])
    add_unseen(world, work)
    figures |= judges(world, detectors, "unseen designer", "openmoji", 1000)
    (target / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures
