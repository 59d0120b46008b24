"""The paper's grids: they are read, they expand, and `--dry-run` says what is missing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ine.embeddings.embedding import ConceptEmbedding, write_embedding
from ine.errors import IneError
from ine.evaluation.expand import expand
from ine.evaluation.grid_file import load_grid
from ine.guidance.negative import Negative
from ine.guidance.safree import Safree
from ine.guidance.sld import PRESETS, SafeLatent

FOLDER = Path(__file__).parent.parent / "recipes" / "paper"
GRIDS = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in GRIDS]

I2P = "prompt,categories,nudity_percentage,evaluation_seed,evaluation_guidance,case_number\n"
PROMPT_FILES = {
    "ring-a-bell-nudity.csv": "prompt\n" + "".join(f"a tree in the wind {n}\n" for n in range(95)),
    "Violence_eta_5.5_K_77.csv": "prompt,case_number,evaluation_seed\n"
    + "".join(f"a boat on a lake {n},{n},{n}\n" for n in range(250)),
    "i2p.csv": I2P
    + "".join(f"a hill {n},sexual,{n % 100},{2**31 + n},7,{n}\n" for n in range(300)),
    "violence.csv": I2P + "".join(f"a road {n},violence,0,{n},7.5,{n}\n" for n in range(756)),
    "coco_10k.csv": "case_number,prompt,evaluation_seed,coco_id\n"
    + "".join(f"{n},a plate of food {n},{n},{n}\n" for n in range(1200)),
    "mma-diffusion-nsfw-adv-prompts.csv": "target_prompt,adv_prompt\n"
    + "".join(f"a bird {n},bird {n} sky\n" for n in range(1000)),
}
"""Harmless stand-ins with the columns and, where grids rest on it, the rows of the public files."""


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """A copy of the grids with stand-ins for every file that they name."""
    folder = tmp_path_factory.mktemp("paper")
    for path in GRIDS:
        shutil.copy(path, folder)
    files = folder / "files"
    files.mkdir()
    for name, text in PROMPT_FILES.items():
        (files / name).write_text(text)
    for name in named_files():
        path = files / name
        if name.endswith("-neg.safetensors"):
            write_embedding(an_embedding(path.stem), path)
        elif not path.exists():
            path.write_bytes(b"")
    return folder


def an_embedding(trigger):
    vectors = torch.randn(1, 768, generator=torch.Generator().manual_seed(len(trigger)))
    return ConceptEmbedding(vectors=(vectors,), concept="stand-in", trigger=trigger, metadata={})


def named_files():
    """Names of all files in `files/` that the grids name."""
    return set(re.findall(r"files/([\w.-]+)", "\n".join(p.read_text() for p in GRIDS)))


def test_there_are_grids_of_both_tasks_transfer_and_other_erasers():
    assert NAMES == ["duo-nudity", "duo-transfer", "duo-violence", "erasers-nudity"]
    assert {load_grid(path).grid.name for path in GRIDS} == set(NAMES)


@pytest.mark.parametrize("path", GRIDS, ids=NAMES)
def test_every_grid_is_sound_and_names_its_rules(path):
    file = load_grid(path)
    assert file.grid.rules
    assert file.recipe.people
    assert file.recipe.base == "CompVis/stable-diffusion-v1-4"
    assert {"harmful", "benign"} <= {p.expects for p in file.grid.prompts if p.role == "test"}
    assert (file.grid.sampler.scheduler, file.grid.sampler.steps) == ("ddim", 50)
    assert file.grid.sampler.guidance_scale == 7.5


@pytest.mark.parametrize("path", GRIDS, ids=NAMES)
def test_without_its_files_a_grid_expands_and_names_them(path):
    found = expand(load_grid(path), lenient=True)
    missing = "\n".join(found.missing)
    for name in set(re.findall(r"^[^#]*?files/([\w.-]+)", path.read_text(), re.MULTILINE)):
        # Of adapters that are applied together the first that is missing is named.
        if not re.match("duo-(gun|horror|suffer)", name):
            assert name in missing
    assert len(found.cells) == len(found.configurations) * len(found.sets)
    with pytest.raises(IneError, match=r"files/"):
        expand(load_grid(path))


@pytest.mark.parametrize("path", GRIDS, ids=NAMES)
def test_with_its_files_nothing_is_missing_from_the_expansion(own_folder, path):
    found = expand(load_grid(own_folder / path.name))
    assert found.missing == ()
    assert all(g is not None for c, g in found.guidances.items() if c.is_defended)
    assert all(s.count for s in found.sets.values())


def test_duo_meets_every_way_of_the_paper(own_folder):
    found = expand(load_grid(own_folder / "duo-nudity.yaml"))
    ways = {(c.guidance, c.negative) for c in found.configurations if c.model == "beta2000"}
    assert ways == {
        ("none", "none"),
        *((guidance, n) for guidance in ("sld", "safree") for n in ("words", "ine", "both")),
    }
    assert {c.model for c in found.configurations} == {"beta2000", "beta1000", "beta500", "beta250"}
    # Each checkpoint has the embedding that was inverted on it.
    triggers = {
        c.model: found.guidances[c].negative.embeddings[0].trigger
        for c in found.configurations
        if (c.guidance, c.negative) == ("sld", "ine")
    }
    assert len(triggers) == 4
    names = {spec: s.count for spec, s in found.sets.items()}
    assert names["ring-a-bell"] == 95
    assert names["coco"] == 1000
    sld = next(g for c, g in found.guidances.items() if c.guidance == "sld")
    assert isinstance(sld, SafeLatent)
    assert sld.strength == PRESETS["medium"]["strength"]


def test_the_embedding_alone_stands_where_the_words_stood(own_folder):
    found = expand(load_grid(own_folder / "duo-nudity.yaml"))
    for configuration, guidance in found.guidances.items():
        if not configuration.is_defended:
            continue
        negative = guidance.negative
        assert isinstance(negative, Negative)
        assert bool(negative.text) == (configuration.negative in ("words", "both"))
        assert bool(negative.embeddings) == (configuration.negative in ("ine", "both"))
        if isinstance(guidance, Safree):
            phrases = ("Sexual Acts", "Nudity") if negative.text else ()
            assert guidance.phrases == phrases
            assert guidance.embeddings == negative.embeddings


def test_four_adapters_are_applied_for_violence(own_folder):
    found = expand(load_grid(own_folder / "duo-violence.yaml"))
    for beta in (2000, 1000, 500, 250):
        names = [layer.path.name for layer in found.unets[f"beta{beta}"].layers]
        assert names == [
            f"duo-{kind}-beta{beta}.safetensors" for kind in ("blood", "gun", "horror", "suffer")
        ]
    assert found.sets["ring-a-bell"].count == 150


def test_transfer_is_a_matrix(own_folder):
    found = expand(load_grid(own_folder / "duo-transfer.yaml"))
    pairs = {(c.model, c.negative) for c in found.configurations if c.guidance == "sld"}
    assert len(pairs) == 5 * 4


def test_tuning_and_test_prompts_of_the_erasers_differ(own_folder):
    found = expand(load_grid(own_folder / "erasers-nudity.yaml"))
    prompts = {
        role: {r.prompt for s in found.sets.values() if s.spec.role == role for r in s.found.rows}
        for role in ("tune", "test")
    }
    assert prompts["tune"]
    assert not prompts["tune"] & prompts["test"]
    assert found.file.grid.choose is not None


@pytest.mark.parametrize("path", GRIDS, ids=NAMES)
def test_dry_run_says_what_there_is_to_do_and_what_is_missing(run_ine, path, tmp_path):
    out = tmp_path / "run"
    done = run_ine("evaluate", path, "--dry-run", "--out", out)
    assert done.exit_code == 0, done.output
    assert "missing: " in done.stdout
    assert "files/" in done.stdout
    assert not out.exists()
    found = json.loads(run_ine("evaluate", path, "--dry-run", "--out", out, "--json").stdout)
    assert found["cells_count"] == len(found["cells"]) > 10
    assert found["pictures"] is None
    assert found["missing"]


def test_dry_run_counts_pictures_where_the_prompts_are_there(run_ine, own_folder, tmp_path):
    path = own_folder / "duo-nudity.yaml"
    done = run_ine("evaluate", path, "--dry-run", "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["cells_count"] == 4 * 7 * 3
    i2p = expand(load_grid(path)).sets["i2p-95"].count
    assert found["pictures"] == 4 * 7 * (95 + 1000 + i2p)
    calls = {c["configuration"]: c["calls"] for c in found["cells"]}
    assert calls["beta500, undefended"] == 100
    assert calls["beta500, sld, ine"] == 150


def test_files_are_named_in_the_table_of_what_to_bring():
    readme = (FOLDER / "README.md").read_text()
    for name in named_files():
        if name.endswith("-neg.safetensors") or re.match("duo-.*-beta", name):
            continue
        assert f"`{name}`" in readme, name
    assert all(f"`{path.name}`" in readme for path in GRIDS)
