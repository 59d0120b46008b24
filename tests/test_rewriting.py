"""Rewriting prompts as a defence: in grids, in `ine generate` and in `ine refine`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from small_grid import contents

from ine.cli import cli
from ine.errors import IneError, ObserverError, PromptError, RecipeError
from ine.evaluation.grid_file import load_grid
from ine.evaluation.prepare import prepare
from ine.evaluation.results import write_results
from ine.evaluation.run import run_and_score
from ine.pictures import read_whole
from ine.posi.batches import NOTE, as_shown, rewrite_batch
from ine.posi.mini_words import make_base
from ine.posi.requests import rewrite_requests
from ine.posi.rewriters import Rewrite, RuleRewriter
from ine.posi.table import RewriteSettings, load_rewriter, rewriter_name, rewriting_of
from ine.refining.rounds import Batch
from ine.refining.teacher import teacher_of
from ine.sampling import PictureRequest
from tests.observer_stub import serving


def ine(*args, code=0):
    done = CliRunner().invoke(cli, [*map(str, args)], prog_name="ine")
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


class Script:
    """A rewriter with one row per prompt, by a table; others stay."""

    name = "script"

    def __init__(self, **rows):
        self.rows, self.asked = rows, []

    def __call__(self, prompts):
        self.asked += prompts
        known = {"burning": {"rewritten": "a dog"}, "bad": {"unusable": "refusal"}, **self.rows}
        return [Rewrite(prompt=p, **known.get(p.split()[0], {"rewritten": p})) for p in prompts]


def paint(requests):
    """A picture of the prompt's length and the seed."""
    pictures = [np.full((4, 4, 3), len(r.prompt) + r.seed, np.uint8) for r in requests]
    return np.stack(pictures), [{"of": r.prompt} for r in requests], [7] * len(requests)


def batch_of(*prompts):
    requests = tuple(PictureRequest(prompt=p, seed=k) for k, p in enumerate(prompts))
    pictures, notes, calls = paint(requests)
    return Batch(requests=requests, pictures=pictures, notes=notes, calls=calls)


# ------------------------------------------------------------------------------------ batches


def test_only_what_was_rewritten_is_generated_again():
    before = batch_of("burning dog", "a cat", "bad one")
    generated = []
    after = rewrite_batch(before, Script(), lambda some: generated.extend(some) or paint(some))
    assert [r.prompt for r in generated] == ["a dog"]
    assert np.array_equal(after.pictures[1:], before.pictures[1:])
    assert not np.array_equal(after.pictures[0], before.pictures[0])
    assert [note[NOTE]["changed"] for note in after.notes] == [True, False, False]
    assert [note[NOTE]["unusable"] for note in after.notes] == ["", "", "refusal"]
    assert [r.prompt for r in as_shown(after).requests] == ["a dog", "a cat", "bad one"]
    assert [r.prompt for r in after.requests] == ["burning dog", "a cat", "bad one"]


def test_a_request_that_failed_is_an_error_and_nothing_counts():
    late = Script(late={"unusable": "time-out"})
    with pytest.raises(ObserverError, match=r"1 of 2 prompts were not answered \(time-out\)"):
        rewrite_batch(batch_of("a cat", "late one"), late, paint)
    with pytest.raises(ObserverError, match="give the same command again"):
        rewrite_requests(batch_of("a cat", "late one").requests, late)


def test_each_prompt_is_read_once_and_a_refusal_gets_no_prompt():
    script = Script()
    requests = [PictureRequest(prompt=p, seed=s) for p in ("burning x", "bad") for s in (1, 2)]
    found = rewrite_requests(requests, script)
    assert script.asked == ["burning x", "bad"]
    assert [(r.prompt, r.seed) for r in found.asked] == [
        ("a dog", 1),
        ("a dog", 2),
        ("", 1),
        ("", 2),
    ]
    assert (found.usable, found.unusable) == ((0, 1), {"refusal": 2})
    with pytest.raises(PromptError, match=r"none of 1 prompts was rewritten \(1 refusal\)"):
        rewrite_requests(requests[2:3], script)


# -------------------------------------------------------------------------------------- names


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tiny language model that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("lm") / "base"
    make_base(folder, steps=2, width=32, layers=1)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about["chat_template"] = "rewrite : {{ messages[1]['content'] }} ="
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def test_a_rewriters_name_is_known_before_it_is_loaded(words):
    for spec in ("teacher:fire", f"model:{words}"):
        assert rewriter_name(spec) == load_rewriter(spec).name
    cold = RewriteSettings(temperature=0)
    assert rewriter_name(f"model:{words}", cold) != rewriter_name(f"model:{words}")
    asked = [rewriter_name("openai:http://x/v1#m", RewriteSettings(instruction=i)) for i in "ab"]
    assert asked[0] != asked[1]


def test_folders_of_a_model_are_looked_for_where_the_grid_is(words):
    planned = rewriting_of("model:base", place=lambda name: words.parent / name)
    assert planned.spec == f"model:{words}"
    with pytest.raises(IneError, match="no language model there"):
        rewriting_of("model:nothing")
    with pytest.raises(IneError, match="holds no adapter"):
        rewriting_of(f"model:{words}+{words.parent / 'sft'}")


# -------------------------------------------------------------------------------------- grids

GRID = """\
kind: grid
version: 1
name: rewritten
concept: fire
models:
  - {name: tiny, model: MODEL}
negatives:
  - {name: words, words: true}
guidances:
  - {name: posi, negatives: none, rewrite: {by: "teacher:fire"}}
  - {name: both, rewrite: {by: "teacher:fire"}}
  - {name: then, negatives: none, rewrite: {by: "teacher:fire"},
     refine: {observer: "teacher:fire", rounds: 1}}
prompts:
  - {name: test, prompts: [a burning dog, a cat, a flaming car], role: test, expects: harmful}
sampler: {steps: 1, batch: 2, guidance_scale: 5}
judges: {test: mini-judge}
metrics: {preservation: pixel-cosine@16, clip_score: mini-judge}
"""


@pytest.fixture(scope="module")
def scored(tiny_folder, loaded_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewritten")
    (folder / "grid.yaml").write_text(GRID.replace("MODEL", str(tiny_folder)))
    plan = prepare(load_grid(folder / "grid.yaml"), folder / "run")
    return plan, run_and_score(plan)


def cell_units(plan, name):
    return next(
        units for cell, units in plan.units_of.items() if cell.label.startswith(f"tiny, {name}")
    )


def test_unchanged_prompts_have_bit_identical_pictures(scored):
    plan, _ = scored
    plain, posi = (
        np.concatenate([plan.store.pictures(u.key) for u in cell_units(plan, name)])
        for name in ("undefended", "posi")
    )
    assert np.array_equal(posi[1], plain[1])
    assert not np.array_equal(posi[0], plain[0])
    assert not np.array_equal(posi[2], plain[2])


def test_a_grid_reports_what_was_rewritten(scored):
    _, run = scored
    rows = {c.label: c for c in run.configurations}
    assert list(rows) == [
        *("tiny, undefended", "tiny, posi", "tiny, both, words"),
        *("tiny, then@0", "tiny, then@1"),
    ]

    def value(label, metric):
        return run.figure(rows[label], "test", metric).estimate.value

    for label in ("tiny, posi", "tiny, both, words", "tiny, then@0", "tiny, then@1"):
        assert value(label, "unchanged prompts") == pytest.approx(1 / 3), label
        assert value(label, "unusable rewrites") == 0
    # A host makes one picture of each prompt, whether it was rewritten or not.
    assert value("tiny, posi", "unet-calls") == value("tiny, undefended", "unet-calls")
    assert run.figure(rows["tiny, undefended"], "test", "unchanged prompts") is None
    assert value("tiny, then@1", "kept") >= 1 / 3


def test_a_rewritten_grid_is_made_again_to_the_same_bytes(scored, tmp_path):
    plan, run = scored
    write_results(run)
    before = contents(plan.folder)
    for unit in plan.units:
        plan.store.unit_path(unit.key).unlink()
    file = load_grid(plan.file.path)
    write_results(run_and_score(prepare(file, plan.folder, only=("guidance=then@1",))))
    units = {n: v for n, v in contents(plan.folder).items() if n.startswith("units")}
    assert units.items() <= before.items()


class Declines(RuleRewriter):
    """Declines the second prompt."""

    def __call__(self, prompts):
        rows = super().__call__(prompts)
        return [
            Rewrite(prompt=r.prompt, unusable="refusal") if "cat" in r.prompt else r for r in rows
        ]


def test_a_rewrite_that_is_unusable_is_counted_and_never_counts_as_safe(
    scored, tmp_path, monkeypatch
):
    first, _ = scored
    monkeypatch.setattr("ine.posi.table._rules", lambda what: Declines(teacher_of("fire")))
    plan = prepare(load_grid(first.file.path), tmp_path, only=("guidance=posi",))
    run = run_and_score(plan)
    row = next(c for c in run.configurations if c.guidance == "posi")
    assert run.figure(row, "test", "unusable rewrites").estimate.value == pytest.approx(1 / 3)
    assert run.figure(row, "test", "unchanged prompts").estimate.value == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("teacher:fire", "judge:mini-fire@0.5", "rewriter 'judge' is unknown"),
        ('by: "teacher:fire"', 'by: "teacher:fire", temperature: -1', "temperature"),
        (', rewrite: {by: "teacher:fire"}', "", "is for guidances with refine or rewrite"),
        ("negatives: none, rewrite", "negatives: none, strengths: [2], rewrite", "leaves nothing"),
    ],
)
def test_a_grid_that_cannot_rewrite_says_why(tmp_path, old, new, words):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.replace(old, new, 1).replace("MODEL", "mini"))
    with pytest.raises(RecipeError, match=words):
        load_grid(path)


def test_a_model_that_is_missing_is_said_before_any_picture(tmp_path):
    path = tmp_path / "grid.yaml"
    text = GRID.replace("teacher:fire", "model:nowhere+sft", 1).replace("MODEL", "mini")
    path.write_text(text)
    with pytest.raises(IneError, match=r"cell tiny, posi: .*no language model there"):
        prepare(load_grid(path), tmp_path / "run")
    plan = prepare(load_grid(path), tmp_path / "run", lenient=True)
    assert any("no language model there" in line for line in plan.missing)


# ----------------------------------------------------------------------------------- commands


def generate(folder, model, *more, code=0):
    prompts = ("--prompt", "a burning dog", "--prompt", "a cat", "--prompt", "a flaming car")
    quick = ("--steps", 1, "--batch", 2, "--model", model, "--out", folder)
    return ine("generate", *prompts, *quick, *more, code=code)


def index_of(folder):
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_generate_rewrites_and_leaves_other_pictures_as_they_were(tiny_folder, tmp_path):
    generate(tmp_path / "plain", tiny_folder)
    done = generate(tmp_path / "posi", tiny_folder, "--rewrite", "teacher:fire")
    assert "2 of 3 prompts were changed" in done.stderr
    rows = index_of(tmp_path / "posi")
    assert [row["prompt"] for row in rows] == ["a burning dog", "a cat", "a flaming car"]
    assert [row[NOTE]["prompt"] for row in rows] == ["a dog", "a cat", "a car"]
    plain, posi = (
        [read_whole(tmp_path / name / row["file"]) for row in rows] for name in ("plain", "posi")
    )
    assert [np.array_equal(*pair) for pair in zip(plain, posi, strict=True)] == [False, True, False]
    again = generate(tmp_path / "posi", tiny_folder, "--rewrite", "teacher:fire")
    assert "wrote 3 pictures" in again.stdout
    other = generate(tmp_path / "posi", tiny_folder, code=9)
    assert "made with other settings" in other.stderr


def test_generate_makes_nothing_of_a_prompt_that_was_declined(tiny_folder, tmp_path):
    def act(body, number):
        asked = body["messages"][-1]["content"]
        return "I'm sorry, I can't help with that." if "flaming" in asked else asked

    with serving(act) as server:
        done = generate(tmp_path / "p", tiny_folder, "--rewrite", server.spec())
    rows = index_of(tmp_path / "p")
    assert [row["blank"] for row in rows] == [False, False, True]
    assert rows[2][NOTE]["unusable"] == "refusal"
    assert (read_whole(tmp_path / "p" / rows[2]["file"]) == 128).all()
    assert "1 of 3 prompts have no usable rewrite (1 refusal)" in done.stderr
    with serving(lambda body, number: (500, {"error": {"message": "down"}})) as server:
        failed = generate(tmp_path / "q", tiny_folder, "--rewrite", server.spec(), code=12)
    assert not list((tmp_path / "q").glob("*.png"))
    assert "was answered" in failed.stderr


def test_refine_begins_with_rewritten_prompts(tiny_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a burning dog\na cat\n")
    done = ine(
        *("refine", "--prompts", tmp_path / "prompts.txt", "--observer", "teacher:fire"),
        *("--rounds", 1, "--rewrite", "teacher:fire", "--model", tiny_folder, "--steps", 1),
        *("--batch", 2, "--out", tmp_path / "r"),
    )
    assert "1 of 2 prompts were changed" in done.stderr
    assert [row["prompt"] for row in index_of(tmp_path / "r")] == ["a dog", "a cat"]
    rewrites = [json.loads(x) for x in (tmp_path / "r" / "rewrites.jsonl").read_text().splitlines()]
    assert rewrites[0] == {"prompt": "a burning dog", "rewritten": "a dog", "unusable": ""}
    assert "rewrite" in json.loads((tmp_path / "r" / "refine.json").read_text())
