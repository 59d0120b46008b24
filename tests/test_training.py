"""Fine-tuning with real trl and peft on tiny models of real classes."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_vlm import SMALL, TOKENS, enlarge, save_llava, tokenizer_of
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig

from ine.errors import CheckpointError, IneError, ModelError, OutputError, PromptError
from ine.observers.adapters import add_adapter
from ine.observers.question import Conversation, Turn
from ine.observers.vlm import LocalAsker
from ine.observers.vlm_loading import load_processor
from ine.training.bases import load_base
from ine.training.batches import IGNORED, collator_of, dataset_of
from ine.training.examples import Example
from ine.training.settings import LoraSettings, SftSettings
from ine.training.sft import fine_tune

QUICK = SftSettings(
    lora=LoraSettings(dropout=0.1), steps=20, batch=3, accumulation=1, learning_rate=4e-2,
    save_every=6,
)  # fmt: skip
COLOURS = {0: "fire burning", 1: "a dog", 2: "no"}


def turns(channel):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., channel] = 255
    return (
        Turn(role="system", text="a picture"),
        Turn(role="user", text="what is there ?", picture=picture),
    )


ROWS = [Example(asked=turns(channel), answer=answer) for channel, answer in COLOURS.items()]
TEXTS = [
    Example(asked="user : fire assistant :", answer="a dog ."),
    Example(asked="user : cat on the dog assistant :", answer="cat"),
]


class Killed(BaseException):
    """Ends a run as a signal does, without passing any handler of exceptions."""


def killed_after(step):
    def on_step(done, total, figures):
        if done == step:
            raise Killed

    return on_step


def answers_of(model, folder):
    asker = LocalAsker("tiny", model, load_processor(folder))
    asked = [Conversation(turns=turns(channel), max_tokens=6) for channel in COLOURS]
    return [reply.text for reply in asker.ask(asked)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("vlm") / "llava")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "llama"
    tokenizer = tokenizer_of()
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, **TOKENS, num_key_value_heads=2, vocab_size=len(tokenizer))
    model = AutoModelForCausalLM.from_config(config)
    enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "adapter"
    return fine_tune(llava, ROWS, QUICK, out, device="cpu")


def test_answers_about_pictures_are_learned_and_given_by_the_plain_libraries(llava, trained):
    from peft import PeftModel

    model = AutoModelForImageTextToText.from_pretrained(llava)
    before = answers_of(model, llava)
    after = answers_of(PeftModel.from_pretrained(model, trained.out), llava)
    assert after == list(COLOURS.values())
    assert not set(before) & set(COLOURS.values())
    assert np.mean(trained.losses[-3:]) < 0.3 * trained.losses[0]
    assert len(trained.losses) == QUICK.steps


def test_the_folder_holds_the_adapter_and_nothing_of_the_run(trained):
    names = {"adapter_config.json", "adapter_model.safetensors", "training.json"}
    assert {path.name for path in trained.out.iterdir()} == names
    settings = json.loads((trained.out / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert (settings["r"], settings["lora_alpha"]) == (8, 16)


def test_a_killed_run_goes_on_to_the_same_losses_and_the_same_bytes(llava, trained, tmp_path):
    out = tmp_path / "adapter"
    for step in (8, 14):
        with pytest.raises(Killed):
            fine_tune(llava, ROWS, QUICK, out, device="cpu", on_step=killed_after(step))
        assert not (out / "training.json").exists()
    # A kill while a checkpoint is written leaves one without its mark.
    (out / "checkpoints" / "checkpoint-12" / "ine.json").unlink()
    seen = []
    resumed = fine_tune(
        llava, ROWS, QUICK, out, device="cpu", on_step=lambda done, total, _: seen.append(done)
    )
    assert seen[0] == 7
    assert resumed.losses == trained.losses
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (trained.out / weights).read_bytes()


def test_a_finished_run_is_not_repeated_and_not_overwritten(llava, trained):
    again = fine_tune(llava, ROWS, QUICK, trained.out, device="cpu", on_step=killed_after(1))
    assert again.losses == trained.losses
    other = QUICK.model_copy(update={"seed": 1})
    with pytest.raises(OutputError, match="--force"):
        fine_tune(llava, ROWS, other, trained.out, device="cpu")


def test_an_unfinished_run_of_other_rows_is_refused_unless_forced(llava, tmp_path):
    out = tmp_path / "adapter"
    with pytest.raises(Killed):
        fine_tune(llava, ROWS, QUICK, out, device="cpu", on_step=killed_after(7))
    with pytest.raises(OutputError, match="unfinished training with other settings"):
        fine_tune(llava, ROWS[1:], QUICK, out, device="cpu")
    short = QUICK.model_copy(update={"steps": 1})
    assert len(fine_tune(llava, ROWS, short, out, device="cpu", force=True).losses) == 1


def test_a_text_model_learns_plain_texts_and_goes_on_from_an_adapter(llama, tmp_path):
    first = fine_tune(llama, TEXTS, QUICK, tmp_path / "a", device="cpu")
    assert first.losses[-1] < 0.3 * first.losses[0]
    more = fine_tune(llama, TEXTS, QUICK, tmp_path / "b", adapter=tmp_path / "a", device="cpu")
    assert more.losses[0] < 0.5 * first.losses[0]
    model = add_adapter(load_base(llama, "cpu").model, tmp_path / "b")
    tokenizer = tokenizer_of()
    ids = tokenizer(TEXTS[0].asked, return_tensors="pt")["input_ids"]
    made = model.generate(input_ids=ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == TEXTS[0].answer
    assert made[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["llava", "llama"])
def test_only_the_answer_and_its_end_are_learned_unless_asked(kind, llava, llama):
    base = load_base({"llava": llava, "llama": llama}[kind], "cpu")
    rows = ROWS[:2] if base.sees else TEXTS
    data = dataset_of(base, rows)
    for only in (True, False):
        batch = collator_of(base, QUICK.model_copy(update={"completion_only": only}))(
            [data[0], data[1]]
        )
        for row, tokens, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
            learned = labels[labels != IGNORED]
            end = base.tokenizer(f"{row.answer} </s>", add_special_tokens=False)["input_ids"]
            assert learned[-len(end) :].tolist() == end
            assert (len(learned) == len(end)) is only
            assert torch.equal(learned, tokens[labels != IGNORED])
            assert base.tokenizer.convert_tokens_to_ids("<image>") not in learned


def test_a_row_is_asked_in_training_with_the_tokens_of_its_use(llava):
    base = load_base(llava, "cpu")
    # Tokenizers of many models put a first token before every text.
    from tokenizers.processors import TemplateProcessing

    def ids(processor):
        asker = LocalAsker("tiny", base.model, processor)
        return asker._inputs([Conversation(turns=turns(0), max_tokens=1)])["input_ids"][0].tolist()

    for first in ("", "<s> "):
        raw = base.tokenizer.backend_tokenizer
        raw.post_processor = TemplateProcessing(single=f"{first}$A", special_tokens=[("<s>", 1)])
        batch = collator_of(base, QUICK)([dataset_of(base, ROWS)[0]])
        asked = batch["input_ids"][0][batch["labels"][0] == IGNORED].tolist()
        assert asked == ids(base.processor)
        assert (asked[0] == 1) is bool(first)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        ([Example(asked="a", answer="keep")] * 3, "all 3 answers are 'keep'"),
        ([*TEXTS, Example(asked="a", answer=" ")], "1 of 3 answers are empty, the first in row 3"),
        (ROWS, "takes text alone"),
        ([Example(asked="a " * 99, answer="b"), *TEXTS], "max_tokens allows 64"),
    ],
)
def test_rows_that_teach_nothing_are_refused(rows, said, llama, tmp_path):
    settings = QUICK.model_copy(update={"max_tokens": 64})
    with pytest.raises(PromptError, match=said):
        fine_tune(llama, rows, settings, tmp_path / "out", device="cpu")


def test_a_tokenizer_without_an_end_of_text_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "endless")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    with pytest.raises(ModelError, match="no end of text"):
        fine_tune(folder, TEXTS, QUICK, tmp_path / "out", device="cpu")


def test_names_of_layers_that_are_not_there_are_answered_with_those_that_are(llama, tmp_path):
    settings = QUICK.model_copy(update={"lora": LoraSettings(targets=("query",))})
    with pytest.raises(ModelError, match=r"no layers called query; it has .*q_proj"):
        fine_tune(llama, TEXTS, settings, tmp_path / "out", device="cpu")


def test_an_adapter_of_another_base_is_refused(llava, llama, trained, tmp_path):
    other = save_llava(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"was trained on .*llava"):
        fine_tune(other, ROWS, QUICK, tmp_path / "out", adapter=trained.out, device="cpu")
    # Of an adapter made by others nothing is known but its matrices.
    foreign = shutil.copytree(trained.out, tmp_path / "foreign")
    (foreign / "training.json").unlink()
    with pytest.raises(CheckpointError, match="give the base model it was trained on"):
        add_adapter(load_base(llama, "cpu").model, foreign)
    add_adapter(load_base(llava, "cpu").model, foreign)
    (foreign / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="is damaged"):
        add_adapter(load_base(llava, "cpu").model, foreign)


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_no_adapter(llama, tmp_path):
    base = load_base(llama, "cpu")
    with torch.no_grad():
        base.model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(IneError, match="loss is nan at step 1 of 20"):
        fine_tune(base, TEXTS, QUICK, tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))


def test_nothing_is_reported_to_anybody(llama, tmp_path, monkeypatch, capsys):
    from trl import SFTTrainer

    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *a, **k: sent.append(a))
    fine_tune(llama, TEXTS, QUICK.model_copy(update={"steps": 1}), tmp_path / "out", device="cpu")
    assert sent == []
    assert capsys.readouterr().out == ""
    # The check sees a report if there is one.
    from trl import SFTConfig

    config = SFTConfig(str(tmp_path / "b"), use_cpu=True, bf16=False, report_to="none")
    base, rows = load_base(llama, "cpu"), [{"text": "a dog"}]
    from datasets import Dataset

    SFTTrainer(
        model=base.model, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=base.processor,
    )  # fmt: skip
    assert sent
