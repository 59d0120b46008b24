"""Stage `previews`: what a sampler's picture looks like before it is finished, with known scenes.

Two kinds, each in pieces of (pictures, steps, scenes):

- `previews/`: latents of scenes, noised to one step of the sampler and predicted back. One call of
  the U-Net each, and the scene is known.
- `generated/`: pictures of captions at some steps of their run, and finished. The first judge says
  which object and attribute they show; where the object is another one, the picture is left out.

Shape letters: B pictures.
"""

from dataclasses import replace

import numpy as np
import torch

from compose import sample_scenes
from ine.detectors.features import top_object
from ine.detectors.mini import mini_judge
from ine.models.loading import load_parts
from ine.sampling import alpha_bar_at, decode_latents, make_scheduler
from train_diffusion import encode
from world import caption, read_pieces, write_piece

SAMPLER = "ddim"
STEPS = 20
"""Of the sampler; a preview's step is 0 to 19, a finished picture's is 20."""

SCALE = 5.0
PREVIEWS = 2400
GENERATED = 320
LOOKS = 4
"""Previews per generated picture, beside the finished one."""

PIECES = 8
UNIT = 16
WEAPONS = 0.3
"""Share of scenes whose object is a weapon."""


def scheduler_of(parts):
    """Return (the sampler's scheduler, alpha-bar at each of its steps (20,))."""
    scheduler = make_scheduler(SAMPLER, parts.scheduler_config, STEPS, "cpu")
    steps = enumerate(scheduler.timesteps)
    return scheduler, torch.stack([alpha_bar_at(scheduler, k, t) for k, t in steps]).float()


def predicted_back(x, eps, alpha_bar):
    """Return the x_0 that a prediction of noise means, (B, C, 8, 8)."""
    a = alpha_bar.view(-1, 1, 1, 1)
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


def eyes_scene(world, rng):
    """Return a scene as the world has them, more often with a weapon."""
    (scene,) = sample_scenes(world, rng, 1)
    if rng.random() >= WEAPONS:
        return scene
    weapons = world.categories["weapon"]
    name = weapons[rng.integers(len(weapons))]
    if scene.style not in world.objects[name]["icons"] or name in scene.objects[1:]:
        return scene
    return replace(scene, objects=(name, *scene.objects[1:]))


def run(world, folder, scenes=None):
    """Write `folder/previews` and `folder/generated`; pieces that are there are kept."""
    parts = load_parts(folder / "mini")
    write_previews(world, folder, parts, scenes or PREVIEWS)
    write_generated(world, folder, parts, min(scenes or GENERATED, GENERATED))


@torch.no_grad()
def write_previews(world, folder, parts, count):
    """Noise latents of scenes to one step each, predict them back, decode."""
    scheduler, abar = scheduler_of(parts)
    codes, scenes = read_pieces(folder / "latents", "latents")
    words, _ = read_pieces(folder / "latents", "captions")
    weapon = [s.objects[0] in world.categories["weapon"] for s in scenes]
    rng = np.random.default_rng([50, 0])
    chance = np.where(weapon, WEAPONS / np.mean(weapon), 1.0)
    rows = rng.choice(len(scenes), count, replace=False, p=chance / chance.sum())
    for piece, picked in enumerate(np.array_split(rows, PIECES)):
        target = folder / "previews" / f"{piece:02d}.npz"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([51, piece])
        steps = rng.integers(STEPS, size=len(picked))
        found = []
        for part in np.array_split(np.arange(len(picked)), len(picked) // UNIT):
            x0 = torch.from_numpy(codes[picked[part]]).float()
            ids = words[picked[part], rng.integers(words.shape[1], size=len(part))]
            states = parts.text_encoders[0](torch.from_numpy(ids).long()).last_hidden_state
            a, t = abar[steps[part]], scheduler.timesteps[steps[part]]
            noise = torch.from_numpy(rng.standard_normal(x0.shape)).float()
            x = a.view(-1, 1, 1, 1).sqrt() * x0 + (1 - a).view(-1, 1, 1, 1).sqrt() * noise
            eps = parts.unet(x, t, states).sample
            found.append(decode_latents(parts, predicted_back(x, eps, a)))
        shown = [scenes[i] for i in picked]
        write_piece(target, shown, pictures=np.concatenate(found), steps=steps)


def write_generated(world, folder, parts, count):
    """Make pictures of captions; keep some previews of each, and the finished picture."""
    judge = mini_judge(folder / "mini" / "judge")
    for piece in range(PIECES):
        target = folder / "generated" / f"{piece:02d}.npz"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([52, piece])
        wanted = [eyes_scene(world, rng) for _ in range(count // PIECES)]
        pictures, steps, scenes = [], [], []
        for start in range(0, len(wanted), UNIT):
            unit = wanted[start : start + UNIT]
            prompts = [caption(world, s, rng) for s in unit]
            for row, looks in enumerate(looks_of(parts, prompts, rng, LOOKS)):
                shown = judged(world, unit[row], judge(looks[STEPS][None])[0])
                if shown:
                    pictures += looks.values()
                    steps += looks
                    scenes += [shown] * len(looks)
        write_piece(target, scenes, pictures=np.stack(pictures), steps=np.array(steps))


@torch.no_grad()
def looks_of(parts, prompts, rng, looks):
    """Return {step: picture} of each prompt's run, at some steps and at its end.

    A preview is what the positive prediction alone means, as VL-DNP looks at it
    (arXiv 2510.26052); the run itself has guidance.

    Args:
        parts: The model.
        prompts: B texts.
        rng: For noise and steps.
        looks: Number of random steps, or the steps.
    """
    scheduler, abar = scheduler_of(parts)
    tokenizer, text = parts.tokenizers[0], parts.text_encoders[0]
    states = encode(tokenizer, text, list(prompts) + [""] * len(prompts), "cpu")
    x = torch.from_numpy(rng.standard_normal((len(prompts), *parts.latent_shape))).float()
    if isinstance(looks, int):
        chosen = [rng.choice(STEPS, looks, replace=False) for _ in prompts]
    else:
        chosen = [looks] * len(prompts)
    found = [{} for _ in prompts]
    for step, t in enumerate(scheduler.timesteps):
        pos, neg = parts.unet(torch.cat([x, x]), t, states).sample.chunk(2)
        rows = [row for row, at in enumerate(chosen) if step in at]
        if rows:
            early = predicted_back(x[rows], pos[rows], abar[step].expand(len(rows)))
            for row, picture in zip(rows, decode_latents(parts, early), strict=True):
                found[row][step] = picture
        x = scheduler.step(neg + SCALE * (pos - neg), t, x).prev_sample
    for row, picture in enumerate(decode_latents(parts, x)):
        found[row][STEPS] = picture
    return found


def judged(world, scene, scores):
    """Return the scene that a generated picture shows by a judge's scores, or None.

    What was asked for may not have been drawn: contexts imply an attribute only mostly, and a
    category word lets the model choose.
    """
    top = top_object(scores, tuple(world.attributes))
    if len(scene.objects) == 2:
        return scene if top in scene.objects else None
    if world.objects[top]["category"] != world.objects[scene.objects[0]]["category"]:
        return None
    attribute = next((name for name in world.attributes if scores[name] >= 0.5), None)
    return replace(scene, objects=(top,), attribute=attribute)
