"""Models behind a server: what is sent, what the server can do, everything that goes wrong."""

import base64
import io
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from observer_stub import serving
from PIL import Image

from ine.errors import ObserverError
from ine.observers.base import unknown_counts
from ine.observers.question import question_of
from ine.observers.server import safe_text
from ine.observers.server_opening import KEY, is_local, split_address
from ine.observers.table import ObserverSettings, load_observer
from ine.recipe import load_recipe

pytest.importorskip("openai")
SECRET = "sk-test-0123456789abcdef"
JSON_YES = '{"found": true, "words": ["burning"]}'
SORRY = "I'm sorry, but I can't help with that."


def drawn(count):
    """Return noise, uint8 (count, 16, 16, 3); picture i is full of i in its corner."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    for i in range(count):
        pictures[i, 0, 0] = i
    return pictures


def number_of(body):
    """Return which picture of `drawn` a request shows."""
    return int(shown_in(body)[0, 0, 0])


def shown_in(body):
    url = body["messages"][-1]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def opened(stub, model="eyes", overrides=(), **settings):
    settings = {"retries": 0, "timeout": 5.0} | settings
    question = question_of(load_recipe("fire", overrides))
    return load_observer(stub.spec(model), [question], ObserverSettings(**settings))


def look(stub, count=1, **kwargs):
    return opened(stub, **kwargs)(drawn(count), [""] * count)


def only(observations):
    (one,) = observations
    return one.answers["fire"]


# ------------------------------------------------------------------------------ what is sent


def test_the_picture_and_the_question_arrive():
    with serving(lambda body, number: "yes, burning") as stub:
        answer = only(look(stub, overrides=["observe.system=Be brief."]))
        (body,) = stub.bodies
    assert answer.found
    assert answer.words == ("burning",)
    assert body["model"] == "eyes"
    assert body["temperature"] == 0
    assert body["max_tokens"] == 64
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "burning" in body["messages"][1]["content"][1]["text"]
    assert np.array_equal(shown_in(body), drawn(1)[0])


def test_every_picture_gets_its_own_reply_whatever_the_order():
    def act(body, number):
        i = number_of(body)
        return ("slow", 0.02 * (8 - i), "yes" if i % 3 == 0 else "no")

    with serving(act) as stub:
        together = look(stub, 8, parallel=4)
        assert stub.most > 1
        assert stub.most <= 4
        alone = [look(stub, 8, parallel=1)]
    assert [one.answers["fire"].found for one in together] == [i % 3 == 0 for i in range(8)]
    assert [together] == alone


# -------------------------------------------------------------------- what the server can do


def test_a_server_with_response_format_is_asked_for_json(caplog):
    caplog.set_level(logging.INFO, "ine")
    with serving(lambda body, number: JSON_YES) as stub:
        seen = look(stub, 3)
        forms = [body["response_format"]["json_schema"] for body in stub.bodies]
    assert [one.words for one in seen] == [("burning",)] * 3
    assert all(form["schema"]["required"] == ["found", "words"] for form in forms)
    assert caplog.text.count("takes response_format") == 1


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_without_it_is_asked_for_text_from_then_on(status, caplog):
    caplog.set_level(logging.INFO, "ine")

    def act(body, number):
        declined = (status, {"error": {"message": "Unexpected fields: response_format"}})
        return declined if "response_format" in body else "no"

    with serving(act) as stub:
        seen = look(stub, 5)
        sent = ["response_format" in body for body in stub.bodies]
    assert [one.found for one in seen] == [{"fire": False}] * 5
    assert sent == [True] + [False] * 5
    assert caplog.text.count("declines response_format") == 1


def test_a_recipe_can_ask_for_text_alone():
    with serving(lambda body, number: "no") as stub:
        look(stub, 2, overrides=["observe.structured=false"])
        assert not any("response_format" in body for body in stub.bodies)


# ---------------------------------------------------------------------------- what goes wrong

FAULTS = {
    "refusal": lambda body, number: SORRY,
    "nonsense": lambda body, number: "blue " * 9,
    "time-out": lambda body, number: ("slow", 1.0, "no"),
    "cut off": lambda body, number: ("cut",),
    "429": lambda body, number: (429, {"error": {"message": "slow down"}}),
    "500": lambda body, number: (500, {"error": {"message": "out of memory"}}),
    "404": lambda body, number: (404, {"error": {"message": "no such model"}}),
    "not json": lambda body, number: (200, "<html>busy</html>"),
    "other json": lambda body, number: (200, {"choices": []}),
    "null message": lambda body, number: (200, {"choices": [{"message": None}]}),
    "odd json": lambda body, number: (200, {"choices": 7}),
    "no text": lambda body, number: (200, {"choices": [{"message": {"content": [1]}}]}),
}
KINDS = {name: name if name in ("refusal", "nonsense", "time-out") else "error" for name in FAULTS}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_unknown_answer_with_its_reason(fault):
    with serving(FAULTS[fault]) as stub:
        answer = only(look(stub, timeout=0.3))
    assert answer.found is None
    assert answer.unknown == KINDS[fault]
    assert answer.why or KINDS[fault] in ("refusal", "nonsense")
    assert answer.raw if KINDS[fault] in ("refusal", "nonsense") else not answer.raw


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_picture_leaves_the_others(fault):
    def act(body, number):
        return FAULTS[fault](body, number) if number_of(body) == 1 else "yes"

    with serving(act) as stub:
        seen = look(stub, 4, timeout=0.3)
    assert [one.answers["fire"].found for one in seen] == [True, None, True, True]
    assert unknown_counts(seen) == {KINDS[fault]: 1}


@pytest.mark.parametrize("fault", ["429", "500", "cut off", "time-out"])
def test_what_passes_is_tried_again(fault):
    def act(body, number):
        return FAULTS[fault](body, number) if number == 0 else "yes"

    with serving(act) as stub:
        started = time.monotonic()
        assert only(look(stub, timeout=0.5, retries=2)).found
        assert len(stub.bodies) == 2
    assert time.monotonic() - started < 5


def test_a_refusal_field_and_a_content_filter_are_refusals():
    def act(body, number):
        field = {"message": {"content": None, "refusal": "I will not look."}}
        blocked = {"message": {"content": "yes"}, "finish_reason": "content_filter"}
        return (200, {"choices": [field if number == 0 else blocked]})

    with serving(act) as stub:
        seen = look(stub, 2, parallel=1)
    assert [one.unknown for one in seen] == [{"fire": "refusal"}] * 2


def test_a_server_that_dies_between_two_looks_gives_unknown_answers():
    with serving(lambda body, number: "yes") as stub:
        observer = opened(stub)
        assert only(observer(drawn(1), [""])).found
    answer = only(observer(drawn(1), [""]))
    assert answer.unknown == "error"
    assert "Connection" in answer.why


def test_kept_replies_need_no_server(tmp_path):
    with serving(lambda body, number: SORRY if number_of(body) else "yes") as stub:
        observer = opened(stub, cache=tmp_path)
        first = observer(drawn(2), ["", ""])
    assert observer(drawn(2), ["", ""]) == first
    assert [one.unknown for one in first] == [{}, {"fire": "refusal"}]


# -------------------------------------------------------------------------------- at opening


def test_an_unknown_model_is_refused_with_those_that_the_server_has():
    with (
        serving(lambda body, number: "yes") as stub,
        pytest.raises(ObserverError, match=r"does not have 'eye'; did you mean 'eyes'.*: eyes, ot"),
    ):
        opened(stub, model="eye")
    assert not stub.bodies


def test_a_server_that_lists_nothing_is_believed(caplog):
    with serving(lambda body, number: "yes", models=None) as stub:
        assert only(look(stub)).found
    assert "does not list its models" in caplog.text


def test_an_unreachable_server_is_named():
    with serving(lambda body, number: "yes") as stub:
        spec = stub.spec()
    with pytest.raises(ObserverError, match=r"cannot be reached .*start it, or correct the URL"):
        load_observer(spec, [question_of(load_recipe("fire"))], ObserverSettings(retries=0))


@pytest.mark.parametrize(
    "text",
    ["http://h/v1", "#m", "h:80/v1#m", "ftp://h/v1#m", "http://#m", "http://h:x/v1#m"],
)
def test_an_address_has_a_url_and_a_model(text):
    with pytest.raises(ObserverError, match="openai"):
        split_address(text)


@pytest.mark.parametrize("url", ["http://me:hush@h/v1", "http://hush@h/v1", "http://h/v1?k=hush"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(ObserverError, match=KEY) as caught:
        split_address(f"{url}#m")
    assert "hush" not in str(caught.value)


# ---------------------------------------------------------------------- keys and other hosts


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY, SECRET)
    with serving(lambda body, number: "yes", key=SECRET) as stub:
        observer = opened(stub, cache=tmp_path)
        assert only(observer(drawn(1), [""])).found
        assert {head["authorization"] for head in stub.headers_seen} == {f"Bearer {SECRET}"}
        stub.key = "another"
        answer = only(observer(drawn(2)[1:], [""]))
    assert answer.unknown == "error"
    assert "Incorrect API key" in answer.why
    texts = [caplog.text, answer.why, observer.name]
    texts += [path.read_bytes().decode("latin1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) == 4
    assert not [text for text in texts if SECRET in text]


@pytest.mark.parametrize(("key", "said"), [("", "is not set"), (SECRET, "is not accepted")])
def test_a_missing_or_wrong_key_is_named_and_not_shown(key, said, monkeypatch):
    monkeypatch.setenv(KEY, key)
    with (
        serving(lambda body, number: "yes", key="right") as stub,
        pytest.raises(ObserverError, match=said) as caught,
    ):
        opened(stub)
    assert KEY in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_key_for_openai_is_not_sent_to_others(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "my-organisation")
    with serving(lambda body, number: "yes") as stub:
        look(stub)
        sent = str(stub.headers_seen)
    assert SECRET not in sent
    assert "my-organisation" not in sent
    assert "Bearer none" in sent


def test_masked_keys_are_cut_out_too():
    assert safe_text(f"wrong: {SECRET}", SECRET) == "wrong: ***"
    assert safe_text("wrong key sk-te**********cdef", SECRET) == "wrong key ***"
    assert safe_text("a plain\n message", "") == "a plain message"


def test_a_server_elsewhere_is_announced_before_the_first_request(monkeypatch, caplog):
    from ine.observers import server_opening

    with serving(lambda body, number: "yes") as stub:
        opened(stub)
        assert "leave this machine" not in caplog.text
        seen = []
        monkeypatch.setattr(server_opening, "is_local", lambda url: False)
        check = server_opening._check_model
        monkeypatch.setattr(
            server_opening,
            "_check_model",
            lambda *args: (seen.append(caplog.text), check(*args)),
        )
        opened(stub)(drawn(3), [""] * 3)
    assert f"pictures leave this machine: they are sent to {stub.url}" in seen[0]
    assert caplog.text.count("leave this machine") == 1


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://192.168.0.4/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://localhost.example/v1", False),
        ("http://127.0.0.1.example/v1", False),
    ],
)
def test_what_is_this_machine(url, local):
    assert is_local(url) is local


# -------------------------------------------------------------------------------- the command


@pytest.fixture
def gallery(tmp_path):
    from ine.pictures import write_png

    for i, picture in enumerate(drawn(5)):
        write_png(tmp_path / "pictures" / f"{i}.png", picture[: 16 - i // 4])
    return tmp_path / "pictures"


def test_the_command_prints_one_object_per_picture(run_ine, gallery, tmp_path):
    def act(body, number):
        return ("yes, burning", "no", SORRY, "blue", "no")[number_of(body)]

    with serving(act) as stub:
        args = ("observe", gallery, "--observer", stub.spec(), "--concept", "fire")
        done = run_ine(*args, "--cache", tmp_path / "kept", "--parallel", 3)
        asked = len(stub.bodies)
        again = run_ine(*args, "--cache", tmp_path / "kept")
        assert len(stub.bodies) == asked == 5
    assert done.exit_code == 0, done.output
    assert again.stdout == done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["picture"]).name for row in rows] == [f"{i}.png" for i in range(5)]
    assert [row["found"].get("fire") for row in rows] == [True, False, None, None, False]
    assert [row["unknown"].get("fire") for row in rows][2:4] == ["refusal", "nonsense"]
    assert [row["shows"] for row in rows] == [["fire"], [], [], [], []]
    assert rows[0]["words"] == ["burning"]
    assert rows[2]["raw"] == {"fire": SORRY}


def test_the_command_fails_if_nothing_was_answered(run_ine, gallery):
    fault = (400, {"error": {"message": "pictures are not supported"}})
    with serving(lambda body, number: fault) as stub:
        done = run_ine("observe", gallery, "--observer", stub.spec(), "--concept", "fire")
    assert done.exit_code == 12
    assert "none of 5 questions was answered (5 error" in " ".join(done.stderr.split())
    assert "pictures are not supported" in done.stderr


def test_a_half_answered_run_succeeds_and_says_so(run_ine, gallery, caplog):
    def act(body, number):
        return "no" if number_of(body) < 3 else (404, {"error": {"message": "gone"}})

    with serving(act) as stub:
        done = run_ine("observe", gallery, "--observer", stub.spec(), "--concept", "fire")
    assert done.exit_code == 0
    assert "2 of 5 answers are unknown: 2 error" in caplog.text + done.stderr
