"""Stages `judge`, `judge2` and `strict`: three detectors of different build for the bundled world.

`judge` is a small CLIP: it filters concept pictures, tunes, and gives image features.
`judge2` is a ResNet trained from another seed on other scenes: it only scores what is reported.
Both see drawn pictures, pictures that went through the autoencoder, and noisy ones, because
they are used on generated pictures. `strict` is a ConvNeXt V2 that sees drawn pictures alone, so
that it finds what looks like a drawing and forgives no blur; it is not shipped.
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
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import loop
from compose import Icons, draw, pool_of, sample_scenes
from tokens import CONTEXT_LENGTH
from world import caption, noun_phrase, read_pieces, write_piece

BATCH = 64
STEPS = {"judge": 3600, "judge2": 1800, "strict": 1400}


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


def write_reconstructions(world, folder, scenes=12_000):
    """Decode disturbed latents once: what generated pictures look like, with known scenes."""
    device = loop.device_of_training()
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    scale = vae.config.scaling_factor
    icons = Icons.of(world, device)
    for part in range(8):
        target = folder / "reconstructions" / f"{part:02d}.npz"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([8, part])
        drawn = sample_scenes(world, rng, scenes // 8)
        pool = pool_of(world, drawn, rng, icons, device)
        found = []
        for rows in torch.arange(len(drawn), device=device).split(50):
            x = pool.compose(rows)
            with torch.no_grad(), loop.precision_on(device):
                z = vae.encode(x).latent_dist.mean
                size = rng.uniform(0, 0.3, (len(x), 1, 1, 1)) / scale
                z = z + torch.from_numpy(size * rng.standard_normal(z.shape)).to(z)
                y = vae.decode(z).sample.float().clamp(-1, 1)
            found.append(((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        write_piece(target, drawn, pictures=np.concatenate(found))


def pictures(world, icons, decoded, rng, count):
    """Return (pixels in [-1, 1], scenes): half drawn, half decoded, all with some noise."""
    half = count // 2
    picked = rng.integers(len(decoded[1]), size=half)
    scenes = sample_scenes(world, rng, count - half)
    x = np.concatenate([decoded[0][picked], draw(world, scenes, rng, icons)])
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
    ids = tokenize(tokenizer, texts).to(x.device)
    words = features(clip.get_text_features(input_ids=ids))
    image = features(clip.get_image_features(pixel_values=x))
    logits = clip.logit_scale.exp() * image @ words.T
    of_objects, of_pairs = logits.split([len(objects), 2 * len(pairs)], dim=1)
    of_pairs = of_pairs.view(len(x), -1, 2)
    return of_objects, of_pairs[..., 0] - of_pairs[..., 1], image


def run_clip(world, folder, steps=STEPS["judge"]):
    """Train the first judge; write `folder/judge`."""
    torch.manual_seed(11)
    device = loop.device_of_training()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    decoded = read_pieces(folder / "reconstructions", "pictures")
    clip = build_clip(tokenizer).to(device)
    icons = Icons.of(world)

    def loss_of(seed):
        rng = np.random.default_rng([4, seed])
        x, scenes = pictures(world, icons, decoded, rng, BATCH)
        objects, attributes = (t.to(device) for t in targets(world, scenes))
        with loop.precision_on(device):
            o, a, image = zero_shot(clip, tokenizer, world, x.to(device))
        o, a, image = o.float(), a.float(), image.float()
        loss = F.cross_entropy(o, objects) + 2 * F.binary_cross_entropy_with_logits(a, attributes)
        words = [caption(world, s, rng) for s in scenes]
        ids = tokenize(tokenizer, words).to(device)
        text = features(clip.get_text_features(input_ids=ids))
        pairs = clip.logit_scale.exp() * image @ text.T
        same = torch.tensor([[float(a == b) for b in words] for a in words], device=device)
        same /= same.sum(1, keepdim=True)
        contrast = (F.cross_entropy(pairs, same) + F.cross_entropy(pairs.T, same)) / 2
        return loss + 0.3 * contrast

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


def class_names(world):
    """Return how a classifier's configuration names its logits."""
    labels = labels_of(world)
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
        "problem_type": "multi_label_classification",
    }


def build_resnet(world):
    """Return an untrained ResNet with one logit per label."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24,
            hidden_sizes=[32, 64, 128],
            depths=[1, 1, 2],
            layer_type="basic",
            **class_names(world),
        )
    )


def build_convnext(world):
    """Return an untrained ConvNeXt V2 with one logit per label."""
    return ConvNextV2ForImageClassification(
        ConvNextV2Config(
            patch_size=4,
            hidden_sizes=[48, 96, 192],
            depths=[1, 1, 2],
            num_stages=3,
            image_size=64,
            **class_names(world),
        )
    )


def loss_of_labels(logits, objects, attributes):
    """Return the loss of a classifier: a softmax over objects, sigmoids for presence."""
    o, a = logits.split([objects.shape[1], attributes.shape[1]], dim=1)
    # A softmax loss learns the 67 objects much faster than 67 separate ones; presence is
    # then read off a per-object threshold that the sigmoid term calibrates.
    loss = F.cross_entropy(o, objects)
    loss = loss + F.binary_cross_entropy_with_logits(o, (objects > 0).float())
    return loss + 2 * F.binary_cross_entropy_with_logits(a, attributes)


def save_classifier(world, net, folder):
    """Write a classifier and its labels."""
    net.eval().save_pretrained(folder)
    labels = {"objects": world.names, "attributes": list(world.attributes)}
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")


def run_resnet(world, folder, steps=STEPS["judge2"]):
    """Train the second judge; write `folder/judge2`."""
    torch.manual_seed(23)
    device = loop.device_of_training()
    decoded = read_pieces(folder / "reconstructions", "pictures")
    net = build_resnet(world).train().to(device)
    icons = Icons.of(world)

    def batch(*seed):
        x, scenes = pictures(world, icons, decoded, np.random.default_rng(seed), BATCH)
        return x.to(device), *(t.to(device) for t in targets(world, scenes))

    def loss_of(seed):
        x, objects, attributes = batch(5, seed)
        return loss_of_labels(net(x).logits, objects, attributes)

    loop.train(
        "judge2",
        {"net": net},
        loss_of,
        folder,
        steps=steps,
        lr=2e-3,
        warmup=100,
        hold=0.5,
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
            net(batch(6, k)[0])
    save_classifier(world, net, folder / "judge2")


def run_strict(world, folder, steps=STEPS["strict"]):
    """Train the strict judge on drawn scenes alone; write `folder/strict`."""
    torch.manual_seed(31)
    device = loop.device_of_training()
    net = build_convnext(world).train().to(device)
    icons = Icons.of(world)

    def loss_of(seed):
        rng = np.random.default_rng([30, seed])
        scenes = sample_scenes(world, rng, BATCH)
        x = torch.from_numpy(draw(world, scenes, rng, icons)).permute(0, 3, 1, 2)
        objects, attributes = (t.to(device) for t in targets(world, scenes))
        logits = net(x.float().to(device) / 127.5 - 1).logits
        return loss_of_labels(logits, objects, attributes)

    loop.train("strict", {"net": net}, loss_of, folder, steps=steps, lr=1e-3, hold=0.5, ema=0.995)
    save_classifier(world, net, folder / "strict")
