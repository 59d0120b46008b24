"""Folders of pictures: resuming, refusing to mix, and what every file says about itself."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from ine.embeddings.embedding import new_embedding
from ine.errors import OutputError
from ine.gallery import fill, flagging
from ine.gallery import index as gallery_index
from ine.gallery.fill import fill_gallery
from ine.gallery.flagging import flagger_for
from ine.gallery.index import GalleryPlan, file_name
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.pictures import read_picture, read_png_text
from ine.sampling import PictureRequest, SamplerSettings

SAMPLER = SamplerSettings(steps=2, guidance_scale=5.0, batch=2)
SETTINGS = {"model": "tiny", "negative": "fire-neg", "steps": 2, "guidance_scale": 5.0}
PROMPTS = ("a dog", "a cat", "ein H\N{LATIN SMALL LETTER A WITH DIAERESIS}uschen", "fire", "snow")


@pytest.fixture(scope="module")
def guidance():
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    return ClassifierFree(Negative(embeddings=(new_embedding(vectors, "fire-neg", "fire"),)))


def plan_of(prompts=PROMPTS, seed=7, **settings):
    requests = tuple(PictureRequest(prompt=p, seed=seed + i) for i, p in enumerate(prompts))
    return GalleryPlan(requests=requests, settings={**SETTINGS, **settings})


@dataclass
class Studio:
    """Fills folders, and counts what the U-Net had to do."""

    parts: object
    guidance: object
    rows: list = field(default_factory=list)

    def fill(self, folder, plan=None, **kwargs):
        self.rows.clear()
        return fill_gallery(folder, self.parts, plan or plan_of(), self.guidance, SAMPLER, **kwargs)

    @property
    def pictures(self):
        """Pictures made by the last call: two conditions a step."""
        return sum(self.rows) / (2 * SAMPLER.steps)


@pytest.fixture
def studio(tiny_parts, guidance):
    studio = Studio(tiny_parts, guidance)
    handle = tiny_parts.unet.register_forward_hook(
        lambda _m, inputs, _out: studio.rows.append(len(inputs[0]))
    )
    yield studio
    handle.remove()


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def index_of(folder):
    return [json.loads(x) for x in (folder / "index.jsonl").read_bytes().decode().split("\n")[:-1]]


def stop_after(count):
    def progress(made, wanted):
        assert wanted == len(PROMPTS)
        if made >= count:
            raise KeyboardInterrupt

    return progress


def test_a_folder_holds_pictures_index_and_sheet(studio, tmp_path):
    seen = []
    rows = studio.fill(tmp_path / "out", progress=lambda *made: seen.append(made))
    names = [f"{i:05d}-seed{7 + i}.png" for i in range(5)]
    assert sorted(content(tmp_path / "out")) == [*names, "index.jsonl", "sheet.png"]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert [r["file"] for r in rows] == names
    assert [r["prompt"] for r in rows] == list(PROMPTS)
    assert [r["unet_calls"] for r in rows] == [2 * SAMPLER.steps] * 5
    assert index_of(tmp_path / "out") == rows
    assert studio.pictures == 5
    pictures = [read_picture(tmp_path / "out" / name, 16) for name in names]
    assert len({p.tobytes() for p in pictures}) == 5
    sheet = read_picture(tmp_path / "out" / "sheet.png", 64)
    assert sheet.std() > 1


def test_a_picture_carries_its_settings(studio, tmp_path):
    studio.fill(tmp_path)
    for i, prompt in enumerate(PROMPTS):
        about = json.loads(read_png_text(tmp_path / file_name(i, 7 + i))["ine"])
        assert about == {"prompt": prompt, "seed": 7 + i, **SETTINGS}


def test_files_sort_in_prompt_order(studio, tmp_path):
    prompts = [f"picture {i}" for i in reversed(range(12))]
    # Seeds of different length must not decide.
    plan = plan_of(prompts, seed=95)
    studio.fill(tmp_path, plan)
    files = sorted(p for p in tmp_path.glob("*.png") if p.name != "sheet.png")
    found = [json.loads(read_png_text(p)["ine"])["prompt"] for p in files]
    assert found == prompts
    assert [r["prompt"] for r in index_of(tmp_path)] == prompts


@pytest.mark.parametrize(("stop", "left"), [(2, 3), (4, 1)])
def test_an_interrupted_run_goes_on_and_ends_the_same(studio, tmp_path, stop, left):
    studio.fill(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        studio.fill(tmp_path / "parted", progress=stop_after(stop))
    assert studio.pictures == stop
    assert not (tmp_path / "parted" / "sheet.png").exists()
    assert content(tmp_path / "parted") != content(tmp_path / "whole")
    studio.fill(tmp_path / "parted")
    assert studio.pictures == left
    assert content(tmp_path / "parted") == content(tmp_path / "whole")
    before = content(tmp_path / "parted")
    studio.fill(tmp_path / "parted")
    assert studio.pictures == 0
    assert content(tmp_path / "parted") == before


def test_an_interruption_within_a_unit_redoes_that_unit(studio, tmp_path, monkeypatch):
    studio.fill(tmp_path / "whole")
    written = []

    def stop(path, *args, write=fill.write_png):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(fill, "write_png", stop)
        with pytest.raises(KeyboardInterrupt):
            studio.fill(tmp_path / "parted")
    assert [r["file"] for r in index_of(tmp_path / "parted")] == [p.name for p in written[:2]]
    studio.fill(tmp_path / "parted")
    assert studio.pictures == 3
    assert content(tmp_path / "parted") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        (lambda data: len(data) - 1, 1),  # without its newline alone a row is whole
        (lambda data: len(data) - 5, 3),
        (lambda data: data.index(b"\xc3") + 1, 3),  # half a character
    ],
)
def test_a_torn_last_line_of_the_index_is_made_again(studio, tmp_path, caplog, cut, left):
    """As a full disk or a power cut leaves it."""
    studio.fill(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        studio.fill(tmp_path / "parted", progress=stop_after(4))
    index = tmp_path / "parted" / "index.jsonl"
    data = index.read_bytes()
    index.write_bytes(data[: cut(data)])
    studio.fill(tmp_path / "parted")
    assert studio.pictures == left
    assert ("index.jsonl: its last line is cut off" in caplog.text) == (left > 1)
    assert content(tmp_path / "parted") == content(tmp_path / "whole")


def test_a_line_torn_elsewhere_is_no_index(studio, tmp_path):
    studio.fill(tmp_path)
    index = tmp_path / "index.jsonl"
    lines = index.read_bytes().split(b"\n")
    index.write_bytes(b"\n".join([lines[0][:30], *lines[1:]]))
    with pytest.raises(OutputError, match="is not an index of ine"):
        studio.fill(tmp_path)


def test_the_index_is_appended_to_and_ordered_once(studio, tmp_path, monkeypatch):
    """Otherwise what is written grows with the square of the number of pictures."""
    written = []

    def spy(how, write):
        return lambda path, text: (written.append((how, len(text))), write(path, text))[1]

    monkeypatch.setattr(gallery_index, "write_text", spy("whole", gallery_index.write_text))
    monkeypatch.setattr(gallery_index, "append_text", spy("more", gallery_index.append_text))
    studio.fill(tmp_path)
    size = (tmp_path / "index.jsonl").stat().st_size
    assert [how for how, _ in written] == ["whole", "more", "more"]
    assert sum(length for _, length in written) <= size
    (tmp_path / file_name(0, 7)).unlink()  # is remade last, and stands first again
    written.clear()
    studio.fill(tmp_path)
    assert [how for how, _ in written] == ["whole"]
    assert [r["file"] for r in index_of(tmp_path)] == [file_name(i, 7 + i) for i in range(5)]


def test_rows_that_were_appended_out_of_order_are_ordered(studio, tmp_path):
    """A kill after the last unit leaves them as they came."""
    studio.fill(tmp_path)
    index = tmp_path / "index.jsonl"
    before = index.read_bytes()
    lines = before.removesuffix(b"\n").split(b"\n")
    index.write_bytes(b"\n".join([*reversed(lines), lines[0]]) + b"\n")
    studio.fill(tmp_path)
    assert studio.pictures == 0
    assert index.read_bytes() == before


def test_a_picture_that_is_gone_is_made_again(studio, tmp_path):
    studio.fill(tmp_path)
    before = content(tmp_path)
    (tmp_path / file_name(2, 9)).unlink()
    studio.fill(tmp_path)
    assert studio.pictures == 2
    assert content(tmp_path) == before


def test_more_prompts_of_the_same_settings_are_added(studio, tmp_path):
    studio.fill(tmp_path, plan_of(PROMPTS[:2]))
    rows = studio.fill(tmp_path)
    assert studio.pictures == 3
    assert [r["prompt"] for r in rows] == list(PROMPTS)
    assert index_of(tmp_path) == rows


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (plan_of(guidance_scale=6.0), "settings"),
        (plan_of(extra=None), "settings"),
        (plan_of((*PROMPTS[:4], "a house")), "prompts"),
    ],
)
def test_pictures_of_other_settings_are_replaced_only_by_force(studio, tmp_path, plan, what):
    studio.fill(tmp_path)
    before = content(tmp_path)
    with pytest.raises(OutputError) as caught:
        studio.fill(tmp_path, plan)
    message = str(caught.value)
    for part in (str(tmp_path), f"made with other {what}", "another --out", "--force"):
        assert part in message
    assert studio.pictures == 0
    assert content(tmp_path) == before
    studio.fill(tmp_path, plan, force=True)
    assert studio.pictures == 5
    for i, request in enumerate(plan.requests):
        about = json.loads(read_png_text(tmp_path / file_name(i, request.seed))["ine"])
        assert about == {"prompt": request.prompt, "seed": request.seed, **plan.settings}
    assert [r["settings"] for r in index_of(tmp_path)] == [plan.settings] * 5


def test_force_does_not_redo_what_is_right_already(studio, tmp_path):
    studio.fill(tmp_path)
    studio.fill(tmp_path, force=True)
    assert studio.pictures == 0


def test_a_forced_run_that_is_interrupted_keeps_no_old_rows(studio, tmp_path):
    """Or the next run would take old pictures for new ones."""
    studio.fill(tmp_path / "out")
    plan = plan_of(guidance_scale=6.0)
    studio.fill(tmp_path / "whole", plan)
    with pytest.raises(KeyboardInterrupt):
        studio.fill(tmp_path / "out", plan, force=True, progress=stop_after(2))
    assert [r["settings"] for r in index_of(tmp_path / "out")] == [plan.settings] * 2
    studio.fill(tmp_path / "out", plan)
    assert studio.pictures == 3
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        b"not json\n",
        b"",
        b"3\n",
        b"[]\n",
        b"{}\n",
        b'{"settings": {}}\n',
        b'{"settings": {}, "file": "x.png"}\n',
        b'{"settings": {}, "file": {}, "prompt": ""}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_broken_index_is_said_and_left_alone(studio, tmp_path, text, force):
    (tmp_path / "index.jsonl").write_bytes(text)
    with pytest.raises(OutputError, match=r"index\.jsonl: is not an index of ine; choose another"):
        studio.fill(tmp_path, force=force)
    assert studio.pictures == 0
    assert content(tmp_path) == {"index.jsonl": text}


def test_an_index_that_is_a_folder_is_said(studio, tmp_path):
    (tmp_path / "index.jsonl").mkdir()
    with pytest.raises(OutputError, match="is not an index of ine"):
        studio.fill(tmp_path)


def test_a_prompt_may_hold_characters_that_end_lines_elsewhere(studio, tmp_path):
    odd = "a\N{LINE SEPARATOR}dog\N{NEXT LINE}and\x1ccat\nhouse"
    rows = studio.fill(tmp_path, plan_of([odd]))
    assert rows[0]["prompt"] == odd
    assert index_of(tmp_path) == rows
    assert studio.fill(tmp_path, plan_of([odd])) == rows
    assert studio.pictures == 0
    assert json.loads(read_png_text(tmp_path / file_name(0, 7))["ine"])["prompt"] == odd


def test_a_folder_that_cannot_be_written_is_an_output_error(studio, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        studio.fill(tmp_path / "file")


def test_what_is_flagged_is_blurred_in_the_sheet_only(studio, tmp_path):
    one = replace(plan_of(), requests=plan_of().requests[:1])
    rows = studio.fill(tmp_path / "plain", one)
    assert "flagged" not in rows[0]
    for name, answer in (("safe", False), ("flagged", True), ("unknown", None)):
        rows = studio.fill(tmp_path / name, one, flagger=lambda p, a=answer: [a] * len(p))
        assert rows[0]["flagged"] is answer
    picture, sheets = file_name(0, 7), {}
    for name in ("plain", "safe", "flagged", "unknown"):
        found = content(tmp_path / name)
        assert found[picture] == content(tmp_path / "plain")[picture]
        sheets[name] = found["sheet.png"]
    assert sheets["safe"] == sheets["plain"]
    assert sheets["flagged"] == sheets["unknown"] != sheets["plain"]
    # A picture of a run without a detector is not known to be harmless.
    studio.fill(tmp_path / "plain", one, flagger=lambda p: [False] * len(p))
    assert content(tmp_path / "plain")["sheet.png"] == sheets["flagged"]


def test_a_detector_is_asked_for_concepts_about_people_only(monkeypatch, caplog):
    assert flagger_for(["fire", "weapon", "somebody-elses"]) is None
    assert flagger_for(["nudity-neg"]) is not None
    assert flagger_for(["fire"], ["mini-fire@0.5"]) is not None

    def missing(name):
        raise OutputError(f"no {name} here")

    monkeypatch.setattr(flagging, "load_detector", missing)
    flags = flagger_for(["fire", "nudity"])
    assert flags(np.zeros((2, 16, 16, 3), np.uint8)) == [None, None]
    assert "all pictures of sheet.png are blurred" in caplog.text


# Files of other origin


@pytest.mark.parametrize("name", [file_name(1, 8), "sheet.png"])
def test_files_of_the_user_are_replaced_only_by_force(studio, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"holds {name}, not made by this command.*--force"):
        studio.fill(tmp_path)
    assert studio.pictures == 0
    assert content(tmp_path) == {name: b"mine"}
    studio.fill(tmp_path, force=True)
    assert studio.pictures == 5
    assert b"mine" not in content(tmp_path).values()


def test_many_files_of_the_user_are_named_in_short(studio, tmp_path):
    for i in range(5):
        (tmp_path / file_name(i, 7 + i)).write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"00002-seed9\.png and 2 more, not made by this"):
        studio.fill(tmp_path)


def test_other_files_of_the_user_are_in_nobodys_way(studio, tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"mine")
    studio.fill(tmp_path)
    assert content(tmp_path)["holiday.png"] == b"mine"


def test_a_picture_that_was_exchanged_is_not_taken_for_made(studio, tmp_path):
    """One of the user, and one of another run that lost its index."""
    studio.fill(tmp_path / "out")
    whole = content(tmp_path / "out")
    studio.fill(tmp_path / "other", plan_of(guidance_scale=6.0))
    name = file_name(2, 9)
    for data in (b"mine", (tmp_path / "other" / name).read_bytes()):
        (tmp_path / "out" / name).write_bytes(data)
        with pytest.raises(OutputError, match=f"holds {name}, not made by this command"):
            studio.fill(tmp_path / "out")
        assert (tmp_path / "out" / name).read_bytes() == data
        studio.fill(tmp_path / "out", force=True)
        assert studio.pictures == 2
        assert content(tmp_path / "out") == whole


def test_pictures_of_another_run_without_their_index_are_kept(studio, tmp_path):
    studio.fill(tmp_path, plan_of(guidance_scale=6.0))
    for name in ("index.jsonl", "sheet.png"):
        (tmp_path / name).unlink()
    before = content(tmp_path)
    with pytest.raises(OutputError, match="not made by this command"):
        studio.fill(tmp_path)
    assert content(tmp_path) == before


def test_a_folder_in_a_pictures_place_cannot_be_replaced(studio, tmp_path):
    (tmp_path / file_name(0, 7)).mkdir()
    with pytest.raises(OutputError, match="cannot be replaced"):
        studio.fill(tmp_path, force=True)


def test_a_plan_without_requests_is_a_mistake_of_the_caller(studio, tmp_path):
    with pytest.raises(ValueError, match="at least one request"):
        studio.fill(tmp_path / "out", plan_of(()))
    assert not (tmp_path / "out").exists()
