"""Other programs' embedding files: every layout that is read, containers, pictures."""

import base64
import io
import json
import logging
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features
from safetensors.torch import save_file
from torch import nn

import ine.formats.pictures as pictures
from ine.embedding import read_embedding
from ine.errors import EmbeddingError
from ine.formats import containers, layouts
from ine.formats.pictures import noise


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
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


def halves(folder, key="<cat>", second_key="<cat>", count=4, names=("l.safetensors",)):
    stem = Path(names[0])
    save_file({key: VALUES.clone()}, folder / stem)
    save_file({second_key: SECOND[:count].clone()}, folder / stem.with_stem(stem.stem + "_2"))


@pytest.mark.parametrize("given", ["l.safetensors", "l_2.safetensors"])
def test_the_two_files_of_diffusers_sdxl_script_are_one_embedding(tmp_path, given):
    halves(tmp_path)
    found = read_embedding(tmp_path / given)
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
    """The layout as ine.formats.pictures describes it, the picture itself 40 wide."""
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
