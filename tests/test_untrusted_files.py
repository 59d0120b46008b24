"""Files from strangers: code in them does not run, and what they claim is not believed."""

import json
import pickle
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parent))

from fuzz.gadgets import CANARY, as_legacy, as_zip, call, gadgets, name, program, text
from fuzz.mutate import _members, zip_bomb
from fuzz.samples import gates, samples, torch_bytes, unet, vectors
from fuzz.watch import watched

from ine.embedding import read_embedding
from ine.errors import CheckpointError, EmbeddingError, IneError, PicturesError, RecipeError
from ine.guidance.calibrate import read_calibration
from ine.inversion.images import load_pictures, read_captions
from ine.models.checkpoints import read_weights, weights_metadata
from ine.models.sources import folder_state
from ine.models.torch_files import check_torch_file
from ine.models.weight_files import read_file
from ine.recipe import load_recipe, read_yaml

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


def tuples():
    """A tuple of a tuple of ... twice each, whose hash takes 2**60 steps."""
    return program(b"}" + b"K\x01\x85" + b"2\x86" * 60 + b"K\x01s")


HUGE = {
    "a storage": tensor(TERABYTE),
    "a stride of 0": tensor(b"K\x02", shape=TERABYTE + b"\x85", stride=b"K\x00\x85"),
    "a bytearray": program_of(("builtins", "bytearray"), TERABYTE),
    "a tensor class": program_of(("torch", "FloatTensor"), TERABYTE),
    "a storage class": program_of(("torch.storage", "UntypedStorage"), TERABYTE),
    "a meta tensor": program_of(("torch._utils", "_rebuild_meta_tensor_no_storage"), b")"),
    "tuples": tuples(),
    "a set": program_of(("builtins", "set"), b"]K\x01\x85" + b"2\x86" * 60 + b"a"),
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


@pytest.mark.parametrize("claim", ["a storage", "a bytearray", "a tensor class"])
def test_positive_control_torch_alone_reserves_what_a_file_claims(claim):
    body = HUGE[claim].replace(TERABYTE, b"\x8a\x05" + (2**32).to_bytes(5, "little"))
    path = written("x.pt", as_legacy(old(body)))

    def read():
        try:
            torch.load(path, weights_only=True)
        except RuntimeError as error:
            raise IneError from error

    assert watched(read, path.stat().st_size, Path(CANARY))[0] == "memory"


def test_a_zip_bomb_is_refused_before_it_grows():
    import random

    raw = zip_bomb(random.Random(0), torch_bytes(unet()))
    path = written("x.pt", raw)
    assert len(raw) < 1_000_000
    assert "compressed" in refused(read_weights, path)
    refused(read_embedding, path, EmbeddingError)


def test_a_compressed_torch_file_is_refused_and_not_misread():
    """torch maps members where they lie, and would take compressed bytes for numbers."""
    import io
    import zipfile

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
            read(reader, written(f"file{ending}", raw))


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
    data = gates()[2]
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


def test_json_just_under_the_limit_stays_within_the_memory_allowed():
    raw = b"[" + b"{}," * 3_300_000 + b"{}]"
    refused(read_calibration, written("x.gate.json", raw), IneError)


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
    refused(lambda path: load_pictures(path, "k"), path, PicturesError)


@pytest.mark.parametrize("line", ["[" * 50_000, '{"file_name": ' + "9" * 5000 + "}"])
def test_captions_that_cannot_be_parsed_are_refused(line):
    path = written("metadata.jsonl", line.encode())
    refused(lambda path: read_captions([path.with_name("a.png")]), path, PicturesError)


def test_vectors_of_a_good_file_survive_all_checks():
    path = written("mine.pt", torch_bytes({"mine": vectors()}))
    assert torch.equal(read_embedding(path).vectors[0], vectors())
