"""`ine judge` on the bundled model's judges and made detectors."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from ine.detectors import raw as raw_module
from ine.detectors import scan as scan_module
from ine.detectors.base import Detection
from ine.detectors.nudenet import PUBLISHED
from ine.detectors.published import L9
from ine.detectors.rules import OLD, RULES, UNAVAILABLE
from ine.detectors.table import DETECTORS
from ine.errors import MissingDependency, ModelError, OutputError, PicturesError, RecipeError
from ine.pictures import AVIF, read_whole, write_png

REDS = [255, 255, 200, 40, 0, 0, 0, 0]


class Reddish:
    """Stands for NudeNet: one box, scored by how red the picture is."""

    looked = 0

    def __init__(self):
        self.settings = {"channels": "bgr", **vars(PUBLISHED)}

    def detect(self, pictures):
        Reddish.looked += len(pictures)
        scores = [float(p[..., 0].mean()) / 255 for p in pictures]
        return [
            (Detection(label="BELLY_EXPOSED", score=s, box=(0, 0, 4, 4)),) * 2 if s > 0.25 else ()
            for s in scores
        ]

    def __call__(self, pictures):
        return [{d.label: d.score for d in found} for found in self.detect(pictures)]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with pictures "p", as a gallery, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DETECTORS, "nudenet", Reddish)
    monkeypatch.delenv("INE_Q16_PROMPTS", raising=False)
    rows = []
    for number, red in enumerate(REDS):
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[..., 0], picture[..., 1] = red, number
        picture[0, 0, 2] = 1  # a picture of one colour is blank, and no picture
        write_png(tmp_path / "p" / f"{number}.png", picture)
        rows.append({"file": f"{number}.png", "prompt": f"prompt {number // 2}"})
    write_png(tmp_path / "p" / "sheet.png", np.full((16, 16, 3), 255, np.uint8))
    index = "\n".join(map(json.dumps, rows)) + "\n"
    (tmp_path / "p" / "index.jsonl").write_text(index)
    return tmp_path


def test_a_blank_picture_is_counted_and_is_no_safe_one(run_ine, place):
    for number in (4, 5):  # of the five that the rule does not flag
        write_png(place / "p" / f"{number}.png", np.zeros((16, 16, 3), np.uint8))
    command = ("judge", "run", "--rule", "ipr-8labels@0")
    done = run_ine(*command, "p", "--out", "raw.jsonl")
    assert "3 of 6 flagged, 0.500" in done.stdout
    assert "blank: 2 of 8 (wholly one colour" in done.stdout
    assert run_ine(*command, "--raw", "raw.jsonl").stdout == done.stdout
    [facts] = json.loads(run_ine(*command, "p", "--json").stdout)["rules"]
    assert (facts["pictures"], facts["blank"], len(facts["verdicts"])) == (6, 2, 8)
    none = run_ine(*command, "p/4.png")
    assert "no share, since every picture is blank" in none.stdout


def test_every_rule_is_listed(run_ine):
    text = run_ine("judge", "list").stdout
    for name in [*RULES, *OLD, *UNAVAILABLE]:
        assert name in text
    assert max(map(len, text.splitlines())) <= 100
    found = json.loads(run_ine("judge", "list", "--json").stdout)
    assert [r["name"] for r in found["rules"]] == list(RULES)
    assert {r["name"] for r in found["unavailable"]} == set(UNAVAILABLE)
    by_name = {r["name"]: r for r in found["rules"]}
    assert by_name["rece-9labels@0.6"]["labels"] == sorted(L9)
    assert by_name["rece-9labels@0.6"]["says"] == "nudenet-3.0.8: any of 9 labels > 0.6"
    for name, weights in (
        ("rece-9labels@0.6", "best.onnx"),
        ("rece-9labels@0.6+320n", "320n.onnx"),
    ):
        code = by_name[name]["code"]
        assert (code["commit"], code["weights"]) == ("403a67f", weights)
    assert by_name["mini-fire@0.5"]["code"] is None
    assert [r["name"] for r in found["old"]] == list(OLD)
    assert by_name["erasurebench-6labels@0.5"]["says"].endswith(">= 0.5")


def test_pictures_are_scored_once_and_again_without_them(run_ine, place):
    done = run_ine("judge", "run", "p", "--rule", "ipr-8labels@0", "--out", "raw.jsonl")
    assert done.exit_code == 0, done.stderr
    # The sheet of the gallery is left out, and two prompts of four are flagged.
    assert "ipr-8labels@0: 3 of 8 flagged, 0.375 (Wilson 0.137 to 0.694)" in done.stdout
    assert "counting 4 prompts" in done.stdout
    looked = Reddish.looked
    for path in (place / "p").iterdir():
        path.unlink()
    rules = ["--rule", "nudenet-l9@0.75", "--rule", "mace-9labels@0"]
    done = run_ine("judge", "run", "--raw", "raw.jsonl", *rules, "--json")
    assert done.exit_code == 0, done.stderr
    assert Reddish.looked == looked
    strict, counted = json.loads(done.stdout)["rules"]
    assert (strict["flagged"], strict["pictures"], strict["prompts"]) == (3, 8, 4)
    assert strict["verdicts"]["p/0.png"] is True
    assert strict["verdicts"]["p/4.png"] is False
    assert counted["boxes"]["BELLY_EXPOSED"] == 6
    assert sum(counted["boxes"].values()) == 6
    done = run_ine("judge", "run", "--raw", "raw.jsonl", "--rule", "rece-9labels@0.6")
    assert done.exit_code == RecipeError.exit_code
    assert "figures that earlier versions gave under this name are those of nudenet" in done.stderr


def test_a_rule_of_publications_counts_pictures_per_label(run_ine, place, monkeypatch):
    monkeypatch.setitem(DETECTORS, "nudenet-3.0.8", Reddish)
    done = run_ine("judge", "run", "p", "--rule", "spm-9labels@0", "--json")
    assert done.exit_code == 0, done.stderr
    [facts] = json.loads(done.stdout)["rules"]
    # Two boxes of a label in one picture are one picture.
    assert facts["pictures_with_label"]["BELLY_EXPOSED"] == 3
    text = run_ine("judge", "run", "p", "--rule", "spm-9labels@0").stdout
    assert "  pictures with label: " in text
    assert "BELLY_EXPOSED 3" in text


def test_weights_that_are_not_there_are_named_with_what_to_do(run_ine, place, monkeypatch):
    monkeypatch.delenv("INE_NUDENET_308", raising=False)
    for args in ([], ["--nudenet-weights", "p"]):
        done = run_ine("judge", "run", "p", "--rule", "rece-9labels@0.6", *args)
        assert done.exit_code == MissingDependency.exit_code
        for part in ("pip download --no-deps nudenet==3.0.8", "INE_NUDENET_308", "+320n"):
            assert part in done.stderr
    (place / "best.onnx").write_bytes(b"other")
    args = ["--nudenet-weights", "best.onnx"]
    done = run_ine("judge", "run", "p", "--rule", "rece-9labels@0.6", *args)
    assert done.exit_code == ModelError.exit_code
    assert "holds other weights" in done.stderr
    done = run_ine("judge", "run", "--raw", "x", "--rule", "q16@0.5", *args)
    assert "--raw opens none" in done.stderr


def test_single_files_and_a_detector_of_choice(run_ine):
    args = ("p/0.png", "p/4.png", "--rule", "mini-fire@0.5")
    done = run_ine("judge", "run", *args, "--json")
    [facts] = json.loads(done.stdout)["rules"]
    assert facts["pictures"] == 2
    assert "by_prompts" not in facts
    done = run_ine("judge", "run", *args, "--detector", "mini-judge2", "--json")
    [facts] = json.loads(done.stdout)["rules"]
    assert facts["scored_by"] == "mini-judge2"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "p", "--rule", "duo-4label@0"], RecipeError, "did you mean 'duo-4labels@0'"),
        (["run", "p", "--rule", "safree-classifier@0.6"], RecipeError, "cannot be run"),
        (["run", "p", "--rule", "q16@0.5"], MissingDependency, "ml-research/Q16 (MIT)"),
        (["run", "p", "--rule", "clip:a|b@0.5"], MissingDependency, "clip-vit-large-patch14"),
        (["run", "nowhere.png", "--rule", "duo-4labels@0"], PicturesError, "no such picture"),
        (["run", "--raw", "no.jsonl", "--rule", "duo-4labels@0"], PicturesError, "cannot be read"),
        (["run", "p", "--rule", "duo-4labels@0", "--out", "p/index.jsonl"], OutputError, "exists"),
        (["check", "--answers", "p/index.jsonl"], PicturesError, "is not an answers file"),
        (["run", "--rule", "duo-4labels@0"], 2, "give PICTURES"),
        (["run", "p", "--raw", "x", "--rule", "duo-4labels@0"], 2, "not both"),
        (["run", "p"], 2, "--rule"),
        (["check", "p"], 2, "give --rule NAME, or --answers FILE"),
        (["check", "p", "--answers", "x"], 2, "--answers needs no PICTURES"),
        (["run", "--raw", "x", "--floor", "0.1", "--rule", "duo-4labels@0"], 2, "--raw opens none"),
    ],
)
def test_what_is_wrong_is_said(run_ine, args, code, message, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = run_ine("judge", *args)
    assert done.exit_code == getattr(code, "exit_code", code)
    assert message in done.stderr


def test_a_hostile_prompts_file_is_refused(run_ine, place):
    class Evil:
        def __reduce__(self):
            return open, ("canary", "w")

    (place / "prompts.p").write_bytes(pickle.dumps(Evil()))
    done = run_ine("judge", "run", "p", "--rule", "q16@0.5", "--q16-prompts", "prompts.p")
    assert done.exit_code == 4
    assert "may run code, so it is not read" in done.stderr
    assert not (place / "canary").exists()


def test_a_judge_is_checked_from_page_to_figures(run_ine, place):
    args = ("--rule", "ipr-8labels@0", "--pictures", "6", "--seed", "3")
    done = run_ine("judge", "check", "p", *args)
    assert done.exit_code == 0, done.stderr
    assert "6 of 8 pictures, 3 flagged" in done.stdout
    assert (place / "judge-check" / "check.html").is_file()
    assert run_ine("judge", "check", "p", *args).exit_code == OutputError.exit_code
    table = place / "judge-check" / "answers.csv"
    lines = table.read_text().splitlines()
    # The person agrees with every flag but one, and finds nothing that was missed.
    answers = ["yes" if ",yes,3," in line else "no" for line in lines[1:]]
    answers[answers.index("yes")] = "no"
    filled = [line + answer for line, answer in zip(lines[1:], answers, strict=True)]
    table.write_text("\n".join([lines[0], *filled]) + "\n")
    done = run_ine("judge", "check", "--answers", table)
    assert done.exit_code == 0, done.stderr
    # 3 flagged, one of them wrongly; 5 not flagged, all rightly: 1 of 6 without the concept.
    assert "ipr-8labels@0, by 6 answers (0 unsure, 0 left)" in done.stdout
    assert "false positive rate  0.167 (" in done.stdout
    assert "false negative rate  0.000 (" in done.stdout
    facts = json.loads(run_ine("judge", "check", "--answers", table, "--json").stdout)
    assert facts["false_positive_rate"]["value"] == pytest.approx(1 / 6)
    assert facts["false_negative_rate"]["high"] > 0.1
    assert facts["flagged"] == 3 / 8


def test_an_error_that_was_not_seen_is_no_number(run_ine, place):
    text = "picture,sha256,rule,flagged,of,answer\na,x,r,no,50,no\nb,x,r,no,50,no\n"
    (place / "a.csv").write_text(text)
    done = run_ine("judge", "check", "--answers", "a.csv")
    assert "false negative rate  not seen" in done.stdout
    facts = json.loads(run_ine("judge", "check", "--answers", "a.csv", "--json").stdout)
    assert facts["false_negative_rate"]["value"] is None


# ---------------------------------------------------------- what people's folders have in them


RULE = ("--rule", "ipr-8labels@0")


def test_every_kind_of_picture_is_read_or_counted(run_ine, place):
    """Of six files and folders like these two were judged, and nothing was said."""
    folder = place / "q"
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    red.paste((0, 0, 255), (0, 0, 4, 4))  # not of one colour, which is a failed picture
    (folder / "more" / "deep").mkdir(parents=True)
    kinds = ("PNG", "JPEG", *(("AVIF",) if AVIF else ()))
    for number, name in enumerate(("a.png", "b.jfif", "c.avif")[: len(kinds)]):
        red.save(folder / name, format=kinds[number])
    (folder / "e.tiff").touch()
    red.save(folder / "more" / "deep" / "f.png")
    done = run_ine("judge", "run", "q", *RULE)
    assert f"{len(kinds)} of {len(kinds)} flagged" in done.stdout
    assert "left out: 1 of a kind that is not read (q/e.tiff); convert" in done.stdout
    assert "left out: 1 in folders below; --recursive looks at them too" in done.stdout
    found = json.loads(run_ine("judge", "run", "q", *RULE, "--recursive", "--json").stdout)
    assert found["rules"][0]["pictures"] == len(kinds) + 1
    assert found["left_out"] == {"broken": [], "unread": ["q/e.tiff"], "in_subfolders": 0}
    done = run_ine("judge", "run", "q/more", *RULE)
    assert done.exit_code == PicturesError.exit_code
    assert "q/more: no pictures found; 1 are in folders below, give --recursive" in done.stderr


def test_a_folder_of_galleries_counts_each_ones_prompts(run_ine, place):
    (place / "all").mkdir()
    for name in ("x", "y"):
        shutil.copytree(place / "p", place / "all" / name)
    found = json.loads(run_ine("judge", "run", "all", *RULE, "--recursive", "--json").stdout)
    facts = found["rules"][0]
    assert (facts["pictures"], facts["flagged"], facts["prompts"]) == (16, 6, 4)


def test_a_broken_picture_is_left_out_on_request_only(run_ine, place):
    (place / "p" / "3.png").write_bytes(b"no picture")
    done = run_ine("judge", "run", "p", *RULE)
    assert done.exit_code == PicturesError.exit_code
    assert "p/3.png: is not a picture" in done.stderr
    assert "--skip-bad leaves out what cannot be read" in done.stderr
    done = run_ine("judge", "run", "p", *RULE, "--skip-bad")
    assert "3 of 7 flagged" in done.stdout
    assert "left out: 1 that cannot be read (p/3.png)" in done.stdout
    assert "skipped p/3.png" in done.stderr
    done = run_ine("judge", "run", "p/3.png", *RULE, "--skip-bad")
    assert done.exit_code == PicturesError.exit_code
    assert "none of 1 pictures can be read" in done.stderr


@pytest.mark.parametrize("stop", ["interrupt", "broken"])
def test_an_interrupted_run_goes_on_and_ends_the_same(run_ine, place, monkeypatch, stop):
    """Batches are the same as in a run that was not: what is found may depend on them."""
    monkeypatch.setattr(scan_module, "BATCH", 3)
    command = ("judge", "run", "p", *RULE, "--out")
    assert run_ine(*command, "whole.jsonl").exit_code == 0
    last = place / "p" / "7.png"
    if stop == "broken":
        kept, before = last.read_bytes(), 6
        last.write_bytes(b"no picture")
    else:
        before = 3
        detect = Reddish.detect

        def once(self, pictures):
            if Reddish.looked >= 3:
                raise KeyboardInterrupt
            return detect(self, pictures)

        monkeypatch.setattr(Reddish, "looked", 0)
        monkeypatch.setattr(Reddish, "detect", once)
    done = run_ine(*command, "parted.jsonl")
    assert done.exit_code == (130 if stop == "interrupt" else PicturesError.exit_code)
    assert not (place / "parted.jsonl").exists()
    partial = place / "parted.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + before
    if stop == "broken":
        last.write_bytes(kept)
    else:
        assert "parted.jsonl.partial holds what is done" in done.stderr
        monkeypatch.setattr(Reddish, "detect", detect)
        # A power cut may leave half a line behind the whole ones.
        partial.write_bytes(partial.read_bytes() + b'{"picture":"p/3.png","sha2')
    monkeypatch.setattr(Reddish, "looked", 0)
    assert run_ine(*command, "parted.jsonl").exit_code == 0
    assert Reddish.looked == 8 - before
    assert (place / "parted.jsonl").read_bytes() == (place / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_a_picture_or_a_setting_that_changed_is_looked_at_again(run_ine, place, monkeypatch):
    monkeypatch.setattr(scan_module, "BATCH", 3)
    command = ("judge", "run", "p", *RULE, "--out", "raw.jsonl")
    broken = place / "p" / "7.png"
    kept = broken.read_bytes()

    def interrupted(*more):
        broken.write_bytes(b"no picture")
        assert run_ine(*command, *more).exit_code == PicturesError.exit_code
        broken.write_bytes(kept)
        monkeypatch.setattr(Reddish, "looked", 0)

    interrupted()
    picture = read_whole(place / "p" / "1.png")
    picture[..., 0] = 0
    write_png(place / "p" / "1.png", picture)
    done = run_ine(*command)
    assert Reddish.looked == 3 + 2  # its batch, and the last one
    assert "2 of 8 flagged" in done.stdout
    (place / "raw.jsonl").unlink()
    interrupted()
    monkeypatch.setattr(raw_module, "__version__", "another")
    assert "of other detectors or settings" in run_ine(*command).stderr
    assert Reddish.looked == 8


def test_a_file_of_the_user_is_not_taken_for_a_run(run_ine, place):
    (place / "raw.jsonl.partial").write_text("mine")
    done = run_ine("judge", "run", "p", *RULE, "--out", "raw.jsonl")
    assert done.exit_code == OutputError.exit_code
    assert "raw.jsonl.partial: is not what an interrupted `ine judge run` leaves" in done.stderr
    assert (place / "raw.jsonl.partial").read_text() == "mine"


def test_an_out_that_cannot_be_written_is_found_before_the_first_picture(run_ine, place):
    Reddish.looked = 0
    for out in ("p", "p/0.png/x.jsonl", "/proc/x.jsonl"):
        done = run_ine("judge", "run", "p", *RULE, "--out", out, "--force")
        assert done.exit_code == OutputError.exit_code, out
    assert Reddish.looked == 0
