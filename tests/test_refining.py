"""The loop of refinement: rounds, where they are kept, who generates, what the folder holds."""

import base64
import json
import sys

import numpy as np
import pytest
from observer_stub import serving

from ine.display import blur
from ine.errors import IneError, ObserverError, OutputError, PicturesError
from ine.observers.asking import Reply
from ine.pictures import png_bytes, read_whole
from ine.refining.commands import CommandGenerator
from ine.refining.endpoint import load_generator
from ine.refining.folder import counts_of, enter, write_folder
from ine.refining.generators import PipelineGenerator
from ine.refining.rounds import Batch, Chain, chain_of, refine_once
from ine.refining.run import Refiner, refine_unit
from ine.refining.settings import PRESETS, RefineSettings, preset
from ine.sampling import PictureRequest, Unit
from ine.store.pictures import Store

OURS = RefineSettings()
AWKWARD = 'a "dog"\non fire, it\'s \u20ac \\'


def requests_of(*prompts):
    return tuple(PictureRequest(prompt=p, seed=n) for n, p in enumerate(prompts))


def pixel(request):
    return (len(request.prompt) * 7 + request.seed) % 256


class Paint:
    """Paints every picture in one colour that depends on prompt and seed."""

    def __init__(self, batch=2, fail_at=None):
        self.name, self.batch, self.asked, self.fail_at = "paint", batch, [], fail_at

    def __call__(self, requests):
        self.asked += [(r.prompt, r.seed) for r in requests]
        if self.fail_at is not None and len(self.asked) > self.fail_at:
            raise KeyboardInterrupt
        made = [np.full((8, 8, 3), pixel(r), np.uint8) for r in requests]
        return np.stack(made), [{} for _ in made], [3] * len(made)


class Script:
    """Answers by a function of (prompt, what the picture's colour is)."""

    def __init__(self, act):
        self.name, self.act, self.asked = "script", act, []

    def __call__(self, prompts, pictures):
        self.asked += list(prompts)
        said = [self.act(p, int(x[0, 0, 0])) for p, x in zip(prompts, pictures, strict=True)]
        return [one if isinstance(one, Reply) else Reply(text=one) for one in said]


def first(generator, requests):
    pictures, notes, calls = generator(requests)
    return Batch(requests=requests, pictures=pictures, notes=notes, calls=calls)


def refined(act, prompts, settings=OURS, rounds=3):
    generator, rewriter = Paint(), Script(act)
    batch = first(generator, requests_of(*prompts))
    for _ in range(rounds):
        batch = refine_once(batch, rewriter, generator, settings)
    return batch, generator, rewriter


def prompts_of(chain):
    return [one.prompt for one in chain.rounds]


# --- rounds ---------------------------------------------------------------------------------------


def test_an_observer_that_always_keeps_changes_nothing():
    batch, generator, rewriter = refined(lambda p, x: "Keep.", ["a dog", "a cat"])
    assert [c.status for c in batch.chains] == ["kept", "kept"]
    assert len(generator.asked) == len(rewriter.asked) == 2  # one picture and one look each
    assert batch.calls == [3, 3]


def test_an_observer_that_always_rewrites_ends_with_a_picture_that_nobody_looked_at():
    said = iter(["one", "two", "three"])
    batch, generator, _ = refined(lambda p, x: next(said), ["a dog on fire"])
    [chain] = batch.chains
    assert prompts_of(chain) == ["a dog on fire", "one", "two", "three"]
    assert chain.status == "not looked at"
    assert batch.pictures[0, 0, 0, 0] == pixel(PictureRequest(prompt="three", seed=0))
    assert batch.calls == [12]
    assert len(generator.asked) == 4


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("The picture shows a dog on fire.", "description"),
        ("I would suggest a nicer prompt.", "prose"),
        ("a dog and " * 60, "too long"),
        (Reply(text="", failed="refusal"), "refusal"),
        ("a dog on fire", "unchanged"),
    ],
)
def test_an_unusable_answer_ends_the_prompt_and_is_never_kept(answer, why):
    batch, generator, _ = refined(lambda p, x: answer, ["a dog on fire"])
    [chain] = batch.chains
    assert (chain.status, chain.last.verdict.why) == ("unusable answer", why)
    assert len(generator.asked) == 1


def test_a_prompt_that_grows_is_stopped_at_the_limit_and_counted():
    settings = RefineSettings(query="current", max_words=12)
    batch, _, _ = refined(lambda p, x: f"{p} and {p}", ["a dog"], settings, rounds=9)
    [chain] = batch.chains
    assert max(len(p.split()) for p in prompts_of(chain)) <= 12
    assert chain.last.verdict.why == "too long"


def test_the_query_is_the_original_prompt_or_the_current_one():
    for query, expected in (("original", ["a", "a", "a"]), ("current", ["a", "a b", "a b b"])):
        _, _, rewriter = refined(lambda p, x: f"{p} b", ["a"], RefineSettings(query=query))
        # With the original prompt the second answer is the prompt that the picture has.
        assert rewriter.asked == expected[: len(rewriter.asked)]
        assert len(rewriter.asked) == (2 if query == "original" else 3)


def test_as_released_every_answer_but_the_bare_word_is_generated_with_fresh_noise():
    said = iter(["keep.", "The picture shows a dog.", "keep"])
    batch, generator, _ = refined(lambda p, x: next(said), ["a dog"], PRESETS["as-released"])
    [chain] = batch.chains
    assert prompts_of(chain) == ["a dog", "keep.", "The picture shows a dog."]
    assert chain.status == "kept"
    assert len({seed for _, seed in generator.asked}) == 3


def test_only_rewritten_prompts_are_generated_again_and_the_rest_stays():
    batch, generator, _ = refined(lambda p, x: "a cat" if "fire" in p else "keep", ["x", "fire"])
    assert [c.status for c in batch.chains] == ["kept", "repeated"]
    assert generator.asked == [("x", 0), ("fire", 1), ("a cat", 1)]
    assert batch.calls == [3, 6]


def test_an_answer_that_did_not_come_is_an_error_and_nothing_of_the_round_counts():
    generator = Paint()
    batch = first(generator, requests_of("a", "b"))
    late = Script(lambda p, x: Reply(failed="time-out", why="60 s") if p == "b" else "keep")
    with pytest.raises(ObserverError, match=r"gave no answer \(time-out: 60 s\)"):
        refine_once(batch, late, generator, OURS)
    assert all(chain.is_open for chain in batch.chains)


def test_prompts_with_newlines_and_quotes_pass_unchanged():
    batch, _, rewriter = refined(lambda p, x: "keep", [AWKWARD])
    assert rewriter.asked == [AWKWARD]
    [chain] = batch.chains
    assert Chain.of(json.loads(json.dumps(chain.record()))) == chain
    assert chain_of(batch.requests[0], batch.notes[0]) == chain


def test_pictures_of_another_size_are_refused():
    def other(requests):
        return np.zeros((len(requests), 4, 4, 3), np.uint8), [{}] * len(requests), [0]

    batch = first(Paint(), requests_of("fire"))
    with pytest.raises(PicturesError, match="set one size"):
        refine_once(batch, Script(lambda p, x: "a dog"), other, OURS)


def test_a_unit_is_refined_in_place_and_what_nobody_called_safe_is_a_mosaic():
    generator = Paint()
    requests = requests_of("a dog", "fire")
    pictures, notes, calls = generator(requests)
    pictures[1, :4] = 255
    unit = Unit(first=0, requests=requests, pictures=pictures, notes=notes, unet_calls=calls)
    answers = Script(lambda p, x: "keep" if p == "a dog" else "I cannot help with that")
    done = refine_unit(unit, generator, answers, OURS)
    assert [n["refine_status"] for n in done.notes] == ["kept", "unusable answer"]
    assert (done.pictures[0] == pictures[0]).all()
    assert (done.pictures[1] == blur(pictures[1])).all()


# --- the store and the folder ---------------------------------------------------------------------


def act(prompt, colour):
    return {"fire": "a dog", "gun": "I'm sorry"}.get(prompt, "keep") if colour != 42 else "keep"


def refiner_in(folder, generator=None, rewriter=None):
    return Refiner(
        generator=generator or Paint(),
        rewriter=rewriter or Script(act),
        settings=preset("ine", query="current"),
        store=Store(folder),
    )


PROMPTS = requests_of("fire", "a cat", "gun", AWKWARD, "fire")


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_refinement_that_was_killed_resumes_and_ends_byte_equal(tmp_path):
    whole = refiner_in(tmp_path / "whole")
    ids = list("01234")
    write_folder(tmp_path / "whole", whole.store, whole(PROMPTS), ids)
    with pytest.raises(KeyboardInterrupt):
        refiner_in(tmp_path / "cut", Paint(fail_at=3))(PROMPTS)
    generator, rewriter = Paint(), Script(act)
    again = refiner_in(tmp_path / "cut", generator, rewriter)
    write_folder(tmp_path / "cut", again.store, again(PROMPTS), ids)
    assert len(generator.asked) < len(whole.generator.asked)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    # What is finished is neither generated nor looked at again.
    silent = refiner_in(tmp_path / "cut", Paint(fail_at=0), Script(None))
    assert [one.keys for one in silent(PROMPTS)] == [one.keys for one in whole(PROMPTS)]


def test_the_folder_holds_the_last_pictures_in_order_and_every_round(tmp_path):
    refiner = refiner_in(tmp_path)
    rows = write_folder(tmp_path, refiner.store, refiner(PROMPTS), list("abcde"))
    lines = (tmp_path / "index.jsonl").read_text().split("\n")
    assert [json.loads(line) for line in lines if line] == rows
    assert [row["prompt"] for row in rows] == [r.prompt for r in PROMPTS]
    assert [row["status"] for row in rows] == [
        *("kept", "kept", "unusable answer", "kept", "kept"),
    ]
    names = sorted(p.name for p in (tmp_path / "final").iterdir())
    assert names == [row["final_picture"].removeprefix("final/") for row in rows]
    fire = rows[0]
    assert [one["verdict"] for one in fire["rounds"]] == ["rewrite", "keep"]
    assert [one["answer"] for one in fire["rounds"]] == ["a dog", "keep"]
    final = read_whole(tmp_path / fire["final_picture"])
    assert (final == read_whole(tmp_path / fire["rounds"][1]["picture"])).all()
    assert final[0, 0, 0] == pixel(PictureRequest(prompt="a dog", seed=0))
    counts = counts_of(rows)
    assert (counts["kept"], counts["kept_unchanged"], counts["withheld"]) == (4, 2, 1)
    assert counts["unusable"] == {"refusal": 1}
    assert (counts["pictures"], counts["looks"]) == (7, 7)


def test_an_unusable_answer_withholds_the_last_picture_unless_asked_for(tmp_path):
    class Halves(Paint):
        def __call__(self, requests):
            pictures, notes, calls = super().__call__(requests)
            pictures[:, ::2] = 255
            return pictures, notes, calls

    for how, same in (("withhold", False), ("last", True)):
        folder = tmp_path / how
        refiner = refiner_in(folder, Halves())
        [row] = write_folder(folder, refiner.store, refiner(requests_of("gun")), ["0"], how)
        assert row["withheld"] is not same
        last = read_whole(folder / row["rounds"][0]["picture"])
        assert (read_whole(folder / row["final_picture"]) == last).all() == same


def test_a_folder_of_other_settings_is_refused_and_replaced_by_force(tmp_path):
    enter(tmp_path, {"a": 1, "b": 2}, force=False)
    enter(tmp_path, {"a": 1, "b": 2}, force=False)
    (tmp_path / "final").mkdir()
    (tmp_path / "units").mkdir()
    with pytest.raises(OutputError, match="a refinement with other b; choose another --out"):
        enter(tmp_path, {"a": 1, "b": 3}, force=False)
    assert (tmp_path / "final").is_dir()
    enter(tmp_path, {"a": 1, "b": 3}, force=True)
    assert not (tmp_path / "final").exists()
    assert (tmp_path / "units").is_dir()


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "final").mkdir()
    with pytest.raises(OutputError, match="holds final"):
        enter(tmp_path, {"a": 1}, force=False)
    (tmp_path / "refine.json").write_text("{")
    with pytest.raises(OutputError, match="is not a file of ine"):
        enter(tmp_path, {"a": 1}, force=False)


# --- other generators -----------------------------------------------------------------------------

PAINT = """\
import json, sys
from pathlib import Path
from PIL import Image
for n, line in enumerate(Path(sys.argv[1]).read_text().splitlines()):
    row = json.loads(line)
    Image.new("RGB", (8, 8), (len(row["prompt"]), row["seed"], 0)).save(f"{sys.argv[2]}/{n:04}.png")
"""


def command(tmp_path, script, places="{prompts} {out}", **settings):
    path = tmp_path / "paint.py"
    path.write_text(script)
    return CommandGenerator(command=f"{sys.executable} {path} {places}", **settings)


def test_a_command_makes_the_pictures_of_a_prompt_file(tmp_path):
    pictures, notes, calls = command(tmp_path, PAINT)(requests_of(AWKWARD, "a dog"))
    assert pictures[:, 0, 0].tolist() == [[len(AWKWARD), 0, 0], [5, 1, 0]]
    assert (notes, calls) == ([{}, {}], [0, 0])


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("import sys; print('no GPU', file=sys.stderr); sys.exit(3)", IneError, r"code 3 \(no GPU"),
        ("pass", PicturesError, "left 0 pictures for 2 prompts"),
        (PAINT.replace("(8, 8)", "(8 + n, 8)"), PicturesError, "pictures of several sizes"),
    ],
)
def test_a_command_that_does_not_do_what_it_should_is_an_error(tmp_path, script, kind, words):
    with pytest.raises(kind, match=words):
        command(tmp_path, script)(requests_of("a", "b"))


def test_a_command_that_takes_one_prompt_a_line_refuses_prompts_of_two(tmp_path):
    with pytest.raises(IneError, match="does not stand on one line"):
        command(tmp_path, PAINT, "{text} {out}")(requests_of(AWKWARD))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("command:paint {prompts}", "expected {out}"),
        ("command:paint {out}", "expected {out}, and either"),
        ("command:paint '{out}", "cannot be read"),
        ("paint:x", "expected openai:URL#MODEL"),
    ],
)
def test_a_generator_that_cannot_be_is_refused(spec, words):
    with pytest.raises(IneError, match=words):
        load_generator(spec)


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(IneError, match="cannot be run"):
        CommandGenerator(command="no-such-command-anywhere {prompts} {out}")(requests_of("a"))


def picture_reply(body, number):
    colour = np.full((8, 8, 3), len(body["prompt"]), np.uint8)
    text = base64.b64encode(png_bytes(colour)).decode()
    return 200, {"created": 1, "data": [{"b64_json": text}]}


def test_an_images_endpoint_gets_prompt_and_seed_and_gives_the_picture():
    with serving(picture_reply) as stub:
        generator = load_generator(stub.spec(), size="8x8")
        pictures, _, _ = generator(requests_of(AWKWARD, "a dog"))
    assert pictures[:, 0, 0, 0].tolist() == [len(AWKWARD), 5]
    bodies = sorted(stub.bodies, key=lambda body: body["seed"])
    assert [body["prompt"] for body in bodies] == [AWKWARD, "a dog"]
    assert {(b["model"], b["n"], b["size"], b["response_format"]) for b in bodies} == {
        ("eyes", 1, "8x8", "b64_json")
    }


def test_an_endpoint_that_declines_the_format_is_asked_without_it():
    def decline(body, number):
        if "response_format" in body:
            return 400, {"error": {"message": "Unknown parameter: 'response_format'."}}
        return picture_reply(body, number)

    with serving(decline) as stub:
        assert load_generator(stub.spec())(requests_of("a dog"))[0].shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        ((200, {"data": []}), PicturesError, "has 0 pictures"),
        ((200, {"data": [{"url": "http://x/y.png"}]}), PicturesError, "but the address of one"),
        ((200, {"data": [{"b64_json": "AAAA"}]}), PicturesError, "no picture that can be read"),
        ((200, {"data": [{"b64_json": "?"}]}), PicturesError, "no picture that can be read"),
        ((400, {"error": {"message": "content policy"}}), ObserverError, "content policy"),
    ],
)
def test_an_endpoint_without_the_picture_it_promised_is_an_error(reply, kind, words):
    with serving(lambda body, number: reply) as stub, pytest.raises(kind, match=words):
        load_generator(stub.spec())(requests_of("a dog"))


class Pipeline:
    """Called as diffusers' text-to-image pipelines are."""

    def __init__(self, images, unsafe=None):
        self.images, self.nsfw_content_detected = images, unsafe

    def __call__(self, prompt, generator, output_type, **settings):
        self.given = (prompt, [g.initial_seed() for g in generator], output_type, settings)
        return self


def test_a_pipeline_is_called_with_a_generator_of_each_seed():
    pipeline = Pipeline(np.full((2, 8, 8, 3), 0.5))
    generator = PipelineGenerator(pipeline=pipeline, name="mine", settings={"guidance_scale": 7})
    pictures, _, _ = generator(requests_of("a", "b"))
    assert pipeline.given == (["a", "b"], [0, 1], "np", {"guidance_scale": 7})
    assert pictures.dtype == np.uint8
    assert (pictures == 128).all()


def test_pictures_of_a_pipeline_that_are_no_pictures_are_refused(caplog):
    for images, words in (
        (np.zeros((1, 8, 8, 3)), "for 2 prompts"),
        (np.full((2, 8, 8, 3), np.nan), "not finite"),
    ):
        with pytest.raises(PicturesError, match=words):
            PipelineGenerator(pipeline=Pipeline(images), name="mine")(requests_of("a", "b"))
    blocked = Pipeline(np.zeros((1, 8, 8, 3)), unsafe=[True])
    PipelineGenerator(pipeline=blocked, name="mine")(requests_of("a"))
    assert "its own safety checker replaced 1 of 1" in caplog.text
