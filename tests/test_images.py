import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ine.errors import PicturesError
from ine.inversion.images import (
    PICTURES,
    ConceptPictures,
    draw_latents,
    encode_pictures,
)
from ine.inversion.picture_folder import list_pictures, read_folder


def arrays(parts, count, seed=0):
    size = parts.picture_size
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(parts, pictures, batch=4):
    return encode_pictures(parts, pictures, None, [str(i) for i in range(len(pictures))], batch)


@pytest.fixture
def folder(tmp_path, tiny_parts):
    folder = tmp_path / "fire"
    folder.mkdir()
    for name, picture in zip("abc", arrays(tiny_parts, 3), strict=True):
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def batches_seen(tiny_parts):
    """Return a list that grows by the shape of every input of the VAE's encoder."""
    seen = []
    encoder = tiny_parts.vae.encoder
    handle = encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    yield seen
    handle.remove()


# Folders


def test_listing_is_sorted_and_takes_pictures_only(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "d.bmp", "e.gif", "f.jpg"):
        (tmp_path / name).touch()
    for name in (".hidden.png", "notes.txt", "model.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [path.name for path in list_pictures(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c.webp", "d.bmp", "e.gif", "f.jpg"]


def test_folders_without_pictures(tmp_path):
    with pytest.raises(PicturesError, match=r"no pictures found; looked for \.png \.jpg"):
        list_pictures(tmp_path)
    with pytest.raises(PicturesError, match="nowhere: no such folder"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "a.png").touch()
    with pytest.raises(PicturesError, match=r"a\.png: is a file; give the folder"):
        list_pictures(tmp_path / "a.png")


def test_folder_is_encoded_as_its_pictures_are(folder, tiny_parts):
    pictures = read_folder(tiny_parts, folder, batch=4)
    assert pictures.names == ("a.png", "b.png", "c.png")
    assert pictures.count == 3
    assert pictures.captions is None
    expected = encode(tiny_parts, arrays(tiny_parts, 3))
    assert torch.equal(pictures.mean, expected.mean)
    assert torch.equal(pictures.std, expected.std)


def test_all_broken_pictures_are_named_together(folder, tiny_parts, batches_seen):
    (folder / "bad.jpg").write_bytes(b"not a picture")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    with pytest.raises(PicturesError, match="2 of 5 pictures cannot be used") as caught:
        read_folder(tiny_parts, folder)
    message = str(caught.value)
    assert "bad.jpg: is not a picture" in message
    assert "dot.png: is a 1-pixel picture" in message
    assert "--skip-bad" in message
    assert "a.png" not in message
    assert not batches_seen


def test_broken_pictures_are_skipped_on_request_and_logged(folder, tiny_parts, caplog):
    (folder / "aa.jpg").write_bytes(b"not a picture")
    pictures = read_folder(tiny_parts, folder, skip_bad=True, batch=4)
    assert pictures.names == ("a.png", "b.png", "c.png")
    assert torch.equal(pictures.mean, encode(tiny_parts, arrays(tiny_parts, 3)).mean)
    assert "skipped" in caplog.text
    assert "aa.jpg" in caplog.text


def test_skipping_leaves_at_least_one(tmp_path, tiny_parts):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(PicturesError, match="none of 1 pictures can be used") as caught:
        read_folder(tiny_parts, tmp_path, skip_bad=True)
    assert "a.png" in str(caught.value)


# Captions


def write_captions(folder, kind, captions):
    if kind == "txt":
        for name, text in captions.items():
            (folder / name).with_suffix(".txt").write_text(text + "\n")
    elif kind == "caption":
        for name, text in captions.items():
            (folder / name).with_suffix(".caption").write_text(text + "\n")
    elif kind in ("csv", "metadata.csv", "excel"):
        sep = ";" if kind == "excel" else ","
        rows = "".join(f'{name}{sep}"{text}"\n' for name, text in captions.items())
        head = "sep=;\r\nfile_name;caption\n" if kind == "excel" else "file_name,text\n"
        name = "metadata.csv" if kind == "metadata.csv" else "captions.csv"
        (folder / name).write_text("\ufeff" + head + rows)
    else:
        rows = [json.dumps({"file_name": n, "text": t}) for n, t in captions.items()]
        (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


CAPTIONS = {"a.png": "dog", "b.png": "fire truck, red", "c.png": "\u732b"}
KINDS = ["txt", "caption", "csv", "metadata.csv", "excel", "jsonl"]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_follow_their_pictures(folder, tiny_parts, kind):
    write_captions(folder, kind, dict(reversed(CAPTIONS.items())))
    assert read_folder(tiny_parts, folder).captions == tuple(CAPTIONS.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captions", [{"a.png": "dog"}, {**CAPTIONS, "b.png": " "}])
def test_captions_for_some_pictures_only(folder, tiny_parts, kind, captions):
    write_captions(folder, kind, captions)
    with pytest.raises(PicturesError, match=r"some pictures only; missing or empty for b\.png"):
        read_folder(tiny_parts, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_picture_needs_no_caption(folder, tiny_parts, kind):
    (folder / "d.png").write_bytes(b"not a picture")
    write_captions(folder, kind, CAPTIONS)
    pictures = read_folder(tiny_parts, folder, skip_bad=True)
    assert pictures.captions == tuple(CAPTIONS.values())


def test_a_stray_text_file_is_no_caption(folder, tiny_parts):
    (folder / "readme.txt").write_text("from the archive")
    assert read_folder(tiny_parts, folder).captions is None


def test_captions_from_two_places(folder, tiny_parts):
    write_captions(folder, "txt", CAPTIONS)
    write_captions(folder, "csv", CAPTIONS)
    with pytest.raises(PicturesError, match=r"captions come from captions\.csv and the \.txt"):
        read_folder(tiny_parts, folder)


def test_captions_beside_pictures_of_two_endings(folder, tiny_parts):
    write_captions(folder, "txt", CAPTIONS)
    write_captions(folder, "caption", CAPTIONS)
    with pytest.raises(PicturesError, match=r"from the \.txt files and the \.caption files"):
        read_folder(tiny_parts, folder)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("metadata.csv", b"file_name,label\na.png,1\n", "looked for as text, caption, prompt"),
        ("captions.csv", b"name,caption\na.png,dog\n", "entry 1 has no text for 'file_name'"),
        ("captions.csv", b"file_name,text\na.png,dog\na.png,cat\n", "a.png is named twice"),
        ("metadata.jsonl", b"{'file_name': 'a.png'}\n", "cannot be read as jsonl"),
        ("metadata.jsonl", b"[1]\n", "entry 1 has no text"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 3}\n', "entry 1 has no text"),
        ("a.txt", b"caf\xe9", "cannot be read as UTF-8 text"),
    ],
)
def test_broken_captions(folder, tiny_parts, name, data, said):
    (folder / name).write_bytes(data)
    with pytest.raises(PicturesError, match=said) as caught:
        read_folder(tiny_parts, folder)
    assert name in str(caught.value)


# Encoding


def test_moments_are_those_of_the_vae(tiny_parts):
    pictures = arrays(tiny_parts, 2)
    found = encode(tiny_parts, pictures)
    pixels = torch.from_numpy(pictures / 127.5 - 1).float().permute(0, 3, 1, 2)
    posterior = tiny_parts.vae.encode(pixels).latent_dist
    scaling = tiny_parts.vae.config.scaling_factor
    torch.testing.assert_close(found.mean, posterior.mean * scaling, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.std, posterior.std * scaling, rtol=1e-5, atol=1e-5)
    assert found.mean.shape == (2, *tiny_parts.latent_shape)
    assert not found.mean.requires_grad
    assert not torch.equal(found.mean[0], found.mean[1])


def test_vae_sees_one_shape_only(tiny_parts, batches_seen):
    size = tiny_parts.picture_size
    assert encode(tiny_parts, arrays(tiny_parts, 9)).count == 9
    assert batches_seen == [(4, 3, size, size)] * 3


def test_moments_do_not_depend_on_how_many_others_there_are(tiny_parts):
    pictures = arrays(tiny_parts, 9)
    many = encode(tiny_parts, pictures)
    for count in (1, 3, 5):
        few = encode(tiny_parts, pictures[:count])
        torch.testing.assert_close(few.mean, many.mean[:count], rtol=0, atol=1e-5)
        torch.testing.assert_close(few.std, many.std[:count], rtol=0, atol=1e-5)
    moved = encode(tiny_parts, pictures[::-1])
    torch.testing.assert_close(moved.mean.flip(0), many.mean, rtol=0, atol=1e-5)


def test_same_place_in_equal_batches_gives_the_same_bits(tiny_parts):
    pictures = arrays(tiny_parts, 8)
    many, few = encode(tiny_parts, pictures), encode(tiny_parts, pictures[:4])
    assert torch.equal(many.mean[:4], few.mean)
    assert torch.equal(many.std[:4], few.std)
    assert torch.equal(encode(tiny_parts, pictures).mean, many.mean)


@pytest.mark.parametrize("fails", [False, True])
def test_a_half_precision_vae_is_lent_in_float32_and_given_back(tiny_parts, monkeypatch, fails):
    vae = copy.deepcopy(tiny_parts.vae).to(torch.float16)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    parts, pictures = replace(tiny_parts, vae=vae), arrays(tiny_parts, 2)
    if fails:
        monkeypatch.setattr(vae, "encode", lambda pixels: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encode(parts, pictures)
    else:
        found = encode(parts, pictures)
        assert found.mean.dtype == torch.float32
        expected = encode(tiny_parts, pictures)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=0.02)
    assert vae.dtype == torch.float16
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def test_arrays_that_do_not_fit(tiny_parts):
    pictures = arrays(tiny_parts, 2)
    for wrong in (pictures / 255, pictures[:, 1:], pictures[:0], pictures[0]):
        with pytest.raises(ValueError, match="expected uint8 pictures"):
            encode(tiny_parts, wrong)
    with pytest.raises(ValueError, match="2 pictures need as many names"):
        encode_pictures(tiny_parts, pictures, None, ["a"])
    with pytest.raises(ValueError, match="2 pictures need as many names"):
        encode_pictures(tiny_parts, pictures, ["dog"], ["a", "b"])


# Re-sampling


def test_draws_have_the_moments_of_the_posterior(tiny_parts):
    pictures, draws = encode(tiny_parts, arrays(tiny_parts, 2)), 4000
    latents = draw_latents(pictures, [1] * draws, torch.Generator().manual_seed(0))
    mean, std = pictures.mean[1], pictures.std[1]
    # Six standard errors: of a mean sigma / sqrt(n), of a deviation sigma / sqrt(2 n).
    assert ((latents.mean(0) - mean).abs() < 6 * std / draws**0.5).all()
    assert ((latents.std(0) - std).abs() < 6 * std / (2 * draws) ** 0.5).all()
    assert ((latents.mean(0) - pictures.mean[0]).abs() > 6 * std / draws**0.5).any()


def test_draws_follow_index_and_generator(tiny_parts):
    pictures = encode(tiny_parts, arrays(tiny_parts, 3))

    def draw(index, seed):
        return draw_latents(pictures, index, torch.Generator().manual_seed(seed))

    assert draw(2, 0).shape == tiny_parts.latent_shape
    assert draw([2, 0], 0).shape == (2, *tiny_parts.latent_shape)
    assert torch.equal(draw([2, 0], 0), draw(torch.tensor([2, 0]), 0))
    assert not torch.equal(draw([2, 0], 0), draw([2, 0], 1))
    generator = torch.Generator().manual_seed(0)
    steps = [draw_latents(pictures, 2, generator) for _ in range(2)]
    assert not torch.equal(*steps)
    exact = replace(pictures, std=torch.zeros_like(pictures.std))
    assert torch.equal(draw_latents(exact, [2, 0], generator), pictures.mean[[2, 0]])


# Cache


@pytest.fixture
def moments():
    generator = torch.Generator().manual_seed(0)
    return ConceptPictures(
        mean=torch.randn(3, 4, 8, 8, generator=generator),
        std=torch.rand(3, 4, 8, 8, generator=generator),
        captions=("dog", "caf\u00e9", "\u732b"),
        names=("a.png", "b.png", "c.png"),
    )


@pytest.mark.parametrize("captions", [("dog", "caf\u00e9", "\u732b"), None])
def test_cache_round_trip(tmp_path, moments, captions):
    moments = replace(moments, captions=captions)
    PICTURES.write(moments, tmp_path / "a.safetensors", "key")
    found = PICTURES.read(tmp_path / "a.safetensors", "key")
    assert torch.equal(found.mean, moments.mean)
    assert torch.equal(found.std, moments.std)
    assert (found.captions, found.names) == (captions, moments.names)


def test_cache_bytes_depend_on_the_input_only(tmp_path, moments):
    for name, key in (("a", "1"), ("b", "1"), ("c", "2")):
        PICTURES.write(moments, tmp_path / name, key)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_cache_under_another_key_is_not_used(tmp_path, moments):
    path = tmp_path / "a.safetensors"
    assert PICTURES.read(path, "key") is None
    PICTURES.write(moments, path, "key")
    assert PICTURES.read(path, "other") is None
    assert PICTURES.read(path, "key") is not None
    PICTURES.write(moments, path, "other")
    assert PICTURES.read(path, "key") is None


@pytest.mark.parametrize("kind", ["text", "embedding", "cut"])
def test_a_file_that_is_no_cache(tmp_path, moments, kind):
    path = tmp_path / "a.safetensors"
    if kind == "text":
        path.write_bytes(b"a letter")
    elif kind == "embedding":
        save_file({"emb_params": torch.zeros(2, 4)}, path)
    else:
        PICTURES.write(moments, path, "key")
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PicturesError, match=r"a\.safetensors: is not a cache of pictures"):
        PICTURES.read(path, "key")


def test_pictures_of_kinds_that_are_not_read_are_named(folder, tiny_parts, caplog):
    for name in ("a.heic", "b.PSD", "notes.txt", ".c.jxl"):
        (folder / name).touch()
    assert read_folder(tiny_parts, folder, batch=4).names == ("a.png", "b.png", "c.png")
    assert "passed over a.heic, b.PSD; to use them, convert them to PNG or JPEG" in caplog.text
    assert "notes.txt" not in caplog.text


def test_nothing_is_said_where_all_pictures_are_read(folder, tiny_parts, caplog):
    read_folder(tiny_parts, folder, batch=4)
    assert "passed over" not in caplog.text


def test_pictures_in_folders_below_are_counted(folder, tiny_parts, caplog):
    (folder / "more" / "deep").mkdir(parents=True)
    (folder / "more" / "deep" / "d.jfif").touch()
    (folder / "more" / "notes.txt").touch()
    assert read_folder(tiny_parts, folder, batch=4).names == ("a.png", "b.png", "c.png")
    assert "1 pictures in its sub-folders are not used" in caplog.text


def test_a_folder_of_heic_alone_asks_to_convert_them(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.heic").touch()
    message = r"no pictures found.*holds 0\.heic, .*4\.heic and 2 more, convert them to PNG"
    with pytest.raises(PicturesError, match=message):
        list_pictures(tmp_path)
