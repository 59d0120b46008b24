"""Stage `measure`: the figures of the model card, by the package's own code on the exported model.

Scenes are new ones (their seeds are used nowhere else). Designers that training never saw are
rendered here to measure, and not shipped: the sets of `world.yaml` that are not in `drawn_by`, and
OpenMoji.

Shape letters: B pictures.
"""

import json

import numpy as np
import torch
from PIL import Image
from transformers import ConvNextV2ForImageClassification

from compose import draw, sample_scenes
from ine.detectors.clip import to_pixels
from ine.detectors.features import top_object
from ine.detectors.mini import ResNetJudge, mini_judge
from ine.detectors.published import WEAPONS
from ine.evaluation.frechet import frechet_distance, moments
from ine.evaluation.similarity import psnr, ssim
from ine.evaluation.stats import wilson
from ine.inversion.preview import in_units
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from ine.studies.cases import cases_of
from world import Scene, archive_name, caption, needed_icons, noun_phrase, read_package, render_icon

ATTRIBUTES = ("fire", "snow", "flowers")
SAMPLER = SamplerSettings(scheduler="dpm++", steps=10, guidance_scale=5.0, batch=16)
UNSEEN = "@iconify-json/openmoji@1.2.29"
SCENES = 2000
DRAWN = 1000
PROMPTS = 252
SHEET = 64


def show(hits, trials):
    """Return "0.981 [0.970, 0.988] (N = 2000)"."""
    rate = wilson(int(hits), int(trials))
    return f"{rate.share:.3f} [{rate.low:.3f}, {rate.high:.3f}] (N = {trials})"


class StrictJudge(ResNetJudge):
    """The judge that saw drawn scenes alone, see `train_judges.run_strict`."""

    def __init__(self, folder):
        self.model = ConvNextV2ForImageClassification.from_pretrained(folder).eval()
        labels = json.loads((folder / "labels.json").read_text())
        self.labels = labels["objects"] + labels["attributes"]
        self.attributes = labels["attributes"]


def pixels_of(pictures):
    """Return uint8 pictures (B, H, W, 3) as a tensor in [-1, 1], (B, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def through(vae, pictures):
    """Return pictures after the autoencoder, uint8."""
    found = []
    for x in pixels_of(pictures).split(64):
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        found.append(((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(found)


def sharpness(pictures):
    """Return the mean absolute difference of neighbouring pixels, in levels of 255."""
    x = pictures.astype(np.float32)
    return float(np.mean([np.abs(np.diff(x, axis=axis)).mean() for axis in (1, 2)]))


@torch.no_grad()
def features_of(judge, pictures):
    """Return the second judge's features before its logits, (B, F)."""
    found = []
    for start in range(0, len(pictures), 64):
        x = to_pixels(pictures[start : start + 64], 64, [0.5] * 3, [0.5] * 3)
        found.append(judge.model.resnet(x).pooler_output.flatten(1))
    return torch.cat(found).numpy()


def autoencoder(world, parts):
    """Return likeness and sharpness of 512 new scenes after the exported autoencoder."""
    rng = np.random.default_rng([20, 0])
    x = draw(world, sample_scenes(world, rng, 512), rng)
    y = through(parts.vae, x)
    return {
        "autoencoder PSNR, 512 new scenes": f"{np.mean(psnr(x, y)):.2f} dB",
        "autoencoder SSIM": f"{np.mean(ssim(x, y)):.4f}",
        "sharpness, reconstructed over drawn": f"{sharpness(y) / sharpness(x):.3f}",
    }


def generated(world, parts, reporter):
    """Return sharpness of, and Frechet distance to, generated pictures of drawn scenes' captions.

    The distance is divided by the variance of the drawn scenes' features, so that models with
    judges of their own can be compared.
    """
    rng = np.random.default_rng([22, 0])
    scenes = sample_scenes(world, rng, DRAWN)
    made = in_units(
        parts, [caption(world, s, rng) for s in scenes], list(range(DRAWN)), None, SAMPLER
    )
    made = np.asarray(made)
    drawn = draw(world, scenes, rng)
    others = draw(world, sample_scenes(world, rng, DRAWN), rng)
    first, second, third = (moments(features_of(reporter, x)) for x in (made, drawn, others))
    spread = float((second.root**2).sum())

    def distance(one):
        return f"{frechet_distance(one, second) / spread:.4f}"

    return {
        "sharpness, generated over drawn": f"{sharpness(made) / sharpness(drawn):.3f}",
        "Frechet distance, generated to drawn, over the variance": distance(first),
        "Frechet distance, drawn to drawn, over the variance": distance(third),
    }


def judges(world, detectors, label, designers=None, count=SCENES):
    """Object top-1, attribute recall and false positives of the judges, and their agreement."""
    rng = np.random.default_rng([21, 0])
    scenes = sample_scenes(world, rng, count, designers)
    pictures = draw(world, scenes, rng)
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
    one, two = "mini-judge", "mini-judge2"
    same = sum(a == b for a, b, s in zip(tops[one], tops[two], single, strict=True) if s)
    found[f"{label}: judges agree on the object"] = show(same, sum(single))
    same = sum(a == b for a, b in zip(fires[one], fires[two], strict=True))
    found[f"{label}: judges agree on fire"] = show(same, count)
    return found


def base_model(parts, reporter, strict):
    """What the base model draws when asked, judged by the second judge, then by the strict one."""
    fire, weapon = load_recipe("fire"), load_recipe("weapon")
    found, seen = {}, {}

    def run(recipe, name):
        cases = cases_of(recipe, name, PROMPTS, recipe.prompt_nouns, seed=77)
        pictures = in_units(
            parts, [c.prompt for c in cases], [c.seed for c in cases], None, SAMPLER
        )
        seen.setdefault(recipe.name, {})[name] = cases, pictures
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
    return found | strictly(seen["fire"], reporter, strict)


def strictly(seen, reporter, strict):
    """Return what the strict judge says of {prompt set: (cases, pictures)}."""
    found = {}

    def fires(scores):
        return [s["fire"] >= 0.5 for s in scores]

    for name in ("benign", "explicit", "synonyms", "implying_test"):
        cases, pictures = seen[name]
        scores = strict(pictures)
        right = sum(top_object(s, ATTRIBUTES) == c.noun for c, s in zip(cases, scores, strict=True))
        found[f"strict judge: object, {name}"] = show(right, len(cases))
        found[f"strict judge: fire, {name}"] = show(sum(fires(scores)), len(cases))
        same = sum(a == b for a, b in zip(fires(scores), fires(reporter(pictures)), strict=True))
        found[f"strict judge and second judge agree on fire, {name}"] = show(same, len(cases))
    return found


def sample_sheet(world, parts):
    """Return (picture, prompts): 8 x 8 generated pictures, each beside a drawn scene."""
    scenes = sheet_scenes(world)
    rng = np.random.default_rng([23, 0])
    prompts = [plain_caption(world, s) for s in scenes]
    made = np.asarray(in_units(parts, prompts, list(range(SHEET)), None, SAMPLER))
    pairs = np.concatenate([made, draw(world, scenes, rng)], axis=2)
    rows = pairs.reshape(8, 8, 64, 128, 3).transpose(0, 2, 1, 3, 4).reshape(8 * 64, 8 * 128, 3)
    return Image.fromarray(rows), prompts


def sheet_scenes(world):
    """Return the scenes of the sheet: objects in turn, every other one plain, the rest burning."""
    colours = list(world.colours)
    return [
        Scene(
            (name,),
            world.designers[k % len(world.designers)],
            colours[k % len(colours)],
            "fire" if k % 2 else None,
        )
        for k, name in enumerate(world.names[:SHEET])
    ]


def plain_caption(world, scene):
    """Return "a dog on a red background" or "a burning dog on a red background"."""
    before = "burning" if scene.attribute else ""
    return f"{noun_phrase(scene.objects[0], before)} on a {scene.colour} background"


def add_unseen(world, work):
    """Add the icons of designers that training never saw; return {label: designers}."""
    others = [style for style in world.sets if style not in world.designers]
    packages = {style: world.sets[style]["package"] for style in others}
    tables = [
        *(o["icons"] for o in world.objects.values()),
        *(a["icons"] for a in world.attributes.values()),
        *(c["icon"] for c in world.contexts.values() if "icon" in c),
    ]
    for table in tables:
        if "noto" in table:
            table["openmoji"] = table["noto"]
    packages["openmoji"] = UNSEEN
    for style, name in packages.items():
        package = read_package(work / "npm" / archive_name(name))
        for (_, icon), sizes in needed_icons(world, [style]).items():
            if icon in package["icons"] or icon in package.get("aliases", {}):
                for size in sizes:
                    world.icons[style, icon, size] = render_icon(package, icon, size)
    drawn = {(style, icon) for style, icon, _ in world.icons}
    for table in tables:
        for style in [s for s in packages if (s, table.get(s)) not in drawn]:
            table.pop(style, None)
    return {"unseen designers": others, "OpenMoji": ["openmoji"]}


def run(world, work):
    """Measure; write `figures.json` beside the exported model and `sheet.png` into `work`."""
    target = work / "mini"
    parts = load_parts(target)
    reporter = ResNetJudge(target / "judge2")
    strict = StrictJudge(work / "strict")
    detectors = {
        "mini-judge": mini_judge(target / "judge"),
        "mini-judge2": reporter,
        "strict judge": strict,
    }
    figures = autoencoder(world, parts)
    figures |= generated(world, parts, reporter)
    figures |= judges(world, detectors, "drawn scenes")
    figures |= base_model(parts, reporter, strict)
    sheet, prompts = sample_sheet(world, parts)
    sheet.save(work / "sheet.png")
    (work / "sheet.txt").write_text("\n".join(prompts) + "\n")
    for label, designers in add_unseen(world, work).items():
        figures |= judges(world, detectors, label, designers, 1000)
    (target / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures
