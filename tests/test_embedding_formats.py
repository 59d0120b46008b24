"""Other programs' embedding files: every layout that is read, containers, pictures."""

import base64
import io
import json
import logging
import os
import pickle
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from fuzz.gadgets import as_zip, name, program
from fuzz.gadgets import text as text_
from fuzz.samples import OnMps

import ine.embeddings.pictures as pictures
from ine.embeddings import containers, layouts
from ine.embeddings.embedding import read_embedding
from ine.embeddings.pictures import noise
from ine.errors import EmbeddingError
from ine.weights.torch_files import load_torch_file
from ine.weights.torch_pickles import FLOATS


def numbers(count, width, seed=9):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


VALUES = numbers(4, 768)
SECOND = numbers(4, 1280)


def read_back(path):
    return [v.clone() for v in read_embedding(path).vectors]


# ----------------------------------------------------------------------------- tensors by key


@pytest.mark.parametrize(
    ("content", "trigger", "left_out"),
    [
        ({"emb_params": VALUES, "clip_l": VALUES}, "x", None),
        ({"emb_params": VALUES, "step": torch.tensor(3.0)}, "x", None),
        ({"emb_params": VALUES, "step": torch.tensor([3])}, "x", None),
        ({"emb_params": VALUES, "loss": torch.tensor([0.3])}, "x", "loss"),
        ({"emp_params": VALUES, "emp_params_out": VALUES + 1}, "x", "emp_params_out"),
        ({"clip_h": VALUES}, "x", None),
        ({"text_encoders_0": VALUES}, "x", None),
        ({"clip_l": VALUES, "t5xxl": SECOND}, "x", "t5xxl"),
        ({"string_to_param.*": VALUES}, "x", None),
        ({"string_to_param.word": VALUES}, "word", None),
        ({"bundle_emb.mine.string_to_param.*": VALUES, "lora_unet_a.lora_up.weight": SECOND},
         "mine", None),
        ({"bundle_emb.mine.emb_params": VALUES, "other": SECOND}, "mine", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_layouts_that_other_programs_refuse(tmp_path, caplog, content, trigger, left_out, suffix):
    path = tmp_path / f"x{suffix}"
    content = {k: v.clone() for k, v in content.items()}
    (save_file if suffix == ".safetensors" else torch.save)(content, path)
    with caplog.at_level(logging.WARNING, logger="ine"):
        found = read_embedding(path)
    assert found.trigger == trigger
    assert len(found.vectors) == 1
    assert torch.equal(found.vectors[0], VALUES)
    said = [r.message for r in caplog.records]
    assert said == ([f"{path}: {left_out} beside the embedding is not read"] if left_out else [])


@pytest.mark.parametrize("extra", [{}, {"t5xxl": numbers(4, 64)}, {"emb_params": VALUES}])
@pytest.mark.parametrize("prefix", ["", "bundle_emb.mine."])
def test_pairs_with_company(tmp_path, extra, prefix):
    content = {"clip_g": SECOND, "clip_l": VALUES, **extra}
    save_file({prefix + k: v.clone() for k, v in content.items()}, tmp_path / "x.safetensors")
    one, other = read_back(tmp_path / "x.safetensors")
    assert torch.equal(one, VALUES)
    assert torch.equal(other, SECOND)


def test_the_pair_of_cogs_trainer_and_of_early_pivotal_tuning(tmp_path):
    content = {"text_encoders_0": VALUES, "text_encoders_1": SECOND}
    save_file({k: v.clone() for k, v in content.items()}, tmp_path / "embeddings.pti")
    found = read_embedding(tmp_path / "embeddings.pti")
    assert (found.trigger, found.family) == ("embeddings", "sdxl")
    assert torch.equal(found.vectors[0], VALUES)
    assert torch.equal(found.vectors[1], SECOND)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16,
                                   torch.float8_e4m3fn, torch.float8_e5m2])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_numbers_of_every_floating_type_are_those_of_torch(tmp_path, dtype, suffix):
    path = tmp_path / f"x{suffix}"
    content = {"other": torch.ones(3), "emb_params": VALUES.to(dtype)}
    (save_file if suffix == ".safetensors" else torch.save)(content, path)
    (found,) = read_embedding(path).vectors
    assert found.dtype == torch.float32
    assert torch.equal(found, VALUES.to(dtype).float())
    found += 1  # nobody else's memory


def test_the_codes_of_dtypes_are_those_of_weights():
    assert set(containers.FLOATS) == set(FLOATS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text_encoders_1": SECOND}, "text_encoders_1 alone, half of an SDXL"),
        ({"bundle_emb.a.emb_params": VALUES, "bundle_emb.b.emb_params": VALUES},
         r"bundles 2 embeddings \(a, b\); expected one"),
        ({"clip_g": SECOND, "emb_params": VALUES}, "clip_g alone, half of an SDXL"),
        ({"clip_g": SECOND, "clip_l": VALUES, "emb_params": VALUES + 1}, "are not the same"),
        ({"clip_l": numbers(4, 768), "clip_g": numbers(2, 1280)}, "4 vectors in clip_l and 2"),
        ({"emb_params": torch.zeros(5000, 2)}, r"has shape \[5000, 2\]"),
        ({f"IN{i:02}": VALUES for i in range(16)}, "has 16 tensors that could be the embedding"),
    ],
)  # fmt: skip
def test_company_that_leaves_a_doubt_is_refused(tmp_path, content, message):
    save_file({k: v.clone() for k, v in content.items()}, tmp_path / "x.safetensors")
    with pytest.raises(EmbeddingError, match=message):
        read_embedding(tmp_path / "x.safetensors")


def test_every_row_of_the_table_is_met():
    met = {
        layouts.sdxl_pair: {"clip_l": (4, 768), "clip_g": (4, 1280)},
        layouts.well_known_key: {"emb_params": (4, 768)},
        layouts.one_tensor: {"<cat>": (4, 768)},
    }
    assert set(met) == set(layouts.LAYOUTS)
    for layout, shapes in met.items():
        assert next(f for f in layouts.LAYOUTS if f(shapes)) is layout


def test_a_tensor_with_too_many_rows_is_refused_before_it_is_read(tmp_path):
    content = containers.Content({"emb_params": (10**9, 768)}, get=None)
    with pytest.raises(EmbeddingError, match=r"has shape \[1000000000, 768\]"):
        layouts.choose(tmp_path / "x", content)


# ------------------------------------------------------------------- the two files of diffusers


NAMES = ("l.safetensors", "l_2.safetensors")
STEPS = ("learned_embeds-steps-500.safetensors", "learned_embeds_2-steps-500.safetensors")


def halves(folder, key="<cat>", second_key="<cat>", count=4, names=NAMES):
    for file, content in zip(names, ({key: VALUES}, {second_key: SECOND[:count]}), strict=True):
        content = {k: v.clone() for k, v in content.items()}
        (save_file if file.endswith(".safetensors") else torch.save)(content, folder / file)


@pytest.mark.parametrize(
    "names", [NAMES, STEPS, tuple(n.replace(".safetensors", ".bin") for n in STEPS)]
)
@pytest.mark.parametrize("given", [0, 1])
def test_the_two_files_of_diffusers_sdxl_script_are_one_embedding(tmp_path, names, given):
    halves(tmp_path, names=names)
    # Of an earlier step, and no partner of these.
    save_file({"<cat>": SECOND + 1}, tmp_path / "learned_embeds_2-steps-50.safetensors")
    found = read_embedding(tmp_path / names[given])
    assert (found.trigger, found.family) == ("<cat>", "sdxl")
    assert torch.equal(found.vectors[0], VALUES)
    assert torch.equal(found.vectors[1], SECOND)


@pytest.mark.parametrize("change", [{"second_key": "<dog>"}, {"count": 3}, {"key": "emb_params"}])
def test_files_side_by_side_that_do_not_belong_together_stay_apart(tmp_path, change):
    halves(tmp_path, **change)
    assert read_embedding(tmp_path / "l.safetensors").family == "sd1"
    assert read_embedding(tmp_path / "l_2.safetensors").family == "width-1280"


@pytest.mark.parametrize("beside", [b"", b"hello", None])
def test_a_half_alone_or_beside_rubbish_is_read_as_it_is(tmp_path, beside):
    halves(tmp_path)
    second = tmp_path / "l_2.safetensors"
    second.unlink() if beside is None else second.write_bytes(beside)
    assert read_embedding(tmp_path / "l.safetensors").family == "sd1"


@pytest.mark.parametrize("key", ["<cat>", "emb_params"])
@pytest.mark.parametrize(
    ("file", "missing"),
    [(STEPS[1], f"{STEPS[0]} is not beside it"), ("alone.safetensors", "the other is not known")],
)
def test_a_second_half_alone_is_said_to_be_one(tmp_path, caplog, key, file, missing):
    save_file({key: SECOND.clone()}, tmp_path / file)
    read_embedding(tmp_path / file)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "is one half of an SDXL embedding, of width 1280" in record.message
    assert missing in record.message


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ("learned_embeds_2-steps-500.safetensors", "WARNING"),
        ("learned_embeds_2-steps-1000.safetensors", "WARNING"),
        ("learned_embeds_2.safetensors", "WARNING"),
        (None, "INFO"),
    ],
)
def test_a_first_half_alone_is_said_to_be_what_it_may_be(tmp_path, caplog, beside, says):
    """A file of Stable Diffusion 1.x has the same name, key and width."""
    save_file({"<cat>": VALUES.clone()}, tmp_path / STEPS[0])
    if beside:
        save_file({"<dog>": SECOND.clone()}, tmp_path / beside)
    with caplog.at_level(logging.INFO, logger="ine"):
        assert read_embedding(tmp_path / STEPS[0]).family == "sd1"
    (record,) = caplog.records
    assert record.levelname == says
    assert "is read as Stable Diffusion 1.x; if it is one half of an SDXL" in record.message
    assert (f"{beside} beside it" if beside else f"{STEPS[1]} is not beside it") in record.message


def test_a_half_is_known_by_its_header(tmp_path, caplog):
    about = {"modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion"}
    save_file({"<cat>": VALUES.clone()}, tmp_path / "x.safetensors", about)
    read_embedding(tmp_path / "x.safetensors")
    assert "is one half of an SDXL embedding, of width 768" in caplog.text
    caplog.clear()
    about = {"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}
    save_file({"<cat>": VALUES.clone()}, tmp_path / "learned_embeds.safetensors", about)
    with caplog.at_level(logging.INFO, logger="ine"):
        read_embedding(tmp_path / "learned_embeds.safetensors")
    assert not caplog.records


def test_nothing_is_said_of_halves_where_there_is_no_doubt(tmp_path, caplog):
    halves(tmp_path)
    for version in ("dog.safetensors", "dog_2.safetensors"):
        save_file({"<dog>": VALUES.clone()}, tmp_path / version)
    save_file({"emb_params": VALUES.clone()}, tmp_path / "easy.safetensors")
    with caplog.at_level(logging.WARNING, logger="ine"):
        for file in ("easy.safetensors", "dog.safetensors", "dog_2.safetensors", NAMES[0]):
            read_embedding(tmp_path / file)
    assert not caplog.records


# --------------------------------------------------------------------------------- torch files

A1111 = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": VALUES},
    "name": "easyneg",
    "step": 500,
    "sd_checkpoint": None,
    "sd_checkpoint_name": None,
}


def with_parameter_dict(key="*"):
    return A1111 | {
        "string_to_param": nn.ParameterDict({key: nn.Parameter(VALUES.clone())}),
        "string_to_token": {"*": torch.tensor(265)},
    }


@pytest.mark.parametrize("key", ["*", "word"])
def test_parameter_dictionaries_of_early_textual_inversion(tmp_path, key):
    path = tmp_path / "x.pt"
    torch.save(with_parameter_dict(key), path)
    for _ in range(2):
        # The control: torch itself does not read it in its safe mode, before and afterwards.
        with pytest.raises(pickle.UnpicklingError, match="ParameterDict"):
            torch.load(path, weights_only=True)
        found = read_embedding(path)
        assert found.trigger == "easyneg"
        assert torch.equal(found.vectors[0], VALUES)


def test_a_parameter_dictionary_in_the_oldest_container_is_refused(tmp_path):
    torch.save(with_parameter_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(EmbeddingError, match=r"without running .*get a \.safetensors copy"):
        read_embedding(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("step", "said"),
    [(np.int64(500), "500"), (np.uint8(7), "7"), (np.float64(0.5), "0.5"), (np.arange(3), None)],
)
def test_numbers_of_numpy_beside_the_vectors(tmp_path, step, said, legacy):
    torch.save(A1111 | {"step": step}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    # The control: torch itself does not read it in its safe mode.
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(tmp_path / "x.pt", weights_only=True)
    found = read_embedding(tmp_path / "x.pt")
    assert torch.equal(found.vectors[0], VALUES)
    assert found.metadata.get("step") == said


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_that_torch_saved_on_apples_devices(tmp_path, legacy, dtype):
    content = A1111 | {
        "string_to_param": {"*": OnMps(VALUES.to(dtype))},
        "string_to_token": {"*": OnMps(torch.tensor(265))},
        "step": np.int64(500),
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    found = read_embedding(tmp_path / "x.pt")
    assert (found.trigger, found.metadata["step"]) == ("easyneg", "500")
    assert torch.equal(found.vectors[0], VALUES.to(dtype).float())


def test_threads_that_read_at_once_leave_torch_as_it_was(tmp_path):
    torch.save(A1111 | {"step": np.int64(5)}, tmp_path / "x.pt")
    before = torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_embedding, [tmp_path / "x.pt"] * 24))
    assert {e.metadata["step"] for e in found} == {"5"}
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_numpy_in_files_of_weights_is_read_as_well(tmp_path):
    state = {"w": OnMps(VALUES), "epoch": np.int64(3), "loss": np.float32(0.5)}
    torch.save(state, tmp_path / "x.pt")
    found = load_torch_file(tmp_path / "x.pt", mapped=True)
    assert torch.equal(found["w"], VALUES)
    assert (found["epoch"], found["loss"]) == (3, 0.5)


@pytest.mark.parametrize(
    "step",
    [np.array([1, None], object), np.str_("a"), np.datetime64("2020-01-01"), np.array(["a"]),
     np.zeros(2, [("a", "f4")]), np.complex64(1)],
)  # fmt: skip
def test_what_numpy_has_beside_numbers_is_refused(tmp_path, step):
    torch.save(A1111 | {"step": step}, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError, match=r"without running .*get a \.safetensors copy"):
        read_embedding(tmp_path / "x.pt")


A1111_LETS_THROUGH = [
    *(("collections", "OrderedDict"), ("__builtin__", "set"), ("_codecs", "encode")),
    *(("torch._utils", f"_rebuild_{x}") for x in ("tensor_v2", "parameter")),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    *(("torch", f"{x}Storage") for x in ("Float", "Half", "Int", "Long", "Double", "Byte")),
    *(("torch", "BFloat16Storage"), ("torch", "float32")),
    ("torch.nn.modules.container", "ParameterDict"),
    *(("numpy.core.multiarray", x) for x in ("scalar", "_reconstruct")),
    *(("numpy", "dtype"), ("numpy", "ndarray")),
    ("pytorch_lightning.callbacks", "model_checkpoint"),
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
]
"""What its own check of torch files lets through, 1.10.1: modules and names in them."""


@pytest.mark.parametrize(("module", "attribute"), A1111_LETS_THROUGH)
def test_nothing_that_a1111_lets_through_is_accused(tmp_path, module, attribute):
    body = program(b"}" + text_("x") + name(module, attribute) + b"s")
    (tmp_path / "x.pt").write_bytes(as_zip(body))
    with pytest.raises(EmbeddingError) as caught:
        read_embedding(tmp_path / "x.pt")
    assert "trust" not in str(caught.value)
    assert ("holds no embedding" in str(caught.value)) != module.startswith("pytorch_lightning")


def test_objects_of_training_programs_are_refused_without_an_accusation(tmp_path):
    body = name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    (tmp_path / "x.pt").write_bytes(as_zip(program(b"}" + text_("callbacks") + body + b"s")))
    with pytest.raises(EmbeddingError, match="an object of a training program") as caught:
        read_embedding(tmp_path / "x.pt")
    assert "trust" not in str(caught.value)
    (tmp_path / "x.pt").write_bytes(as_zip(program(b"}" + text_("x") + name("os", "mkdir") + b"s")))
    with pytest.raises(EmbeddingError, match="do not trust"):
        read_embedding(tmp_path / "x.pt")


def test_the_list_of_dictionaries_that_comfyui_reads(tmp_path):
    torch.save([{"<a>": VALUES[:1]}, {"<b>": VALUES[1:], "n": 3}], tmp_path / "x.pt")
    assert torch.equal(read_back(tmp_path / "x.pt")[0], VALUES)
    torch.save([{"<a>": VALUES, "<b>": SECOND}], tmp_path / "x.pt")
    one, other = read_back(tmp_path / "x.pt")
    assert torch.equal(one, VALUES)
    assert torch.equal(other, SECOND)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a list, not an embedding"),
        ([{"a": VALUES}, 3], r"not an embedding \(2 of dict, int\)"),
        ([{"a": VALUES}] * 17, "17 of dict"),
        ([{"a": VALUES, "b": numbers(1, 1024)}], "has 2 tensors that could be the embedding"),
        ([{"a": VALUES, "b": SECOND[:2]}], "4 vectors in clip_l and 2 in clip_g"),
        ([{"a": torch.arange(3)}], "holds no embedding"),
    ],
)
def test_lists_that_are_no_embedding(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError, match=message):
        read_embedding(tmp_path / "x.pt")


class Forged:
    """Pickles as a ParameterDict with a state of its own."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return (nn.ParameterDict, (), self.state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_parameters": [1, 2], "keys": 3, "__class__": 4}, "holds no embedding"),
        ({"_parameters": {"*": "text"}}, "holds no embedding"),
        (["no dictionary"], "holds no embedding"),
        ({"_parameters": {"*": VALUES}, "keys": os.mkdir}, r"asks to run \w+\.mkdir"),
    ],
)
def test_a_forged_parameter_dictionary_is_only_looked_at(tmp_path, state, message):
    torch.save({"string_to_param": Forged(state)}, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError, match=message):
        read_embedding(tmp_path / "x.pt")
    good = {"_parameters": {"*": VALUES}, "__class__": "int", "parameters": "not a method"}
    torch.save({"string_to_param": Forged(good)}, tmp_path / "x.pt")
    assert torch.equal(read_embedding(tmp_path / "x.pt").vectors[0], VALUES)


def test_a_zip_with_nothing_but_what_a1111_knows(tmp_path):
    torch.save(A1111, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as old,
        zipfile.ZipFile(tmp_path / "x.pt", "w") as new,
    ):
        for name in old.namelist():
            if name.endswith(("data.pkl", "/version")) or "/data/" in name:
                new.writestr(name, old.read(name))
    assert len(zipfile.ZipFile(tmp_path / "x.pt").namelist()) == 3
    assert torch.equal(read_back(tmp_path / "x.pt")[0], VALUES)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        bomb.writestr("archive/data/0", bytes(70 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(EmbeddingError, match="would unpack to 70 MiB"):
        read_embedding(path)


# ------------------------------------------------------------------------------------ pictures


def as_json(content, tensor=VALUES):
    table = {"TORCHTENSOR": tensor.tolist()}
    return json.dumps(content | {"string_to_param": {"*": table}}).encode()


def in_text(data, path, **kwargs):
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(data).decode(), **kwargs)
    Image.new("RGB", (32, 32), (90, 120, 200)).save(path, pnginfo=info)


def in_pixels(data, path, height=256, **kwargs):
    """The layout as ine.embeddings.pictures describes it, the picture itself 40 wide."""
    packed = np.frombuffer(zlib.compress(data, 9), np.uint8)
    row = 3 * height
    filled = np.resize(packed, (len(packed) // row + 1) * row)
    middle = np.full((height, 40, 3), 200, np.uint8)
    middle[:, 7:9] = 16  # columns without low bits, as any flat colour may have them
    sheet = [part.reshape(height, -1, 3) for part in (filled & 15, filled >> 4)]
    mask = slow_noise(filled.size).reshape(sheet[0].shape) & 15
    # The high bits are decoration; above zero, so that no pixel counts as the black frame.
    low, high = ((part ^ mask) | 96 for part in sheet)
    gap = np.zeros((height, 1, 3), np.uint8)
    whole = np.concatenate([low, gap, middle, gap, high], axis=1)
    Image.fromarray(whole).save(path, **kwargs)


def slow_noise(count):
    out, state = [], 0
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        out.append(state % 255)
    return np.array(out, np.uint8)


def test_the_noise_is_that_of_a1111():
    assert noise(8).tolist() == [253, 242, 127, 44, 157, 27, 239, 133]
    assert int(noise(100_100)[100:].astype(int).sum()) == 12_731_374
    assert np.array_equal(noise(1000), slow_noise(1000))


@pytest.mark.parametrize(
    ("write", "name", "kwargs"),
    [
        (in_text, "x.png", {}),
        (in_text, "x.png", {"zip": True}),
        (in_pixels, "x.png", {}),
        (in_pixels, "x.pt", {"format": "PNG"}),
        pytest.param(
            in_pixels, "x.webp", {"lossless": True, "exact": True},
            marks=pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP"),
        ),
    ],
)  # fmt: skip
def test_pictures_of_a1111(tmp_path, write, name, kwargs):
    tensor = VALUES[:1] if "zip" in kwargs else VALUES
    content = {"name": "inner", "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": "m"}
    write(as_json(content, tensor), tmp_path / name, **kwargs)
    found = read_embedding(tmp_path / name)
    assert (found.trigger, found.family) == ("inner", "sd1")
    assert torch.equal(found.vectors[0], tensor)
    assert found.metadata == {"step": "500", "sd_checkpoint_name": "m"}


def test_text_wins_over_pixels_and_the_stem_stands_in_for_a_name(tmp_path):
    in_pixels(as_json({"name": "pixels"}), tmp_path / "x.png")
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(as_json({}, VALUES[:2])).decode())
    Image.open(tmp_path / "x.png").save(tmp_path / "both.png", pnginfo=info)
    found = read_embedding(tmp_path / "both.png")
    assert (found.trigger, found.count) == ("both", 2)


def plain(path):
    Image.new("RGB", (64, 64), (90, 120, 200)).save(path)


def black(path):
    Image.new("RGB", (64, 64)).save(path)


def photograph(path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels[:, [20, 40]] = 0
    Image.fromarray(pixels).save(path)


def resized(path):
    in_pixels(as_json({}), path)
    image = Image.open(path)
    image.resize((image.width - 16, image.height)).save(path)


def one_bit_off(path):
    in_pixels(as_json({}), path)
    image = Image.open(path)
    red, *rest = image.getpixel((5, 5))
    image.putpixel((5, 5), (red ^ 1, *rest))
    image.save(path)


def cut(path):
    in_pixels(as_json({}), path)
    path.write_bytes(path.read_bytes()[:2000])


def bomb(path):
    in_pixels(bytes(2**24), path)


def text(data):
    return lambda path: in_text(data, path)


def raw_text(value):
    def write(path):
        info = PngImagePlugin.PngInfo()
        info.add_text("sd-ti-embedding", value)
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (plain, "is a picture with no embedding in it"),
        (black, "is a picture with no embedding in it"),
        (photograph, "is a picture with no embedding in it"),
        (resized, "no embedding in it|is not whole, as after resizing"),
        (one_bit_off, "is not whole, as after resizing"),
        (cut, "is a picture that is damaged or cut short"),
        (bomb, "is not whole"),
        (raw_text("no base64!"), "is not whole"),
        (text(b"{"), "is not whole"),
        (text(b"[" * 100_000), "is not whole"),
        (text(b"[]"), "is not whole"),
        (text(b"{}"), "holds no embedding"),
        (text(b'{"string_to_param": {"*": 3}}'), "holds no embedding"),
        (text(b'{"string_to_param": {"*": {"TORCHTENSOR": [[1], [2, 3]]}}}'), "no table of num"),
        (text(b'{"string_to_param": {"*": {"TORCHTENSOR": [["a"]]}}}'), "no table of numbers"),
        (text(b'{"string_to_param": {"*": {"TORCHTENSOR": [[NaN]]}}}'), "not finite"),
        (text(b" " * (2**23 + 1)), "8 MiB of data in it, more than any embedding"),
    ],
)
def test_pictures_that_are_refused(tmp_path, write, message):
    write(tmp_path / "x.png")
    with pytest.raises(EmbeddingError, match=message) as caught:
        read_embedding(tmp_path / "x.png")
    assert str(caught.value).startswith(f"{tmp_path / 'x.png'}: ")


def test_kinds_of_pictures_that_cannot_carry_one(tmp_path):
    for kind in ("JPEG", "GIF"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, kind)
        (tmp_path / "x.png").write_bytes(buffer.getvalue())
        with pytest.raises(EmbeddingError, match=f"is a {kind} picture, which cannot carry"):
            read_embedding(tmp_path / "x.png")


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path, monkeypatch):
    plain(tmp_path / "x.png")
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 64 * 64 - 1)
    with pytest.raises(EmbeddingError, match="of 64 x 64 pixels, too large"):
        read_embedding(tmp_path / "x.png")
