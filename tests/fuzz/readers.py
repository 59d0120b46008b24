"""The readers under test, each with what must be true of whatever it loads.

A reader takes a path and returns nothing; it raises `IneError` for what it refuses and
AssertionError where it loaded something that the file does not say.
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from torch import nn

from fuzz import tiny
from fuzz.samples import unet
from ine.cli.choose import read_prompts
from ine.embeddings.embedding import read_embedding
from ine.errors import IneError
from ine.guidance.gate_file import Calibration, read_calibration, write_calibration
from ine.inversion.captions import read_captions
from ine.inversion.history import Preview, read_state
from ine.inversion.images import PICTURES
from ine.models.loading import load_parts
from ine.models.single_file import load_single_file
from ine.recipe import check_recipe, load_recipe, recipe_yaml
from ine.sampling import make_scheduler, run_unet
from ine.text.encode import encode
from ine.text.syntax import is_weighted, plain_text
from ine.text.syntax import read_weights as read_prompt_weights
from ine.text.tokens import tokenize
from ine.weights.apply import apply_weights
from ine.weights.lowrank import LowRank
from ine.weights.read import read_weights, weights_metadata
from ine.weights.stack import parse_layer

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
    """Read weights, compare them with the bytes of a safetensors file, apply them to a base."""
    about = weights_metadata(path)
    assert all(isinstance(text, str) for pair in about.items() for text in pair)
    weights = read_weights(path)
    size = path.stat().st_size if path.is_file() else None
    tensors = {n: t for n, t in weights.tensors.items() if isinstance(t, torch.Tensor)}
    for name, tensor in tensors.items():
        assert size is None or tensor.nbytes <= size, f"{name} is larger than the file"
    if size and path.suffix == ".safetensors":
        _compare(path, tensors)
    apply_weights(BASE, path)


def check_embedding(path):
    """Read an embedding; vectors are finite float32 in 1 to 75 rows, texts are texts."""
    embedding = read_embedding(path)
    assert len(embedding.vectors) in (1, 2)
    for vectors in embedding.vectors:
        assert vectors.dtype == torch.float32
        assert vectors.dim() == 2
        assert 1 <= len(vectors) == embedding.count <= 75
        assert torch.isfinite(vectors).all()
        # In pictures they are compressed, at most a thousandfold.
        most = 8000 if path.suffix in (".png", ".webp", ".avif") else 8
        assert vectors.nbytes <= most * path.stat().st_size, "vectors are larger than the file"
    assert isinstance(embedding.trigger, str)
    assert isinstance(embedding.concept, str)
    json.dumps([embedding.trigger, embedding.metadata], ensure_ascii=False).encode()
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
        found, unknown = [], False
        for key, entry in header.items():
            code = CODES.get(entry["dtype"])
            unknown |= code is None
            if code is None or not key.endswith(name) or (len(entry["shape"]) > 2 and not name):
                continue
            part = np.frombuffer(body[slice(*entry["data_offsets"])], code)
            if entry["dtype"] == "BF16":
                part = (part.astype("<u4") << 16).view("<f4")
            found.append(part)
        mine = tensor.float().numpy().reshape(-1) if tensor.dtype != torch.float64 else None
        if mine is None or unknown or not found:
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
    check_weights(_unpacked(path, "unet"))


def _unpacked(path, name, over=None):
    """Return a folder with the files of a JSON text: {name: text, or bytes in hex}.

    Of `over`, another folder, there are links to all files that the text does not mention; None
    stands for a file that is not there.
    """
    files, folder = json.loads(path.read_bytes()), path.with_name(name)
    for old in sorted(folder.rglob("*"), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    made = {folder / file: text for file, text in files.items()}
    for below in over.rglob("*") if over else ():
        if not below.is_dir():
            made.setdefault(folder / below.relative_to(over), below)
    for file, content in made.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            file.symlink_to(content)
        elif content is not None:
            hexed = file.suffix in (".safetensors", ".bin")
            file.write_bytes(bytes.fromhex(content) if hexed else content.encode("latin-1"))
    return folder


def check_lora(path):
    """Apply a LoRA to the tiny model; what it adds is scale * up down of the file's halves."""
    base, about = tiny.model(), weights_metadata(path)
    assert all(isinstance(text, str) for pair in about.items() for text in pair)
    applied, weights = apply_weights(base, path)
    for module, mine, names in (
        (base.unet, applied.unet, weights.tensors),
        (base.text_encoders[0], applied.text_encoders[0], weights.text_encoder or {}),
    ):
        before, after = module.state_dict(), mine.state_dict()
        for name, value in names.items():
            name = name.removeprefix("text_encoder.")
            assert torch.isfinite(after[name]).all(), "applied weights are not finite"
            if isinstance(value, LowRank) and value.mid is None:
                up, down = (t.double().flatten(1) for t in (value.up, value.down))
                wanted = before[name] + (value.scale * (up @ down)).reshape(before[name].shape)
                room = 1e-5 * wanted.abs().max() + 1e-6
                assert (after[name] - wanted).abs().max() <= room, "applied is something else"
    if path.suffix == ".safetensors":
        _compare_halves(path, weights)


def _compare_halves(path, weights):
    """Each tensor of a safetensors LoRA is a half or an alpha of what was read, each once."""
    raw = path.read_bytes()
    if raw[8:9] != b"{":
        return
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length].decode())
    header.pop("__metadata__", None)
    halves = [entry for key, entry in header.items() if not key.endswith(".alpha")]
    read = [*weights.tensors.values(), *(weights.text_encoder or {}).values()]
    used = sum(sum(t is not None for t in (v.up, v.down, v.mid)) for v in read)
    # A difference of nothing leaves the text encoder as it is, and is not named.
    assert used <= len(halves), "there are more halves than in the file"
    if weights.text_encoder or not any("te" in key for key in header):
        assert used == len(halves), "a half of the file is not used"
    shapes = sorted(str(entry["shape"]) for entry in halves)
    mine = sorted(str(list(t.shape)) for v in read for t in (v.up, v.down, v.mid) if t is not None)
    assert used < len(halves) or mine == shapes, "halves have other shapes than in the file"


def check_lora_folder(path):
    """As `check_lora`, of a folder."""
    check_lora(_unpacked(path, "lora"))


def check_erased(path):
    """Apply UNet, text encoder or CompVis weights to the tiny model, and compare the result."""
    base = tiny.model()
    applied, weights = apply_weights(base, path)
    for mine, names in (
        (applied.unet, weights.tensors),
        (applied.text_encoders[0], weights.text_encoder or {}),
    ):
        after = mine.state_dict()
        for name, value in names.items():
            name = name.removeprefix("text_encoder.")
            assert torch.isfinite(after[name]).all(), "applied weights are not finite"
            assert torch.equal(after[name], value.to(after[name].dtype)), (
                "applied is something else"
            )
            if path.is_file():
                assert value.nbytes <= path.stat().st_size, "a tensor is larger than the file"


def check_pipeline(path):
    """As `check_erased`, of a pipeline folder."""
    check_erased(_unpacked(path, "pipeline"))


def check_model(path):
    """Load a base model and use it: a prompt is encoded, and noise predicted."""
    parts = load_parts(_unpacked(path, "model", tiny.model_folder()))
    own = tiny.model()
    assert isinstance(parts.width, int)
    assert isinstance(parts.picture_size, int)
    assert isinstance(parts.family, str)
    assert parts.prediction_type in ("epsilon", "v_prediction")
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        ids = tokenize(tokenizer, ["a dog, good", "b"]).ids
        assert ids.numel() <= 2 * 1000, "a prompt becomes very long"
        assert int(ids.max()) < len(encoder.get_input_embeddings().weight), "no such token"
        assert int(ids.min()) >= 0
    with torch.no_grad():
        condition = encode(parts, ["a dog"])
        for name in ("ddim", "pndm"):
            scheduler = make_scheduler(name, parts.scheduler_config, 5)
            assert torch.isfinite(scheduler.timesteps.float()).all(), "timesteps are not finite"
        noisy = torch.zeros(1, *parts.latent_shape)
        predicted = run_unet(parts.unet, noisy, torch.tensor([3]), condition)
        assert predicted.shape == noisy.shape
        parts.vae.decode(noisy)
    for mine, base in ((parts.unet, own.unet), (parts.vae, own.vae)):
        assert mine.state_dict().keys() == base.state_dict().keys()


def check_layer(path):
    """Read what is typed after --unet; every text is a layer or an error of ours."""
    text = os.fsdecode(path.read_bytes())
    layer = parse_layer(text)
    assert layer.weight is None or math.isfinite(layer.weight)
    parts = [str(layer.path)] if layer.weight is None else [str(layer.path), str(layer.weight)]
    assert len(":".join(parts)) <= 3 * len(text) + 30
    if layer.weight is not None:
        name, _, tail = text.rpartition(":")
        assert Path(name) == layer.path
        assert float(tail) == layer.weight
    with suppress(IneError):
        weights_metadata(layer.path)
        read_weights(layer.path)


def check_prompt(path):
    """Read a prompt; any text has finite weights, and its words are all there."""
    prompt = os.fsdecode(path.read_bytes())
    pieces = read_prompt_weights(prompt)
    assert all(math.isfinite(piece.weight) for piece in pieces), "a weight is not finite"
    assert all(piece.text for piece in pieces)
    rest = iter(prompt)
    assert all(letter in rest for piece in pieces for letter in piece.text), "letters were added"
    kept = sum(letter.isalpha() for piece in pieces for letter in piece.text)
    assert kept == sum(letter.isalpha() for letter in prompt), "letters are lost"
    assert len(plain_text(prompt)) <= len(prompt) + len(pieces)
    assert is_weighted(prompt) == any(piece.weight != 1 for piece in pieces)
    if len(prompt) < 2000:
        tokens = tokenize(tiny.model().tokenizers[0], [prompt], weighted=True)
        assert tokens.weights is None or torch.isfinite(tokens.weights).all()


def check_prompts(path):
    """Read a file of prompts; each is a text of one line with something in it."""
    prompts = read_prompts((), path)
    assert prompts
    assert all(isinstance(text, str) and text.strip() == text != "" for text in prompts)
    assert sum(map(len, prompts)) <= path.stat().st_size


def check_single(path):
    """Load a base model from one file; all of its weights are those of the tiny model's shapes."""
    parts = load_single_file(path, config=tiny.model_folder())
    own = tiny.model()
    for mine, theirs in ((parts.unet, own.unet), (parts.vae, own.vae)):
        shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        assert {name: tensor.shape for name, tensor in mine.state_dict().items()} == shapes
    assert parts.prediction_type in ("epsilon", "v_prediction")


def check_state(path):
    """Read the state of an inversion; everything that a run takes from it is there."""
    found = read_state(path, "k")
    if found is None:
        return
    about, tensors = found
    assert type(about["step"]) is int
    assert about["step"] >= 0
    count = sum(name.startswith("vectors.") for name in tensors)
    assert count >= 1
    for number in range(count):
        shape = tensors[f"vectors.{number}"].shape
        kinds = ["vectors", "first", "second", *(["best"] if about["best"] else [])]
        for kind in kinds:
            assert tensors[f"{kind}.{number}"].shape == shape
            assert torch.isfinite(tensors[f"{kind}.{number}"]).all(), "a state is not finite"
    for preview in [*about["previews"], *([about["best"]] if about["best"] else [])]:
        assert Preview(**preview).order() is not None
    assert all(isinstance(loss, float) for loss in tensors["losses"].tolist())


def check_pictures(path):
    """Read a cache of pictures; all parts are of the same number and shape."""
    pictures = PICTURES.read(path, "k")
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
    assert captions is None or all(text.encode() or True for text in captions)


READERS = {
    "weights": check_weights,
    "embedding": check_embedding,
    "recipe": check_recipe_file,
    "gate": check_gate,
    "folder": check_folder,
    "pictures": check_pictures,
    "captions": check_captions,
    "picture": check_embedding,
    "layout": check_embedding,
    "lora": check_lora,
    "lora folder": check_lora_folder,
    "erased": check_erased,
    "pipeline": check_pipeline,
    "model": check_model,
    "layer": check_layer,
    "prompt": check_prompt,
    "prompts": check_prompts,
    "single": check_single,
    "state": check_state,
}


def read(reader, path: Path):
    """Run a reader by name."""
    READERS[reader](path)
