"""Q16's prompts read without an unpickler, its formula on a tiny CLIP, CLIP asked for any words."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny import save_tiny_clip

sys.path.insert(0, str(Path(__file__).parent))

from fuzz.gadgets import CANARY, call, data, dtype, gadgets, name, nested, program, text

from ine.detectors.clip import ClipJudge, to_pixels
from ine.detectors.q16 import Q16
from ine.detectors.q16_prompts import read_q16_prompts
from ine.detectors.table import check_detector, load_detector
from ine.errors import MissingDependency, ModelError, RecipeError

GADGETS = gadgets()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The canary is made in the current folder."""
    monkeypatch.chdir(tmp_path)


def prompts(width=512, seed=0):
    return np.random.default_rng(seed).normal(size=(2, width)).astype(np.float16)


def written(raw, name="prompts.p"):
    path = Path.cwd() / name
    path.write_bytes(raw)
    return path


# The file


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_arrays_that_numpy_pickled_are_read(protocol, dtype):
    for order in "CF":
        array = np.array(prompts(768), dtype=dtype, order=order)
        found = read_q16_prompts(written(pickle.dumps(array, protocol)))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array.astype(np.float32))


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_names_of_old_and_new_numpy_are_known(module):
    raw = pickle.dumps(prompts(768), 3)
    raw = raw.replace(b"numpy._core", module.encode())
    np.testing.assert_array_equal(read_q16_prompts(written(raw)), prompts(768))


def test_npy_and_safetensors_are_read():
    np.save("prompts.npy", prompts())
    save_file({"prompts": prompts()}, "prompts.safetensors")
    for path in ("prompts.npy", "prompts.safetensors"):
        np.testing.assert_array_equal(read_q16_prompts(path), prompts())


class Evil:
    def __reduce__(self):
        return open, (CANARY, "w")


def hostile():
    array = pickle.dumps(prompts(768), 3)
    inside = np.empty((2, 768), object)
    inside[:] = Evil()
    reconstruct = name("numpy.core.multiarray", "_reconstruct")
    ndarray = name("numpy", "ndarray")
    made = call(reconstruct, ndarray, b"K\x00\x85", data(b"b"))
    return {
        **GADGETS,
        "a made object": pickle.dumps(Evil()),
        "objects in an array": pickle.dumps(inside, 3),
        "after the array": array[:-1] + b"0" + GADGETS["os.system"][2:],
        "in the array's state": program(made + GADGETS["eval"][2:-1] + b"b", 3),
        "in the place of ndarray": program(
            call(reconstruct, name("os", "system"), b"K\x00\x85", data(b"b")), 3
        ),
        "a class made by _reconstruct": program(
            call(reconstruct, name("subprocess", "Popen"), b"K\x00\x85", data(b"b")), 3
        ),
        "a dtype of tuples": program(
            call(name("numpy", "dtype"), nested(), b"\x89", b"\x88") + b"0" + array[2:-1], 3
        ),
        "a shape of tuples": program(
            made + b"(K\x01" + nested() + dtype("f4") + b"\x89" + data(b"abcd") + b"tb", 3
        ),
        "a dtype of objects": array.replace(b"f2", b"O8"),
        "another codec": program(call(name("_codecs", "encode"), text("x"), text("rot13")), 2),
        "a list": pickle.dumps([prompts()]),
        "a dict": pickle.dumps({"prompts": prompts()}),
    }


@pytest.mark.parametrize("kind", list(hostile()))
def test_nothing_in_a_hostile_file_runs(kind):
    path = written(hostile()[kind])
    with pytest.raises(ModelError, match="prompts"):
        read_q16_prompts(path)
    assert not Path(CANARY).exists()


def test_positive_control_an_unpickler_runs_them():
    for kind in ("a made object", "eval", "objects in an array", "after the array"):
        assert not Path(CANARY).exists(), kind
        value = pickle.loads(hostile()[kind])
        opened = value.ravel()[:1] if isinstance(value, np.ndarray) else [value]
        for file in opened:
            getattr(file, "close", lambda: None)()
        assert Path(CANARY).exists(), kind
        Path(CANARY).unlink()


def test_code_is_named_in_the_refusal():
    with pytest.raises(ModelError, match=r"it names os\.system.*may run code, so it is not read"):
        read_q16_prompts(written(GADGETS["os.system"]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (prompts(100), r"shape \(2, 100\)"),
        (np.zeros((3, 768), np.float16), r"shape \(3, 768\)"),
        (np.zeros((2, 768), np.float16), "all zero"),
        (np.full((2, 512), np.nan, np.float32), "not finite"),
    ],
)
def test_other_arrays_are_no_prompts(array, message):
    np.save("other.npy", array)
    with pytest.raises(ModelError, match=message):
        read_q16_prompts("other.npy")
    with pytest.raises(ModelError, match=message):
        read_q16_prompts(written(pickle.dumps(array)))


def test_damaged_files_are_refused():
    raw = pickle.dumps(prompts(768), 4)
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    broken = [b"", b"\x80", raw[: len(raw) // 2], raw[:-1], b"<html>", raw + b"x" * 2_000_000]
    broken += [raw.replace(b"M\x00\x03", b"M\x00\x02"), Path("objects.npy").read_bytes()]
    for part in broken:
        with pytest.raises(ModelError, match=r"prompts\.p: "):
            read_q16_prompts(written(part))
    with pytest.raises(ModelError, match="cannot be read"):
        read_q16_prompts("nowhere.p")


def test_every_changed_byte_is_read_or_refused():
    raw = pickle.dumps(prompts(512), 3)
    head = len(raw) - 2 * 512 * 2
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(raw)
        for at in rng.integers(head, size=rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        try:
            found = read_q16_prompts(written(bytes(changed)))
        except ModelError:
            continue
        assert found.shape[0] == 2
    assert not Path(CANARY).exists()


# The detector


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, tiny_folder):
    """A CLIPModel of random weights that gives features of width 512."""
    folder = tmp_path_factory.mktemp("clip")
    return save_tiny_clip(folder, tiny_folder / "tokenizer", 32, 512)


def pictures(count=3, height=40, width=40):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8)


def test_the_score_is_the_softmax_of_a_hundred_cosines(clip_folder):
    path = written(pickle.dumps(prompts(), 3))
    found = [s["inappropriate"] for s in Q16(path, clip_folder)(pictures())]
    features = ClipJudge(clip_folder).features(pictures()).astype(np.float64)
    unit = prompts().astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # The softmax over two is the logistic function of their difference.
    expected = 1 / (1 + np.exp(100 * features @ (unit[0] - unit[1])))
    assert found == pytest.approx(expected, abs=1e-4)
    # Which of the two prompts stands for inappropriate.
    turned = written(pickle.dumps(prompts()[::-1].copy(), 3), "turned.p")
    other = [s["inappropriate"] for s in Q16(turned, clip_folder)(pictures())]
    assert np.add(found, other) == pytest.approx(np.ones(3), abs=1e-5)
    assert not np.allclose(found, other, atol=1e-3)


def test_prompts_along_a_pictures_feature_decide(clip_folder):
    features = ClipJudge(clip_folder).features(pictures(1))
    apart = np.concatenate([-features, features])
    assert Q16(written(pickle.dumps(apart, 3)), clip_folder)(pictures(1)) == [
        {"inappropriate": pytest.approx(1)}
    ]


def test_prompts_of_another_clip_are_refused(clip_folder):
    path = written(pickle.dumps(prompts(768), 3))
    with pytest.raises(ModelError, match=r"width 768, but .* width 512.*clip-vit-large"):
        Q16(path, clip_folder)


def test_missing_prompts_are_named_with_licence_and_place(monkeypatch):
    monkeypatch.delenv("INE_Q16_PROMPTS", raising=False)
    for ask in (load_detector, check_detector):
        with pytest.raises(MissingDependency, match=r"prompts\.p .*ml-research/Q16 \(MIT\)"):
            ask("q16")
        with pytest.raises(MissingDependency, match=r"nowhere\.p: no such file"):
            ask("q16[nowhere.p]")
    monkeypatch.setenv("INE_Q16_PROMPTS", str(Path.cwd() / "gone.p"))
    with pytest.raises(MissingDependency, match=r"gone\.p: no such file"):
        check_detector("q16 + nudenet")


@pytest.mark.parametrize(("width", "model"), [(768, "large-patch14"), (512, "base-patch16")])
def test_a_missing_clip_is_named_by_the_prompts_width(monkeypatch, width, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path.cwd()))
    path = written(pickle.dumps(prompts(width), 3))
    for ask in (load_detector, check_detector):
        with pytest.raises(MissingDependency, match=f"'q16' needs .*{model}.*MIT"):
            ask(f"q16[{path}]")


# Any words


def test_clip_is_asked_for_any_words(clip_folder):
    detector = load_detector(f"clip[{clip_folder}]:a dog|a cat")
    check_detector(f"clip[{clip_folder}]:a dog|a cat")
    found = detector(pictures())
    assert [list(s) for s in found] == [["a dog"]] * 3
    other = load_detector(f"clip[{clip_folder}]:a cat|a dog")(pictures())
    for one, two in zip(found, other, strict=True):
        assert one["a dog"] + two["a cat"] == pytest.approx(1, abs=1e-5)
    assert detector.settings["pairs"] == {"a dog": ["a dog", "a cat"]}


def test_the_bundled_judge_answers_words_too():
    found = load_detector("clip[mini]:with fire|without fire")(pictures(1, 64, 64))
    assert found[0]["with fire"] == pytest.approx(
        load_detector("mini-judge")(pictures(1, 64, 64))[0]["fire"], abs=1e-5
    )


@pytest.mark.parametrize("words", ["", "one", "a|a", "a|", "a|b|c"])
def test_words_need_an_opposite(words):
    for ask in (load_detector, check_detector):
        with pytest.raises(RecipeError, match=r"expected two different texts|is unknown"):
            ask(f"clip:{words}")


@pytest.mark.parametrize("shape", [(90, 60), (60, 91), (64, 64), (32, 47), (20, 31)])
def test_pixels_are_those_of_clips_own_preprocessing(shape):
    """The shorter side to the model's size on 8 bits, then the middle square: in this order."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    stripes = np.where((rows // 3 + columns // 5) % 2, 255, 0)
    picture = np.stack([rows * 2, stripes, 255 - columns], axis=-1).astype(np.uint8)
    found = to_pixels(picture[None], 32, [0.0] * 3, [1.0] * 3)[0].permute(1, 2, 0).numpy() * 255
    height, width = shape
    size = (32, int(32 * height / width)) if width < height else (int(32 * width / height), 32)
    image = Image.fromarray(picture).resize(size, Image.BICUBIC)
    left, top = (round((side - 32) / 2) for side in size)
    wanted = np.asarray(image.crop((left, top, left + 32, top + 32)), np.float64)
    assert np.abs(found - wanted).max() < 1e-4
    if shape == (90, 60):
        # Positive control: cut first, edges differ by many steps.
        other = Image.fromarray(picture).crop((0, 15, 60, 75)).resize((32, 32), Image.BICUBIC)
        assert np.abs(found - np.asarray(other, np.float64)).max() > 10
