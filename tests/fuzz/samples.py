"""Small valid files of every kind that `ine` reads, as bytes."""

import io
import json
import pickle
import pickletools
import re
import struct
import warnings

import torch
from safetensors import torch as safetensors_torch

from ine.files import shipped

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
    """Return what torch.save writes; storages are numbered, not named by where they lay."""
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, made, _use_new_zipfile_serialization=not legacy)
    return _numbered(made.getvalue()) if legacy else made.getvalue()


def _numbered(raw):
    """Number the storages of a torch file from before 1.6, in the order of its tensors.

    torch names and sorts them by where they lay in memory, so that no two files are equal.
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
    }


def gates():
    """Return the data of one gate of each kind."""
    head = {"kind": "gate", "version": 1}
    common = {"threshold": 0.25, "queries": [0.05, 0.1], "window": [0.0, 1.0]}
    belief = {"prior": 0.01, "p_max": 0.99, "tau": 1.0, "delta": 0.0}
    probe = {"weight": [0.5, -1.0, 2.0], "bias": 0.1}
    record = {
        "false_open": {"wanted": 0.01, "measured": 0.0, "opened": 0, "pictures": 100},
        "embeddings": [{"trigger": "mine", "vectors": "0" * 16}],
        "unet_fingerprint": "v1:+0.100000,-0.200000",
        "sampler": {"scheduler": "ddim", "steps": 20, "guidance_scale": 7.5},
    }
    settings = {
        "presence": {**common, "latch": True, "measure": "cosine"},
        "posterior": {**common, "latch": True, "belief": belief},
        "recognition": {**common, "concept": "fire", "probes": [probe, probe]},
    }
    return [{**head, "gate": name, "settings": s, **record} for name, s in settings.items()]


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
