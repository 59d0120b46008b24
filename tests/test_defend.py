"""`ine defend`: its prompts and its choice, what it writes, and that it can be killed anywhere."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import build_tiny

from ine.calibration.thresholds import with_thresholds
from ine.detectors.table import DETECTORS
from ine.embeddings.embedding import read_embedding
from ine.errors import IneError, OutputError, RecipeError
from ine.evaluation.choosing import best_of
from ine.evaluation.grid import GridModel
from ine.evaluation.stats import Estimate
from ine.files import sha256_of
from ine.guidance.additive import Additive
from ine.guidance.behind import behind
from ine.guidance.gate_file import read_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.recommended import recommendation_of
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import PictureRequest, SamplerSettings, generate
from ine.studies.defend.gate import gate_of
from ine.studies.defend.job import MODEL, Job, Watch
from ine.studies.defend.looks import Looks
from ine.studies.defend.outcomes import Outcome, Plain
from ine.studies.defend.prompts import BENIGN, IMPLYING, prompts_for
from ine.studies.defend.restarts import is_whole, ladders_of, opens_for
from ine.studies.defend.run import check_reached, run_defend
from ine.studies.defend.settings import Setting, Tried, Tuning, check_search
from ine.studies.defend.teaching import Gates, teach
from ine.studies.defend.tuning import chosen_of, margin
from ine.text.encode import TextOptions

SMALL = (
    "pictures.count=4",
    "pictures.batch=4",
    "pictures.steps=4",
    "pictures.scheduler=ddim",
    "inversion.vectors=1",
    "inversion.steps=2",
    "inversion.batch=1",
    "inversion.preview_every=2",
    "inversion.preview_pictures=2",
    "inversion.runs=1",
    "tuning.steps=4",
    "tuning.scheduler=ddim",
    "defence.guidances={cfg: [], additive: [200, 2000]}",
    "defence.false_open=[0.1, 0.5]",
    "defence.look_ahead=2",
    "defence.examples=32",
    # The probe of so few concept pictures would open for nothing.
    "defence.learn_from=vectors",
    "defence.pictures=8",
    "defence.benign=10",
    "defence.reported=4",
)
"""A defence of the tiny model in seconds."""


# ---------------------------------------------------------------------------------- the prompts


@pytest.mark.parametrize("name", ["fire", "weapon", "nudity", "violence"])
def test_nothing_that_is_held_back_is_chosen_on(name):
    prompts = prompts_for(load_recipe(name), 0)
    for kind in (IMPLYING, BENIGN):
        tuned = {(c.phrase, c.noun) for c in prompts.tuning[kind]}
        held = {(c.phrase, c.noun) for c in prompts.held_back[kind]}
        assert tuned
        assert held
        assert not tuned & held


def test_the_counts_are_the_recipes():
    recipe = load_recipe("fire", ["defence.pictures=5", "defence.benign=11", "defence.reported=3"])
    prompts = prompts_for(recipe, 0)
    assert [len(prompts.tuning[k]) for k in (IMPLYING, BENIGN)] == [5, 11]
    assert {len(cases) for cases in prompts.held_back.values()} == {3}
    assert {"twins_test", "snow", "flowers"} < set(prompts.held_back)


def test_a_recipe_with_one_kind_of_prompts_holds_back_half_of_their_templates():
    recipe = load_recipe("fire", ["tuning.benign=[]"])
    sets = {"benign": recipe.prompt_sets["benign"]}
    recipe = recipe.model_copy(update={"prompt_sets": sets, "erase": None})
    prompts = prompts_for(recipe, 0)
    for kind in (IMPLYING, BENIGN):
        tuned = {c.phrase for c in prompts.tuning[kind]}
        held = {c.phrase for c in prompts.held_back[kind]}
        assert len(tuned) == len(held) == 2
        assert not tuned & held
        assert "half of" in prompts.sources[kind]


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ({"tuning": None}, r"recipe fire: has no tuning prompts"),
        ({"prompt_sets": {}}, r"recipe fire: has no prompt_sets\.benign, by which preservation"),
        (
            {"prompt_sets": {"benign": ("a thing",)}, "erase": None},
            r"has one prompt among its benign prompts, so none can be held back",
        ),
    ],
)
def test_a_recipe_that_lacks_prompts_is_refused(without, said):
    with pytest.raises(RecipeError, match=said):
        prompts_for(load_recipe("fire", ["tuning.benign=[]"]).model_copy(update=without), 0)


def test_what_is_tried_is_no_part_of_the_recipes_hash():
    """So that another search uses the vectors that are there."""
    assert load_recipe("fire", ["defence.pictures=5"]).hash == load_recipe("fire").hash
    assert load_recipe("fire", ["inversion.lr=1"]).hash != load_recipe("fire").hash


@pytest.mark.parametrize(
    ("guidances", "said"),
    [
        ("{cfg: [2]}", "cfg has no strength of its own"),
        ("{safree: []}", "safree reads the prompts"),
        ("{cgf: []}", "guidance 'cgf' is unknown.*cfg"),
    ],
)
def test_a_search_that_no_method_can_do_is_refused(run_ine, guidances, said):
    recipe = load_recipe("fire", [f"defence.guidances={guidances}"])
    with pytest.raises(IneError, match=said):
        check_search(recipe.defence)
    done = run_ine("defend", "--concept", "fire", "--set", f"defence.guidances={guidances}")
    assert done.exit_code == 1
    assert said.split(".*")[0] in " ".join(done.stderr.split())


# ----------------------------------------------------------------------------------- the choice


def test_the_least_flagged_of_those_that_keep_enough_is_chosen():
    options = [("a", 0.1, 0.99), ("b", 0.0, 0.90), ("c", 0.1, 0.98), ("d", 0.3, 1.0)]
    assert best_of(options, 0.97, lambda name: (-ord(name),)) == (options[2], True)
    assert best_of(options, 0.97, lambda name: (ord(name),)) == (options[0], True)
    assert best_of(options, 0.5, lambda name: (0,)) == (options[1], True)
    # None keeps it: the one that keeps most, and that is said.
    assert best_of(options[:3], 0.995, lambda name: (0,)) == (options[0], False)


# ------------------------------------------------------------------------------- from end to end


class Judge:
    """Finds fire in pictures that are brighter on the left; its features are the pixels."""

    def __call__(self, pictures):
        return [{"fire": 0.9 if p[:, :8].mean() > p[:, 8:].mean() else 0.1} for p in pictures]

    def features(self, pictures):
        rows = pictures.reshape(len(pictures), -1).astype(np.float32) - 127.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


SAMPLER = SamplerSettings(steps=4, guidance_scale=5.0, batch=8, reading=TextOptions(weights=True))


@pytest.fixture(scope="module")
def judged():
    """Let `Judge` look, and let probes learn from few pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mini-judge", "mini-judge2"):
            patch.setitem(DETECTORS, name, Judge)
        patch.setattr("ine.calibration.teach.FEWEST", 2)
        yield


@pytest.fixture(scope="module")
def job_in(tiny_parts, tiny_folder):
    """Return the job of a folder."""

    def build(folder, watch=None, recipe=None, **given):
        return Job(
            recipe=recipe or load_recipe("fire", SMALL),
            base=tiny_parts,
            parts=tiny_parts,
            model=GridModel(name=MODEL, model=str(tiny_folder)),
            sampler=SAMPLER,
            out=folder / "fire-neg.safetensors",
            target=given.pop("target", 0.5),
            watch=watch or Watch(),
            **given,
        )

    return build


@pytest.fixture(scope="module")
def made(judged, job_in, tiny_parts, tmp_path_factory):
    """A defence, and the folder that it was made in."""
    folder = tmp_path_factory.mktemp("made")
    calls, hook = counting(tiny_parts.unet)
    found = run_defend(job_in(folder))
    hook.remove()
    WHOLE.append(len(calls))
    return found, folder


WHOLE = []
"""How many calls of the U-Net `made` took."""


def test_it_writes_embedding_gate_and_report(made):
    found, folder = made
    assert sorted(p.name for p in folder.iterdir()) == [
        "fire-neg.defend",
        "fire-neg.gate.safetensors",
        "fire-neg.safetensors",
    ]
    assert found.report == folder / "fire-neg.defend" / "report.html"
    shown = json.loads((folder / "fire-neg.defend" / "report.json").read_text())
    assert [s["title"] for s in shown["sections"]] == ["On held-back prompts", "How it was chosen"]


def test_the_file_says_how_to_use_it_and_what_that_does(made):
    found, folder = made
    embedding = read_embedding(found.embedding)
    assert recommendation_of(embedding) == found.recommendation
    for name in ("left", "undefended", "preservation"):
        value = embedding.metadata[f"ine.defence.{name}"]
        assert re.fullmatch(r"[\d.]+ \(N 4, 95% [\d.]+ to [\d.]+\)", value), value
    # UIs find the tensor that they know, and nothing else.
    with safe_open(found.embedding, framework="pt") as file:
        assert list(file.keys()) == ["emb_params"]
        inverted = read_embedding(folder / "fire-neg.defend" / "fire-neg.safetensors")
        assert torch.equal(file.get_tensor("emb_params"), inverted.vectors[0])


def test_the_gate_has_the_threshold_and_window_that_were_chosen(made):
    found, _ = made
    setting = found.tuning.chosen.setting
    calibration = read_calibration(found.gate)
    assert calibration.threshold == setting.threshold
    assert calibration.look_ahead.window == Window(*setting.window)
    assert calibration.look_ahead.steps == 2
    assert sha256_of(found.gate.read_bytes())[:16] == found.recommendation.gate_hash


def test_of_those_that_keep_the_target_one_that_leaves_least_is_chosen(made):
    tuning = made[0].tuning
    able = [one for one in tuning.tried if one.kept.value >= 0.5]
    once = [one for one in tuning.tried if not one.setting.restart]
    assert len(once) == 2 * 2 * 3  # windows, thresholds, guidances with strengths
    search = load_recipe("fire").defence
    # Both windows of plain guidance, and of additive the best strengths and windows.
    assert len(tuning.tried) - len(once) == (2 + search.restarted) * len(search.restarts)
    assert tuning.chosen in able
    assert tuning.chosen.left.value <= min(one.left.value for one in able) + 1 / 8
    assert len({one.left.value for one in tuning.tried}) > 1, "all are alike, so nothing is tested"


def test_what_a_setting_does_is_what_its_gate_does(made, tiny_parts, job_in):
    """Thresholds are read off looks and steered pictures; here the gated runs are made."""
    found, folder = made
    job = job_in(folder)
    negative = Negative("", (read_embedding(found.embedding),))
    calibration, judge = read_calibration(found.gate), Judge()
    cases = job.prompts.tuning[IMPLYING]
    requests = [PictureRequest(prompt=c.prompt, seed=c.seed) for c in cases]
    tested = [one for one in found.tuning.tried if one.setting.method == "additive"]
    for one in tested[::3]:
        setting = one.setting
        gate = replace(
            with_thresholds(calibration.look_ahead, setting.threshold),
            window=Window(*setting.window),
        )
        guidance = Gated(Additive(negative, setting.strength), gate)
        units = generate(tiny_parts, requests, guidance, job.sampler)
        flags = [look["fire"] > 0.5 for unit in units for look in judge(unit.pictures)]
        assert np.mean(flags) == one.left.value, setting


def test_what_restarts_do_is_what_generate_does(made, judged, job_in, tiny_parts, tmp_path):
    """The tuning makes only the benign pictures that may change; here all are made."""
    shutil.copytree(made[1] / "fire-neg.defend", tmp_path / "fire-neg.defend")
    search = ("false_open=[0.5]", "guidances={additive: [2]}", "windows=[[0, 0.8]]")
    own = ("restarts=[[1], [1, 100]]", "restarted=1")
    recipe = load_recipe("fire", [*SMALL, *(f"defence.{text}" for text in (*search, *own))])
    job = job_in(tmp_path, recipe=recipe)
    once, *again = run_defend(job).tuning.tried
    assert [one.setting.restart for one in again] == [(1.0,), (1.0, 100.0)]
    method = Additive(Negative("", (read_embedding(job.made_embedding),)), 2.0)

    def pictures(kind, guidance):
        requests = [PictureRequest(prompt=c.prompt, seed=c.seed) for c in job.prompts.tuning[kind]]
        units = generate(tiny_parts, requests, guidance, job.sampler)
        return np.concatenate([unit.pictures for unit in units])

    plain, restarted = pictures(BENIGN, None), 0
    for k, one in enumerate(again):
        gate = read_calibration(job.folder / f"restart-{k}.gate.safetensors")
        assert gate.threshold == once.setting.threshold
        assert gate.look_ahead.window == Window(0, 0.8)
        guidance = behind(method, gate, None, one.setting.restart)
        flags = [look["fire"] > 0.5 for look in Judge()(pictures(IMPLYING, guidance))]
        assert np.mean(flags) == one.left.value
        benign = pictures(BENIGN, guidance)
        changed = [not np.array_equal(*pair) for pair in zip(benign, plain, strict=True)]
        assert np.mean(changed) <= one.opened
        without = pictures(BENIGN, behind(method, gate))
        restarted += not np.array_equal(benign, without)
    assert restarted, "restarts change nothing here, so nothing is tested"
    assert len({one.kept.value for one in (once, *again)}) > 1


def test_guidance_other_than_additive_ends_in_additive(job_in, tmp_path):
    job = job_in(tmp_path)
    search = job.recipe.defence
    additive = ladders_of(job, replace(SETTING, method="additive", strength=8.0))
    assert [one.restart for one in additive] == list(search.restarts)
    assert all(one.last is None for one in additive)
    other = ladders_of(job, replace(SETTING, method="contextual", strength=6.0))
    assert [(one.restart, one.last) for one in other] == [
        (ladder, search.last_resort) for ladder in search.restarts
    ]
    # Without it no other guidance is chosen.
    alone = replace(SETTING, method="contextual", strength=6.0)
    assert [is_whole(job, one) for one in (*additive, *other)] == [True] * 2
    assert not is_whole(job, alone)
    for change in ("defence.last_resort=null", "defence.restarts=[]"):
        job = job_in(tmp_path, recipe=load_recipe("fire", [*SMALL, change]))
        assert all(one.last is None for one in ladders_of(job, alone))
        assert is_whole(job, alone)


def test_of_settings_that_leave_as_little_the_gate_that_opens_most_often_is_chosen(
    tuned, job_in, tmp_path
):
    job, once = job_in(tmp_path), []

    def option(left, alone=0.5, **given):
        once.append(tuned(left=alone, **given))
        return tuned(left=left, restart=(1.0, 2.0), last=8.0, **given)

    def chosen(*options):
        return chosen_of(job, options, once)

    rarely = option(0.0, false_open=0.01)
    often = option(1 / 96, false_open=0.05)  # one picture more, which another seed could change
    assert chosen(rarely, often) == (often, True)
    assert chosen(rarely, often, option(2 / 96, false_open=0.1)) == (often, True)
    # Then the one that leaves least where nothing restarts, which keeps the subject, the weakest.
    alone = option(1 / 96, 0.25, false_open=0.05, strength=8.0)
    assert chosen(often, alone)[0] == alone
    keeps = option(1 / 96, 0.25, false_open=0.05, strength=9.0, subject=0.99)
    assert chosen(alone, keeps)[0] == keeps
    weaker = option(1 / 96, 0.25, false_open=0.05, strength=7.0, subject=0.99)
    assert chosen(keeps, weaker)[0] == weaker
    # One that misses a target is not chosen, whatever it leaves; where all do, the closest.
    loses = option(0.0, false_open=0.05, strength=1.0, subject=0.5)
    assert chosen(loses, rarely) == (rarely, True)
    assert chosen(loses) == (loses, False)


@pytest.fixture
def tuned():
    """Return a setting that was tried."""

    def share(value):
        return Estimate(value, 0.0, 1.0, 96, 96)

    def build(left, subject=0.96, **given):
        setting = replace(SETTING, **given)
        return Tried(
            setting=setting, left=share(left), kept=share(1.0), subject=share(subject), opened=0.0
        )

    return build


def test_half_the_run_restarts_fewer_benign_pictures_than_the_look_ahead_steers(made, job_in):
    found, folder = made
    gate, job = read_calibration(found.gate), job_in(folder)
    gates = Gates(look=gate.look_ahead, late=gate.gate, record={})
    setting = replace(SETTING, false_open=0.1)

    def thresholds(count):
        scores = [float(i) for i in range(count)]
        looks = Looks(scores={IMPLYING: [0.0], BENIGN: scores}, late=scores)
        own = gate_of(job, gates, looks, {}, setting)
        return own.threshold, own.gate.threshold

    assert thresholds(99) == (89.0, 97.0)  # 9 of 99 above, and 1
    assert thresholds(20) == (18.0, 18.0)  # so few cannot tell .02


def test_a_benign_picture_is_made_if_either_look_may_open(made):
    gate = read_calibration(made[0].gate)
    ahead, late = with_thresholds(gate.look_ahead, 0.0), replace(gate.gate, threshold=1.0)
    looks = Looks(scores={IMPLYING: [], BENIGN: [0.5, -1.0, -1.0]}, late=[0.5, 1.5, 0.5])
    opens = opens_for(looks, replace(gate, look_ahead=ahead, gate=late))
    assert opens.tolist() == [True, True, False]


def outcome(flagged, subject, kept):
    subject = None if subject is None else np.array(subject, dtype=bool)
    return Outcome(flagged=np.array(flagged, dtype=bool), subject=subject, kept=np.array(kept))


def plain_of(subject, beside=(True,) * 4):
    clusters = {IMPLYING: ("a", "b", "c", "d"), BENIGN: ("e", "f")}
    return Plain(
        outcome=outcome([1, 1, 0, 0], subject, [1.0, 1.0]),
        clusters=clusters,
        floor=0.0,
        beside=np.array(beside),
    )


SETTING = Setting(method="cfg", strength=None, window=(0.0, 1.0), false_open=0.1, threshold=0.0)


def test_a_subject_is_kept_where_it_was_there_undefended():
    plain = plain_of([1, 1, 1, 0])
    lost = outcome([0, 0, 0, 0], [1, 1, 0, 1], [0.5, 1.0])
    found = plain.tried(SETTING, lost, 0.5)
    assert (found.left.value, found.kept.value) == (0, 0.75)
    assert (found.subject.value, found.subject.count) == (pytest.approx(2 / 3), 3)
    # Where the gate stays closed it is the undefended picture.
    opens = {IMPLYING: np.array([1, 0, 0, 1], bool), BENIGN: np.array([0, 1], bool)}
    found = plain.tried(SETTING, lost.where(opens, plain.outcome), 0.5)
    assert (found.left.value, found.kept.value, found.subject.value) == (0.25, 1, 1)


@pytest.mark.parametrize("subject", [None, [0, 0, 0, 0]])
def test_without_a_detector_of_objects_no_subject_is_asked_for(subject):
    plain = plain_of(subject)
    assert plain.tried(SETTING, plain.outcome, 0.0).subject is None


def test_a_subject_that_is_the_concept_need_not_stay():
    gone = outcome([0, 0, 0, 0], [1, 0, 0, 0], [1.0, 1.0])
    found = plain_of([1, 1, 1, 0], (True, False, False, True)).tried(SETTING, gone, 0.5)
    assert (found.subject.value, found.subject.count) == (1, 1)
    assert plain_of([1, 1, 1, 0], (False,) * 4).tried(SETTING, gone, 0.5).subject is None
    # By the nouns of the recipe: fire comes to any object, a dagger is the weapon.
    for name, beside in (("fire", True), ("weapon", False)):
        tuning = prompts_for(load_recipe(name), 0).tuning
        benign = {case.noun for case in tuning[BENIGN]}
        assert {case.noun in benign for case in tuning[IMPLYING]} == {beside}


@pytest.mark.parametrize(
    ("target", "wanted", "expected"),
    [(0.7, 0.6, 0.05), (0.7, 0.7, -1 / 30), (0.8, 0.6, -0.05)],
)
def test_the_margin_is_that_of_the_target_that_is_missed_by_most(
    job_in, tmp_path, target, wanted, expected
):
    recipe = load_recipe("fire", [*SMALL, f"defence.subject={wanted}"])
    job = job_in(tmp_path, recipe=recipe, target=target)
    plain = plain_of([1, 1, 1, 0])
    one = plain.tried(SETTING, outcome([0, 0, 0, 0], [1, 1, 0, 1], [0.5, 1.0]), 0.5)
    assert margin(job, one) == pytest.approx(expected)


def test_a_subject_that_nothing_keeps_is_an_error_that_says_what_was(job_in, tmp_path):
    plain = plain_of([1, 1, 1, 0])
    one = plain.tried(SETTING, outcome([0, 0, 0, 0], [1, 1, 0, 1], [0.9, 1.0]), 0.5)
    tuning = Tuning(tried=(one,), chosen=one, reached=False, undefended=one.left)
    with pytest.raises(
        IneError,
        match=r"no setting keeps the subject in 0\.95 of 3 tuning pictures with it; the most is "
        r"0\.666 .*preservation 0\.950, subject 0\.667.* --set defence\.subject=0\.666, or",
    ):
        check_reached(job_in(tmp_path), tuning)
    check_reached(job_in(tmp_path, below_target=True), tuning)


def counting(unet, most=None):
    """Count calls of a U-Net in a list; end the process, as it were, at a number of calls."""
    calls = []

    def seen(*_):
        calls.append(1)
        if most is not None and len(calls) > most:
            raise KeyboardInterrupt

    return calls, unet.register_forward_pre_hook(seen)


def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(
    made, judged, job_in, tiny_parts, tmp_path
):
    _, folder = made
    (whole,), spent, attempts = WHOLE, 0, 0
    while True:
        attempts += 1
        calls, hook = counting(tiny_parts.unet, most=whole // 5)
        try:
            run_defend(job_in(tmp_path / "killed"))
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "killed" / "fire-neg.safetensors").exists()
        finally:
            hook.remove()
            spent += len(calls)
    assert attempts > 4
    # Each attempt repeats at most the unit that it was killed in.
    assert spent < 1.3 * whole
    for name in ("fire-neg.safetensors", "fire-neg.gate.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (folder / name).read_bytes()


def test_purge_leaves_no_picture_and_no_latent(made, judged, job_in, tmp_path):
    kept, _ = made

    def pictures_in(folder):
        found = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        shown = (folder / "report.html").read_text().count("data:image")
        return shown, [f for f in found if f.endswith(".zip") or "pictures" in f.split("/")[0]]

    folder = tmp_path / "made"
    shutil.copytree(kept.report.parents[1], folder)
    shown, files = pictures_in(folder / "fire-neg.defend")
    assert shown
    assert files
    found = run_defend(job_in(folder, purge=True, force=True))
    assert pictures_in(folder / "fire-neg.defend") == (0, [])
    left = {p.name for p in (folder / "fire-neg.defend").iterdir()}
    assert not left & {"units", "readings", "examples", "fire-neg.safetensors.run"}
    assert found.embedding.read_bytes() == kept.embedding.read_bytes()


def test_a_probe_may_learn_from_the_concept_pictures_that_are_there(
    judged, job_in, again, monkeypatch
):
    job = job_in(again)
    embedding = read_embedding(job.made_embedding)
    by_vectors = teach(job, embedding)
    monkeypatch.setattr("ine.calibration.examples.sample_latents", None)  # nothing more is drawn
    job = job_in(again, recipe=load_recipe("fire", [*SMALL, "defence.learn_from=pictures"]))
    gates = teach(job, embedding)
    examples = gates.record["examples"]
    assert set(examples) == {"absent", "shown-given", "shown-implied", "rule"}
    assert examples["absent"] == by_vectors.record["examples"]["absent"]
    assert examples["shown-given"]["drawn"] == examples["shown-given"]["kept"] >= 2
    # They are other pictures, so it is another probe; the same ones give the same.
    taught = (by_vectors, gates, teach(job, embedding))
    digests = [one.look.probes[0].probe.digest for one in taught]
    assert digests[0] != digests[1] == digests[2]


@pytest.fixture
def again(made, tmp_path):
    """A folder with the work of `made`, without what it wrote at the end."""
    shutil.copytree(made[1] / "fire-neg.defend", tmp_path / "fire-neg.defend")
    return tmp_path


def test_a_target_that_nothing_reaches_is_an_error_that_says_what_was(judged, job_in, again):
    changes = ("defence.false_open=[0.5]", "defence.guidances={additive: [2000]}")
    recipe = load_recipe("fire", [*SMALL, *changes])
    with pytest.raises(IneError) as error:
        run_defend(job_in(again, recipe=recipe, target=1.0))
    said = re.search(
        r"no setting keeps a preservation of 1 on 10 benign tuning pictures; the most is "
        r"(0\.\d{3}) .* give a --target-preservation of at most (0\.\d{3}), or --below-target",
        str(error.value),
    )
    assert said[1] == said[2]
    assert not (again / "fire-neg.safetensors").exists()
    assert not (again / "fire-neg.gate.safetensors").exists()
    # Asked for, the best there is is written, and its header says what it keeps.
    found = run_defend(job_in(again, recipe=recipe, target=1.0, below_target=True))
    assert not found.tuning.reached
    assert found.tuning.chosen.kept.value == max(t.kept.value for t in found.tuning.tried)
    assert read_embedding(found.embedding).metadata["ine.defence.target_preservation"] == "1"


def test_a_gate_of_another_kind_is_not_replaced(made, judged, job_in, again):
    gate = again / "fire-neg.gate.safetensors"
    gate.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"gate\.safetensors: exists already; give --force"):
        run_defend(job_in(again))
    assert gate.read_bytes() == b"mine"
    # Its own of an interrupted run is.
    gate.write_bytes((made[1] / gate.name).read_bytes())
    run_defend(job_in(again))
    with pytest.raises(OutputError, match=r"fire-neg\.safetensors: exists already"):
        run_defend(job_in(again))


def test_models_of_few_steps_are_refused_by_name(job_in, tmp_path, monkeypatch):
    build_tiny("lcm").save_pretrained(tmp_path / "lcm")
    parts = load_parts(tmp_path / "lcm")
    job = replace(job_in(tmp_path), base=parts, parts=parts)
    with pytest.raises(IneError, match="is a model of few steps"):
        run_defend(job)


def test_the_report_says_what_each_of_several_inversions_left(judged, job_in, again):
    recipe = load_recipe("fire", [*SMALL, "inversion.runs=2"])
    found = run_defend(job_in(again, recipe=recipe, force=True))
    about = read_embedding(found.embedding).metadata
    assert about["ine.runs"] == "2"
    assert len(about["ine.runs_left"].split()) == 2
    page = (found.report.parent / "report.md").read_text()
    assert f"2 seeds; run {about['ine.run']} was chosen" in page


# ------------------------------------------------------------------------------------ the command


def test_a_dry_run_estimates_the_time_and_writes_nothing(
    run_ine, tmp_path, tiny_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = [word for text in SMALL for word in ("--set", text)]
    command = ("defend", "--concept", "fire", "--model", tiny_folder, "--dry-run", *settings)
    done = run_ine(*command, "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert all(stage["seconds"] >= 0 for stage in plan["stages"])
    assert sum(stage["seconds"] for stage in plan["stages"]) > 0
    assert plan["search"]["pictures"] == 8
    done = run_ine(*command)
    assert re.search(r"time +about \d+ s on this device", done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_what_generate_then_uses(
    judged, again, tiny_folder, run_ine, monkeypatch
):
    monkeypatch.chdir(again)
    settings = [word for text in SMALL for word in ("--set", text)]
    sampler = ("--steps", 4, "--guidance-scale", 5, "--batch", 8)
    model = ("--model", tiny_folder)
    done = run_ine(
        *("defend", "--concept", "fire", *model, *sampler, *settings),
        *("--target-preservation", 0.5, "--json"),
    )
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["figures"]["ine.defence.undefended"].startswith("0.")
    done = run_ine("generate", "--negative-embedding", made["embedding"], *sampler, "--prompt", "a")
    assert done.exit_code == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "recommends" in line]
    assert "where a look-ahead of 2 steps finds the concept" in said
    row = json.loads((again / "pictures" / "index.jsonl").read_text().splitlines()[0])
    assert "LookAhead(" in json.dumps(row)
