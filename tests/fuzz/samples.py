"""Small valid files of every kind that `ine` reads, as bytes."""

import base64
import io
import json
import pickle
import pickletools
import re
import struct
import warnings
import zlib
from functools import cache

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors import torch as safetensors_torch

from fuzz import tiny
from ine.embeddings.pictures import CHUNK, noise
from ine.files import shipped
from ine.weights.compvis import single_file

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
KEYS = {
    "conv_in.weight": (4, 4, 3, 3),
    "conv_in.bias": (4,),
    f"{BLOCK}.attn1.to_q.weight": (8, 8),
    f"{BLOCK}.attn2.to_k.weight": (8, 32),
    f"{BLOCK}.attn2.to_v.weight": (8, 32),
    f"{BLOCK}.norm2.weight": (8,),
    "mid_block.resnets.0.conv1.weight": (8, 8, 3, 3),
}
"""Names of a tiny UNet, as real ones are called -> shape."""


def unet(*endings, dtype=torch.float32):
    """Return a state dict with the keys that end so; all of them without an ending."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator).to(dtype)
        for key, shape in KEYS.items()
        if not endings or key.endswith(endings)
    }


def vectors(count=2, width=32, dtype=torch.float32):
    """Return (count, width) random numbers."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def save(tensors, metadata=None):
    """Return a safetensors file; the library alone puts metadata in another order each time."""
    raw = safetensors_torch.save(tensors)
    if not metadata:
        return raw
    length = int.from_bytes(raw[:8], "little")
    entries = {"__metadata__": metadata, **json.loads(raw[8 : 8 + length])}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def torch_bytes(value, legacy=False):
    """Return what torch.save writes; storages are numbered, not named by their address."""
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, made, _use_new_zipfile_serialization=not legacy)
    return _numbered(made.getvalue()) if legacy else made.getvalue()


def _numbered(raw):
    """Number the storages of a torch file from before 1.6, in the order of its tensors.

    torch names and sorts them by their address in memory, so that no two files are equal.
    """
    known, made, at = {}, b"", 0
    for found in re.finditer(rb"X(.)\0\0\0(?=\d{6})", raw, re.DOTALL):
        stop = found.end() + found[1][0]
        key = raw[found.end() : stop]
        if key.isdigit() and found.start() >= at:
            name = str(known.setdefault(key, len(known))).encode()
            made += raw[at : found.start()] + b"X" + struct.pack("<I", len(name)) + name
            at = stop
    file = io.BytesIO(made + raw[at:])
    for _ in range(4):
        list(pickletools.genops(file))
    start = file.tell()
    keys, data = pickle.load(file), file.read()
    chunks = next(filter(None, (_chunks(data, keys, size) for size in (2, 4))), None)
    if not chunks:
        return raw  # of several item sizes; no sample is
    ordered = sorted(keys, key=int)
    tail = pickle.dumps(ordered, protocol=2) + b"".join(chunks[key] for key in ordered)
    return file.getvalue()[:start] + tail


def _chunks(data, keys, size):
    """Return {storage: its bytes with their number before}, or None for another item size."""
    found, at = {}, 0
    for key in keys:
        stop = at + 8 + size * int.from_bytes(data[at : at + 8], "little")
        found[key], at = data[at:stop], stop
    return found if at == len(data) else None


@cache
def samples():
    """Return {(reader, file ending): [bytes of valid files]}."""
    strict = unet("to_k.weight", "to_v.weight", dtype=torch.bfloat16)
    nested = {f"unet.{BLOCK}.attn2.to_k": {"weight": torch.ones(8, 32), "bias": None}}
    about = {"ine.method": "esd-x", "ine.concept": "fire"}
    states = (
        unet(),
        strict,
        {"unet": unet()},
        {"state_dict": unet("weight"), "global_step": 7},
        {f"module.{name}": tensor for name, tensor in strict.items()},
        nested,
    )
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors())},
        "name": "mine",
        "step": 100,
        "sd_checkpoint": "0123abcd",
        "sd_checkpoint_name": "some",
    }
    pair = {"clip_l": vectors(2, 32), "clip_g": vectors(2, 48)}
    embeddings = ({"<mine>": vectors()[0]}, a1111, vectors(3), pair)
    single = {"emb_params": vectors()}
    trigger = {"ine.trigger": "mine", "ine.concept": "fire", "ine.base": "mini"}
    return {
        ("weights", ".safetensors"): [save(unet()), save(unet(), about), save(strict)],
        ("weights", ".pt"): [torch_bytes(state) for state in states],
        ("weights", ".ckpt"): [torch_bytes(state, legacy=True) for state in states],
        ("embedding", ".safetensors"): [
            save(single, trigger),
            save(pair, trigger),
            save({"emb_params": vectors(1, dtype=torch.float16)}),
        ],
        ("embedding", ".pt"): [torch_bytes(value) for value in embeddings],
        ("embedding", ".bin"): [torch_bytes(value, legacy=True) for value in embeddings],
        ("recipe", ".yaml"): [p.read_bytes() for p in sorted(shipped("recipes").glob("*.yaml"))],
        ("gate", ".json"): [json.dumps(gate, indent=1).encode() for gate in gates()],
        ("folder", ""): folders(strict),
        ("pictures", ".safetensors"): [pictures()],
        ("captions", ".jsonl"): [b'{"file_name": "a.png", "text": "dog"}\n'],
        ("captions", ".csv"): [b"file_name,text\na.png,dog\n"],
        **more_samples(a1111),
    }


def more_samples(a1111):
    """Return the samples that need the tiny pipeline or came later; keys as in `samples`."""
    unet, encoder = tiny_states()
    loras, plain, delta = lora_states(), compvis(unet), ("to_k.weight", "to_v.weight")
    about = {"ine.method": "duo", "ine.concept": "fire"}
    settings = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 1}}
    cross = {k: v for k, v in unet.items() if k.endswith(delta)}
    erased = [
        {"unet": cross, "text_encoder": encoder},
        {f"module.{k}": v for k, v in cross.items()},
        {k: v.bfloat16() for k, v in cross.items()},
    ]
    wholes = [
        {"state_dict": {**plain, "model_ema.decay": torch.tensor(0.5).half()}, "epoch": 1},
        plain,
        {k: v for k, v in plain.items() if ".1.transformer_blocks." in k},
    ]
    encoders = [
        encoder,
        {f"text_encoder.text_model.{k}": v for k, v in encoder.items()},
        {"text_encoder": encoder},
    ]
    tables = embedding_tables()
    single = {name: t.half().contiguous() for name, t in single_file(tiny.model()).items()}
    return {
        ("picture", ".png"): [in_text(a1111), in_pixels(a1111, "PNG"), in_text(a1111, True)],
        ("picture", ".webp"): [in_pixels(a1111, "WEBP")],
        ("picture", ".avif"): [in_pixels(a1111, "AVIF")],
        ("layout", ".safetensors"): [save(t) for t in tables],
        ("layout", ".pt"): [
            *map(torch_bytes, tables),
            torch_bytes({"state_dict": tables[0]}),
            parameter_dict(),
            torch_bytes(of_apple(a1111)),
            torch_bytes([{"<a>": vectors()}, {"<b>": vectors(2)}]),
        ],
        ("layout", ".bin"): [
            *(torch_bytes(t, legacy=True) for t in tables),
            torch_bytes(of_apple(a1111), legacy=True),
        ],
        ("lora", ".safetensors"): [
            *map(save, loras),
            save(loras[0], {**about, "lora_adapter_metadata": json.dumps(settings)}),
        ],
        ("lora", ".pt"): [torch_bytes(s) for s in loras],
        ("lora", ".bin"): [torch_bytes(s, legacy=True) for s in loras],
        ("lora folder", ""): lora_folders(loras),
        ("erased", ".pt"): [torch_bytes(s) for s in (*erased, *encoders, *wholes)],
        ("erased", ".safetensors"): [save(s) for s in (*erased[1:], *encoders[:2], *wholes[1:])],
        ("erased", ".ckpt"): [torch_bytes(s, legacy=True) for s in (*encoders[1:], *wholes[::2])],
        ("pipeline", ""): pipelines(unet, encoder),
        ("model", ""): models(),
        ("layer", ".txt"): [b"unet.safetensors:0.5", b"~/models/esd.pt", b"a:b:c:-1e3"],
        ("prompt", ".txt"): [
            b"a (dog:1.3) in [the] ((volcano)), \\(literal\\) fire-neg",
            b"((a [b (c:0.5)] d:2) e) [[f]",
        ],
        ("prompts", ".txt"): [b"# a comment\na dog\na cat (fire:1.2)\n\nx\n"],
        ("prompts", ".csv"): [
            b"case_number,prompt,evaluation_seed,categories\n"
            b'0,"a dog, good",2147483649,"a, b"\n1,a cat,7,b\n',
            b"prompt;sd_guidance_scale;sd_image_width\na dog;7.5;512\n",
        ],
        ("prompts", ".jsonl"): [
            b'{"prompt": "a dog", "seed": 3}\n{"prompt": "a cat", "seed": 4}\n'
        ],
        ("prompts", ".json"): [
            b'["a dog", "a cat"]',
            b'{"annotations": [{"image_id": 1, "id": 2, "caption": "a dog"}]}',
        ],
        ("single", ".safetensors"): [save(single)],
        ("single", ".ckpt"): [torch_bytes({"state_dict": single, "global_step": 9}, legacy=True)],
        ("state", ".safetensors"): [state(), state(2)],
    }


def tiny_states():
    """Return state dicts of UNet and text encoder like those of `tiny.model`, other numbers."""
    made = []
    for name, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        raw = (tiny.model_folder() / name / f"{file}.safetensors").read_bytes()
        generator = torch.Generator().manual_seed(2)
        made.append(
            {
                key: tensor + 0.01 * torch.randn(tensor.shape, generator=generator).half()
                for key, tensor in sorted(safetensors_torch.load(raw).items())
            }
        )
    return made


PLACE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_PLACE = "encoder.layers.0.self_attn.q_proj"


def lora_states():
    """Return LoRAs: diffusers', PEFT's, kohya's of two components, SPM's of rank 1."""

    def halves(seed, rank, width, down, up):
        generator = torch.Generator().manual_seed(seed)
        return {
            down: torch.randn(rank, width, generator=generator),
            up: torch.randn(width, rank, generator=generator),
        }

    flat, text = PLACE.replace(".", "_"), TEXT_PLACE.replace(".", "_")
    kernel = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    convolution = {
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": kernel,
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.ones(4, 2, 1, 1),
    }

    def of(prefix, name, rank, seed, width):
        downs = f"{prefix}{name}.lora_down.weight", f"{prefix}{name}.lora_up.weight"
        return halves(seed, rank, width, *downs)

    return [
        halves(1, 2, 4, f"unet.{PLACE}.lora.down.weight", f"unet.{PLACE}.lora.up.weight")
        | halves(6, 2, 16, *(f"text_encoder.{TEXT_PLACE}.lora.{s}.weight" for s in SIDES)),
        halves(2, 2, 4, *(f"base_model.model.{PLACE}.lora_{s}.weight" for s in "AB")),
        of("lora_unet_", flat, 4, 3, 4)
        | {f"lora_unet_{flat}.alpha": torch.tensor(2.0)}
        | of("lora_te_text_model_", text, 2, 4, 16)
        | convolution,
        of("lora_unet_", flat, 1, 7, 4) | {f"lora_unet_{flat}.alpha": torch.tensor(1.0)},
    ]


SIDES = ("down", "up")


def lora_folders(states):
    """Return LoRA folders as JSON, as `folders`."""
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 8}}
    adapter |= {"use_rslora": False, "use_dora": False, "target_modules": ["to_q"]}
    return [
        json.dumps(files).encode()
        for files in (
            {"pytorch_lora_weights.safetensors": save(states[0]).hex()},
            {
                "adapter_model.safetensors": save(states[1]).hex(),
                "adapter_config.json": json.dumps(adapter),
            },
        )
    ]


def compvis(state):
    """Return a UNet's state dict under CompVis names, with one tensor of a VAE."""
    from ine.weights.compvis import UNET, unet_names

    names = unet_names(tiny.model().unet)
    made = {f"{UNET}{old}": state[new] for old, new in names.items()}
    return made | {"first_stage_model.quant_conv.bias": torch.zeros(8).half()}


def pipelines(unet, encoder):
    """Return pipeline folders as JSON: whole, and with shards."""
    from ine.weights.source import WEIGHT_NAMES

    configs = {
        name: (tiny.model_folder() / name).read_text()
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    }
    name, keys = WEIGHT_NAMES[0], sorted(unet)
    halves = [{k: unet[k] for k in part} for part in (keys[::2], keys[1::2])]
    shards = [f"{name}-0000{n}-of-00002" for n in (1, 2)]
    index = {"weight_map": {k: f"{shards[n]}.bin" for n, h in enumerate(halves) for k in h}}
    cross = {k: v for k, v in unet.items() if "attn2" in k}
    return [
        json.dumps({**configs, **files}).encode()
        for files in (
            {
                f"unet/{name}.safetensors": save(unet).hex(),
                "text_encoder/model.safetensors": save(encoder).hex(),
            },
            {f"unet/{name}.bin": torch_bytes(cross).hex()},
            {
                f"unet/{name}.bin.index.json": json.dumps(index),
                f"unet/{shards[0]}.bin": torch_bytes(halves[0], legacy=True).hex(),
                f"unet/{shards[1]}.bin": torch_bytes(halves[1]).hex(),
            },
        )
    ]


def models():
    """Return base models as JSON: changed files over `tiny.model_folder`, None for none."""
    folder = tiny.model_folder()
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    texts = {name: p.read_text() for name, p in files.items() if name.endswith(".json")}
    raw = files["text_encoder/model.safetensors"].read_bytes()
    state = dict(sorted(safetensors_torch.load(raw).items()))
    vocab, merges = tiny.vocabulary()
    old = {
        "tokenizer/tokenizer.json": None,
        "tokenizer/vocab.json": json.dumps(vocab),
        "tokenizer/merges.txt": "\n".join(["#version: 0.2", *merges]),
        "tokenizer/special_tokens_map.json": json.dumps({"bos_token": tiny.START}),
        "tokenizer/added_tokens.json": json.dumps({tiny.END: len(vocab) - 1}),
    }
    encoder = "text_encoder/model.safetensors"
    torch_file = {encoder: None, "text_encoder/pytorch_model.bin": torch_bytes(state).hex()}
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-1.safetensors")}
    sharded = {
        encoder: None,
        f"{encoder}.index.json": json.dumps(index),
        "text_encoder/model-1.safetensors": raw.hex(),
    }
    changes = ({}, {}, {encoder: raw.hex()}, old, torch_file, sharded)
    return [json.dumps({**texts, **change}).encode() for change in changes]


def embedding_tables():
    """Return embeddings in the layouts that `samples` has not: {name: tensor} each."""
    one = vectors(2)
    return [
        {"emp_params": one},
        {"clip_h": one},
        {"clip_l": vectors(2), "clip_g": vectors(2, 48), "t5xxl": vectors(2, 8)},
        {"string_to_param.*": one},
        {"*": one, "emb_params": one.clone()},
        {"bundle_emb.mine.string_to_param.*": one, "lora_unet_x.lora_up.weight": vectors(3)},
        {"bundle_emb.mine.clip_l": one, "bundle_emb.mine.clip_g": vectors(2, 48)},
        {"text_encoders_0": vectors(2), "text_encoders_1": vectors(2, 48)},
    ]


def parameter_dict():
    """Return an early embedding: vectors in a torch `ParameterDict`."""
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors())})
    return torch_bytes({"string_to_token": {"*": 265}, "string_to_param": table, "name": "mine"})


class OnMps:
    """Pickles a tensor as torch 1.12 did one on Apple's MPS: through numpy, device named."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()

    def __reduce__(self):
        rest = (self.tensor.dtype, "mps:0", self.tensor.is_floating_point())
        return torch._utils._rebuild_device_tensor_from_numpy, (self.tensor.numpy(), *rest)


def of_apple(a1111):
    """Return A1111's dictionary as it was saved there, its step an integer of numpy."""
    vectors = {"*": OnMps(a1111["string_to_param"]["*"])}
    return {**a1111, "string_to_param": vectors, "step": np.int64(500)}


def picture_json(a1111):
    """Return A1111's dictionary as the JSON that it puts into pictures."""
    table = {"TORCHTENSOR": vectors(2, 8).tolist()}
    return json.dumps({**a1111, "string_to_param": {"*": table}}).encode()


def in_text(a1111, compressed=False):
    """Return a PNG with an embedding in a text chunk."""
    info, made = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text(CHUNK, base64.b64encode(picture_json(a1111)).decode(), zip=compressed)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(made, "PNG", pnginfo=info)
    return made.getvalue()


def in_pixels(a1111, kind):
    """Return a picture with an embedding in its pixels, as `ine.embeddings.pictures` says."""
    packed = np.frombuffer(zlib.compress(picture_json(a1111), 9), np.uint8)
    height = 16
    filled = np.resize(packed, (len(packed) // (3 * height) + 1) * 3 * height)
    middle = np.full((height, 8, 3), 200, np.uint8)
    gap = np.zeros((height, 1, 3), np.uint8)
    halves = [part.reshape(height, -1, 3) for part in (filled & 15, filled >> 4)]
    mask = noise(filled.size).reshape(halves[0].shape) & 15
    low, high = ((part ^ mask) | 96 for part in halves)
    made = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.concatenate([low, gap, middle, gap, high], axis=1)).save(
        made, kind, **options
    )
    return made.getvalue()


def state(count=1):
    """Return the state of an inversion of `count` text encoders."""
    tensors = {"losses": torch.ones(3, dtype=torch.float64)}
    preview = {"step": 5, "recovery": 0.5, "left": None, "undefended": 0.25}
    preview["preservation"] = 0.75
    for number in range(count):
        for kind in ("vectors", "first", "second", "best"):
            tensors[f"{kind}.{number}"] = vectors(2, 8 + number)
    about = {"key": "k", "step": 5, "previews": [preview], "best": preview}
    return save(tensors, {"state": json.dumps(about)})


def gates():
    """Return the data of gates."""
    head = {"kind": "gate", "version": 1}
    common = {"threshold": 0.25, "queries": [0.05, 0.1], "window": [0.0, 1.0]}
    probe = {"weight": [0.5, -1.0, 2.0], "bias": 0.1}
    record = {
        "false_open": {"wanted": 0.01, "measured": 0.0, "opened": 0, "pictures": 100},
        "embeddings": [{"trigger": "mine", "vectors": "0" * 16}],
        "unet_fingerprint": "v1:+0.100000,-0.200000",
        "sampler": {"scheduler": "ddim", "steps": 20, "guidance_scale": 7.5},
    }
    two = {**common, "concept": "fire", "probes": [probe, probe]}
    one = {**two, "queries": [0.05], "probes": [probe]}
    every = (two, one, {**two, "window": [0.0, 0.8]})
    return [{**head, "gate": "recognition", "settings": each, **record} for each in every]


def folders(state):
    """Return UNet folders as JSON: {file name: text, or the bytes of a tensor file in hex}."""
    config = json.dumps({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 32})
    shard = save(state).hex()
    name = "diffusion_pytorch_model"
    first = f"{name}-00001-of-00001.safetensors"
    index = json.dumps({"metadata": {}, "weight_map": {key: first for key in state}})
    return [
        json.dumps({"config.json": config, f"{name}.safetensors": shard}).encode(),
        json.dumps(
            {"config.json": config, f"{name}.safetensors.index.json": index, first: shard}
        ).encode(),
    ]


def pictures():
    """Return a cache of two pictures."""
    about = {"format": "ine-pictures-1", "key": "k", "names": ["a", "b"], "captions": None}
    tensors = {"mean": torch.zeros(2, 4, 2, 2), "std": torch.ones(2, 4, 2, 2)}
    return save(tensors, {"pictures": json.dumps(about)})
