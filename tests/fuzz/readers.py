"""The readers under test, each with what must be true of whatever it loads.

A reader takes a path and returns nothing; it raises `IneError` for what it refuses and
AssertionError where it loaded something that the file does not say.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from torch import nn

from fuzz.samples import unet
from ine.embedding import read_embedding
from ine.guidance.calibrate import Calibration, read_calibration, write_calibration
from ine.inversion.images import load_pictures, read_captions
from ine.models.checkpoints import lay_weights, read_weights, weights_metadata
from ine.recipe import check_recipe, load_recipe, recipe_yaml

CODES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _module(state):
    """Return a module whose state dict has these names."""
    made = nn.Module()
    for name, tensor in state.items():
        inner = made
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(inner, part):
                inner.add_module(part, nn.Module())
            inner = getattr(inner, part)
        inner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    made.config = {"cross_attention_dim": 32}
    return made


BASE = SimpleNamespace(
    unet=_module(unet()),
    text_encoders=(),
    width=32,
    family="width-32",
    name="tiny",
    prediction_type="epsilon",
)
BASE.with_unet = lambda *_: BASE
BASE.with_text_encoders = lambda *_: BASE


def check_weights(path):
    """Read weights, compare them with the bytes of a safetensors file, lay them over a base."""
    about = weights_metadata(path)
    assert all(isinstance(text, str) for pair in about.items() for text in pair)
    weights = read_weights(path)
    size = path.stat().st_size if path.is_file() else None
    tensors = {n: t for n, t in weights.tensors.items() if isinstance(t, torch.Tensor)}
    for name, tensor in tensors.items():
        assert size is None or tensor.nbytes <= size, f"{name} is larger than the file"
    if size and path.suffix == ".safetensors":
        _compare(path, tensors)
    lay_weights(BASE, path)


def check_embedding(path):
    """Read an embedding; vectors are finite float32 in 1 to 75 rows, texts are texts."""
    embedding = read_embedding(path)
    assert len(embedding.vectors) in (1, 2)
    for vectors in embedding.vectors:
        assert vectors.dtype == torch.float32
        assert vectors.dim() == 2
        assert 1 <= len(vectors) == embedding.count <= 75
        assert torch.isfinite(vectors).all()
        assert vectors.nbytes <= 8 * path.stat().st_size, "vectors are larger than the file"
    assert isinstance(embedding.trigger, str)
    assert isinstance(embedding.concept, str)
    assert all(isinstance(text, str) for pair in embedding.metadata.items() for text in pair)
    if path.suffix == ".safetensors" and len(embedding.vectors) == 1:
        _compare(path, {"": embedding.vectors[0]})


def _compare(path, tensors):
    """Compare tensors with what the header says about the bytes; names may lack a prefix."""
    raw = path.read_bytes()
    if raw[8:9] != b"{":
        return  # a torch file under this name
    length = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + length].decode()), raw[8 + length :]
    header.pop("__metadata__", None)
    for name, tensor in tensors.items():
        found = []
        for key, entry in header.items():
            code = CODES.get(entry["dtype"])
            if code is None or not key.endswith(name) or (len(entry["shape"]) > 2 and not name):
                continue
            part = np.frombuffer(body[slice(*entry["data_offsets"])], code)
            if entry["dtype"] == "BF16":
                part = (part.astype("<u4") << 16).view("<f4")
            found.append(part)
        mine = tensor.float().numpy().reshape(-1) if tensor.dtype != torch.float64 else None
        if mine is None or not found:
            continue
        with np.errstate(over="ignore"):
            same = any(np.array_equal(mine, f.astype("<f4"), equal_nan=True) for f in found)
        assert same, f"{name} has other numbers than the file"


def check_recipe_file(path):
    """Read a recipe; writing it and reading that gives the same recipe and hash."""
    recipe = load_recipe(path)
    again = check_recipe(yaml.safe_load(recipe_yaml(recipe)), path)
    assert again == recipe
    assert again.hash == recipe.hash


def check_gate(path):
    """Read a gate; writing it and reading that gives the same gate, and what it says is used."""
    found = read_calibration(path)
    gate, record = found.gate, found.record
    assert isinstance(gate.threshold, float)
    assert gate.threshold == gate.threshold, "the threshold is not a number"
    again = path.with_name("again.gate.json")
    again.unlink(missing_ok=True)
    write_calibration(Calibration(gate=gate, record={}), again)
    assert read_calibration(again).gate == gate
    for entry in record.get("embeddings", []):
        assert isinstance(entry["trigger"], str)
        assert isinstance(entry["vectors"], str)
    assert isinstance(record.get("unet_fingerprint", ""), str)
    assert isinstance(record.get("sampler", {}), dict)


def check_folder(path):
    """Write the files that a JSON text describes into a folder and read that as weights."""
    files = json.loads(path.read_bytes())
    folder = path.with_name("unet")
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        raw = text.encode("latin-1") if name.endswith(".json") else bytes.fromhex(text)
        (folder / name).write_bytes(raw)
    check_weights(folder)


def check_pictures(path):
    """Read a cache of pictures; all parts are of the same number and shape."""
    pictures = load_pictures(path, "k")
    if pictures is None:
        return
    assert pictures.mean.shape == pictures.std.shape
    assert pictures.mean.dim() == 4
    assert len(pictures.mean) == len(pictures.names)
    assert all(isinstance(name, str) for name in pictures.names)
    if pictures.captions is not None:
        assert len(pictures.captions) == len(pictures.names)
        assert all(isinstance(text, str) for text in pictures.captions)


def check_captions(path):
    """Read a table of captions for one picture."""
    for name in ("metadata.jsonl", "captions.csv"):
        path.with_name(name).unlink(missing_ok=True)
    table = {".jsonl": "metadata.jsonl", ".csv": "captions.csv"}[path.suffix]
    path.with_name(table).write_bytes(path.read_bytes())
    captions = read_captions([path.with_name("a.png")])
    assert captions is None or all(isinstance(text, str) for text in captions)


READERS = {
    "weights": check_weights,
    "embedding": check_embedding,
    "recipe": check_recipe_file,
    "gate": check_gate,
    "folder": check_folder,
    "pictures": check_pictures,
    "captions": check_captions,
}


def read(reader, path: Path):
    """Run a reader by name."""
    READERS[reader](path)
