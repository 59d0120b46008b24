"""`ine invert`, `generate` and `unlearn` on a tiny real model, as a user meets them."""

import errno
import json
import os
import pickle
import shutil
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ine.detectors.table import DETECTORS
from ine.display import blur, contact_sheet
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.pictures import read_picture, write_png
from ine.unlearning.esd import esd
from ine.weights.files import write_unet_weights

TINY_RECIPE = {
    "kind": "concept",
    "version": 1,
    "name": "fire",
    "words": {"explicit": ["on fire"]},
    "pictures": {
        "prompts": ["a {} on fire"],
        "nouns": ["dog", "cat"],
        "count": 4,
        "rule": "mini-fire@0.5",
        "steps": 2,
        "guidance_scale": 2.0,
        "batch": 2,
    },
    "inversion": {
        "vectors": 2,
        "steps": 6,
        "batch": 2,
        "preview_every": 3,
        "preview_pictures": 2,
    },
    "tuning": {"prompts": ["a {} in a volcano"], "nouns": ["dog"], "steps": 2},
    "erase": {
        "concepts": ["a {} on fire"],
        "targets": ["a {}"],
        "nouns": ["dog", "cat"],
        "preserve": ["a {}"],
        "preserve_nouns": ["dog", "house"],
        "esd": {"iterations": 4, "steps": 3, "lr": 1e-3},
    },
}
SMALL = [
    *("--set", "pictures.count=4", "--set", "pictures.steps=2", "--set", "pictures.batch=4"),
    *("--set", "inversion.steps=2", "--set", "inversion.preview_every=2"),
    *("--set", "inversion.preview_pictures=2", "--set", "tuning.steps=2"),
]
"""Overrides that make a recipe for Stable Diffusion a matter of seconds on a tiny model."""


class FakeDetector:
    """Fires on every second picture that it has not seen before, on others as the first time."""

    def __init__(self, label, other="calm"):
        self.label, self.other, self.answers = label, other, {}

    def fires_on(self, picture):
        return self.answers.setdefault(picture.tobytes(), len(self.answers) % 2 == 0)

    def __call__(self, pictures):
        return [{self.label if self.fires_on(p) else self.other: 0.9} for p in pictures]


@pytest.fixture
def judge(monkeypatch):
    """A fake detector in the place of the bundled one."""
    fake = FakeDetector("fire")
    monkeypatch.setitem(DETECTORS, "mini-judge", lambda: fake)
    return fake


@pytest.fixture
def nudenet(monkeypatch):
    """A fake detector in NudeNet's place."""
    fake = FakeDetector("FEMALE_BREAST_EXPOSED", "FACE_FEMALE")
    monkeypatch.setitem(DETECTORS, "nudenet", lambda: fake)
    return fake


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def recipe_file(tmp_path, tiny_folder):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY_RECIPE, "base": str(tiny_folder)}))
    return path


@pytest.fixture(scope="session")
def unlearned_file(tiny_parts, tmp_path_factory):
    """Weights that change the keys and values of cross-attention, as UCE's do."""
    state = tiny_parts.unet.state_dict()
    names = [n for n in state if "attn2.to_k" in n or "attn2.to_v" in n]
    path = tmp_path_factory.mktemp("weights") / "erased.safetensors"
    write_unet_weights(path, {n: state[n] * 0.5 for n in names}, {"ine.method": "UCE"})
    return path


@pytest.fixture(scope="session")
def embedding_file(tiny_parts, tiny_folder, tmp_path_factory):
    return make_embedding(tmp_path_factory.mktemp("made") / "fire-neg.safetensors", tiny_folder)


def make_embedding(path, base, concept="fire", width=32):
    vectors = 0.1 * torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    write_embedding(new_embedding(vectors, path.stem, concept, {"ine.base": base}), path)
    return path


def picture_folder(folder, count=3):
    rng = np.random.default_rng(0)
    for number in range(count):
        write_png(folder / f"{number}.png", rng.integers(0, 256, (20, 16, 3), dtype=np.uint8))
    return folder


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def interrupt_at(monkeypatch, target, call):
    """Make the function at `target` raise KeyboardInterrupt at its n-th call."""
    module, name = target.rsplit(".", 1)
    real, calls = getattr(import_module(module), name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(target, interrupted)


class Bomb:
    """A pickle that leaves a file behind when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# -------------------------------------------------------------------------- the way of a user


def test_unlearn_invert_generate_in_a_row(run_ine, place, recipe_file, tiny_folder, judge):
    done = run_ine("unlearn", "--concept", recipe_file)
    assert done.exit_code == 0, done.stderr
    assert "wrote fire-uce.safetensors: " in done.stdout
    assert f"ine invert --concept {recipe_file} --unet fire-uce.safetensors" in done.stdout

    done = run_ine("invert", "--concept", recipe_file, "--unet", "fire-uce.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "pictures: " in done.stdout
    assert "step 3: left on tuning prompts " in done.stdout
    assert "recovery, with the vectors as the prompt: " in done.stdout
    assert done.stdout.count("  <- kept") == 1
    assert "wrote fire-neg.safetensors: 2 x 32, trigger 'fire-neg'" in done.stdout
    assert f"base model {tiny_folder} (from recipe fire)" in done.stderr
    assert "UCE (sequence variant) by its metadata" in done.stderr
    assert "Warning: used as a prompt, these vectors bring the concept back" in done.stderr
    embedding = read_embedding("fire-neg.safetensors")
    assert (embedding.count, embedding.width, embedding.concept) == (2, 32, "fire")
    assert embedding.metadata["ine.unet"] == "fire-uce.safetensors (UCE (sequence variant))"

    # The line that is printed is a command that works.
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("use it: ine ")]
    args = line.removeprefix("use it: ine ").replace("'...'", "cat").split()
    assert "--unet fire-uce.safetensors" in line
    done = run_ine(*args, "--steps", 2)
    assert done.exit_code == 0, done.stderr
    assert "wrote 1 pictures to pictures" in done.stdout
    assert "(from embedding fire-neg)" in done.stderr
    assert "note:" not in done.stderr
    assert files(place / "pictures") == ["00000-seed0.png", "index.jsonl", "sheet.png"]


def test_the_embedding_changes_the_picture(run_ine, place, embedding_file, tiny_folder):
    common = ("generate", "--model", tiny_folder, "--prompt", "a dog", "--steps", 2, "--json")
    plain = run_ine(*common, "--out", "plain")
    run_ine(*common, "--out", "again")
    negative = ("--negative-embedding", embedding_file)
    run_ine(*common, "--out", "neg", *negative)
    free = ("--guidance", "additive", "--negative-strength", 3)
    run_ine(*common, "--out", "additive", *negative, *free)
    made = {p.parent.name: read_picture(p, 16) for p in place.glob("*/00000-seed0.png")}
    assert np.array_equal(made["plain"], made["again"])
    for one, other in (("plain", "neg"), ("neg", "additive"), ("plain", "additive")):
        assert not np.array_equal(made[one], made[other]), (one, other)
    (row,) = json.loads(plain.stdout)["pictures"]
    assert (row["prompt"], row["seed"], row["unet_calls"]) == ("a dog", 0, 4)
    assert row["settings"]["negative"] == ""


def test_esd_is_resumed_after_ctrl_c_and_ends_the_same(run_ine, place, recipe_file, monkeypatch):
    command = ("unlearn", "--concept", recipe_file, "--method", "esd", "--lr", "1e-2")
    assert run_ine(*command, "--out", "whole.safetensors").exit_code == 0
    monkeypatch.setattr("ine.unlearning.run.esd", partial(esd, save_every=1))
    with monkeypatch.context() as patch:
        interrupt_at(patch, "ine.unlearning.esd._loss", 3)
        stopped = run_ine(*command, "--out", "cut.safetensors")
    assert stopped.exit_code == 130
    assert files(place) == ["cut.safetensors.state", "whole.safetensors"]
    done = run_ine(*command, "--out", "cut.safetensors", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "esd"
    assert files(place) == ["cut.safetensors", "whole.safetensors"]
    assert (place / "cut.safetensors").read_bytes() == (place / "whole.safetensors").read_bytes()


def test_invert_takes_a_folder_of_pictures(run_ine, place, recipe_file, unlearned_file, judge):
    picture_folder(place / "mine")
    command = (
        *("invert", "--concept", recipe_file, "--unet", unlearned_file),
        *("--images", "mine", "--set", "inversion.steps=3", "--trigger", "my-neg", "--json"),
    )
    done = run_ine(*command)
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["embedding"] == "my-neg.safetensors"
    assert summary["pictures"] == {"tried": 3, "kept": 3}
    assert read_embedding("my-neg.safetensors").trigger == "my-neg"
    # The user's pictures are neither copied nor removed.
    assert files(place / "mine") == ["0.png", "1.png", "2.png"]
    assert not [name for name in files(place / "my-neg.safetensors.run") if name.endswith(".png")]


def test_a_broken_picture_is_named_and_may_be_skipped(run_ine, place, recipe_file, judge):
    picture_folder(place / "mine")
    (place / "mine" / "1.png").write_bytes(b"not a picture")
    command = ("invert", "--concept", recipe_file, "--images", "mine")
    refused = run_ine(*command)
    assert refused.exit_code == 7
    assert "1.png" in refused.stderr
    assert "--skip-bad" in refused.stderr
    done = run_ine(*command, "--skip-bad", "--purge", "--set", "inversion.steps=3")
    assert done.exit_code == 0, done.stderr
    assert "pictures: 2 kept of 2" in done.stdout
    assert files(place) == ["fire-neg.safetensors", "mine/0.png", "mine/1.png", "mine/2.png"]


def test_pictures_that_changed_are_not_taken_from_the_cache(
    run_ine, place, recipe_file, judge, monkeypatch
):
    picture_folder(place / "mine")
    command = ("invert", "--concept", recipe_file, "--images", "mine")
    monkeypatch.setattr("ine.inversion.invert.SAVE_EVERY", 1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "ine.inversion.invert.batch_loss", 2)
        assert run_ine(*command).exit_code == 130
    picture_folder(place / "mine", count=4)
    refused = run_ine(*command)
    assert refused.exit_code == 1
    assert "other settings, weights or pictures" in refused.stderr
    assert run_ine(*command, "--force").exit_code == 0


# ------------------------------------------------------------------------------- dry runs


def test_a_dry_run_of_invert_writes_nothing_and_shows_the_recipe(
    run_ine, place, recipe_file, unlearned_file
):
    done = run_ine(
        *("invert", "--concept", recipe_file, "--unet", unlearned_file, "--dry-run"),
        *("--set", "inversion.lr=0.25"),
    )
    assert done.exit_code == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["inversion"]["lr"] == 0.25
    assert "# trigger: fire-neg" in done.stdout
    assert "UCE by its metadata" in done.stdout
    assert "# the base model is on this machine" in done.stdout
    assert files(place) == []


def test_a_dry_run_of_nudity_works_offline_and_names_how_to_get_the_base(
    run_ine, place, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
    done = run_ine("invert", "--concept", "nudity", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert yaml.safe_load(done.stdout)["people"] is True
    assert "# base: CompVis/stable-diffusion-v1-4 (from recipe nudity)" in done.stdout
    assert "hf download CompVis/stable-diffusion-v1-4" in done.stdout
    assert "--model DIR" in done.stdout


def test_a_dry_run_of_unlearn_shows_all_settings(run_ine, place, recipe_file):
    done = run_ine(
        *("unlearn", "--concept", recipe_file, "--method", "esd", "--dry-run"),
        *("--group", "x-strict"),
    )
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["esd"] | {"iterations": 4, "group": "x-strict", "steps": 3} == plan["esd"]
    assert plan["esd"]["negative_guidance"] == 1.0
    assert plan["prompts"] == {"concepts": 2, "targets": 2, "preserve": 2}
    assert files(place) == []


def test_another_variant_of_uce_has_its_own_strengths(run_ine, place):
    """A recipe's strengths are of means over tokens; with sums they would erase hardly anything."""
    own = run_ine("unlearn", "--concept", "fire", "--dry-run")
    assert json.loads(own.stdout)["uce"] == {
        **{"erase_scale": 0.01, "preserve_scale": 1.0, "ridge": 0.01, "variant": "sequence"}
    }
    done = run_ine("unlearn", "--concept", "fire", "--variant", "paper", "--dry-run")
    assert json.loads(done.stdout)["uce"] == {
        **{"erase_scale": 1.0, "preserve_scale": 0.1, "ridge": 0.5, "variant": "paper"}
    }
    assert "erase_scale, preserve_scale, ridge of the recipe belong to another" in done.stderr
    mixed = run_ine(
        *("unlearn", "--concept", "fire", "--variant", "paper", "--ridge", "0.1", "--dry-run")
    )
    assert json.loads(mixed.stdout)["uce"]["ridge"] == 0.1


def test_a_dry_run_says_whether_the_detector_is_there(run_ine, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setitem(sys.modules, "nudenet", None)
    for concept, words in (
        ("violence", "# detector 'clip-violence' needs the CLIP model openai/clip-vit-large"),
        ("nudity", "# detector 'nudenet' is not installed"),
        ("fire", "# detector 'mini-judge' is on this machine"),
    ):
        done = run_ine("invert", "--concept", concept, "--dry-run")
        assert done.exit_code == 0, done.stderr
        assert words in done.stdout
    assert files(place) == []


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--set", "pictures.rule=mini-fier@0.5"), 3, "did you mean 'mini-fire@0.5'"),
        (("--set", "inversion.stpes=5"), 3, "did you mean 'steps'"),
        (("--trigger", "Fire"), 6, "for example"),
        (("--out", "fire-neg.pt"), 9, "use fire-neg.safetensors"),
        (("--images", "nowhere"), 7, "nowhere: no such folder"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(run_ine, place, recipe_file, args, code, words):
    done = run_ine("invert", "--concept", recipe_file, "--dry-run", *args)
    assert done.exit_code == code
    assert words in done.stderr


def test_unlearn_names_a_wrong_setting_before_the_model_is_loaded(run_ine, place, recipe_file):
    wrong = ("--set", "erase.esd.iteratoins=3", "--model", "/nowhere")
    done = run_ine("unlearn", "--concept", recipe_file, "--method", "esd", *wrong)
    assert done.exit_code == 3
    assert "did you mean 'iterations'" in done.stderr


# ----------------------------------------------------------------------- people: kept unseen


def test_nudity_on_a_tiny_model_from_end_to_end(
    run_ine, place, tiny_folder, unlearned_file, nudenet, monkeypatch
):
    written = []
    real = write_png
    for module in ("ine.inversion.concept", "ine.gallery.fill"):
        monkeypatch.setattr(
            f"{module}.write_png", lambda path, *a: (written.append(path), real(path, *a))
        )
    command = (
        *("invert", "--concept", "nudity", "--model", tiny_folder, "--unet", unlearned_file),
        # The tiny vocabulary spells words out; the recipe's own text would not fit beside vectors.
        *("--set", "pictures.negative_prompt=child", *SMALL),
    )
    done = run_ine(*command)
    assert done.exit_code == 0, done.stderr
    assert nudenet.answers, "the detector was not asked"
    assert written == []
    assert [n for n in files(place) if not n.startswith("nudity-neg.safetensors")] == []
    assert not [n for n in files(place) if n.endswith(".png")]
    assert read_embedding("nudity-neg.safetensors").concept == "nudity"
    run = json.loads((place / "nudity-neg.safetensors.run" / "run.json").read_text())
    assert run["pictures"]["kept"] < run["pictures"]["tried"]

    kept = run_ine(*command, "--keep-images", "--force")
    assert kept.exit_code == 0, kept.stderr
    images = place / "nudity-neg.safetensors.run" / "images"
    assert len(files(images)) == run["pictures"]["kept"]
    assert all(nudenet.fires_on(read_picture(p, 16)) for p in images.iterdir())

    purged = run_ine(*command, "--keep-images", "--force", "--purge")
    assert purged.exit_code == 0, purged.stderr
    assert files(place) == ["nudity-neg.safetensors"]


def made_gallery(run_ine, tiny_folder, embedding, out="out", *more):
    """Return (index rows, PNGs, tiles of the contact sheet) of six pictures."""
    done = run_ine(
        *("generate", "--model", tiny_folder, "--negative-embedding", embedding, "--steps", 2),
        *("--prompt", "a person", "--images-per-prompt", 6, "--out", out, "--batch", 4, *more),
    )
    assert done.exit_code == 0, done.stderr
    return read_gallery(out), done


def read_gallery(out):
    lines = (Path(out) / "index.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    pictures = [read_picture(Path(out) / r["file"], 16) for r in rows]
    with Image.open(Path(out) / "sheet.png") as image:
        return rows, pictures, np.array(image)


def test_the_sheet_blurs_people_that_the_rule_flags(run_ine, place, tiny_folder, nudenet):
    embedding = make_embedding(place / "nudity-neg.safetensors", tiny_folder, "nudity")
    (rows, pictures, shown), _ = made_gallery(run_ine, tiny_folder, embedding)
    flags = [nudenet.fires_on(p) for p in pictures]
    assert True in flags
    assert False in flags
    assert [r["flagged"] for r in rows] == flags
    tiles = [blur(p) if f else p for p, f in zip(pictures, flags, strict=True)]
    assert np.array_equal(shown, contact_sheet([tiles], scale=2))
    assert not np.array_equal(shown, contact_sheet([pictures], scale=2))


def test_without_its_detector_every_tile_is_blurred(
    run_ine, place, tiny_folder, nudenet, monkeypatch
):
    def broken():
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setitem(DETECTORS, "nudenet", broken)
    embedding = make_embedding(place / "nudity-neg.safetensors", tiny_folder, "nudity")
    (rows, pictures, shown), done = made_gallery(run_ine, tiny_folder, embedding)
    assert [r["flagged"] for r in rows] == [None] * 6
    assert np.array_equal(shown, contact_sheet([[blur(p) for p in pictures]], scale=2))
    assert "Warning: libGL.so.1" in done.stderr
    assert "all pictures of sheet.png are blurred" in done.stderr
    # What was not judged when it was made stays hidden, whatever is installed later.
    monkeypatch.setitem(DETECTORS, "nudenet", lambda: nudenet)
    (_, _, later), _ = made_gallery(run_ine, tiny_folder, embedding)
    assert np.array_equal(shown, later)


@pytest.mark.parametrize("concept", ["fire", "something-else"])
def test_other_concepts_are_shown_as_they_are(run_ine, place, tiny_folder, monkeypatch, concept):
    def unwanted():
        raise AssertionError("no detector is needed here")

    for name in DETECTORS:
        monkeypatch.setitem(DETECTORS, name, unwanted)
    embedding = make_embedding(place / "some-neg.safetensors", tiny_folder, concept)
    (rows, pictures, shown), _ = made_gallery(run_ine, tiny_folder, embedding)
    assert "flagged" not in rows[0]
    assert np.array_equal(shown, contact_sheet([pictures], scale=2))


# ------------------------------------------------------------------------ weights and embeddings


def damaged(kind, folder, good):
    path = folder / f"{kind}.safetensors"
    data = good.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "html":
        path.write_bytes(b"<!DOCTYPE html><html><body>Log in</body></html>")
    elif kind == "lora":
        name = "lora_unet_down_blocks_0_attentions_0_proj_in"
        save_file({f"{name}.lora_down.weight": torch.ones(4, 32)}, path)
    elif kind == "nan":
        tensors = load_file(good)
        name = sorted(tensors)[0]
        tensors[name] = torch.full_like(tensors[name], float("nan"))
        save_file(tensors, path)
    elif kind == "wide":
        save_file({"emb_params": torch.ones(2, 768)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty"),
        ("truncated", "truncated"),
        ("html", "web page"),
        ("lora", "lacks its 'up' half"),
        ("nan", "NaN"),
    ],
)
@pytest.mark.parametrize("command", ["invert", "generate"])
def test_weights_that_cannot_be_used_are_refused_by_name(
    run_ine, place, recipe_file, unlearned_file, tiny_folder, judge, command, kind, words
):
    path = damaged(kind, place, unlearned_file)
    given = {
        "invert": ("--concept", recipe_file),
        "generate": ("--model", tiny_folder, "--prompt", "a dog"),
    }[command]
    done = run_ine(command, *given, "--unet", path)
    assert done.exit_code == 5, done.output
    assert words.lower() in done.stderr.lower()
    assert path.name in done.stderr
    assert "Traceback" not in done.stderr
    assert files(place) == [path.name]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty"),
        ("truncated", "cut short"),
        ("html", "web page"),
        ("lora", "LoRA"),
        ("nan", "not finite"),
        ("wide", "width 768"),
    ],
)
def test_embeddings_that_cannot_be_used_are_refused_by_name(
    run_ine, place, embedding_file, tiny_folder, kind, words
):
    path = damaged(kind, place, embedding_file)
    done = run_ine(
        *("generate", "--model", tiny_folder, "--negative-embedding", path, "--prompt", "a dog")
    )
    assert done.exit_code == 6, done.output
    assert words.lower() in done.stderr.lower()
    assert files(place) == [path.name]


@pytest.mark.parametrize("option", ["--unet", "--negative-embedding"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(
    run_ine, place, tiny_folder, option, suffix, zipped
):
    trap, path = place / "executed", place / f"bad{suffix}"
    if zipped:
        torch.save({"conv_in.weight": Bomb(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv_in.weight": Bomb(trap)}))
    done = run_ine("generate", "--model", tiny_folder, option, path, "--prompt", "a dog")
    assert done.exit_code == {"--unet": 5, "--negative-embedding": 6}[option], done.output
    assert path.name in done.stderr
    assert not trap.exists()


def test_the_trap_of_the_malicious_pickle_works(place):
    torch.save({"x": Bomb(place / "executed")}, place / "bad.pt")
    torch.load(place / "bad.pt", weights_only=False)
    assert (place / "executed").is_dir()


@pytest.mark.parametrize("more", [(), ("--model", "/nowhere"), ("--dry-run",)])
def test_weights_that_are_not_there(run_ine, place, recipe_file, more):
    given = ("--concept", recipe_file) if "--dry-run" in more else ("--prompt", "a dog")
    command = "invert" if "--dry-run" in more else "generate"
    done = run_ine(command, "--unet", "no-such.pt", *given, *more)
    assert done.exit_code == 5
    assert "no-such.pt: no such file; give the unlearned UNet's weights" in done.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [("html", "web page"), ("lora", "lacks its 'up' half"), ("wide", "a token embedding")],
)
def test_what_is_wrong_with_weights_comes_before_their_base(
    run_ine, place, unlearned_file, kind, words
):
    path = damaged(kind, place, unlearned_file)
    done = run_ine("generate", "--unet", path, "--prompt", "a dog")
    assert done.exit_code == 5, done.output
    assert words in done.stderr


def test_a_pickle_without_a_base_is_refused_as_a_pickle(run_ine, place):
    torch.save({"conv_in.weight": Bomb(place / "executed")}, place / "bad.pt")
    done = run_ine("generate", "--unet", "bad.pt", "--prompt", "a dog")
    assert done.exit_code == 5
    assert "not executed" in done.stderr


def test_weights_that_name_no_base_are_named(run_ine, place, unlearned_file):
    done = run_ine("generate", "--unet", unlearned_file, "--prompt", "a dog")
    assert done.exit_code == 4
    assert f"{unlearned_file} does not say what it was made for; give --model" in done.stderr
    assert "embedding" not in done.stderr


def test_an_embedding_that_is_not_there(run_ine, place):
    done = run_ine("generate", "--negative-embedding", "no-such.safetensors", "--prompt", "x")
    assert done.exit_code == 6
    assert "no such file" in done.stderr


def test_an_embedding_without_a_base_asks_for_one(run_ine, place):
    save_file({"emb_params": torch.ones(1, 32)}, place / "bare.safetensors")
    done = run_ine("generate", "--negative-embedding", "bare.safetensors", "--prompt", "x")
    assert done.exit_code == 4
    assert "--model" in done.stderr


# ------------------------------------------------------------------------- other exit codes


@pytest.mark.parametrize("command", ["invert", "unlearn"])
def test_an_unknown_concept_suggests_a_known_one(run_ine, place, command):
    done = run_ine(command, "--concept", "nuditty")
    assert done.exit_code == 3
    assert "did you mean 'nudity'" in done.stderr


def test_a_recipe_without_an_erase_section(run_ine, place, tmp_path, tiny_folder):
    silent = {k: v for k, v in TINY_RECIPE.items() if k != "erase"}
    (place / "silent.yaml").write_text(yaml.safe_dump({**silent, "base": str(tiny_folder)}))
    done = run_ine("unlearn", "--concept", "silent.yaml", "--dry-run")
    assert done.exit_code == 3
    assert "has no erase section" in done.stderr


def test_an_option_of_the_other_eraser_is_a_usage_error(run_ine, place, recipe_file):
    done = run_ine("unlearn", "--concept", recipe_file, "--method", "uce", "--iterations", 3)
    assert done.exit_code == 2
    assert "--iterations" in done.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: (m / "model_index.json").unlink(), "not a diffusers pipeline folder"),
        (lambda m: (m / "model_index.json").write_text("{"), "cannot be read as JSON"),
        (lambda m: (m / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json"),
        (lambda m: shutil.rmtree(m / "tokenizer"), "is missing"),
        (lambda m: shutil.rmtree(m / "vae"), "is missing"),
        (
            lambda m: (m / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100),
            "cannot be loaded",
        ),
    ],
)
def test_a_base_model_that_is_damaged(run_ine, place, tiny_folder, damage, words):
    shutil.copytree(tiny_folder, place / "model")
    damage(place / "model")
    done = run_ine("generate", "--model", "./model", "--prompt", "a dog")
    assert done.exit_code == 4, done.output
    assert words in done.stderr


@pytest.mark.parametrize("model", ["/no/such/folder", "nobody/no-such-model"])
def test_a_base_model_that_is_not_there(run_ine, place, model):
    done = run_ine("generate", "--model", model, "--prompt", "a dog")
    assert done.exit_code == 4
    assert model in done.stderr


def test_pictures_that_are_not_there(run_ine, place, recipe_file, judge):
    done = run_ine("invert", "--concept", recipe_file, "--images", "none")
    assert done.exit_code == 7
    assert "no such folder" in done.stderr


def test_too_few_pictures_of_the_concept(run_ine, place, recipe_file, judge):
    judge.label = judge.other
    done = run_ine("invert", "--concept", recipe_file)
    assert done.exit_code == 7
    assert "only 0 of 16 pictures" in done.stderr
    assert "--images" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no prompt"),
        (("--prompt", " "), "empty"),
        (("--prompts", "none.txt"), "none.txt"),
        (("--prompts", "comments.txt"), "holds no prompt"),
    ],
)
def test_prompts_that_are_missing(run_ine, place, args, words):
    (place / "comments.txt").write_text("# nothing\n\n")
    done = run_ine("generate", *args)
    assert done.exit_code == 8
    assert words in done.stderr


def test_a_negative_that_would_lose_vectors(run_ine, place, embedding_file, tiny_folder):
    done = run_ine(
        *("generate", "--model", tiny_folder, "--negative-embedding", embedding_file),
        *("--prompt", "a dog", "--negative-prompt", "blurred " * 20),
    )
    assert done.exit_code == 8
    assert "would cut off vectors of fire-neg" in done.stderr


def test_prompts_come_from_a_file(run_ine, place, tiny_folder):
    (place / "p.txt").write_text("# mine\na dog\n\na cat\n")
    done = run_ine(
        *("generate", "--model", tiny_folder, "--prompts", "p.txt", "--steps", 1, "--json")
    )
    assert done.exit_code == 0, done.stderr
    assert [r["prompt"] for r in json.loads(done.stdout)["pictures"]] == ["a dog", "a cat"]


def test_a_strength_that_guidance_does_not_have(run_ine, place):
    done = run_ine("generate", "--prompt", "x", "--negative-strength", 3)
    assert done.exit_code == 2
    assert "--guidance additive" in done.stderr


def test_a_device_that_is_not_there(run_ine, place, tiny_folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run_ine("generate", "--model", tiny_folder, "--device", "cuda", "--prompt", "x")
    assert done.exit_code == 1
    assert "--device cpu" in done.stderr


def test_a_detector_that_is_not_installed(run_ine, place, tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    done = run_ine("invert", "--concept", "nudity", "--model", tiny_folder, *SMALL)
    assert done.exit_code == 10
    assert "pip install nudenet" in done.stderr
    assert files(place) == []


# --------------------------------------------------------------------------------- outputs


def test_what_exists_is_replaced_only_with_force(run_ine, place, recipe_file, judge):
    (place / "fire-neg.safetensors").write_text("mine")
    (place / "fire-uce.safetensors").write_text("mine too")
    short = ("--set", "inversion.steps=3")
    for command in (
        ("invert", "--concept", recipe_file, *short),
        ("unlearn", "--concept", recipe_file),
    ):
        refused = run_ine(*command)
        assert refused.exit_code == 9
        assert "--force" in refused.stderr
    assert (place / "fire-neg.safetensors").read_text() == "mine"
    assert run_ine("invert", "--concept", recipe_file, *short, "--force").exit_code == 0
    assert run_ine("unlearn", "--concept", recipe_file, "--force").exit_code == 0
    assert read_embedding("fire-neg.safetensors").count == 2


def test_pictures_of_the_user_are_not_replaced(run_ine, place, tiny_folder):
    (place / "pictures").mkdir()
    (place / "pictures" / "00000-seed0.png").write_text("mine")
    done = run_ine("generate", "--model", tiny_folder, "--prompt", "x", "--steps", 1)
    assert done.exit_code == 9
    assert "00000-seed0.png" in done.stderr
    assert (place / "pictures" / "00000-seed0.png").read_text() == "mine"


def test_a_folder_of_other_pictures_is_kept(run_ine, place, tiny_folder):
    base = ("generate", "--model", tiny_folder, "--steps", 1)
    assert run_ine(*base, "--prompt", "a dog").exit_code == 0
    before = (place / "pictures" / "00000-seed0.png").read_bytes()
    other_prompt = run_ine(*base, "--prompt", "a cat")
    other_steps = run_ine("generate", "--model", tiny_folder, "--steps", 2, "--prompt", "a dog")
    assert (other_prompt.exit_code, other_steps.exit_code) == (9, 9)
    assert "made with other prompts" in other_prompt.stderr
    assert "made with other settings" in other_steps.stderr
    assert (place / "pictures" / "00000-seed0.png").read_bytes() == before
    # More prompts after the same ones go on in the same folder.
    more = run_ine(*base, "--prompt", "a dog", "--prompt", "a cat")
    assert more.exit_code == 0, more.stderr
    assert (place / "pictures" / "00000-seed0.png").read_bytes() == before
    rows, _, _ = read_gallery("pictures")
    assert [r["prompt"] for r in rows] == ["a dog", "a cat"]
    forced = run_ine(*base, "--prompt", "a cat", "--force")
    assert forced.exit_code == 0, forced.stderr
    rows, _, _ = read_gallery("pictures")
    assert [r["prompt"] for r in rows] == ["a cat"]
    assert (place / "pictures" / "00000-seed0.png").read_bytes() != before


def test_other_weights_of_the_same_name_are_other_settings(
    run_ine, place, tiny_folder, unlearned_file
):
    command = ("generate", "--model", tiny_folder, "--unet", "w.safetensors", "--prompt", "x")
    shutil.copy(unlearned_file, "w.safetensors")
    assert run_ine(*command, "--steps", 1).exit_code == 0
    tensors = {n: t * 2.5 for n, t in load_file(unlearned_file).items()}
    write_unet_weights("w.safetensors", tensors, {"ine.method": "UCE"})
    done = run_ine(*command, "--steps", 1)
    assert done.exit_code == 9
    assert "other settings" in done.stderr


def test_an_index_that_is_not_ours(run_ine, place, tiny_folder):
    (place / "pictures").mkdir()
    (place / "pictures" / "index.jsonl").write_text("hello\n")
    done = run_ine("generate", "--model", tiny_folder, "--prompt", "x", "--steps", 1)
    assert done.exit_code == 9
    assert "is not an index of ine" in done.stderr


COMMANDS = {
    "invert": ("--out", "{}/e-neg.safetensors"),
    "unlearn": ("--out", "{}/u.safetensors"),
    "generate": ("--prompt", "a dog", "--steps", 1, "--out", "{}/pictures"),
}


def command_into(folder, name, recipe_file, tiny_folder):
    model = ("--model", tiny_folder) if name == "generate" else ("--concept", recipe_file)
    return (name, *model, *(str(a).format(folder) for a in COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written(run_ine, place, recipe_file, tiny_folder, judge, name):
    (place / "file").write_text("a file where a folder is wanted")
    done = run_ine(*command_into("file", name, recipe_file, tiny_folder))
    assert done.exit_code == 9, done.output
    assert "cannot be written" in done.stderr
    assert files(place) == ["file"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(run_ine, place, recipe_file, tiny_folder, judge, name, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = run_ine(*command_into("out", name, recipe_file, tiny_folder))
    assert done.exit_code == 9, done.output
    assert "the disk is full" in done.stderr
    assert files(place) == [], "a half-written file was left"


# ------------------------------------------------------------------------------ interruptions


def test_invert_is_resumed_after_ctrl_c_and_ends_byte_equal(
    run_ine, place, recipe_file, unlearned_file, judge, monkeypatch
):
    command = ("invert", "--concept", recipe_file, "--unet", unlearned_file, "--out")
    whole, cut = "whole/fire-neg.safetensors", "cut/fire-neg.safetensors"
    assert run_ine(*command, whole).exit_code == 0
    monkeypatch.setattr("ine.inversion.invert.SAVE_EVERY", 2)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "ine.inversion.concept.decode_latents", 2)
        stopped = run_ine(*command, cut)
    assert stopped.exit_code == 130
    assert "the same command resumes" in stopped.stderr
    with monkeypatch.context() as patch:
        interrupt_at(patch, "ine.inversion.invert.batch_loss", 6)
        assert run_ine(*command, cut).exit_code == 130
    assert not (place / cut).exists()
    done = run_ine(*command, cut)
    assert done.exit_code == 0, done.stderr
    assert "resuming at step 4 of 6" in done.stderr
    assert (place / cut).read_bytes() == (place / whole).read_bytes()


def test_another_run_does_not_take_over_an_interrupted_one(
    run_ine, place, recipe_file, judge, monkeypatch
):
    command = ("invert", "--concept", recipe_file)
    monkeypatch.setattr("ine.inversion.invert.SAVE_EVERY", 1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "ine.inversion.invert.batch_loss", 3)
        assert run_ine(*command).exit_code == 130
    other = run_ine(*command, "--seed", 5)
    assert other.exit_code == 1
    assert "--force" in other.stderr
    assert run_ine(*command, "--seed", 5, "--force").exit_code == 0


def test_generate_is_resumed_after_ctrl_c(run_ine, place, tiny_folder, monkeypatch):
    command = (
        *("generate", "--model", tiny_folder, "--prompt", "a dog", "--images-per-prompt", 5),
        *("--batch", 2, "--steps", 2, "--out"),
    )
    assert run_ine(*command, "whole").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, "ine.sampling.pictures.decode", 2)
        stopped = run_ine(*command, "cut")
    assert stopped.exit_code == 130
    assert files(place / "cut") == ["00000-seed0.png", "00001-seed1.png", "index.jsonl"]
    before = (place / "cut" / "00000-seed0.png").stat().st_mtime_ns
    assert run_ine(*command, "cut").exit_code == 0
    assert (place / "cut" / "00000-seed0.png").stat().st_mtime_ns == before
    assert files(place / "cut") == files(place / "whole")
    for name in files(place / "whole"):
        assert (place / "cut" / name).read_bytes() == (place / "whole" / name).read_bytes(), name


def test_a_bug_is_called_a_bug(run_ine, place, tiny_folder, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ine.sampling.pictures.decode", broken)
    done = run_ine("generate", "--model", tiny_folder, "--prompt", "x", "--steps", 1)
    assert done.exit_code == 70
    assert "This is a bug in ine" in done.stderr
