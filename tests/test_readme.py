"""The README and the pages for users: what they show is run, or at least parsed."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
import torch
import yaml

from ine.cli import COMMANDS, TASKS, cli
from ine.detectors.table import DETECTORS
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.recipe import list_recipes
from ine.weights.files import write_unet_weights

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MINI = ROOT / "recipes" / "mini"
PAGES = [
    README,
    ROOT / "docs" / "quickstart.md",
    ROOT / "docs" / "using-in-uis.md",
    ROOT / "docs" / "bundled-model.md",
    ROOT / "embeddings" / "README.md",
]
TEST_COMMAND = (
    'python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[test]" && '
    "OMP_WAIT_POLICY=passive .venv/bin/python -m pytest"
)
DEMO_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && "
    ".venv/bin/ine demo"
)


def blocks(text, language=""):
    """The fenced blocks of a text in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(text, heading):
    """What stands under a heading, up to the next one."""
    return re.split(r"^#+ ", text.split(f"## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def shown_commands():
    """(place, command line) of every `ine` command that pages and recipes show."""
    found = []
    for page in PAGES:
        lines = [line for block in blocks(page.read_text()) for line in block.splitlines()]
        found += [(page.name, line) for line in lines if line.startswith("ine ")]
    for path in list_recipes().values():
        found += [(path.name, x) for x in re.findall(r"^# +(ine .+)$", path.read_text(), re.M)]
    return found


def parse(line):
    """Parse a command line as click does, without running it."""
    context, args = click.Context(cli, info_name="ine"), shlex.split(line)[1:]
    command = cli
    while isinstance(command, click.Group):
        name = args.pop(0)
        command = command.get_command(context, name)
        assert command, f"no command {name!r}"
    return command.make_context(command.name, args, parent=context).params


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_every_command_that_is_shown_parses(place, page, line):
    for name in re.findall(r"--unet (\S+)", line):
        (place / name).touch()
    parse(line)


def test_the_parser_of_shown_commands_can_fail(place):
    for line in ("ine invert --concpet fire", "ine invert --concept fire --seed red"):
        with pytest.raises(click.UsageError):
            parse(line)
    assert len(shown_commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_named_in_the_text_exist(page):
    for words in re.findall(r"`ine ([a-z]+)[^`]*`", page.read_text()):
        assert words in COMMANDS


def test_the_readme_is_plain_text():
    text = README.read_text()
    assert "shields.io" not in text
    assert "badge" not in text
    for page in PAGES:
        assert page.read_text().isascii(), page


def test_the_readme_begins_with_two_commands_for_a_fresh_clone():
    shown = [b.strip() for b in blocks(README.read_text())]
    assert shown[:2] == [DEMO_COMMAND, TEST_COMMAND]
    (script,) = [x for x in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in x]
    assert script == TEST_COMMAND


def test_the_readme_names_every_command_with_its_task():
    table = section(README.read_text(), "Commands")
    found, task = {}, None
    for words, command in re.findall(r"^\| (?:(\w[\w ]*) )?\| `ine (\w+)` \|", table, re.M):
        task = words or task
        found.setdefault(task.capitalize(), []).append(command)
    assert found == {task: list(names) for task, names in TASKS.items()}
    assert {name for names in found.values() for name in names} == set(COMMANDS)


def test_the_readme_defines_its_words_before_it_uses_them():
    text = README.read_text().split("\n", 1)[1]  # behind the title
    for word in ("unlearned", "negative", "embedding"):
        assert word not in text[: text.index(f"**{word}**")]
    assert text.index("`mini` is a small Stable Diffusion") < text.index("```")


def test_the_readme_says_what_has_to_be_said():
    text = " ".join(README.read_text().split())
    for words in (
        "AGPL-3.0",
        "used as a *prompt* it brings the concept back",
        "(docs/threat-model.md)",
        "(docs/cli.md#exit-codes)",
        "(docs/demo.png)",
        "(docs/attacks.md)",
        "(docs/results.md)",
        "estimated, not measured",
        "(LICENSE)",
    ):
        assert words in text


# -------------------------------------------------------------------- what is shown is run


def cross_attention(parts):
    state = parts.unet.state_dict()
    return {n: state[n] * 0.5 for n in state if "attn2.to_k" in n or "attn2.to_v" in n}


@pytest.fixture
def mini(tiny_folder, tmp_path_factory, monkeypatch):
    """A tiny model in the bundled one's place, in float16 as that one is."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("bundled") / "mini"
    StableDiffusionPipeline.from_pretrained(tiny_folder).to(torch.float16).save_pretrained(folder)
    monkeypatch.setattr("ine.models.parts.MINI_FOLDER", folder)
    return folder


def an_embedding(path, scale=0.1):
    vectors = scale * torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    write_embedding(new_embedding(vectors, path.stem, "fire", {"ine.base": "mini"}), path)


def test_the_python_of_the_readme_runs(place, mini, tiny_parts):
    made = place / "ine-demo"
    write_unet_weights(
        made / "fire-uce.safetensors", cross_attention(tiny_parts), {"ine.method": "UCE"}
    )
    an_embedding(made / "fire-neg.safetensors")
    first, second, third = blocks(README.read_text(), "python")
    names = {}
    exec(compile(first, "README.md", "exec"), names)
    assert names["pictures"].shape == (4, 16, 16, 3)
    assert names["weights"].method == "UCE"
    exec(compile(second, "README.md", "exec"), names)
    assert names["states"].shape == (1, 77, 32)
    assert names["image"].size == (16, 16)
    exec(compile(third, "README.md", "exec"), names)
    # The pair, the embedding, and the empty text beside the user's own negative; PNDM's 20 are 21.
    assert names["cost"] == [21 * 4]


def test_both_ways_of_using_the_file_in_diffusers_are_equal(place, tiny_folder):
    from diffusers import StableDiffusionPipeline

    an_embedding(place / "nudity-neg.safetensors")
    page = (ROOT / "docs" / "using-in-uis.md").read_text()
    loaded, passed = blocks(section(page, "diffusers"), "python")
    images = []
    for code in (loaded, passed.replace("blurry, ", "")):
        pipe = ShortPipeline(StableDiffusionPipeline.from_pretrained(tiny_folder))
        exec(compile(code, "using-in-uis.md", "exec"), {"pipe": pipe})
        images.append(pipe.last)
    plain = ShortPipeline(StableDiffusionPipeline.from_pretrained(tiny_folder))
    plain("a woman in a bathtub")
    assert abs(images[0] - images[1]).max() < 1e-3
    assert abs(images[0] - plain.last).max() > 1e-3


class ShortPipeline:
    """A pipeline that takes three steps, always from the same noise, and keeps its last picture."""

    def __init__(self, pipe):
        self.pipe, self.last = pipe, None

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, prompt, **kwargs):
        generator = torch.Generator().manual_seed(0)
        fixed = {"num_inference_steps": 3, "generator": generator, "output_type": "np"}
        found = self.pipe(prompt, **kwargs, **fixed)
        self.last = found.images[0]
        return found


class LeftJudge:
    """Finds fire in pictures that are brighter on the left; its features are the pixels."""

    def __call__(self, pictures):
        return [{"fire": 0.9 if p[:, :8].mean() > p[:, 8:].mean() else 0.1} for p in pictures]

    def features(self, pictures):
        rows = pictures.reshape(len(pictures), -1).astype("float32") - 127.5
        return rows / (rows**2).sum(1, keepdims=True) ** 0.5


def test_the_steps_of_the_quickstart_run(place, run_ine, tiny_folder, monkeypatch):
    monkeypatch.setattr("ine.models.parts.MINI_FOLDER", tiny_folder)
    monkeypatch.setattr("ine.calibration.teach.FEWEST", 2)
    for name in ("mini-judge", "mini-judge2"):
        monkeypatch.setitem(DETECTORS, name, LeftJudge)
    inversion = [
        *("pictures.count=4", "pictures.steps=2", "inversion.steps=2", "tuning.steps=2"),
        *("inversion.preview_every=2", "inversion.preview_pictures=2", "inversion.runs=2"),
        *("pictures.scheduler=ddim", "tuning.scheduler=ddim"),
    ]
    defence = [
        *("defence.guidances={additive: [3]}", "defence.false_open=[0.5]", "defence.look_ahead=2"),
        *("defence.examples=16", "defence.pictures=8", "defence.benign=10", "defence.reported=4"),
        "defence.learn_from=vectors",  # the probe of so few concept pictures would open for nothing
    ]
    small = {
        "invert": [w for text in inversion for w in ("--set", text)],
        "defend": [w for text in (*inversion, *defence) for w in ("--set", text)],
        "calibrate": ["--steps", "2", "--examples", "64", "--false-open", "0.5"],
        "generate": ["--steps", "2"],
    }
    small["defend"] += ["--target-preservation", "0"]
    page = (ROOT / "docs" / "quickstart.md").read_text()
    for heading in ("A defence in one command", "The same, step by step"):
        (block,) = blocks(section(page, heading))
        for line in block.splitlines():
            args = shlex.split(line)[1:]
            done = run_ine(*args, *small.get(args[0], []))
            assert done.exit_code == 0, (line, done.stderr)
    assert read_embedding("fire-neg.safetensors").metadata["ine.defence.guidance"] == "additive"
    assert read_embedding("plain-neg.safetensors").concept == "fire"
    folders = ("undefended", "defended", "always", "gentler")
    assert [len(list((place / f).glob("*-seed*.png"))) for f in folders] == [8] * 4


# ---------------------------------------------------------------------- the bundled model


def world():
    return yaml.safe_load((MINI / "world.yaml").read_text())


def test_the_model_card_names_data_and_world_as_they_are():
    text, data = (ROOT / "docs" / "bundled-model.md").read_text(), world()
    for entry in data["sets"].values():
        licence = entry["licence"].replace("CC-BY-4.0", "CC BY 4.0")
        assert f"| `{entry['package']}` | {licence} |" in text
    assert len(re.findall(r"\| `@iconify-json/", text)) == len(data["sets"])
    for context in data["contexts"]:
        if "twin" in context:
            used = {"tuning": "tuning", "test": "reported figures"}[context["split"]]
            assert f"| {context['phrase']} | {context['twin']} | {used} |" in text
    objects = data["objects"]
    assert len(objects) == 67
    assert "67 objects in nine" in text
    assert len({o["category"] for o in objects}) == 9
    assert len(data["colours"]) == 10
    assert text.count("<!-- figures -->") == 1


def stages():
    """The keys of STAGES in build.py."""
    tree = ast.parse((MINI / "build.py").read_text())
    (table,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "STAGES"
    ]
    return [key.value for key in table.keys]


def test_the_recipe_of_the_bundled_model_names_every_package_and_stage():
    text = (MINI / "README.md").read_text()
    unseen = re.search(r'^UNSEEN = "(.+)"', (MINI / "measure.py").read_text(), re.M)[1]
    (pack,) = [x for x in text.splitlines() if x.startswith("DIR=") and "npm pack" in x]
    packages = [entry["package"] for entry in world()["sets"].values()]
    assert re.findall(r"@iconify-json/\S+", pack) == [*packages, unseen]
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == stages()
    card = (ROOT / "docs" / "bundled-model.md").read_text()
    table = section(card, "Training")
    named = [n for row in re.findall(r"^\| (`.+?) \|", table, re.M) for n in row.split(", ")]
    assert [n.strip("`") for n in named] == stages()
