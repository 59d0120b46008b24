"""Both stages of `ine posi train` on a tiny language model of the bundled world's words."""

import json

import pytest
from click.testing import CliRunner
from tiny_posi import PAIRS, QUICK, Noise, made_in, ppo, run

from ine.cli import cli
from ine.errors import CheckpointError, MissingDependency, ModelError, PromptError, RecipeError
from ine.posi.mini_words import TEMPLATE, make_base, world_prompts, world_tokenizer
from ine.posi.pair_files import Pair, write_pairs
from ine.posi.recipe import Template, list_posi_recipes, load_posi_recipe
from ine.posi.trained import Asking, asking_of, load_trained, stages_of
from ine.training.answers import Drawing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, pairs, and an adapter for them."""
    return made_in(tmp_path_factory.mktemp("posi"))


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr("ine.posi.picture_stage.open_generator", lambda settings, device: Noise())


def test_every_word_of_the_world_is_a_token():
    tokenizer = world_tokenizer()
    for prompt in world_prompts()[::50]:
        ids = tokenizer(prompt).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == prompt.lower()


def test_fine_tuning_learns_the_pairs(folder):
    about = json.loads((folder / "sft" / "training.json").read_text())
    assert about["losses"][-1] < about["losses"][0]
    assert asking_of(folder / "sft").instruction == "rewrite"


def test_ppo_trains_on_pictures_and_its_adapter_brings_the_first_stage(folder, tmp_path):
    done = ppo(folder, tmp_path / "ppo")
    assert "2 rollouts of 4 answers" in done.stdout
    rows = [
        json.loads(line) for line in (tmp_path / "ppo" / "rollouts.jsonl").read_text().splitlines()
    ]
    assert all(0 <= row["toxicity"] <= 1 for row in rows)
    assert stages_of([tmp_path / "ppo"]) == [tmp_path / "ppo" / "sft", tmp_path / "ppo"]
    both, alone = (
        load_trained(folder / "base", [tmp_path / "ppo"], drawing=Drawing(max_tokens=20))(asked)
        for asked in (["a burning dog", "a cat"], ["a cat"])
    )
    assert both[1:] == alone
    assert all(bool(one.rewritten) != bool(one.unusable) for one in both)


def test_ppo_that_was_killed_ends_with_the_same_bytes(folder, tmp_path, monkeypatch, noise):
    store = ("--store", tmp_path / "pictures")
    ppo(folder, tmp_path / "whole", *store)

    from ine.training.rewards import PictureReward

    called, score = [], PictureReward.__call__

    def killed(self, prompts, answers):
        called.append(1)
        if len(called) == 2:
            raise KeyboardInterrupt
        return score(self, prompts, answers)

    with monkeypatch.context() as patch:
        patch.setattr(PictureReward, "__call__", killed)
        ppo(folder, tmp_path / "cut", *store, code=130)
    assert not (tmp_path / "cut" / "training.json").exists()
    ppo(folder, tmp_path / "cut", *store)
    for name in ("adapter_model.safetensors", "state.safetensors", "rollouts.jsonl"):
        whole, cut = (tmp_path / run / name for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name


def test_an_adapter_of_another_base_is_refused(folder, tmp_path):
    make_base(tmp_path / "other", steps=1, width=32, layers=1, seed=1)
    with pytest.raises(CheckpointError, match="not on this model"):
        load_trained(tmp_path / "other", [folder / "sft"])
    assert load_trained(folder / "base", [folder / "sft"]).name.startswith("model:")


def test_an_answer_that_does_not_end_is_unusable(folder):
    said = Asking(template=TEMPLATE)
    short = load_trained(folder / "base", [], asking=said, drawing=Drawing(max_tokens=1))
    (found,) = short(["a burning dog on a red background"])
    assert found.unusable
    assert not found.rewritten


def test_a_base_without_a_chat_template_needs_one(folder):
    with pytest.raises(ModelError, match="no chat template"):
        load_trained(folder / "base", [])(["a dog"])


def test_a_base_without_end_of_text_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "base", tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["eos_token"] = None
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="end of text"):
        load_trained(tmp_path / "base", [])


def test_pairs_and_prompts_longer_than_the_context_are_refused(folder, tmp_path):
    long = Pair(toxic="a dog " * 300, clean="a dog")
    write_pairs(tmp_path / "pairs.json", [*PAIRS, long], "rewrite")
    where = ("--base", folder / "base", "--pairs", tmp_path / "pairs.json", "--equal", "keep")
    said = ("train", "--stage", "sft", "--recipe", "mini", *where, *QUICK)
    done = run(*said, "--out", tmp_path / "out", code=PromptError.exit_code)
    assert "1 of 9 prompts do not fit: prompt 9 has" in done.stderr


def test_stages_say_what_they_lack(folder, tmp_path):
    out = ("--recipe", "mini", "--out", tmp_path / "out")
    assert "--pairs" in run("train", "--stage", "sft", *out, code=8).stderr
    assert "--prompts" in run("train", "--stage", "ppo", *out, code=8).stderr
    both = ("--base", folder / "base", "--by", "teacher:fire")
    assert "--base DIR, or --by" in run("rewrite", "a dog", *both, code=2).stderr


def test_what_is_no_model_file_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert (
        "give mini, or a GGUF file"
        in run("base", "minni", "--out", out, code=ModelError.exit_code).stderr
    )
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    assert (
        "pip install gguf"
        in run("base", tmp_path / "a.gguf", "--out", out, code=MissingDependency.exit_code).stderr
    )
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: True)
    broken = run("base", tmp_path / "a.gguf", "--out", out, code=ModelError.exit_code)
    assert "cannot be read as a language model" in broken.stderr
    assert not (out / "config.json").exists()


# --------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", list_posi_recipes())
def test_shipped_recipes_are_read(name):
    recipe = load_posi_recipe(name)
    assert recipe.ppo.kl.weight > 0


def test_the_released_settings_are_those_of_the_release(tmp_path, monkeypatch):
    monkeypatch.delenv("INE_Q16_PROMPTS", raising=False)
    recipe = load_posi_recipe("released")
    assert (recipe.sft.lora.rank, recipe.sft.lora.alpha, recipe.sft.lora.dropout) == (8, 16, 0.1)
    assert (recipe.ppo.kl.target, recipe.ppo.epochs, recipe.ppo.learning_rate) == (0.02, 4, 1.9e-5)
    assert recipe.reward.characters == 77
    asked = Asking(instruction="I", template=recipe.template).template.asked("I", "P {prompt}")
    assert str(asked).endswith("\nHuman: I\nP {prompt}\nAssistant:")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt number {k}\n" for k in range(842)))
    said = ("--stage", "ppo", "--recipe", "released", "--prompts", prompts, "--dry-run")
    done = run("train", *said, "--out", tmp_path / "out")
    assert "# rollouts: 53" in done.stdout
    assert "# memory: 6.7 billion weights" in done.stdout
    assert "# missing here: llama-7b: no language model there" in done.stdout
    assert "detector 'q16' needs its learned prompts" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_wrong_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'mini'"):
        load_posi_recipe("minni")
    with pytest.raises(RecipeError, match=r"template.text has to contain \{prompt\} once"):
        load_posi_recipe("mini", ("template.text=x {instruction}",))
    with pytest.raises(RecipeError, match="no multiple of"):
        load_posi_recipe("mini", ("ppo.batch=10",))


def test_a_chat_template_of_a_text_model_gets_plain_strings():
    tokenizer = world_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' = ' }}{% endfor %}"
    )
    asked = Asking(instruction="rewrite", template=Template()).query(tokenizer, "a dog")
    assert asked == "system : rewrite = user : a dog = "


def test_without_a_text_the_models_own_chat_template_is_used():
    turns = Template().asked("Do it.", "a dog")
    assert [(turn.role, turn.text) for turn in turns] == [("system", "Do it."), ("user", "a dog")]


def test_the_base_that_ine_posi_base_makes_repeats_itself(tmp_path):
    for name in ("one", "two"):
        run("base", "mini", "--steps", 2, "--out", tmp_path / name)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 2_000_000
    assert run("base", "mini", "--out", tmp_path / "one", code=9).stderr


# ----------------------------------------------------------------------------------- the page


def test_a_training_writes_a_page_that_ine_report_takes(folder, tmp_path, noise):
    from ine.studies.rewriter_training import LINES, blocks_of, rollouts_table

    done = ppo(folder, tmp_path / "ppo")
    assert "pictures: " in done.stdout
    page = tmp_path / "posi.md"
    shown = CliRunner().invoke(
        cli, ["report", "show", str(tmp_path / "ppo"), "--markdown", str(page)]
    )
    assert shown.exit_code == 0, shown.output
    assert "cosine with the user's prompt" in page.read_text()
    rows = [{"reward": float(k), "toxicity": 0.5} for k in range(25)]
    table = rollouts_table(rows)
    assert (len(table.rows), table.columns) == (LINES, ["rollout", "reward", "toxicity"])
    assert [n for first, end in blocks_of(25) for n in range(first, end)] == list(range(25))
    assert [row[0] for row in rollouts_table(rows[:3]).rows] == ["1", "2", "3"]
