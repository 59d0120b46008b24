"""Files from strangers: code in them does not run, and what they claim is not believed."""

import base64
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save, save_file

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import tiny
from fuzz.gadgets import (
    CANARY,
    array,
    as_legacy,
    as_zip,
    call,
    dtype,
    gadgets,
    name,
    nested,
    program,
    text,
)
from fuzz.mutate import _chunks, _members, _png, zip_bomb
from fuzz.samples import (
    PLACE,
    gates,
    lora_states,
    samples,
    state,
    torch_bytes,
    unet,
    vectors,
)
from fuzz.watch import EXTRA_BYTES, settle, watched

from ine.cli.choose import read_prompts
from ine.embeddings.embedding import read_embedding
from ine.errors import (
    CheckpointError,
    EmbeddingError,
    IneError,
    ModelError,
    PicturesError,
    PromptError,
    RecipeError,
)
from ine.guidance.gate_file import read_calibration
from ine.inversion.captions import read_captions
from ine.inversion.history import read_state
from ine.inversion.images import PICTURES
from ine.inversion.picture_folder import list_pictures
from ine.models.loading import load_parts
from ine.models.tokenizers import load_tokenizer
from ine.prompts.formats import ROW_LIMIT
from ine.recipe import load_recipe
from ine.sampling import make_scheduler
from ine.text.syntax import BRACKET, MOST_WEIGHT
from ine.text.syntax import read_weights as read_prompt_weights
from ine.text.tokens import tokenize
from ine.weights.apply import apply_weights
from ine.weights.files import read_file
from ine.weights.read import read_weights, weights_metadata
from ine.weights.source import folder_state
from ine.weights.stack import parse_layer
from ine.weights.torch_files import check_torch_file
from ine.yaml_files import read_yaml

GADGETS = gadgets()
TERABYTE = b"\x8a\x06" + (2**40).to_bytes(6, "little")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The canary is made in the current folder."""
    monkeypatch.chdir(tmp_path)


def written(name, raw):
    path = Path.cwd() / name
    path.write_bytes(raw)
    return path


def refused(read, path, kind=CheckpointError):
    """Return the message of a refusal that reserved nothing, within the limits of the fuzzing."""
    outcome = watched(lambda: read(path), path.stat().st_size, Path(CANARY))
    assert outcome == ("refused", "")
    with pytest.raises(kind) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


# Code


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """Names of the gadgets that ran when a process of its own unpickled them."""
    folder = tmp_path_factory.mktemp("unpickled")
    for number, raw in enumerate(GADGETS.values()):
        (folder / str(number)).mkdir()
        (folder / str(number) / "gadget").write_bytes(raw)
    script = (
        "import os, pickle, torch\n"
        "top = os.getcwd()\n"
        f"for number in range({len(GADGETS)}):\n"
        "    os.chdir(os.path.join(top, str(number)))\n"
        "    try:\n"
        "        pickle.loads(open('gadget', 'rb').read())\n"
        "    except Exception:\n"
        "        pass\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True)
    made = [(folder / str(n) / CANARY).exists() for n in range(len(GADGETS))]
    return {gadget for gadget, there in zip(GADGETS, made, strict=True) if there}


def test_positive_control_an_ordinary_unpickler_runs_every_gadget(ran):
    assert ran == set(GADGETS)


def wrapped(raw):
    """Return a pickle as every kind of file that could hold it."""
    inner = ("data/0", as_zip(raw))
    return {
        "bare.pt": raw,
        "legacy.ckpt": as_legacy(raw),
        "zip.pt": as_zip(raw),
        "nested.pt": as_zip(raw, [inner]),
        "nested in a plain one.pt": as_zip(b"\x80\x02}.", [inner, ("data.pkl.bak", raw)]),
        "renamed.safetensors": as_zip(raw),
        "first.bin": raw + as_legacy(b"\x80\x02}."),
        "last.bin": as_legacy(b"\x80\x02}.")[:-4] + raw,
    }


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_reader_runs_code(gadget):
    for file, raw in wrapped(GADGETS[gadget]).items():
        path = written(file, raw)
        with pytest.raises(CheckpointError):
            read_weights(path)
        with pytest.raises(EmbeddingError):
            read_embedding(path)
        assert not Path(CANARY).exists(), file


def put(folder, file, raw):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    return path


@pytest.fixture
def model(tmp_path):
    """A copy of the tiny base model that may be changed."""
    return shutil.copytree(tiny.model_folder(), tmp_path / "model")


def index_of(*files):
    return {"weight_map": {f"w{number}": file for number, file in enumerate(files)}}


UNET, ENCODER = "unet/diffusion_pytorch_model", "text_encoder/model"
DOORS = {
    "a pipeline's U-Net": {"model_index.json": {}, f"{UNET}.bin": None},
    "a pipeline's shard": {
        "model_index.json": {},
        f"{UNET}.bin.index.json": index_of("a.bin"),
        "unet/a.bin": None,
    },
    "a pipeline's text encoder": {"model_index.json": {}, "text_encoder/pytorch_model.bin": None},
    "a U-Net folder": {
        "config.json": {"_class_name": "UNet2DConditionModel"},
        "diffusion_pytorch_model.bin": None,
    },
    "a text encoder folder": {
        "config.json": {"architectures": ["CLIPTextModel"]},
        "pytorch_model.bin": None,
    },
    "a LoRA folder": {"pytorch_lora_weights.safetensors": None},
    "PEFT's folder": {"adapter_model.safetensors": None, "adapter_config.json": {}},
}
"""Folders of unlearned weights: {file: what is in it, None for what a stranger wrote}."""


@pytest.mark.parametrize("door", DOORS)
def test_no_folder_of_weights_runs_code(door, tmp_path):
    for gadget, evil in GADGETS.items():
        for label, raw in wrapped(evil).items():
            folder = tmp_path / "folder"
            for file, content in DOORS[door].items():
                put(folder, file, raw if content is None else content)
            with pytest.raises(CheckpointError):
                read_weights(folder)
            assert not Path(CANARY).exists(), (gadget, label)


MODEL_DOORS = {
    "its text encoder": ("text_encoder/pytorch_model.bin", {}),
    "a shard of its text encoder": (
        "text_encoder/a.bin",
        {"text_encoder/pytorch_model.bin.index.json": index_of("a.bin")},
    ),
    "its U-Net": (f"{UNET}.bin", {}),
    "a shard of its U-Net": (
        "unet/a.bin",
        {f"{UNET}.bin.index.json": index_of("a.bin")},
    ),
    "its VAE": ("vae/diffusion_pytorch_model.bin", {}),
}


@pytest.mark.parametrize("door", MODEL_DOORS)
def test_no_base_model_runs_code(door, model, monkeypatch):
    """Nor is torch asked to load what was not looked through."""
    file, beside = MODEL_DOORS[door]
    for old in (model / file).parent.glob("*.safetensors"):
        old.unlink()
    for name_, content in beside.items():
        put(model, name_, content)

    asked = []

    def load(file, *_, **__):
        try:
            check_torch_file(getattr(file, "name", file))
        except Exception:
            asked.append(file)
        return {}

    monkeypatch.setattr(torch, "load", load)
    for gadget in ("os.system", "torch loads a zip"):
        for label, raw in wrapped(GADGETS[gadget]).items():
            put(model, file, raw)
            with pytest.raises(ModelError):
                load_parts(model)
            assert not Path(CANARY).exists(), (gadget, label)
    assert not asked


def test_positive_control_an_ordinary_loader_runs_what_is_in_a_model_folder(tmp_path):
    script = "import os, torch\n"
    for folder, wrap in (("new", as_zip), ("old", as_legacy)):
        put(tmp_path, f"{folder}/pytorch_model.bin", wrap(GADGETS["os.system"]))
        script += (
            f"os.chdir({str(tmp_path / folder)!r})\n"
            "try:\n"
            "    torch.load('pytorch_model.bin', weights_only=False)\n"
            "except Exception:\n"
            "    pass\n"
        )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert all((tmp_path / folder / CANARY).exists() for folder in ("new", "old"))


def test_a_model_folder_of_torch_files_loads(model):
    """So that the refusals above are of what is in the files."""
    state = load_file(model / f"{ENCODER}.safetensors")
    (model / f"{ENCODER}.safetensors").unlink()
    for legacy in (False, True):
        put(model, "text_encoder/pytorch_model.bin", torch_bytes(state, legacy))
        found = load_parts(model).text_encoders[0].state_dict()
        assert all(torch.equal(found[k], v.float()) for k, v in state.items())


def with_text(value, kind="PNG"):
    """Return a picture with bytes in A1111's text chunk."""
    info, made = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("sd-ti-embedding", base64.b64encode(value).decode())
    Image.new("RGB", (4, 4), (9, 9, 9)).save(made, kind, pnginfo=info)
    return made.getvalue()


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_picture_runs_code(gadget):
    """Neither a pickle where its JSON should be, nor a torch file behind or inside of it."""
    plain = with_text(b"{}")
    for raw in wrapped(GADGETS[gadget]).values():
        for picture in (with_text(raw), with_text(zlib.compress(raw)), plain + raw, raw + plain):
            for ending in (".png", ".pt", ".bin"):
                with pytest.raises(EmbeddingError):
                    read_embedding(written(f"x{ending}", picture))
        assert not Path(CANARY).exists()


@pytest.mark.parametrize("gadget", ["os.system", "eval", "torch loads bytes", "STACK_GLOBAL"])
def test_the_refusal_names_what_would_have_run(gadget):
    message = refused(read_weights, written("x.pt", as_zip(GADGETS[gadget])))
    named = {"eval": "builtins.eval", "torch loads bytes": "torch.storage._load_from_bytes"}
    assert f"({named.get(gadget, 'os.system')})" in message
    assert "not executed" in message


def test_code_beside_good_tensors_is_refused():
    good = torch_bytes(unet())
    members = dict(_members(good))
    path, raw = next((n, c) for n, c in members.items() if n.endswith("data.pkl"))
    evil = GADGETS["os.system"][2:-1]
    assert raw[:2] == b"\x80\x02"
    hidden = raw[:2] + evil + b"0" + raw[2:]
    extra = [(n.split("/", 1)[1], c) for n, c in members.items() if n != path]
    assert "not executed" in refused(read_weights, written("x.pt", as_zip(hidden, extra)))
    assert not Path(CANARY).exists()


def test_a_recipe_is_data():
    path = written("x.yaml", b"about: !!python/object/apply:os.system ['touch canary']\n")
    refused(load_recipe, path, RecipeError)
    assert not Path(CANARY).exists()


# Claims


def header(entries, body=b"", length=None):
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


TENSOR = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}


@pytest.mark.parametrize(
    "raw",
    [
        header({"conv_in.weight": TENSOR}),
        header({"conv_in.weight": {**TENSOR, "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"conv_in.weight": TENSOR}, length=2**40),
        header({"conv_in.weight": TENSOR}, length=2**63),
        header({"conv_in.weight": TENSOR}, length=99_000_000),
    ],
)
def test_safetensors_that_claim_terabytes_are_refused_before_anything_is_reserved(raw):
    refused(read_weights, written("x.safetensors", raw))
    refused(read_embedding, written("x.safetensors", raw), EmbeddingError)


def storage(numel):
    parts = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
    return b"(" + parts + numel + b"tQ"


def tensor(numel, shape=b"K\x02\x85", stride=b"K\x01\x85"):
    function = name("torch._utils", "_rebuild_tensor_v2")
    rest = (storage(numel), b"K\0", shape, stride, b"\x89", b"}")
    return program(b"}" + text("conv_in.weight") + call(function, *rest) + b"s")


def old(body):
    """As before torch 1.6, where a storage could be a view of another."""
    return body.replace(b"tQ", b"NtQ")


def program_of(function, *args):
    return program(b"}" + text("w") + call(name(*function), *args) + b"s")


def numpy_array(shape):
    """An array of this shape and of four bytes."""
    four = call(name("_codecs", "encode"), text("abcd"), text("latin1"))
    made = array(b"(K\x01" + shape + dtype("f4") + b"\x89" + four + b"tb")
    return program(b"}" + text("w") + made + b"s")


HUGE = {
    "a storage": tensor(TERABYTE),
    "a stride of 0": tensor(b"K\x02", shape=TERABYTE + b"\x85", stride=b"K\x00\x85"),
    "a bytearray": program_of(("builtins", "bytearray"), TERABYTE),
    "a tensor class": program_of(("torch", "FloatTensor"), TERABYTE),
    "a storage class": program_of(("torch.storage", "UntypedStorage"), TERABYTE),
    "a meta tensor": program_of(("torch._utils", "_rebuild_meta_tensor_no_storage"), b")"),
    "tuples": program(b"}" + nested() + b"K\x01s"),
    "a set": program_of(("builtins", "set"), b"]" + nested() + b"a"),
    "a numpy dtype of tuples": program_of(("numpy", "dtype"), nested(), b"\x89", b"\x88"),
    "a numpy shape of tuples": numpy_array(nested()),
    "a name of tuples": program(nested() + nested() + b"\x93"),
    "a numpy array": numpy_array(TERABYTE + b"\x85"),
    "a numpy array of wide dimensions": numpy_array(TERABYTE * 3 + b"\x87"),
    "a numpy array of many dimensions": numpy_array(b"(" + TERABYTE * 60 + b"t"),
    "a long text": b"\x80\x02X\xff\xff\xff\x7f.",
    "a deep memo": program(b"}r\xff\xff\xff\xff"),
    "many instructions": program(b"}" + b"}0" * 600_000),
}


@pytest.mark.parametrize("claim", [claim for claim in HUGE if claim != "a deep memo"])
@pytest.mark.parametrize("wrap", [as_legacy, as_zip])
def test_torch_files_that_claim_much_are_refused_before_anything_is_reserved(claim, wrap):
    if wrap is as_legacy:
        raw = as_legacy(old(HUGE[claim]))
    else:
        raw = as_zip(HUGE[claim], [("data/0", b"\0" * 8)])
    refused(read_weights, written("x.pt", raw))


@pytest.mark.parametrize("numel", [0, 1, 63, 65, 2**32, 2**63])
def test_old_torch_files_whose_storages_are_of_other_sizes_are_refused(numel):
    """What stands before a storage's bytes is reserved too."""
    raw = torch_bytes({"conv_in.weight": torch.ones(64)}, legacy=True)
    at = len(raw) - 4 * 64 - 8
    assert raw[at : at + 8] == struct.pack("<Q", 64)
    path = written("x.ckpt", raw)
    check_torch_file(path)
    changed = raw[:at] + struct.pack("<Q", numel) + raw[at + 8 :]
    assert "another size" in refused(read_weights, written("y.ckpt", changed))
    refused(read_weights, written("z.ckpt", raw[:-1]))


@pytest.mark.parametrize("stride", [b"K\x02\x85", TERABYTE + b"\x85"])
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(stride):
    """torch makes the storage larger, with whatever was in memory before."""
    good = b"K\x02\x85K\x01\x85"  # shape and stride in the pickle of a tensor of two values
    raw = as_legacy(old(tensor(b"K\x02")))[: -len(pickle.dumps([], protocol=2))]
    assert good in raw
    end = pickle.dumps(["0"], protocol=2) + struct.pack("<Qff", 2, 1.0, 2.0)
    check_torch_file(written("x.ckpt", raw + end))
    far = raw.replace(good, b"K\x02\x85" + stride)
    assert "larger than" in refused(read_weights, written("y.ckpt", far + end))


def test_an_old_torch_file_that_leaves_out_a_storage_is_refused():
    """torch would give whatever was in memory before."""
    raw = torch_bytes({"conv_in.weight": torch.ones(64)}, legacy=True)
    key = b"X\x01\0\0\x000"
    at = raw.rfind(key)
    # An empty list of keys, at the end of which no storages are expected.
    cut = raw[:at].rstrip(b"qa(\0\1\2\3") + b"." + raw[at + len(key) :]
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        check_torch_file(written("x.ckpt", cut))


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("claim", ["a storage", "a bytearray", "a tensor class"])
def test_positive_control_torch_alone_reserves_what_a_file_claims(claim, enforced, monkeypatch):
    """Some kernels do not enforce a limit on reserved memory; there only memory in use is seen."""
    if not enforced:
        monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    # Twice what a reader may use.
    claimed = 2 * EXTRA_BYTES
    body = HUGE[claim].replace(TERABYTE, b"\x8a\x05" + claimed.to_bytes(5, "little"))
    path = written("x.pt", as_legacy(old(body)))

    def read():
        try:
            (value,) = torch.load(path, weights_only=True).values()
        except RuntimeError as error:
            raise IneError from error
        if isinstance(value, torch.Tensor):
            # torch reserves without writing, and pages that nobody wrote are not in use.
            whole = torch.tensor([], dtype=torch.uint8).set_(value.untyped_storage())
            whole[:claimed].fill_(1)

    settle()
    assert watched(read, path.stat().st_size, Path(CANARY))[0] == "memory"


def test_a_zip_bomb_is_refused_before_it_grows():
    raw = zip_bomb(random.Random(0), torch_bytes(unet()))
    path = written("x.pt", raw)
    assert len(raw) < 1_000_000
    assert "compressed" in refused(read_weights, path)
    refused(read_embedding, path, EmbeddingError)


def test_a_compressed_torch_file_is_refused_and_not_misread():
    """torch maps members where they lie, and would take compressed bytes for numbers."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in _members(torch_bytes(unet())):
            archive.writestr(member, content)
    assert "compressed" in refused(read_weights, written("x.pt", made.getvalue()))


@pytest.mark.parametrize("change", ["twice", "other case", "outside", "prefixed", "comment"])
def test_archives_that_two_readers_would_read_differently_are_refused(change):
    raw = torch_bytes(unet())
    body = HUGE["a bytearray"]
    extra = {
        "twice": [("data.pkl", body)],
        "other case": [("DATA.PKL", body)],
        "outside": [("../../x", b"x")],
    }
    if change in extra:
        members = [(n.split("/", 1)[1], c) for n, c in _members(raw)]
        plain = next(c for n, c in members if n == "data.pkl")
        rest = [m for m in members if m[0] != "data.pkl"]
        raw = as_zip(plain, [*rest, *extra[change]])
    elif change == "prefixed":
        raw = as_zip(body) + raw
    else:
        raw = raw[:-2] + b"\x16\0" + b"PK\x05\x06" + b"\0" * 18
    refused(read_weights, written("x.pt", raw))
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        check_torch_file(written("x.pt", raw))


# What is plain is read


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_tensors_in_all_their_forms_pass(legacy):
    shared = torch.arange(12.0).reshape(3, 4)
    module = torch.nn.Linear(2, 3)
    values = {
        "state dict with its _metadata": module.state_dict(),
        "parameters": {"w": torch.nn.Parameter(shared)},
        "shared": {"a": shared, "b": shared[1:], "c": shared.t()},
        "types": {str(t): torch.ones(2).to(t) for t in (torch.int64, torch.bool, torch.bfloat16)},
        "empty": {"a": torch.empty(0), "b": torch.tensor(1.0), "n": 1, "s": "text", "l": [1, (2,)]},
        "training state": {"epoch": 3, "m": Counter([1]), "o": OrderedDict(a=1), "z": shared.shape},
    }
    if not legacy:
        values["float8"] = {"a": torch.ones(2).to(torch.float8_e4m3fn)}
    for label, value in values.items():
        path = written("x.pt", torch_bytes(value, legacy))
        check_torch_file(path)
        found = read_file(path)[0]
        assert found.keys() == value.keys(), label
        for key, tensor in value.items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(found[key].float(), tensor.float()), label


def test_every_sample_of_the_fuzzing_is_valid():
    from fuzz.readers import read

    for (reader, ending), raws in samples().items():
        for raw in raws:
            path = written(f"file{ending}", raw)
            if ending == ".avif":  # what it has in its pixels does not survive
                with pytest.raises(EmbeddingError, match="no embedding in it"):
                    read(reader, path)
            else:
                read(reader, path)


# Folders


@pytest.mark.parametrize(
    "target",
    [
        "../../x",
        "/x",
        "..",
        ".",
        "",
        "a/b",
        "a\\..\\b",
        "C:x",
        "x\0y",
        "\ud800",
        1,
        None,
        ["x"],
        {},
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(target, tmp_path):
    inside = tmp_path / "a" / "b" / "unet"
    inside.mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(save(unet()))
    index = inside / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": target}}))
    with pytest.raises(CheckpointError) as caught:
        folder_state(inside)
    assert str(caught.value).startswith(str(index))


@pytest.mark.parametrize("index", ["[]", '{"weight_map": 1}', "{}", "[" * 20_000, "\x80", "1e999"])
def test_a_broken_index_is_refused(index, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(index.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        folder_state(tmp_path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("architectures", 5),
        ("architectures", [[]]),
        ("_class_name", []),
        ("cross_attention_dim", [32]),
        ("cross_attention_dim", "x"),
        ("attention_head_dim", {"a": 1}),
        ("act_fn", [1]),
    ],
)
def test_a_configuration_of_other_kinds_of_values_is_refused(setting, value, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(save(unet()))
    config = {"_class_name": "UNet2DConditionModel", setting: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{setting} is"):
        read_weights(tmp_path)


def test_an_index_of_links_as_in_the_hubs_cache_is_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_bytes(save(unet()))
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "model-1.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    index = {"weight_map": dict.fromkeys(unet(), "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert folder_state(folder).keys() == unet().keys()


# Headers


@pytest.mark.parametrize(
    "entries",
    [
        {"w": {**TENSOR, "data_offsets": [0, "8"]}},
        {"w": {**TENSOR, "data_offsets": [0, 1e400]}},
        {"w": {**TENSOR, "data_offsets": [0]}},
        {"w": {**TENSOR, "data_offsets": [8, 0]}},
        {"w": {**TENSOR, "data_offsets": 8}},
        {"w": []},
        {"__metadata__": []},
        {"__metadata__": {"a": 1}},
        {"__metadata__": 1},
    ],
)
def test_headers_that_are_no_headers_are_refused(entries):
    path = written("x.safetensors", header(entries, b"\0" * 8))
    refused(read_weights, path)
    if "__metadata__" not in entries or entries["__metadata__"]:
        refused(weights_metadata, path)


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F8_E8M0", "C64", "I64", "X"])
def test_dtypes_that_are_not_those_of_weights_are_refused(code):
    """torch cannot convert some of them, whoever asks."""
    width = {"F4": 4, "F6_E2M3": 6, "F8_E8M0": 8, "C64": 64, "I64": 64, "X": 8}[code]
    for name_, shape in (("emb_params", [2, 32]), ("conv_in.bias", [4]), (DOWN, [2, 4])):
        bits = math.prod(shape) * width
        entry = {"dtype": code, "shape": shape, "data_offsets": [0, bits // 8]}
        path = written("x.safetensors", header({name_: entry}, bytes(bits // 8)))
        refused(read_embedding, path, EmbeddingError)
        refused(lambda path: apply_weights(tiny.model(), path), path)


def test_copies_of_another_dtype_are_compared():
    one = vectors().half()
    path = written("x.safetensors", save({"emb_params": one, "clip_l": one.double()}))
    assert torch.equal(read_embedding(path).vectors[0], one.float())
    path = written("x.safetensors", save({"emb_params": one, "clip_l": vectors()}))
    refused(read_embedding, path, EmbeddingError)


def test_a_deeply_nested_header_is_refused():
    raw = b'{"w": ' + b"[" * 50_000
    refused(weights_metadata, written("x.safetensors", struct.pack("<Q", len(raw)) + raw))


# Recipes

ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "line",
    [
        "about: 2001-99-99",
        "about: !!timestamp x",
        "about: !!int x",
        "about: !!bool x",
        "about: 0b_",
        "about: " + "[" * 5000,
        "about: " + "9" * 5000,
        "about: &a [*a, *a]",
        "a0: &a0 [x]\n" + ALIASES + "plural: *a11",
        "a0: &a0 {x: y}\n" + MERGES + "prompt_sets: *a11",
        "nouns: [" + "a, " * 100_000 + "]",
        "x" * 300_000,
        "\n".join(f"key{n}: 1" for n in range(5000)),
    ],
)
def test_yaml_that_is_broken_or_stands_for_too_much_is_refused(line):
    assert len(refused(load_recipe, written("x.yaml", line.encode()), RecipeError)) < 10_000


def test_aliases_that_stand_for_little_are_read():
    assert read_yaml("a: &a [1, 2]\nb: *a\nc: {d: *a}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": [1, 2]},
    }
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
    assert read_yaml("") is None
    with pytest.raises(ValueError, match="aliases"):
        read_yaml("a: &a [*a]")
    assert yaml.safe_load("a: &a [*a]")  # which is why they are counted before


# Gates


def changed_gate(**settings):
    data = gates()[0]
    return json.dumps({**data, "settings": {**data["settings"], **settings}}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 50_000,
        b'{"a":' * 50_000,
        json.dumps({**gates()[0], "gate": []}).encode(),
        json.dumps({**gates()[0], "gate": {}}).encode(),
        changed_gate(threshold=float("nan")),
        changed_gate(threshold=10**400),
        changed_gate(queries=[10**400]),
        changed_gate(window=[0, []]),
        json.dumps({**gates()[0], "embeddings": [1]}).encode(),
        json.dumps({**gates()[0], "embeddings": [{"trigger": "x"}]}).encode(),
        json.dumps({**gates()[0], "sampler": []}).encode(),
        json.dumps({**gates()[0], "unet_fingerprint": "v1:x"}).encode(),
    ],
)
def test_gates_that_are_none_are_refused(raw):
    refused(read_calibration, written("x.gate.json", raw), IneError)


@pytest.mark.parametrize("weight", [[1e300, 2**70], 1.0, [], [[1.0]], ["x"], {}, None])
def test_a_probe_of_other_things_than_numbers_is_refused(weight):
    data = gates()[0]
    data["settings"]["probes"][0] = {"weight": weight, "bias": 0.0}
    refused(read_calibration, written("x.gate.json", json.dumps(data).encode()), IneError)


def test_more_json_than_any_gate_or_model_needs_is_not_parsed(tmp_path):
    raw = b"[" + b"{}," * 5_000_000 + b"{}]"
    refused(read_calibration, written("x.gate.json", raw), IneError)
    written("config.json", raw)
    with pytest.raises(CheckpointError, match="over 10,000,000 bytes"):
        read_weights(tmp_path)
    large = struct.pack("<Q", len(raw) + 6) + b'{"a": ' + raw
    refused(weights_metadata, written("x.safetensors", large))


READ_A_GATE = """
import sys
from pathlib import Path

from fuzz.watch import watched
from ine.guidance.gate_file import read_calibration

path = Path(sys.argv[1])
print(watched(lambda: read_calibration(path), path.stat().st_size, Path(sys.argv[2]))[0])
"""


def alone(code, *arguments):
    """Run code in a process of its own and return (what it printed, its errors).

    Memory is measured: what earlier tests free meanwhile would count as room, and what the system
    has taken back of a large process would be counted as the reader's when it comes in again.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return done.stdout.strip(), done.stderr


def test_json_just_under_the_limit_stays_within_the_memory_allowed():
    raw = b"[" + b"{}," * 3_300_000 + b"{}]"
    said, errors = alone(READ_A_GATE, written("x.gate.json", raw), CANARY)
    assert said == "refused", errors


# Pictures


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a"]},
        {"names": [1, 2]},
        {"names": 5},
        {"captions": ["a"]},
        {"captions": [None, "b"]},
        {"std": torch.ones(2, 4, 2, 1)},
        {"std": torch.ones(2, 4, 2, 2, dtype=torch.int64)},
        {"mean": torch.ones(2, 16), "std": torch.ones(2, 16)},
    ],
)
def test_a_cache_whose_parts_do_not_belong_together_is_refused(change):
    about = {"format": "ine-pictures-1", "key": "k", "names": ["a", "b"], "captions": None}
    tensors = {"mean": torch.zeros(2, 4, 2, 2), "std": torch.ones(2, 4, 2, 2)}
    for key, value in change.items():
        (tensors if key in tensors else about)[key] = value
    path = written("cache.safetensors", save(tensors, {"pictures": json.dumps(about)}))
    refused(lambda path: PICTURES.read(path, "k"), path, PicturesError)


@pytest.mark.parametrize("line", ["[" * 50_000, '{"file_name": ' + "9" * 5000 + "}"])
def test_captions_that_cannot_be_parsed_are_refused(line):
    path = written("metadata.jsonl", line.encode())
    refused(lambda path: read_captions([path.with_name("a.png")]), path, PicturesError)


def test_vectors_of_a_good_file_survive_all_checks():
    path = written("mine.pt", torch_bytes({"mine": vectors()}))
    assert torch.equal(read_embedding(path).vectors[0], vectors())


# Base models


def edited(model, file, /, **changes):
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def model_refused(model, where):
    """Return the message of a refusal that names a file or folder and reserved nothing."""
    outcome = watched(lambda: load_parts(model), 100_000, Path(CANARY))
    assert outcome == ("refused", "")
    with pytest.raises(ModelError) as caught:
        load_parts(model)
    assert str(model / where if where else model) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("text_encoder", "vocab_size", 2**40),
        ("text_encoder", "vocab_size", 2**30),
        ("text_encoder", "num_hidden_layers", 10**9),
        ("text_encoder", "num_hidden_layers", 90),
        ("text_encoder", "max_position_embeddings", 10**400),
        ("text_encoder", "hidden_size", "x"),
        ("text_encoder", "hidden_act", "os.system"),
        ("unet", "layers_per_block", 10**8),
        ("unet", "transformer_layers_per_block", 10**8),
        ("unet", "block_out_channels", [4, 2**30]),
        ("unet", "block_out_channels", [4] * 100_000),
        ("unet", "cross_attention_dim", 2**30),
        ("unet", "num_class_embeds", 2**30),
        ("unet", "norm_num_groups", 0),
        ("unet", "norm_eps", float("nan")),
        ("unet", "mid_block_scale_factor", [[]]),
        ("unet", "resnet_out_scale_factor", "x"),
        ("unet", "freq_shift", True),
        ("unet", "flip_sin_to_cos", {}),
        ("vae", "scaling_factor", None),
        ("unet", "sample_size", "x"),
        ("unet", "sample_size", [1, 2, 3]),
        ("vae", "block_out_channels", [2**20]),
        ("vae", "latent_channels", 2**30),
    ],
)
def test_a_configuration_that_claims_more_than_its_weights_is_refused(model, part, setting, value):
    edited(model, f"{part}/config.json", **{setting: value})
    model_refused(model, "" if setting == "sample_size" else part)


READ_BY_A_LIBRARY = """
import sys
from pathlib import Path

from diffusers import UNet2DConditionModel

from fuzz.watch import watched
from ine.errors import IneError


def read():
    try:
        UNet2DConditionModel.from_pretrained(sys.argv[1], low_cpu_mem_usage=False)
    except RuntimeError as error:
        raise IneError from error


print(watched(read, 100_000, Path(sys.argv[2]))[0])
"""


def test_positive_control_a_library_alone_reserves_what_a_configuration_claims(model):
    """Which is why sizes are compared before."""
    edited(model, "unet/config.json", encoder_hid_dim=2**24, encoder_hid_dim_type="text_proj")
    said, errors = alone(READ_BY_A_LIBRARY, model / "unet", CANARY)
    assert said == "memory", errors
    assert "values, its weights are" in model_refused(model, "unet")


@pytest.mark.parametrize("target", ["../unet/x.safetensors", "/x", "..", "a\\b", 1, None])
@pytest.mark.parametrize("part", ["text_encoder/model", UNET])
def test_a_base_models_index_that_leads_out_of_its_folder_is_refused(model, part, target):
    for old in (model / part).parent.glob("*.safetensors"):
        shutil.copy(old, model / "unet" / "x.safetensors")
        old.unlink()
    keys = load_file(model / "unet" / "x.safetensors")
    put(model, f"{part}.safetensors.index.json", {"weight_map": dict.fromkeys(keys, target)})
    model_refused(model, Path(part).parent)


def test_a_setting_that_asks_for_more_than_a_model_is_refused(model):
    edited(model, "unet/config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "quantization_config" in model_refused(model, "unet")


def test_an_adapter_in_a_component_is_refused(model):
    """transformers would load what it names, from anywhere."""
    put(model, "text_encoder/adapter_config.json", {"base_model_name_or_path": "../../x"})
    assert "adapter" in model_refused(model, "text_encoder")


def test_classes_that_a_configuration_names_are_not_imported(model, tmp_path):
    (model / "text_encoder" / "evil.py").write_text(f"open({CANARY!r}, 'w')\nclass Evil: pass\n")
    shutil.copy(model / "text_encoder" / "evil.py", model / "tokenizer")
    asked = {"auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    asked |= {
        "trust_remote_code": True,
        "_attn_implementation": "x/y",
        "attn_implementation": "x/y",
    }
    asked |= {"_attn_implementation_internal": "x/y", "tokenizer_class": "evil.Evil"}
    edited(model, "text_encoder/config.json", **asked)
    edited(model, "tokenizer/tokenizer_config.json", **asked)
    encoder = load_parts(model).text_encoders[0]
    assert encoder.config._attn_implementation in ("sdpa", "eager")
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_encoder": 5}, "class 5"),
        ({"text_encoder": {"a": 1}}, "text encoder of class"),
        ({"text_encoder": [[]]}, "text encoder of class"),
    ],
)
def test_a_pipeline_index_of_other_things_is_refused(model, change, words):
    edited(model, "model_index.json", **change)
    assert words in model_refused(model, "")


@pytest.mark.parametrize("raw", [b"[" * 50_000, b'{"a":' * 50_000, b"[" + b"{}," * 5_000_000])
@pytest.mark.parametrize(
    "file", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
)
def test_json_of_a_model_that_is_deep_or_long_is_refused(model, file, raw):
    put(model, file, raw)
    model_refused(model, Path(file).parent)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_train_timesteps", 2**40),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 1000.0),
        ("num_train_timesteps", "1000"),
        ("beta_start", float("nan")),
        ("beta_end", 2),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", ["x"] * 100),
        ("trained_betas", "x"),
        ("beta_schedule", "x"),
        ("beta_schedule", []),
        ("prediction_type", "sample"),
        ("prediction_type", {}),
        ("steps_offset", 2**40),
        ("solver_order", 2**40),
        ("timestep_spacing", 1),
    ],
)
def test_a_schedule_that_no_sampling_could_use_is_refused(model, setting, value):
    edited(model, "scheduler/scheduler_config.json", **{setting: value})
    message = model_refused(model, "scheduler")
    assert f"{setting} is {json.dumps(value)[:80]}" in message


def test_settings_that_a_scheduler_cannot_take_are_our_error(model):
    """Those that only the library knows."""
    with pytest.raises(IneError, match="cannot take 5 steps"):
        make_scheduler("dpm++", {**tiny.SCHEDULER, "algorithm_type": "x"}, 5)
    with pytest.raises(IneError, match="cannot take 500 steps"):
        make_scheduler("ddim", tiny.SCHEDULER, 500)


# Tokenizers


def test_a_tokenizer_reads_its_own_folder_only(model, tmp_path):
    """Whatever files, objects and settings its configuration names."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"evil</w>": 0}))
    names = {k: str(other) for k in ("vocab_file", "tokenizer_file", "gguf_file", "vocab")}
    names |= {"merges": str(other), "init_inputs": [1], "post_processor": 1, "name_or_path": "x/y"}
    names |= {"fast_tokenizer_files": ["../../other.json"], "tokenizer_object": {"a": 1}}
    names |= {"tokenizer_padding": {"length": 2**40}, "_json_padding": {"length": 2**40}}
    before = load_parts(model).tokenizers[0]
    edited(model, "tokenizer/tokenizer_config.json", **names)
    padding = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_id": 0}
    edited(model, "tokenizer/tokenizer.json", padding=padding, truncation={"max_length": 0})
    after = load_parts(model).tokenizers[0]
    assert after.get_vocab() == before.get_vocab()
    assert after("a dog").input_ids == before("a dog").input_ids


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"model_max_length": 2**40}),
        ("tokenizer_config.json", {"model_max_length": 2}),
        ("tokenizer_config.json", {"model_max_length": 9}),
        ("tokenizer_config.json", {"model_max_length": -1}),
        ("tokenizer_config.json", {"model_max_length": "8"}),
        ("tokenizer_config.json", {"model_max_length": float("nan")}),
        ("tokenizer_config.json", {"bos_token": "new"}),
        ("tokenizer_config.json", {"eos_token": []}),
        ("tokenizer_config.json", {"unk_token": "new"}),
        ("tokenizer_config.json", {"pad_token": {"content": 5}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"99": {"content": "<y>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 14}, "merges": []}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": [], "merges": []}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [[1, 2]]}}),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}),
        ("tokenizer.json", {"model": 5}),
        ("tokenizer.json", {"added_tokens": [5]}),
    ],
)
def test_tokenizers_that_are_none_or_of_another_model_are_refused(model, file, change):
    edited(model, f"tokenizer/{file}", **change)
    model_refused(model, "tokenizer")


def test_a_tokenizer_in_the_files_of_early_releases_is_the_same(model):
    from transformers import CLIPTokenizer

    before = load_parts(model).tokenizers[0]
    vocab, merges = tiny.vocabulary()
    (model / "tokenizer" / "tokenizer.json").unlink()
    put(model, "tokenizer/vocab.json", vocab)
    put(model, "tokenizer/merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode())
    config = json.loads((model / "tokenizer/tokenizer_config.json").read_text())
    marks = {k: config.pop(k) for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    properties = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    marks = {k: {"content": getattr(before, k), **properties} for k in marks}
    put(model, "tokenizer/special_tokens_map.json", marks)
    put(model, "tokenizer/tokenizer_config.json", config)
    after = load_parts(model).tokenizers[0]
    theirs = CLIPTokenizer.from_pretrained(model / "tokenizer")
    for words in ("a dog", "Dog, <|endoftext|> go", "", "a<|ENDOFTEXT|>b <|startoftext|> "):
        assert after(words).input_ids == theirs(words).input_ids
    assert after("a dog").input_ids == before("a dog").input_ids


def test_the_length_of_a_context_that_nobody_stated_is_the_text_encoders(model):
    for stated in (None, 10**30, 1e30):
        edited(model, "tokenizer/tokenizer_config.json", model_max_length=stated)
        assert load_parts(model).tokenizers[0].model_max_length == 8


def test_an_added_token_is_kept(model):
    """As a model has it that was saved with an embedding in its table."""
    path = model / f"{ENCODER}.safetensors"
    state = load_file(path)
    key = next(k for k in state if k.endswith("token_embedding.weight"))
    state[key] = torch.cat([state[key], state[key][:1]])
    save_file(state, path, metadata={"format": "pt"})
    edited(model, "text_encoder/config.json", vocab_size=15)
    edited(
        model, "tokenizer/tokenizer_config.json", added_tokens_decoder={"14": {"content": "<y>"}}
    )
    assert load_parts(model).tokenizers[0].convert_tokens_to_ids("<y>") == 14


@pytest.mark.parametrize("folder", ["tokenizer", "judge"])
def test_the_bundled_tokenizer_is_the_one_that_transformers_reads(folder):
    from transformers import CLIPTokenizer

    from ine.models.parts import MINI_FOLDER

    theirs = CLIPTokenizer.from_pretrained(MINI_FOLDER / folder)
    ours = load_tokenizer(MINI_FOLDER / folder, 32, 2000)
    assert ours.get_vocab() == theirs.get_vocab()
    chance, letters = random.Random(0), "ab dog'fire\u00e9\u706b\U0001f525 \n\tA<|1"
    texts = ["", "a dog on fire", "<|endoftext|>it's <|startoftext|>", "x" * 300]
    texts += ["".join(chance.choices(letters, k=20)) for _ in range(200)]
    for one in texts:
        for options in ({}, {"padding": "max_length", "truncation": True}):
            assert ours(one, verbose=False, **options) == theirs(one, verbose=False, **options)


# LoRAs


def lora(**changes):
    """Return diffusers' LoRA with other tensors; None takes one away."""
    state = {k: v for k, v in lora_states()[0].items() if k.startswith("unet.")}
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


DOWN, UP = f"unet.{PLACE}.lora.down.weight", f"unet.{PLACE}.lora.up.weight"
FLAT = f"lora_unet_{PLACE.replace('.', '_')}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({DOWN: None}, "lacks its 'down' half"),
        ({DOWN: torch.ones(0, 4), UP: torch.ones(4, 0)}, "do not multiply"),
        ({DOWN: torch.ones(2**16, 4)}, "do not multiply"),
        ({UP: torch.full((4, 2), math.nan)}, "NaN or infinite"),
        ({UP: torch.full((4, 2), 3e38), DOWN: torch.full((2, 4), 3e38)}, "NaN or infinite"),
        ({f"unet.{PLACE}.alpha": torch.tensor(math.nan)}, "NaN or infinite"),
        ({f"unet.{PLACE}.alpha": torch.tensor(math.inf)}, "NaN or infinite"),
        ({f"unet.{PLACE}.alpha": torch.ones(2)}, "not one number"),
        ({"x.alpha": torch.tensor(1.0)}, "no weights for x"),
        # The same half in two spellings.
        (
            {
                DOWN.removeprefix("unet."): torch.ones(2, 4),
                UP.removeprefix("unet."): torch.ones(4, 2),
            },
            "two differences",
        ),
        ({f"unet.{PLACE}.lora_A.weight": torch.ones(2, 4)}, "second 'down' half"),
        ({f"unet.{PLACE}.lora_A.default.weight": torch.ones(2, 4)}, "second 'down' half"),
        (
            {
                f"{FLAT}.lora_down.weight": torch.ones(2, 4),
                f"{FLAT}.lora_up.weight": torch.ones(4, 2),
            },
            "two different values",
        ),
    ],
)
def test_loras_with_halves_and_alphas_that_make_no_sense(change, words):
    path = written("x.safetensors", save(lora(**change)))
    assert words in refused(lambda path: apply_weights(tiny.model(), path), path)


@pytest.mark.parametrize("alpha", [10**400, "x", None, [1.0], b"1"])
def test_an_alpha_of_a_torch_file_that_is_no_number(alpha):
    path = written("x.bin", torch_bytes({**lora(), f"unet.{PLACE}.alpha": alpha}))
    refused(read_weights, path)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": 5},
        {"alpha_pattern": True},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"attn1.to_q": None}},
        {"alpha_pattern": {"attn1.to_q": "8"}},
        {"lora_alpha": True},
        {"lora_alpha": 1e400},
        {"lora_alpha": 10**400},
        {"lora_alpha": [8]},
        {"lora_alpha": "8"},
        {"use_dora": True},
    ],
)
def test_adapter_settings_that_are_none(settings, tmp_path):
    put(tmp_path, "lora/adapter_model.safetensors", save(lora_states()[1]))
    put(tmp_path, "lora/adapter_config.json", settings)
    with pytest.raises(CheckpointError, match="adapter settings are not those of a plain LoRA"):
        read_weights(tmp_path / "lora")


@pytest.mark.parametrize("text_", ["[" * 20_000, "[]", "1", "{"])
def test_an_alpha_that_cannot_be_read_is_not_left_out(text_):
    """The file would be applied with another strength."""
    entries = {"__metadata__": {"lora_adapter_metadata": text_}}
    raw = save(lora(), entries["__metadata__"])
    assert "lora_adapter_metadata" in refused(read_weights, written("x.safetensors", raw))


# Two values under one name: which of them counts would depend on the order.


def doubled(kind):
    """Return (a folder's files, or a file) that has one tensor in two spellings."""
    weight = f"{PLACE.replace('attn1', 'attn2')}.weight"
    one, two = torch.zeros(4, 4), torch.ones(4, 4)
    name_ = "encoder.layers.0.self_attn.q_proj.weight"
    place = "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    return {
        "CompVis": {f"model.diffusion_model.{place}": one, f"diffusion_model.{place}": two},
        "text encoder": {
            f"text_encoder.text_model.{name_}": one,
            f"module.text_model.{name_}": two,
        },
        "text model": {f"text_model.{name_}": one, name_: two},
        "nested": {f"unet.{weight[:-7]}": {"weight": one}, weight[:-7]: {"weight": two}},
    }[kind]


@pytest.mark.parametrize("kind", ["CompVis", "text encoder", "text model", "nested"])
def test_a_tensor_in_two_spellings_is_refused_unless_they_are_equal(kind):
    tensors = doubled(kind)
    if kind in ("text encoder", "text model"):
        tensors = {k: torch.full((16, 16), v[0, 0].item()) for k, v in tensors.items()}
    path = written("x.pt", torch_bytes(tensors))
    assert "two different values" in refused(lambda path: apply_weights(tiny.model(), path), path)
    if kind == "nested":
        equal = {k: {"weight": torch.ones(4, 4)} for k in tensors}
    else:
        first = next(iter(tensors.values()))
        equal = {k: first.clone() for k in tensors}
    apply_weights(tiny.model(), written("y.pt", torch_bytes(equal)))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for number in (1, 2):
        tensors = {"conv_in.bias": torch.full((4,), float(number))}
        put(tmp_path, f"{number}.safetensors", save(tensors))
    put(tmp_path, "model.safetensors.index.json", index_of("1.safetensors", "2.safetensors"))
    with pytest.raises(CheckpointError, match=r"two different values for conv_in\.bias"):
        folder_state(tmp_path)


# Pictures with an embedding inside


def head(across, down, depth=8, colours=2):
    """Return a PNG that claims a size; its one line of pixels is nothing."""
    data = struct.pack(">IIBBBBB", across, down, depth, colours, 0, 0, 0)
    return _png([[b"IHDR", data], [b"IDAT", zlib.compress(b"\0" * 10)], [b"IEND", b""]])


@pytest.mark.parametrize("side", [2**12, 2**14, 2**16, 2**31 - 1])
def test_a_picture_that_claims_many_pixels_is_refused(side):
    message = refused(read_embedding, written("x.png", head(side, side)), EmbeddingError)
    assert "too large" in message


def chunk(length, kind):
    """Return a PNG with a chunk that claims a length; its pixels, or one behind them."""
    raw = with_text(b"{}")
    if kind == b"IDAT":
        at = raw.index(b"IDAT") - 4
        return raw[:at] + struct.pack(">I", length) + raw[at + 4 :]
    return raw[:-12] + struct.pack(">I", length) + kind + b"x" * 10 + raw[-12:]


@pytest.mark.parametrize("length", [2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt", b"zTXt", b"IDAT", b"abcd"])
def test_a_chunk_that_claims_gigabytes_is_refused(length, kind):
    assert "damaged" in refused(
        read_embedding, written("x.png", chunk(length, kind)), EmbeddingError
    )


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_compressed_text_that_grows_a_thousandfold_is_refused(kind):
    packed = zlib.compress(b"A" * 60_000_000)
    start = b"sd-ti-embedding\0" + (b"\0" if kind == b"zTXt" else b"\1\0\0\0")
    chunks = _chunks(with_text(b"{}"))
    raw = _png([chunks[0], [kind, start + packed], *chunks[2:]])
    refused(read_embedding, written("x.png", raw), EmbeddingError)


def test_pixels_of_one_colour_stay_within_the_memory_allowed():
    """Some kilobytes of file, a hundred megabytes of arrays."""
    whole = np.full((2**11, 2**12, 3), 17, np.uint8)
    whole[:, 2000] = whole[:, 2095] = 0
    for kind in ("PNG", "WEBP"):
        made = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(whole).save(made, kind, **options)
        path = written("x.png", made.getvalue())
        assert path.stat().st_size < 100_000
        assert watched(lambda p=path: read_embedding(p), 0, Path(CANARY)) == ("refused", "")


@pytest.mark.parametrize(
    "raw",
    [b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"[]," * 1_390_000, b"[" + b"[]," * 5_000_000],
)
def test_json_in_a_picture_that_is_deep_or_long_is_refused(raw):
    path = written("x.png", with_text(raw))
    outcome = watched(lambda: read_embedding(path), path.stat().st_size, Path(CANARY))
    assert outcome == ("refused", "")


def test_damaged_pictures_are_refused_whatever_pillow_raises():
    """RuntimeError of AVIF, DecompressionBombError, struct.error ..."""
    made = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(made, "AVIF")
    raw, chance = made.getvalue(), random.Random(0)
    for _ in range(40):
        at = chance.randrange(30, len(raw))
        changed = raw[:at] + chance.randbytes(4) + raw[at + 4 :]
        with pytest.raises(EmbeddingError):
            read_embedding(written("x.avif", changed))


@pytest.mark.parametrize("which", range(5))
def test_a_name_that_is_no_text_is_left_out(which):
    """Neither asked whether it is true nor written out, which may fail or take long."""
    name_ = (vectors(2), ["a"] * 10, {"a": 1}, 2**100, True)[which]
    table = {"string_to_param": {"*": vectors()}, "name": name_, "sd_checkpoint": name_}
    found = read_embedding(written("stem.pt", torch_bytes(table)))
    assert found.trigger == "stem"
    assert found.metadata.keys() <= {"sd_checkpoint"}
    assert len(found.metadata.get("sd_checkpoint", "")) < 30


# What is typed


@pytest.mark.parametrize(
    "typed", ["~nobody-here/x.pt", "x\0y", "x" * 5000, "\udcff", "/" * 5000, "a/" * 3000, "~", ""]
)
def test_any_text_is_a_path_that_is_not_there(typed):
    for text_ in (typed, f"{typed}:0.5"):
        layer = parse_layer(text_)
        assert layer.weight in (None, 0.5)
        for read in (read_weights, weights_metadata):
            if typed not in ("~", "", "/" * 5000):
                with pytest.raises(CheckpointError):
                    read(layer.path)
    if typed not in ("~", "", "/" * 5000):
        with pytest.raises(ModelError):
            load_parts(typed)
        with pytest.raises(RecipeError):
            load_recipe(typed)
        with pytest.raises(PicturesError):
            list_pictures(typed)
        with pytest.raises(EmbeddingError):
            read_embedding(typed)


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        ("(" * 20_000 + "a" + ")" * 20_000, MOST_WEIGHT),
        ("[" * 20_000 + "a" + "]" * 20_000, 0.0),
        ("(" * 20_000 + "a", MOST_WEIGHT),
        ("(" * 20_000 + "a" + ":1.3)" * 20_000, MOST_WEIGHT),
        ("([" * 3000 + "a" + "])" * 3000, 1.0),
        ("(" * 3 + "a" + ")" * 3, BRACKET**3),
        ("(a:" + "9" * 400 + ")", MOST_WEIGHT),
        ("(a:-" + "9" * 400 + ")", -MOST_WEIGHT),
        ("(a:" + "1" * 100_000, BRACKET),
        ("(a:1.5" + " " * 100_000, BRACKET),
        (":" + " " * 100_000 + "a", 1.0),
    ],
)
def test_prompts_are_read_in_time_and_their_weights_are_finite(prompt, weight):
    found = []
    assert (
        watched(lambda: found.extend(read_prompt_weights(prompt)), 0, Path(CANARY))[0] == "loaded"
    )
    assert sum("a" in piece.text for piece in found) == 1
    assert all(math.isfinite(piece.weight) for piece in found)
    assert found[0].weight == pytest.approx(weight, abs=1e-12)


def test_brackets_beside_and_in_one_another_in_great_number():
    many = 20_000
    assert [p.weight for p in read_prompt_weights("(a:0.5)" * many)] == [0.5] * many
    # Each of them opens inside of all before, so the weights rise until they are cut.
    rising = [piece.weight for piece in read_prompt_weights("(a" * many)]
    assert rising[-1] == MOST_WEIGHT
    assert rising[0] == MOST_WEIGHT * 0 + BRACKET
    assert rising == sorted(rising)


def test_a_prompt_that_is_not_unicode_is_refused():
    """As the shell passes on bytes that are no UTF-8."""
    prompt = os.fsdecode(b"a \xff dog")
    assert read_prompt_weights(prompt)
    with pytest.raises(PromptError, match=r"'\\udcff' is no character"):
        tokenize(tiny.model().tokenizers[0], [prompt])


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"", b"# only\n\n", b"x\n" * (ROW_LIMIT + 1)])
def test_files_of_prompts_that_are_none_are_refused(raw):
    refused(lambda path: read_prompts((), path), written("x.txt", raw), PromptError)


def test_a_file_of_prompts_is_read_with_its_mark_and_comments():
    path = written("x.txt", b"\xef\xbb\xbfa dog\r\n# no\n\n a cat \n")
    assert read_prompts((), path) == ["a dog", "a cat"]


# States of an inversion


def state_with(about=None, **tensors):
    raw = state()
    length = int.from_bytes(raw[:8], "little")
    old = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["state"])
    made = load_bytes(raw)
    for key, value in tensors.items():
        made[key.replace("_", ".")] = value
    made = {k: v for k, v in made.items() if v is not None}
    return save(made, {"state": json.dumps({**old, **(about or {})})})


def a_preview(**changes):
    whole = {"step": 1, "recovery": 0.5, "left": None, "undefended": None, "preservation": None}
    return whole | changes


def load_bytes(raw):
    from safetensors.torch import load

    return load(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"about": {"step": -1}},
        {"about": {"step": "5"}},
        {"about": {"step": True}},
        {"about": {"key": None}},
        {"about": {"previews": [{}]}},
        {"about": {"previews": [a_preview(recovery="x")]}},
        {"about": {"previews": [a_preview(step=None)]}},
        {"about": {"previews": [a_preview(preservation=math.inf)]}},
        {"about": {"previews": [a_preview(more=1)]}},
        {"about": {"previews": 5}},
        {"about": {"best": {"step": 1}}},
        {"about": {"best": a_preview(recovery=None)}},
        {"about": {"best": [1]}},
        {"vectors_0": None},
        {"first_0": None},
        {"best_0": None},
        {"losses": None},
        {"losses": torch.ones(3)},
        # These would be spread over the vectors.
        {"vectors_0": torch.ones(1, 8), "best_0": torch.ones(1, 8)},
        {"second_0": torch.ones(8)},
        {"first_0": torch.full((2, 8), math.nan)},
        {"vectors_0": torch.ones(2, 8, dtype=torch.float64)},
    ],
)
def test_a_state_that_no_run_could_go_on_from_is_refused(change):
    path = written("state.safetensors", state_with(**change))
    refused(lambda path: read_state(path, "k"), path, IneError)


def test_a_good_state_is_read_and_another_key_refused():
    path = written("state.safetensors", state_with())
    assert read_state(path, "k")[0]["step"] == 5
    assert "other settings" in refused(lambda path: read_state(path, "x"), path, IneError)
    deep = save({"losses": torch.ones(1)}, {"state": "[" * 50_000})
    refused(lambda path: read_state(path, "k"), written("state.safetensors", deep), IneError)
