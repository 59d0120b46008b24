"""Stages `judge` and `judge2`: two detectors of different build for the bundled world.

`judge` is a small CLIP: it filters concept pictures, tunes, and gives image features.
`judge2` is a ResNet trained from another seed on other scenes: it only scores what is reported.
Both see drawn pictures, pictures that went through the autoencoder, and noisy ones, because
they are used on generated pictures.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
)

import loop
from tokens import CONTEXT_LENGTH
from world import caption, draw, noun_phrase, read_pieces, sample_scene, write_piece

BATCH = 64
STEPS = {"judge": 3600, "judge2": 1800}


def labels_of(world):
    """Return the judges' labels: every object, then every attribute."""
    return [*world.names, *world.attributes]


def zero_shot_texts(world):
    """Return the texts that the CLIP judge compares with a picture.

    One text per object; per attribute two, with and without, whose softmax is its score.
    """
    objects = [noun_phrase(n) for n in world.names]
    pairs = {a: (f"with {a}", f"without {a}") for a in world.attributes}
    return objects, pairs


def targets(world, scenes):
    """Return (objects (n, 67) summing to 1, attributes (n, 3) of 0 and 1)."""
    objects = torch.zeros(len(scenes), len(world.names))
    attributes = torch.zeros(len(scenes), len(world.attributes))
    for row, scene in enumerate(scenes):
        for name in scene.objects:
            objects[row, world.names.index(name)] = 1 / len(scene.objects)
        if scene.attribute:
            attributes[row, list(world.attributes).index(scene.attribute)] = 1
    return objects, attributes


def write_reconstructions(world, folder, count=12_000):
    """Decode disturbed latents once: what generated pictures look like, with known scenes."""
    rank, world_size, device = loop.start_processes()
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    scale = vae.config.scaling_factor
    for part in range(rank, 8, world_size):
        target = folder / "reconstructions" / f"{part:02d}.npz"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([8, part])
        scenes = [sample_scene(world, rng) for _ in range(count // 8)]
        found = []
        for start in range(0, len(scenes), 50):
            x = np.stack([draw(world, s, rng) for s in scenes[start : start + 50]])
            x = torch.from_numpy(x).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                z = vae.encode(x).latent_dist.mean
                size = rng.uniform(0, 0.3, (len(x), 1, 1, 1)) / scale
                z = z + torch.from_numpy(size * rng.standard_normal(z.shape)).to(z)
                y = vae.decode(z).sample.float().clamp(-1, 1)
            found.append(((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        write_piece(target, scenes, pictures=np.concatenate(found))


def pictures(world, decoded, rng, count):
    """Return (pixels in [-1, 1], scenes): half drawn, half decoded, all with some noise."""
    half = count // 2
    picked = rng.integers(len(decoded[1]), size=half)
    scenes = [sample_scene(world, rng) for _ in range(count - half)]
    x = np.concatenate([decoded[0][picked], np.stack([draw(world, s, rng) for s in scenes])])
    scenes = [decoded[1][i] for i in picked] + scenes
    x = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    noise = rng.uniform(0, 0.12, (count, 1, 1, 1)) * rng.standard_normal(x.shape)
    return (x + torch.from_numpy(noise).float()).clamp(-1, 1), scenes


def tokenize(tokenizer, texts):
    """Return token ids; attention is causal and pooling at the end of text, so padding is free."""
    return tokenizer(
        texts, padding=True, max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def build_clip(tokenizer):
    """Return an untrained CLIPModel: 16x16 patches of 64x64 pixels, 128 wide, 4 layers."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 96,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "projection_dim": 96,
                "max_position_embeddings": CONTEXT_LENGTH,
                **ids,
            },
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 16,
                "projection_dim": 96,
            },
            projection_dim=96,
        )
    )


def features(output):
    """Transformers 5 returns an output object where 4 returned the tensor."""
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)


def zero_shot(clip, tokenizer, world, x):
    """Return (object logits (n, 67), attribute logits (n, 3), image features (n, 96))."""
    objects, pairs = zero_shot_texts(world)
    texts = objects + [t for pair in pairs.values() for t in pair]
    words = features(clip.get_text_features(input_ids=tokenize(tokenizer, texts)))
    image = features(clip.get_image_features(pixel_values=x))
    logits = clip.logit_scale.exp() * image @ words.T
    of_objects, of_pairs = logits.split([len(objects), 2 * len(pairs)], dim=1)
    of_pairs = of_pairs.view(len(x), -1, 2)
    return of_objects, of_pairs[..., 0] - of_pairs[..., 1], image


def run_clip(world, folder, steps=STEPS["judge"]):
    """Train the first judge; write `folder/judge`."""
    torch.manual_seed(11)
    loop.start_processes()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    decoded = read_pieces(folder / "reconstructions", "pictures")
    clip = build_clip(tokenizer)

    def loss_of(step, seed):
        rng = np.random.default_rng([4, seed])
        x, scenes = pictures(world, decoded, rng, BATCH)
        objects, attributes = targets(world, scenes)
        with torch.autocast("cpu", torch.bfloat16):
            o, a, image = zero_shot(clip, tokenizer, world, x)
        o, a, image = o.float(), a.float(), image.float()
        loss = F.cross_entropy(o, objects) + 2 * F.binary_cross_entropy_with_logits(a, attributes)
        words = [caption(world, s, rng) for s in scenes]
        text = features(clip.get_text_features(input_ids=tokenize(tokenizer, words)))
        pairs = clip.logit_scale.exp() * image @ text.T
        same = torch.tensor([[float(a == b) for b in words] for a in words])
        same /= same.sum(1, keepdim=True)
        contrast = (F.cross_entropy(pairs, same) + F.cross_entropy(pairs.T, same)) / 2
        right = (o.argmax(1) == objects.argmax(1)).float().mean().item()
        return loss + 0.3 * contrast, {
            "objects": right,
            "attr": ((a > 0) == (attributes > 0.5)).float().mean().item(),
        }

    loop.train(
        "judge",
        {"clip": clip},
        loss_of,
        folder,
        steps=steps,
        lr=1e-3,
        warmup=200,
        hold=0.5,
        weight_decay=0.05,
    )
    clip.save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    objects, pairs = zero_shot_texts(world)
    labels = {"objects": dict(zip(world.names, objects, strict=True)), "pairs": pairs}
    (folder / "judge" / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 64}
    (folder / "judge" / "preprocessor_config.json").write_text(json.dumps(settings) + "\n")


def build_resnet(world):
    """Return an untrained ResNet with one logit per label."""
    labels = labels_of(world)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24,
            hidden_sizes=[32, 64, 128],
            depths=[1, 1, 2],
            layer_type="basic",
            num_labels=len(labels),
            problem_type="multi_label_classification",
            id2label=dict(enumerate(labels)),
            label2id={n: i for i, n in enumerate(labels)},
        )
    )


def run_resnet(world, folder, steps=STEPS["judge2"]):
    """Train the second judge; write `folder/judge2`."""
    torch.manual_seed(23)
    loop.start_processes()
    decoded = read_pieces(folder / "reconstructions", "pictures")
    net = build_resnet(world).train()

    def loss_of(step, seed):
        rng = np.random.default_rng([5, seed])
        x, scenes = pictures(world, decoded, rng, BATCH)
        objects, attributes = targets(world, scenes)
        logits = net(x).logits
        o, a = logits.split([len(world.names), len(world.attributes)], dim=1)
        # A softmax loss learns the 67 objects much faster than 67 separate ones; presence is
        # then read off a per-object threshold that the sigmoid term calibrates.
        loss = F.cross_entropy(o, objects)
        loss = loss + F.binary_cross_entropy_with_logits(o, (objects > 0).float())
        loss = loss + 2 * F.binary_cross_entropy_with_logits(a, attributes)
        right = (o.argmax(1) == objects.argmax(1)).float().mean().item()
        return loss, {
            "objects": right,
            "attr": ((a > 0) == (attributes > 0.5)).float().mean().item(),
        }

    loop.train(
        "judge2",
        {"net": net},
        loss_of,
        folder,
        steps=steps,
        lr=2e-3,
        warmup=100,
        hold=0.5,
        weight_decay=0.01,
        ema=0.995,
    )
    # The averaged weights need batch statistics of their own.
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for k in range(20):
            x, _ = pictures(world, decoded, np.random.default_rng([6, k]), BATCH)
            net(x)
    net.eval().save_pretrained(folder / "judge2")
    labels = {"objects": world.names, "attributes": list(world.attributes)}
    (folder / "judge2" / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")
