"""Vision-language models on this machine: real classes at tiny size, without torchvision."""

import json
import shutil
import sys

import numpy as np
import pytest

from ine.errors import ObserverError
from ine.observers.question import Conversation, Turn, question_of
from ine.observers.table import ObserverSettings, load_observer
from ine.observers.vlm_loading import digest_of, load_vlm
from ine.recipe import load_recipe


def drawn(count):
    """Return pictures of one colour with noise, uint8 (count, 40, 40, 3)."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (count, 1, 1, 3))
    noise = rng.integers(-60, 60, (count, 40, 40, 3))
    return (colours + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    from tiny_vlm import save_llava

    return save_llava(tmp_path_factory.mktemp("vlm") / "llava")


@pytest.fixture(scope="module")
def asker(llava):
    return load_vlm(str(llava), "cpu", batch=4)


def asked(picture, text="is there fire ?", **more):
    return Conversation(
        turns=(Turn(role="user", text=text, picture=picture),), **{"max_tokens": 8} | more
    )


def test_a_batch_is_answered_as_its_pictures_are_alone(asker):
    texts = ["is there fire ?", "what is in the picture ? a dog , a cat", "fire", "a dog ? yes"]
    batch = [asked(picture, texts[i % 4]) for i, picture in enumerate(drawn(8))]
    together = asker.ask(batch)
    assert together == [asker.ask([one])[0] for one in batch]
    assert len({reply.text for reply in together}) > 3  # the model does look


def test_padding_on_the_right_would_change_answers(asker):
    """The test above can fail."""
    batch = [asked(p, "fire" * (i % 2) or "a dog , a cat ? " * 5) for i, p in enumerate(drawn(4))]
    alone = [asker.ask([one])[0] for one in batch]
    assert asker.ask(batch) == alone
    asker.tokenizer.padding_side = "right"
    try:
        assert asker.ask(batch) != alone
    finally:
        asker.tokenizer.padding_side = "left"


def test_replies_are_greedy_and_end_where_asked(asker):
    picture = drawn(1)[0]
    first, again, short = asker.ask([asked(picture), asked(picture), asked(picture, max_tokens=2)])
    assert first == again
    assert len(short.text.split()) <= 2
    assert first.text.startswith(short.text)


def test_demonstrations_and_a_system_message_are_part_of_the_conversation(asker):
    shown, picture = drawn(2)
    turns = (
        Turn(role="system", text="a"),
        Turn(role="user", text="fire ?", picture=shown),
        Turn(role="assistant", text="yes"),
        Turn(role="user", text="fire ?", picture=picture),
    )
    inputs = asker._inputs([Conversation(turns=turns, max_tokens=4)])
    assert inputs["pixel_values"].shape[0] == 2
    text = asker.tokenizer.decode(inputs["input_ids"][0]).replace("<image> ", "")
    for part in ("system : a", "user : fire ?", "assistant : yes"):
        assert part in text


def test_an_observer_reads_what_the_model_says(llava, monkeypatch):
    question = question_of(load_recipe("fire", ["observe.max_tokens=4"]))
    observer = load_observer(f"vlm:{llava}", [question], ObserverSettings(device="cpu"))
    seen = observer(drawn(3), ["", "", ""])
    assert [one.answers["fire"].raw for one in seen] == [
        reply.text
        for reply in observer.asker.ask([question.conversation(picture) for picture in drawn(3)])
    ]
    # Random weights answer nonsense; a head that always says "yes" is read as yes.
    model, words = observer.asker.model, observer.asker.tokenizer
    yes = words.convert_tokens_to_ids("yes")
    head = model.get_output_embeddings()
    forward = head.forward

    def always_yes(states):
        logits = forward(states)
        logits[..., yes] = 1e4
        return logits

    monkeypatch.setattr(head, "forward", always_yes)
    assert [one.found for one in observer(drawn(3), [""] * 3)] == [{"fire": True}] * 3


@pytest.mark.parametrize("kind", ["qwen", "smol"])
def test_no_processor_needs_its_part_for_videos_and_torchvision(kind, tmp_path):
    import tiny_vlm
    from transformers import AutoProcessor

    folder = getattr(tiny_vlm, f"save_{kind}")(tmp_path / kind)
    with pytest.raises((ImportError, ValueError)):
        AutoProcessor.from_pretrained(folder)
    asker = load_vlm(str(folder), "cpu")
    batch = [asked(picture, "fire ?" * (1 + i)) for i, picture in enumerate(drawn(3))]
    together = asker.ask(batch)
    assert together == [asker.ask([one])[0] for one in batch]
    assert len({reply.text for reply in together}) > 1
    assert "torchvision" not in sys.modules


def test_the_name_tells_weights_apart_and_not_places(llava, tmp_path):
    moved = shutil.copytree(llava, tmp_path / "moved")
    assert digest_of(moved) == digest_of(llava)
    file = moved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert digest_of(moved) != digest_of(llava)


# ---------------------------------------------------------------------------------- refused


def refusal(place):
    with pytest.raises(ObserverError) as caught:
        load_vlm(str(place), "cpu")
    assert str(place) in str(caught.value)
    return str(caught.value)


def test_a_model_without_a_vision_part_is_refused(llava, tmp_path):
    folder = shutil.copytree(llava, tmp_path / "text")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["text_config"] | {"model_type": "llama"}))
    assert "model_type 'llama', a model without a vision part" in refusal(folder)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "cannot be loaded"),
        ("processor_config.json", "give"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(llava, tmp_path, lost, said):
    folder = shutil.copytree(llava, tmp_path / "lacks")
    (folder / lost).unlink()
    assert said in refusal(folder)


def test_a_broken_folder_is_refused(llava, tmp_path):
    folder = shutil.copytree(llava, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "cannot be loaded" in refusal(folder)
    (folder / "config.json").write_text("[1")
    assert "config.json cannot be read" in refusal(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    assert "no such folder" in refusal(tmp_path / "lost")
    assert "is not on this machine and could not be fetched" in refusal("nobody/nothing-at-all")
