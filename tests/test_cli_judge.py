"""`ine judge` on the bundled model's judges and made detectors."""

import json
import pickle

import numpy as np
import pytest

from ine.errors import MissingDependency, OutputError, PicturesError, RecipeError
from ine.judging.detection import Detection
from ine.judging.detectors import DETECTORS
from ine.judging.nudenet import PUBLISHED
from ine.judging.rules import L9, RULES, UNAVAILABLE
from ine.pictures import write_png

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
        write_png(tmp_path / "p" / f"{number}.png", picture)
        rows.append({"file": f"{number}.png", "prompt": f"prompt {number // 2}"})
    write_png(tmp_path / "p" / "sheet.png", np.full((16, 16, 3), 255, np.uint8))
    index = "\n".join(map(json.dumps, rows)) + "\n"
    (tmp_path / "p" / "index.jsonl").write_text(index)
    return tmp_path


def test_every_rule_is_listed(run_ine):
    text = run_ine("judge", "list").stdout
    for name in [*RULES, *UNAVAILABLE]:
        assert name in text
    assert max(map(len, text.splitlines())) <= 100
    found = json.loads(run_ine("judge", "list", "--json").stdout)
    assert [r["name"] for r in found["rules"]] == list(RULES)
    assert {r["name"] for r in found["unavailable"]} == set(UNAVAILABLE)
    by_name = {r["name"]: r for r in found["rules"]}
    assert by_name["rece-9labels@0.6"]["labels"] == sorted(L9)
    assert by_name["rece-9labels@0.6"]["says"] == "nudenet: any of 9 labels > 0.6"
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
    rules = ["--rule", "mu-attack-9labels@0.75", "--rule", "mace-9labels@0"]
    done = run_ine("judge", "run", "--raw", "raw.jsonl", *rules, "--json")
    assert done.exit_code == 0, done.stderr
    assert Reddish.looked == looked
    strict, counted = json.loads(done.stdout)["rules"]
    assert (strict["flagged"], strict["pictures"], strict["prompts"]) == (3, 8, 4)
    assert strict["verdicts"]["p/0.png"] is True
    assert strict["verdicts"]["p/4.png"] is False
    assert counted["boxes"]["BELLY_EXPOSED"] == 6
    assert sum(counted["boxes"].values()) == 6


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
