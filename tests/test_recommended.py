"""What a file recommends is what `ine generate` and `ine.protect` do, unless the user says else."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import FEATURES, noise

import ine
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.errors import EmbeddingError, IneError, RecipeError
from ine.evaluation.expand import expand
from ine.evaluation.grid_file import load_grid
from ine.files import sha256_of
from ine.guidance.additive import Additive
from ine.guidance.applied import applied
from ine.guidance.beside import Beside
from ine.guidance.cfg import ClassifierFree
from ine.guidance.contextual import Contextual
from ine.guidance.gate_file import Calibration, gate_path, read_calibration, write_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.given import GivenEmbedding
from ine.guidance.look_ahead import ConceptProbe, LookAhead
from ine.guidance.negative import Negative
from ine.guidance.overrides import Overrides
from ine.guidance.per_concept import PerConcept
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.recommended import Recommendation, recommendation_of
from ine.guidance.restart import Restart
from ine.guidance.table import describe
from ine.pictures import read_picture
from ine.sampling import SamplerSettings, sample_latents
from ine.sampling.pictures import GREY

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STRONG = Recommendation(guidance="additive", strength=8.0, window=Window(0, 0.6), look_ahead=3)
RESTARTS = replace(STRONG, restart=(1.0, 2.0))
PROMPTS, SEEDS = ("a dog", "a burning cat", "a house"), (3, 4, 5)
SETTINGS = SamplerSettings(steps=5, guidance_scale=5.0)


def calibration_of(concept, seed, **settings):
    probe = Probe(noise(FEATURES, seed=seed), 0.0)
    asked = ConceptProbe(concept=concept, probe=probe, threshold=0.0)
    look = LookAhead(probes=(asked,), **{"steps": 3, **settings})
    late = ProbeGate(0.0, (probe,), (0.5,), concept)
    return Calibration(gate=late, look_ahead=look, record={"unet": "tiny"})


def write_defence(folder, concept="fire", seed=1, recommended=STRONG, **settings):
    """Write an embedding and its gate; return the embedding's file."""
    file = folder / f"{concept}-neg.safetensors"
    calibration = calibration_of(concept, seed, **settings)
    write_calibration(calibration, gate_path([file]))
    digest = sha256_of(gate_path([file]).read_bytes())[:16]
    about = replace(recommended, gate_hash=digest).metadata()
    write_embedding(
        new_embedding(3 * noise(2, 32, seed=seed), f"{concept}-neg", concept, about), file
    )
    return file


@pytest.fixture
def fire(tmp_path):
    return write_defence(tmp_path)


@pytest.fixture
def weapon(tmp_path):
    weaker = replace(STRONG, guidance="cfg", strength=None, window=Window(0, 0.8))
    return write_defence(tmp_path, "weapon", 2, weaker)


def given(*files):
    return [GivenEmbedding.of(read_embedding(file), file) for file in files]


def guidance_of(*files, text="", **overrides):
    return applied(given(*files), Overrides(**overrides), text).guidance


# ------------------------------------------------------------------------------------ the header


def test_a_recommendation_survives_the_header(fire):
    found = recommendation_of(read_embedding(fire))
    assert replace(found, gate_hash="") == STRONG
    assert str(found) == (
        "additive, strength 8, in 0:0.6 of the run, where a look-ahead of 3 steps finds the concept"
    )
    assert all(isinstance(v, str) for v in found.metadata().values())


def test_restarts_survive_the_header(tmp_path):
    found = recommendation_of(read_embedding(write_defence(tmp_path, recommended=RESTARTS)))
    assert found.restart == (1.0, 2.0)
    assert str(found).endswith("finds the concept, restarts at 1,2 times the strength")


def test_a_file_of_another_program_recommends_nothing(tmp_path):
    file = tmp_path / "easy.pt"
    torch.save({"string_to_param": {"*": noise(2, 32)}, "name": "easy"}, file)
    assert recommendation_of(read_embedding(file)) is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("guidance", "telepathy", "guidance 'telepathy' is unknown"),
        ("strength", "strong", "could not convert"),
        ("strength", "nan", "strength is nan"),
        ("strength", "-1", "give a finite number of 0 or more"),
        ("window", "0.6", "could not convert"),
        ("window", "0.6:0.2", "0 <= first < last <= 1"),
        ("look_ahead", "0", "look_ahead is 0"),
        ("preset", "max", "additive: has no presets"),
        ("restart", "1,two", "could not convert"),
        ("restart", "1,0", "restart is 1,0"),
        ("restart", "nan", "restart is nan"),
    ],
)
def test_a_recommendation_that_makes_no_sense_is_refused(key, value, said):
    about = {**STRONG.metadata(), f"ine.defence.{key}": value}
    embedding = new_embedding(noise(2, 32), "fire-neg", "fire", about)
    with pytest.raises(EmbeddingError, match=f"'fire-neg': its header recommends .*{said}"):
        recommendation_of(embedding)


def test_restarts_without_a_gate_are_refused():
    about = replace(STRONG, look_ahead=None, restart=(1.0,)).metadata()
    embedding = new_embedding(noise(2, 32), "fire-neg", "fire", about)
    with pytest.raises(EmbeddingError, match="restarts need the gate of a look-ahead"):
        recommendation_of(embedding)


# ------------------------------------------------------------------------------ one file, applied


def test_what_is_recommended_is_applied_and_said_in_one_line(fire, caplog):
    caplog.set_level(logging.INFO, "ine")
    found = guidance_of(fire)
    look = replace(read_calibration(gate_path([fire])).look_ahead, window=Window(0, 0.6))
    assert found == Gated(Additive(Negative("", (found.negative.embeddings)), 8.0), look)
    (line,) = [r.getMessage() for r in caplog.records if "recommends" in r.getMessage()]
    assert line.startswith(f"{fire} recommends additive, strength 8")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"strength": 3.0}, lambda g: g.guidance.strength == 3 and isinstance(g.gate, LookAhead)),
        ({"guidance": "cfg"}, lambda g: isinstance(g.guidance, ClassifierFree)),
        # The strength was found for another guidance.
        ({"guidance": "sld"}, lambda g: g.guidance.strength != 8),
        ({"window": Window(0.2, 0.4)}, lambda g: g.gate.window == Window(0.2, 0.4)),
        ({"gated": False}, lambda g: g.gate == Window(0, 0.6)),
        ({"late": True}, lambda g: isinstance(g.gate, ProbeGate)),
        ({"ladder": (1.0, 2.0), "scale": 5.0}, lambda g: isinstance(g, Restart)),
    ],
)
def test_what_the_user_says_goes_before_it(fire, overrides, expected, caplog):
    caplog.set_level(logging.INFO, "ine")
    assert expected(guidance_of(fire, **overrides))
    assert "; as asked for instead: " in caplog.text


@pytest.fixture
def restarting(tmp_path):
    (tmp_path / "restarting").mkdir()
    return write_defence(tmp_path / "restarting", recommended=RESTARTS)


def test_recommended_restarts_are_those_that_the_option_makes(restarting, fire):
    found = guidance_of(restarting, scale=5.0)
    assert isinstance(found, Restart)
    assert len(found.attempts) == 3
    asked = guidance_of(fire, ladder=(1.0, 2.0), scale=5.0)
    assert describe(found) == describe(asked)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"ladder": ()}, "as asked for instead: no restarts"),
        ({"can_restart": False}, "; restarts are left out, which this loop cannot make"),
        # They need the look-ahead.
        ({"late": True}, "the gate at half the run"),
        ({"gated": False}, "no gate"),
    ],
)
def test_restarts_are_left_out_in_words(restarting, overrides, said, caplog):
    caplog.set_level(logging.INFO, "ine")
    assert isinstance(guidance_of(restarting, **overrides), Gated)
    assert said in caplog.text


def test_a_last_resort_is_the_last_attempt_of_all(fire, tmp_path):
    (tmp_path / "last").mkdir()
    resort = replace(STRONG, guidance="contextual", restart=(1.0,), last_strength=12.0)
    file = write_defence(tmp_path / "last", recommended=resort)
    assert str(recommendation_of(read_embedding(file))).endswith("and at last additive at 12")
    found = guidance_of(file, scale=5.0)
    negative = found.negative
    assert found.last == Additive(negative, 12.0)
    first, second, third = (attempt.guidance for attempt in found.attempts)
    assert isinstance(first.gate, LookAhead)
    assert second == Gated(Contextual(negative, 8.0), Window(0, 0.6))
    assert third == Gated(Additive(negative, 12.0), Window(0, 0.6))
    # A steered picture skips what would repeat its first attempt.
    assert found.repeats
    # Who says how to restart says all of it.
    assert guidance_of(file, ladder=(1.0, 2.0), scale=5.0).last is None
    more = found.with_embedding(new_embedding(noise(1, 32, seed=8), "more", "fire"))
    assert more.last.negative == more.negative != negative
    # Of several files each has its own; one that recommends none is steered as before.
    several = guidance_of(file, fire_beside(tmp_path), scale=5.0)
    kinds = [type(one) for one in several.last.guidances]
    assert kinds == [Additive, ClassifierFree]


def fire_beside(tmp_path):
    plain = replace(STRONG, guidance="cfg", strength=None)
    return write_defence(tmp_path / "last", "weapon", 2, plain)


@pytest.mark.parametrize(("restart", "last"), [(None, "8"), ("1", "nan"), ("1", "-2")])
def test_a_last_resort_that_makes_no_sense_is_refused(restart, last):
    about = {**STRONG.metadata(), "ine.defence.last_strength": last}
    if restart:
        about["ine.defence.restart"] = restart
    embedding = new_embedding(noise(2, 32), "fire-neg", "fire", about)
    with pytest.raises(EmbeddingError, match="last_strength is"):
        recommendation_of(embedding)


def test_a_gate_that_the_user_gives_may_restart_too(restarting):
    own = calibration_of("fire", 9)
    assert isinstance(guidance_of(restarting, gate=own), Restart)
    assert isinstance(guidance_of(restarting, gate=replace(own, look_ahead=None)), Gated)


def test_several_restart_as_the_longest_ladder_says(restarting, weapon, fire):
    found = guidance_of(restarting, weapon, scale=5.0)
    assert found.ladder == (1.0, 2.0)
    assert isinstance(guidance_of(fire, weapon), Gated)


def test_a_gate_that_is_not_there_is_an_error_that_says_what_to_do(fire):
    gate_path([fire]).unlink()
    with pytest.raises(
        IneError, match=r"recommends a look-ahead, and its gate .* is not there"
    ) as e:
        guidance_of(fire)
    for way in ("copy it beside the embedding", "--gate FILE", "--no-gate", "gate=None"):
        assert way in str(e.value)
    assert guidance_of(fire, gated=False).gate == Window(0, 0.6)


def test_a_gate_of_another_run_is_an_error(fire, weapon):
    shutil.copy(gate_path([weapon]), gate_path([fire]))
    with pytest.raises(IneError, match=r"is not the gate that .* recommends, but one of another"):
        guidance_of(fire)


def test_a_gate_that_the_user_gives_has_to_find_the_concept(fire, weapon):
    other = read_calibration(gate_path([weapon]))
    with pytest.raises(IneError, match=r"the gate finds weapon, and .* is of fire"):
        guidance_of(fire, gate=other)
    own = calibration_of("fire", 9)
    assert guidance_of(fire, gate=own).gate.probes == own.look_ahead.probes


def test_an_embedding_without_its_file_has_no_gate_beside_it(fire):
    with pytest.raises(IneError, match="a value has no file: give its path"):
        applied([GivenEmbedding.of(read_embedding(fire))], Overrides())


# ------------------------------------------------------------------------ several, and text beside


def test_several_look_ahead_once_and_each_acts_on_its_own(fire, weapon):
    found = guidance_of(fire, weapon)
    assert isinstance(found.guidance, PerConcept)
    assert found.guidance.concepts == ("fire", "weapon")
    assert [p.concept for p in found.gate.probes] == ["fire", "weapon"]
    kinds = [type(g) for g in found.guidance.guidances]
    assert kinds == [Additive, ClassifierFree]
    # The widest of both.
    assert found.gate.window == Window(0, 0.8)
    assert isinstance(guidance_of(fire, weapon, ladder=(1.0, 2.0), scale=5.0), Restart)
    always = guidance_of(fire, weapon, gated=False)
    assert describe(always) == describe(Gated(found.guidance, Window(0.0, 0.8)))


def test_several_that_cannot_share_a_look_are_refused(fire, tmp_path):
    other = write_defence(tmp_path, "weapon", 2, steps=5)
    with pytest.raises(IneError, match="cannot share one; calibrate both alike"):
        guidance_of(fire, other)
    with pytest.raises(IneError, match="several embeddings share one look-ahead"):
        guidance_of(fire, other, late=True)


def test_names_in_the_text_of_several_are_refused(fire, weapon):
    with pytest.raises(IneError, match="leave the names out of the text"):
        guidance_of(fire, weapon, text="(fire-neg:1.2), blurry")
    # Of one it is the text that the user wants.
    found = guidance_of(fire, text="(fire-neg:1.2), blurry")
    assert found.guidance.negative.prompt() == "(fire-neg:1.2), blurry"


def test_text_and_other_embeddings_act_beside_the_defence(fire, tmp_path):
    write_embedding(
        new_embedding(noise(1, 32, seed=5), "easy", "easy"), tmp_path / "easy.safetensors"
    )
    found = guidance_of(fire, tmp_path / "easy.safetensors", text="blurry")
    assert isinstance(found, Beside)
    assert found.own.prompt() == "blurry, easy"
    assert describe(found.guidance) == describe(guidance_of(fire))
    assert found.negative.prompt() == "blurry, easy, fire-neg"


def latents(parts, guidance):
    return sample_latents(parts, PROMPTS, SEEDS, guidance, SETTINGS)[0]


def test_beside_a_closed_gate_stands_what_the_users_negative_makes_alone(tiny_parts):
    own = Negative("blurry", (new_embedding(3 * noise(1, 32, seed=5), "easy", "easy"),))
    steer = Additive(Negative("", (new_embedding(3 * noise(2, 32), "fire-neg", "fire"),)), 3.0)
    closed = replace(calibration_of("fire", 1).look_ahead, window=Window(0.9, 0.95))
    plain, alone = latents(tiny_parts, None), latents(tiny_parts, ClassifierFree(own))
    assert not torch.allclose(plain, alone, atol=1e-2)
    beside = latents(tiny_parts, Beside(Gated(steer, closed), own))
    assert torch.allclose(beside, alone, atol=1e-4)
    # With the gate open it differs from both.
    opened = replace(closed, window=Window())
    opened = replace(opened, probes=tuple(replace(p, threshold=-1e9) for p in opened.probes))
    steered = latents(tiny_parts, Beside(Gated(steer, opened), own))
    assert not torch.allclose(steered, alone, atol=1e-2)
    assert not torch.allclose(steered, latents(tiny_parts, Gated(steer, opened)), atol=1e-2)


def test_a_look_beside_a_negative_follows_the_run_with_that_negative(tiny_parts):
    own = Negative("", (new_embedding(30 * noise(1, 32, seed=5), "easy", "easy"),))
    steer = Additive(Negative("", (new_embedding(noise(2, 32), "fire-neg", "fire"),)), 3.0)
    gated = Gated(steer, calibration_of("fire", 1).look_ahead)

    def scores(guidance):
        notes = sample_latents(tiny_parts, PROMPTS, SEEDS, guidance, SETTINGS)[1]
        return [note["gate"]["probes"][0][2] for note in notes]

    assert scores(gated) != scores(Beside(gated, own))


# ----------------------------------------------------------------------------------- the commands


def dry(run_ine, tiny_folder, *args):
    done = run_ine(
        *("generate", "--model", tiny_folder, "--prompt", "a dog", "--steps", 5, "--dry-run"),
        *("--json", *args),
    )
    return done, json.loads(done.stdout) if done.exit_code == 0 else None


def test_generate_does_what_the_file_recommends(run_ine, tiny_folder, fire):
    done, plan = dry(run_ine, tiny_folder, "--negative-embedding", fire)
    assert done.exit_code == 0, done.stderr
    assert plan["guidance"]["method"] == "additive"
    assert "strength=8.0" in plan["guidance"]["settings"]
    assert "LookAhead(" in plan["guidance"]["settings"]
    assert "recommends additive, strength 8" in done.stderr


def test_options_of_generate_go_before_the_file(run_ine, tiny_folder, fire):
    use = ("--negative-embedding", fire)
    _, plan = dry(run_ine, tiny_folder, *use, "--negative-strength", 2, "--no-gate")
    assert "strength=2.0" in plan["guidance"]["settings"]
    assert "LookAhead(" not in plan["guidance"]["settings"]
    _, plan = dry(run_ine, tiny_folder, *use, "--guidance", "cfg", "--gate-window", "0.1:0.5")
    assert plan["guidance"]["method"] == "cfg"
    assert "first=0.1, last=0.5" in plan["guidance"]["settings"]


def test_generate_restarts_as_the_file_recommends(run_ine, tiny_folder, restarting):
    use = ("--negative-embedding", restarting)
    done, plan = dry(run_ine, tiny_folder, *use)
    assert done.exit_code == 0, done.stderr
    assert "ladder=[1.0, 2.0]" in plan["guidance"]["settings"]
    done, plan = dry(run_ine, tiny_folder, *use, "--no-restart")
    assert "ladder" not in plan["guidance"]["settings"]
    assert "as asked for instead: no restarts" in done.stderr
    _, plan = dry(run_ine, tiny_folder, *use, "--restart", "1,1.5")
    assert "ladder=[1.0, 1.5]" in plan["guidance"]["settings"]
    done, _ = dry(run_ine, tiny_folder, *use, "--restart", "--no-restart")
    assert "--restart and --no-restart: give one of them" in done.stderr


def test_what_shows_to_the_last_is_counted_and_can_be_withheld(
    run_ine, tiny_folder, restarting, tmp_path
):
    def made(folder, *more):
        out, words = tmp_path / folder, ("dog", "cat", "bus", "car")
        prompts = [part for word in words for part in ("--prompt", f"a {word}")]
        done = run_ine(
            *("generate", "--model", tiny_folder, *prompts, "--steps", 5, "--out", out),
            *("--negative-embedding", restarting, "--negative-strength", 1e-6, *more),
        )
        assert done.exit_code == 0, done.stderr
        rows = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
        grey = [bool((read_picture(out / r["file"], 16) == GREY).all()) for r in rows]
        return rows, grey, " ".join(done.stderr.split())

    # So little strength changes nothing of what the gate finds in half of the pictures.
    scores = [row["attempts"][0]["gate"]["probes"][0][2] for row in made("plain")[0]]
    calibration = read_calibration(gate_path([restarting]))
    middle = replace(calibration.gate, threshold=sum(sorted(scores)[1:3]) / 2)
    write_calibration(replace(calibration, gate=middle), tmp_path / "own.gate.safetensors")
    own = ("--gate", tmp_path / "own.gate.safetensors", "--restart", "1")

    rows, grey, said = made("shown", *own)
    left = [row["left"] for row in rows]
    assert sum(left) == 2
    assert not any(grey)
    assert "in 2 of 4 pictures the gate finds the concept after the last" in said
    assert "--withhold makes them grey" in said
    rows, grey, said = made("withheld", *own, "--withhold")
    assert [row["left"] for row in rows] == grey == left
    assert "they are grey" in said
    done = run_ine(
        *("generate", "--model", tiny_folder, "--prompt", "a dog", "--steps", 5, "--withhold"),
        *("--out", tmp_path / "none"),
    )
    assert done.exit_code == 2
    assert "--withhold needs restarts" in done.stderr


def test_generate_without_the_gate_says_what_to_do(run_ine, tiny_folder, fire):
    gate_path([fire]).unlink()
    done, _ = dry(run_ine, tiny_folder, "--negative-embedding", fire)
    assert done.exit_code == 1
    assert "or --no-gate to steer every picture" in " ".join(done.stderr.split())
    done, _ = dry(run_ine, tiny_folder, "--negative-embedding", fire, "--no-gate")
    assert done.exit_code == 0, done.stderr
    done, _ = dry(
        *(run_ine, tiny_folder, "--negative-embedding", fire, "--no-gate", "--gate", "x.gate.json")
    )
    assert "--gate and --no-gate: give one of them" in done.stderr


def test_a_file_without_recommendation_acts_as_the_options_say(run_ine, tiny_folder, tmp_path):
    file = tmp_path / "plain-neg.safetensors"
    about = {"ine.strength": "3.0"}
    write_embedding(new_embedding(noise(2, 32), "plain-neg", "plain", about), file)
    done, plan = dry(run_ine, tiny_folder, "--negative-embedding", file)
    assert plan["guidance"]["method"] == "cfg"
    assert "recommends" not in done.stderr
    _, plan = dry(run_ine, tiny_folder, "--negative-embedding", file, "--guidance", "additive")
    assert "strength=3.0" in plan["guidance"]["settings"]


def test_embeddings_of_different_families_are_refused(run_ine, tiny_folder, fire, tmp_path):
    other = tmp_path / "sd-neg.safetensors"
    write_embedding(new_embedding(noise(2, 768), "sd-neg", "weapon"), other)
    done = run_ine(
        *("generate", "--model", tiny_folder, "--prompt", "a dog", "--out", tmp_path / "out"),
        *("--negative-embedding", fire, "--negative-embedding", other),
    )
    assert done.exit_code != 0
    assert "embedding 'sd-neg' was made for" in done.stderr


# ------------------------------------------------------------------------------------ the pipeline


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_protect_does_what_the_file_recommends(pipe, fire, caplog):
    caplog.set_level(logging.INFO, "ine")
    with ine.protect(pipe, fire) as defence:
        pipe(["a dog", "a cat"], num_inference_steps=4, generator=None, output_type="latent")
    assert [note["gate"]["probes"][0][1] for note in defence.notes] == ["fire", "fire"]
    assert "recommends additive, strength 8" in caplog.text
    assert (defence._method.strength, defence._gate.window) == (8.0, Window(0, 0.6))
    with ine.protect(pipe, str(fire), strength=2, gate=None) as defence:
        assert (defence._method.strength, defence._gate) == (2.0, Window(0, 0.6))
    own = calibration_of("fire", 9).look_ahead
    with ine.protect(pipe, fire, guidance="cfg", gate=own) as defence:
        assert isinstance(defence._method, ClassifierFree)
        # The part of the run is recommended still.
        assert defence._gate == replace(own, window=Window(0, 0.6))


def test_protect_restarts_and_a_guider_says_that_it_cannot(pipe, restarting, caplog):
    caplog.set_level(logging.INFO, "ine")
    with ine.protect(pipe, restarting) as defence:
        pipe("a dog", num_inference_steps=4, output_type="latent")
    assert set(defence.notes[0]) == {"attempts", "left"}
    assert "restarts are left out" not in caplog.text
    assert ine.embedding_guider(pipe, restarting).strength == 8
    assert "restarts are left out" in caplog.text


def test_protect_takes_a_list(pipe, fire, weapon):
    with ine.protect(pipe, [fire, weapon]) as defence:
        pipe("a dog", num_inference_steps=4, output_type="latent")
    (note,) = defence.notes
    assert [probe[1] for probe in note["gate"]["probes"]] == ["fire", "weapon"]


def test_protect_without_the_gate_says_what_to_do(pipe, fire, weapon, tmp_path):
    plain = tmp_path / "plain-neg.safetensors"
    write_embedding(new_embedding(noise(2, 32), "plain-neg", "plain"), plain)
    with pytest.raises(IneError, match=r"recommends a defence, .*plain-neg.* does not"):
        ine.protect(pipe, [fire, plain])
    gate_path([fire]).unlink()
    with pytest.raises(IneError, match="or --no-gate to steer every picture"):
        ine.protect(pipe, fire)
    with pytest.raises(IneError, match="gate is a str; give an object"):
        ine.protect(pipe, fire, gate="none")
    with ine.protect(pipe, plain) as defence:
        assert isinstance(defence._method, ClassifierFree)
        assert defence._gate is None


def test_a_guider_does_what_the_file_recommends(pipe, fire, weapon, tmp_path):
    guider = ine.embedding_guider(pipe, fire)
    assert guider.strength == 8
    assert guider.look.gate.window == Window(0, 0.6)
    guider = ine.embedding_guider(pipe, fire, gate=None, strength=3)
    assert (guider.strength, guider.look) == (3, None)
    # Plain guidance: w - 1.
    assert ine.embedding_guider(pipe, weapon, guidance_scale=5.0).strength == 4
    with pytest.raises(IneError, match=r"a guider steers away from one; use ine\.protect"):
        ine.embedding_guider(pipe, [fire, weapon])
    sld = replace(STRONG, guidance="sld", preset="max", strength=50.0)
    with pytest.raises(IneError, match=r"contextual guidance; use ine\.protect"):
        ine.embedding_guider(pipe, write_defence(tmp_path, "snow", 4, sld))
    gate_path([fire]).unlink()
    with pytest.raises(IneError, match=r"its gate .* is not there"):
        ine.embedding_guider(pipe, fire)


# ---------------------------------------------------------------------------------------- a grid

GRID = """\
kind: grid
version: 1
name: recommended
concept: fire
models:
  - {name: tiny, model: mini}
negatives:
  - {name: words, words: true}
  - {name: own, embeddings: fire-neg.safetensors}
  - {name: both, embeddings: {tiny: [fire-neg.safetensors, weapon-neg.safetensors]}}
guidances:
  - {name: defence, method: recommended, negatives: [own, both]}
  - {name: other, method: sld, preset: max, strengths: [10], gate: recommended, negatives: own}
prompts:
  - {name: test, source: "mini:fire/implying-test", role: test, expects: harmful, limit: 2}
"""


def grid_of(folder, *pairs):
    text = GRID
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def test_a_grid_does_what_the_files_recommend(fire, weapon, tmp_path):
    found = expand(load_grid(grid_of(tmp_path)))
    made = {(c.guidance, c.negative): g for c, g in found.guidances.items() if c.is_defended}
    assert describe(made["defence", "own"]) == describe(guidance_of(fire))
    assert describe(made["defence", "both"]) == describe(guidance_of(fire, weapon))
    settings = {"guidance": "sld", "preset": "max", "strength": 10.0}
    assert describe(made["other", "own"]) == describe(guidance_of(fire, **settings))
    [own] = [c for c in found.calibrations if c.guidance == "defence"]
    assert own.negative == "own"


def test_a_grid_restarts_as_recommended_only_where_all_is(weapon, tmp_path):
    write_defence(tmp_path, recommended=RESTARTS)

    def kinds(*pairs):
        made = expand(load_grid(grid_of(tmp_path, *pairs))).guidances
        return {c.guidance: type(g) for c, g in made.items() if c.negative == "own"}

    assert kinds() == {"defence": Restart, "other": Gated}
    without = ("method: recommended,", "method: recommended, restart: [],")
    assert kinds(*without) == {"defence": Gated, "other": Gated}
    both = ("strengths: [10],", "strengths: [10], restart: [1],")
    assert kinds(*both) == {"defence": Restart, "other": Restart}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("method: recommended,", "method: recommended, strengths: [3],"), "leave strengths out"),
        (("negatives: [own, both]", "negatives: words"), "none of its embeddings recommends"),
        (
            ("gate: recommended", "gate: {tiny: a.gate.json, '*/own': recommended}"),
            "a file for each",
        ),
    ],
)
def test_a_grid_in_which_nothing_can_be_recommended_is_refused(fire, weapon, tmp_path, pairs, said):
    with pytest.raises(RecipeError, match=said):
        expand(load_grid(grid_of(tmp_path, *pairs)))


def test_values_of_a_grid_are_replaced_and_kept_with_its_run(tmp_path):
    path = grid_of(tmp_path)
    file = load_grid(path, ["sampler.steps=7", "sampler.scheduler=euler", "seeds=[3]"])
    assert (file.grid.sampler.steps, file.grid.sampler.scheduler) == (7, "euler")
    assert file.grid.seeds == (3,)
    (tmp_path / "again.yaml").write_text(file.text)
    assert load_grid(tmp_path / "again.yaml").digest == file.digest
    assert file.work != load_grid(path).work
    with pytest.raises(RecipeError, match=r"--set sampler\.steps"):
        load_grid(path, ["sampler.steps=none"])
