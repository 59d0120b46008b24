import base64
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageFilter

from ine.display import BLUR_CELLS, GAP, blur, contact_sheet
from ine.errors import PicturesError
from ine.pictures import AVIF, png_data_uri, read_picture, read_png_text, write_png

RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def quadrants(side=32):
    """Return a picture whose four quarters differ, so that every rotation shows."""
    picture = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    picture[:half, :half], picture[:half, half:] = RED, (0, 255, 0)
    picture[half:, :half], picture[half:, half:] = (0, 0, 255), WHITE
    return picture


def png_header(path, width, height):
    """Write a PNG whose header claims a size that its data does not have."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def is_colour(picture, colour, tolerance=2):
    return np.abs(picture.astype(int) - colour).max() <= tolerance


# TextOptions what is fine


def test_a_square_png_of_the_right_size_comes_back_bit_for_bit(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 32)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, noise())
    picture[0] = 0  # the caller owns it


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_the_middle_square_is_kept(tmp_path, shape):
    wide = noise(*shape)
    Image.fromarray(wide).save(tmp_path / "a.png")
    top, left = (shape[0] - 32) // 2, (shape[1] - 32) // 2
    expected = wide[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 32), expected)


def test_pixels_outside_the_square_do_not_leak_in(tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :16] = picture[:, -16:] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", 32).max() == 0


@pytest.mark.parametrize(("side", "filter_"), [(64, "LANCZOS"), (16, "BICUBIC")])
def test_filters_for_shrinking_and_growing(tmp_path, side, filter_):
    image = Image.fromarray(noise(side, side))
    image.save(tmp_path / "a.png")
    expected = np.array(image.resize((32, 32), Image.Resampling[filter_]))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 32), expected)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_exif_rotation_turns_the_pixels(tmp_path, orientation, turns, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quadrants()).save(path, exif=exif, quality=100)
    expected = np.rot90(quadrants(), turns).astype(int)
    centres = np.ix_([8, 24], [8, 24])
    found = read_picture(path, 32).astype(int)
    assert np.abs(found[centres] - expected[centres]).max() <= 8
    assert turns == 0 or np.abs(found - quadrants()).max() > 200


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "CMYK"
    assert is_colour(read_picture(tmp_path / "a.jpg", 16), RED, 4)


def test_palette(tmp_path):
    image = Image.fromarray(quadrants()).quantize(4)
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 32), quadrants())


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (8, 0, 16, 16))
    image.save(tmp_path / "a.png", transparency=0)
    picture = read_picture(tmp_path / "a.png", 16)
    assert is_colour(picture[:, :8], WHITE, 0)
    assert is_colour(picture[:, 8:], RED, 0)


@pytest.mark.parametrize(("mode", "colour"), [("L", 100), ("1", 1)])
def test_grey_and_bilevel(tmp_path, mode, colour):
    Image.new(mode, (16, 16), colour).save(tmp_path / "a.png")
    expected = 255 if mode == "1" else 100
    assert is_colour(read_picture(tmp_path / "a.png", 16), (expected,) * 3, 0)


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 16)
    np.testing.assert_array_equal(picture, np.repeat((ramp >> 8)[..., None], 3, axis=2))
    assert len(np.unique(picture)) > 200  # clipping would leave white


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path, mode):
    alpha = Image.new("L", (24, 16), 0)
    alpha.paste(255, (8, 0, 16, 16))
    alpha.paste(128, (16, 0, 24, 16))
    image = Image.new(mode, (24, 16), (0,) * len(mode))
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 16)
    # The middle 16 of 24 columns: four clear, eight opaque, four half so.
    assert is_colour(picture[:, :4], WHITE, 0)
    assert is_colour(picture[:, 4:12], (0, 0, 0), 0)
    assert is_colour(picture[:, 12:], (127, 127, 127), 1)


def test_animated_gif_gives_its_first_frame_and_a_warning(tmp_path, caplog):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert is_colour(read_picture(tmp_path / "a.gif", 16), RED, 0)
    assert "a.gif: is animated; its first frame is used" in caplog.text


@pytest.mark.skipif(not AVIF, reason="this Pillow reads no AVIF")
def test_an_avif_is_read(tmp_path):
    Image.fromarray(quadrants()).save(tmp_path / "a.avif", quality=100)
    assert np.abs(read_picture(tmp_path / "a.avif", 32).astype(int) - quadrants()).mean() < 20


def test_still_gif_warns_of_nothing(tmp_path, caplog):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.gif")
    assert is_colour(read_picture(tmp_path / "a.gif", 16), RED, 0)
    assert not caplog.text


# TextOptions what is not


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    read_picture(path, 32)  # whole, it is fine
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PicturesError, match=rf"a\.{suffix}: is (broken|not a picture)"):
        read_picture(path, 32)


def test_broken_checksum_is_refused(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PicturesError, match=r"a\.png: is broken or truncated"):
        read_picture(tmp_path / "a.png", 32)


@pytest.mark.parametrize("kind", ["EPS", "TIFF"])
def test_other_readers_are_not_let_loose_on_a_file(tmp_path, kind):
    Image.fromarray(noise()).save(tmp_path / "a.png", format=kind)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == kind
    with pytest.raises(PicturesError, match=r"a\.png: is not a picture that can be read"):
        read_picture(tmp_path / "a.png", 32)


@pytest.mark.parametrize("data", [b"", b"a letter"])
def test_what_is_no_picture_is_refused(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PicturesError, match=r"a\.png: is not a picture that can be read"):
        read_picture(tmp_path / "a.png", 32)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PicturesError, match=r"a\.png: no such picture"):
        read_picture(tmp_path / "a.png", 32)


@pytest.mark.parametrize(
    ("size", "said"), [((1, 1), "is a 1-pixel picture; at least 8"), ((7, 50), "is 7 x 50; at")]
)
def test_tiny_pictures_are_refused(tmp_path, size, said):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(PicturesError, match=rf"a\.png: {said}"):
        read_picture(tmp_path / "a.png", 32)


def test_eight_pixels_are_enough(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    assert is_colour(read_picture(tmp_path / "a.png", 32), RED, 0)


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (100_000, 100_000)])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, width, height):
    png_header(tmp_path / "a.png", width, height)
    with pytest.raises(PicturesError, match=r"a\.png: is too large .*100 megapixels"):
        read_picture(tmp_path / "a.png", 32)


def test_below_the_limit_the_data_are_looked_at_without_a_warning(tmp_path):
    png_header(tmp_path / "a.png", 9_999, 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PicturesError, match="is broken or truncated"):
            read_picture(tmp_path / "a.png", 32)


def test_settings_of_pillow_are_left_alone(tmp_path):
    def settings():
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    before = settings()
    png_header(tmp_path / "a.png", 100_000, 100_000)
    with pytest.raises(PicturesError):
        read_picture(tmp_path / "a.png", 32)
    assert settings() == before


# Writing


def test_png_round_trip_with_text(tmp_path):
    text = {
        "parameters": "a dog, beach\nNegative prompt: <fire>\nSteps: 20",
        "ine": '{"prompt": "\u706b caf\u00e9"}',
        "note": "caf\u00e9",
    }
    write_png(tmp_path / "a.png", noise(), text)
    assert read_png_text(tmp_path / "a.png") == text
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 32), noise())
    data = (tmp_path / "a.png").read_bytes()
    assert b"tEXtparameters\0" in data
    assert b"iTXtine\0" in data


def test_png_bytes_depend_on_the_input_only(tmp_path):
    for name, value in (("a", "1"), ("b", "1"), ("c", "2")):
        write_png(tmp_path / name, noise(), {"parameters": value})
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_png_without_text(tmp_path):
    write_png(tmp_path / "a.png", noise())
    assert read_png_text(tmp_path / "a.png") == {}


def test_png_text_of_something_else(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.jpg")
    with pytest.raises(PicturesError, match=r"a\.jpg: cannot be read as a PNG"):
        read_png_text(tmp_path / "a.jpg")
    with pytest.raises(PicturesError, match=r"b\.png: no such picture"):
        read_png_text(tmp_path / "b.png")


@pytest.mark.parametrize("key", ["", "k" * 80, "\u706b", "a\0b"])
def test_keywords_that_png_does_not_have(tmp_path, key):
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(ValueError, match="is not a PNG keyword"):
        write_png(tmp_path / "a.png", noise(), {key: "x"})
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("picture", [noise() / 255.0, noise()[..., 0], noise()[None]])
def test_what_is_not_a_picture_is_not_written(tmp_path, picture):
    with pytest.raises(ValueError, match="a picture is uint8"):
        write_png(tmp_path / "a.png", picture)


def test_data_uri():
    head, data = png_data_uri(noise()).split(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(data)))), noise())


# Blur


def detail(picture, cells=BLUR_CELLS):
    """Return what is left of a picture without the mean colours of its cells."""
    height, width = (side // cells for side in picture.shape[:2])
    blocks = picture.astype(float).reshape(cells, height, cells, width, 3)
    return (blocks - blocks.mean(axis=(1, 3), keepdims=True)).reshape(-1)


def share_of_detail(blurred, picture):
    """Return how much of a picture's detail another shows: 1 all of it, 0 none."""
    return detail(blurred) @ detail(picture) / (detail(picture) @ detail(picture))


@pytest.mark.parametrize("side", [32, 64, 512])
def test_blur_leaves_no_detail(side):
    smooth = Image.fromarray(noise(8, 8)).resize((side, side), Image.Resampling.BICUBIC)
    picture = np.array(smooth)
    slightly = np.array(smooth.filter(ImageFilter.GaussianBlur(side / 32)))
    assert share_of_detail(picture, picture) == pytest.approx(1)
    assert share_of_detail(slightly, picture) > 0.4  # a mild blur would not do
    assert abs(share_of_detail(blur(picture), picture)) < 0.01
    assert len(np.unique(blur(picture).reshape(-1, 3), axis=0)) <= BLUR_CELLS**2


def test_blur_depends_on_cell_means_only():
    picture, turned = noise(), noise().reshape(4, 8, 4, 8, 3)[:, ::-1, :, ::-1].reshape(32, 32, 3)
    assert not np.array_equal(picture, turned)
    np.testing.assert_array_equal(blur(picture), blur(turned))


@pytest.mark.parametrize("shape", [(64, 30), (3, 100), (1, 1)])
def test_blur_keeps_size(shape):
    assert blur(noise(*shape)).shape == (*shape, 3)


# Contact sheets


def test_sheet_holds_every_picture_at_its_place():
    pictures = [[noise(seed=1), noise(seed=2)], [noise(seed=3)]]
    sheet = contact_sheet(pictures, scale=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (GAP + 2 * (64 + GAP), GAP + 2 * (64 + GAP), 3)
    for r, row in enumerate(pictures):
        for c, picture in enumerate(row):
            y, x = GAP + r * (64 + GAP), GAP + c * (64 + GAP)
            np.testing.assert_array_equal(sheet[y : y + 64 : 2, x : x + 64 : 2], picture)
    assert sheet[-64 - GAP :, -64 - GAP :].min() == 255  # the cell that the second row lacks


def test_sheet_with_labels_is_larger_and_shows_them():
    rows = [[noise(), None], [noise(), noise()]]
    plain = contact_sheet(rows)
    sheet = contact_sheet(rows, ["base", "a \u706b " * 99], ["ESD", "a very long column label"])
    top, left = (a - b for a, b in zip(sheet.shape[:2], plain.shape[:2], strict=True))
    assert 0 < top < 32
    assert 0 < left <= 220
    assert sheet[:top].min() < 100
    assert sheet[:, :left].min() < 100
    np.testing.assert_array_equal(sheet[top + GAP :, left + GAP :], plain[GAP:, GAP:])


def test_sheet_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([[noise(), noise(16, 16)]])
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([[]])
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        contact_sheet([[noise()], [noise()]], ["a"])
    with pytest.raises(ValueError, match="2 column labels for 1 columns"):
        contact_sheet([[noise()], [noise()]], column_labels=["a", "b"])
