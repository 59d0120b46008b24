"""Attacks that keep a gate shut: the score they push is the gate's own, and it falls."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import build_tiny, look_ahead, noise, probe_gate

from ine.attacks.attacker import Attacker, objective_of
from ine.attacks.denoising import Denoising
from ine.attacks.objectives import HOLDER, joined
from ine.attacks.phrases import words_of
from ine.attacks.proposals import SearchSettings
from ine.attacks.run import search_prompts
from ine.attacks.shut import ShutDenoising, shut_loss
from ine.attacks.step import Victim
from ine.attacks.through_gate import WEIGHT, GateLoss, gate_loss, gates_of, has_coarse_run
from ine.calibration.features import noised_features
from ine.cli import cli
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.any_gate import AnyGate
from ine.guidance.beside import Beside
from ine.guidance.coarse import coarse_timesteps
from ine.guidance.gate_file import Calibration, write_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.look_ahead import join
from ine.guidance.negative import Negative
from ine.guidance.probe import ProbeGate
from ine.guidance.restart import Restart
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import batch_loss, invert
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings, make_scheduler, sample_latents
from ine.studies.audit import SHUT, run_audit
from ine.studies.audit_page import write_audit
from ine.studies.audit_round import Audit, AuditSettings

SAMPLER = SamplerSettings(scheduler="ddim", steps=4, guidance_scale=5.0, batch=4)
METHOD = Additive(Negative("x", (new_embedding(noise(2, 32, seed=0), "nn", "fire"),)), 3.0)
LOOK = look_ahead(0.5)
GATED = Gated(METHOD, LOOK)
LEARNED = {"aa": (noise(2, 32, seed=5),)}


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def mini_features(mini):
    latents = torch.zeros(1, *mini.latent_shape)
    return noised_features(mini, latents, 451.0, 0.5, torch.Generator()).shape[1]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("fire", ("inversion.steps=2", "inversion.batch=2", "inversion.runs=1"))


def some_pictures(parts, count=4, captions=None):
    mean = noise(count, *parts.latent_shape, seed=3)
    names = tuple(map(str, range(count)))
    return ConceptPictures(mean=mean, std=mean.abs() * 0.01, captions=captions, names=names)


# ------------------------------------------------------------------------------------ the score


def watched(parts, guidance, texts, vectors, sampler=SAMPLER):
    """Return (start noise, [score, ...]) of a run of the real loop."""
    seen = []
    _, notes, _ = sample_latents(
        parts, texts, [3, 4], guidance, sampler, on_step=seen.append, vectors=vectors
    )
    return seen[0].x_t.clone(), [note["gate"]["probes"][0][2] for note in notes]


@pytest.mark.parametrize("guided", [5.0, 1.0])
def test_the_excess_is_what_the_gate_itself_reads(tiny_parts, guided):
    sampler = replace(SAMPLER, guidance_scale=guided)
    texts = ["ab aa cd", "x aa"]
    victim = Victim(tiny_parts, sampler, GATED)
    start, scores = watched(tiny_parts, GATED, texts, LEARNED, sampler)
    with torch.no_grad():
        excess, cost = gate_loss(victim, "fire").excess(victim, texts, start, LEARNED)
    assert (excess + 0.5).tolist() == pytest.approx(scores, abs=2e-3)
    steps = len(coarse_timesteps(float(victim.timesteps()[0]), LOOK.timestep, LOOK.steps))
    assert cost == 2 * (steps * (2 if guided != 1 else 1) + 1)


def test_a_negative_beside_the_defence_is_in_the_run_that_is_looked_at(tiny_parts):
    guidance, texts = Beside(GATED, Negative("cd")), ["ab aa cd", "x aa"]
    start, scores = watched(tiny_parts, guidance, texts, LEARNED)
    victim = Victim(tiny_parts, SAMPLER, guidance)
    with torch.no_grad():
        excess, _ = gate_loss(victim, "fire").excess(victim, texts, start, LEARNED)
    assert (excess + 0.5).tolist() == pytest.approx(scores, abs=2e-3)


def test_the_gradient_of_the_excess_is_a_finite_difference(tiny_parts):
    victim = Victim(tiny_parts, SAMPLER, GATED)
    gate, start = gate_loss(victim, "fire"), noise(1, *tiny_parts.latent_shape, seed=1)
    vectors = LEARNED["aa"][0].clone().requires_grad_(True)

    def excess(v):
        return gate.excess(victim, ["ab aa"], start, {"aa": (v,)})[0].sum()

    excess(vectors).backward()
    along = vectors.grad / vectors.grad.norm()
    with torch.no_grad():
        step = 1e-2
        numeric = (excess(vectors + step * along) - excess(vectors - step * along)) / (2 * step)
    assert float(numeric) == pytest.approx(float(vectors.grad.norm()), rel=0.1)
    assert all(p.grad is None for p in tiny_parts.unet.parameters())


def test_the_term_is_a_smooth_hinge_at_the_threshold():
    gate = GateLoss(looks=(LOOK,), weight=2.0)
    term = gate.of(torch.tensor([-40.0, 0.0, 40.0]))
    assert term.tolist() == pytest.approx([0, 2 * math.log(2), 80], abs=1e-4)


# -------------------------------------------------------------------------------------- vectors


def test_a_weight_keeps_the_gate_shut(mini, mini_features, recipe):
    """The control is the same inversion with next to no weight: that of a bare model."""
    spec = recipe.inversion.model_copy(
        update={"vectors": 2, "steps": 16, "batch": 1, "lr": 0.05, "average": 0.0}
    )
    pictures, starts = some_pictures(mini), noise(16, *mini.latent_shape, seed=8)
    # Everything is far above the threshold, where the hinge has its full slope.
    look = look_ahead(-1e4, features=mini_features, steps=1)
    victim = Victim(mini, SAMPLER, Gated(METHOD, look))

    def excess(weight):
        gate = replace(gate_loss(victim, "fire", weight), pictures=2)
        loss_of = shut_loss(victim, gate)
        made = invert(mini, pictures, spec, trigger="aa", loss_of=loss_of)
        with torch.no_grad():
            return gate.excess(victim, ["a aa"] * 16, starts, {"aa": made.vectors})[0]

    free, shut = excess(1e-9), excess(100.0)
    assert shut.mean() < free.mean() - 0.4 * free.std()


def test_the_rest_of_the_loss_is_that_of_an_inversion(tiny_parts, recipe):
    spec, pictures = recipe.inversion, some_pictures(tiny_parts)
    victim = Victim(tiny_parts, SAMPLER, GATED)
    signal = make_scheduler("ddim", tiny_parts.scheduler_config, 50).alphas_cumprod
    loss_of = shut_loss(victim, gate_loss(victim, "fire", 1e-30))
    args = (tiny_parts, pictures, spec, LEARNED["aa"], "aa", (), signal)
    with torch.no_grad():
        found, plain = (f(*args, torch.Generator().manual_seed(4)) for f in (loss_of, batch_loss))
    assert float(found) == float(plain)


# ---------------------------------------------------------------------------------------- words


def shut_objective(parts, features, weight=WEIGHT):
    guidance = Gated(METHOD, look_ahead(-1000.0, features=features, steps=2))
    gate = gate_loss(Victim(parts, SAMPLER, guidance), "fire", weight)
    victim, pictures = Victim(parts, SAMPLER), some_pictures(parts)
    return ShutDenoising(victim, pictures, ("a dog",) * 4, gate=gate)


def test_a_gradient_of_words_is_that_of_their_losses(mini, mini_features):
    objective, words, places = shut_objective(mini, mini_features, 2.0), words_of(mini), (5, 50)
    [view], _ = objective.draw(torch.Generator().manual_seed(1), 1)
    [loss_of_text], asked = objective.losses([words.text(places)], [view])
    own = words.vectors(places)[0]
    [slope], cost = objective.gradient([own], [view])
    # A bare prediction, and two coarse steps with guidance before one look.
    assert (asked, cost) == (1 + 5, 3 * (1 + 5))

    @torch.no_grad()
    def loss(vectors):
        texts, given = [joined(HOLDER, view.prompt)], {HOLDER: (vectors,)}
        out, _ = objective.victim.predict(texts, view.x_t, view.index, given)
        excess, _ = objective.gate.excess(objective.victim, texts, view.start, given)
        plain = (out - view.target).double().pow(2).mean() / view.plain
        return float(plain + objective.gate.of(excess).double())

    assert loss(own) == pytest.approx(float(loss_of_text), rel=1e-3)
    step = 1e-3 / float(slope.norm())
    assert loss(own - step * slope) < loss(own) < loss(own + step * slope)


def test_words_are_judged_by_their_score_too(mini, mini_features):
    """With a large weight, the loss ranks phrases as the gate's own score does."""
    objective = shut_objective(mini, mini_features, 1e4)
    phrases = ["burning", "snow", "crown", "blue", "panda"]
    views, drawn = objective.draw(torch.Generator().manual_seed(1), 1)
    losses, _ = objective.losses(phrases, views)
    texts, starts = [f"{p} a dog" for p in phrases], views[0].start.repeat(5, 1, 1, 1)
    with torch.no_grad():
        excess, _ = objective.gate.excess(objective.victim, texts, starts)
    assert losses.argsort().tolist() == objective.gate.of(excess).argsort().tolist()
    # The views are those of an attack without the term.
    bare = Denoising(objective.victim, objective.pictures, objective.prompts)
    [plain], same = bare.draw(torch.Generator().manual_seed(1), 1)
    assert torch.equal(plain.x_t, views[0].x_t)
    assert (plain.start, drawn) == (None, same)


# ------------------------------------------------------------------------------------ the gates


def test_every_look_that_could_open_the_gate_counts(tiny_parts):
    other = look_ahead(2.0, "weapon", seed=9)
    late = probe_gate(1.5, (0.5,), concept="fire")
    for guidance, gates in (
        (GATED, (LOOK,)),
        (Gated(METHOD, late), (late,)),
        (Beside(GATED, Negative("cd")), (LOOK,)),
        (Restart(GATED, late), (late, LOOK)),
        (Restart(Gated(METHOD, Window(0, 0.5)), AnyGate(("fire",), (late,))), (late,)),
        (Gated(METHOD, Window(0, 0.5)), ()),
        (METHOD, ()),
        (None, ()),
    ):
        assert gates_of(guidance) == gates

    def thresholds(guidance, concept="fire"):
        looks = gate_loss(Victim(tiny_parts, SAMPLER, guidance), concept).looks
        return [(p.concept, p.threshold) for look in looks for p in look.probes]

    assert thresholds(Restart(GATED, late)) == [("fire", 1.5), ("fire", 0.5)]
    both = Gated(METHOD, join([LOOK, other]))
    assert thresholds(both) == [("fire", 0.5)]
    assert thresholds(both, "weapon") == [("weapon", 2.0)]
    assert thresholds(both, "snow") == [("fire", 0.5), ("weapon", 2.0)]


def test_a_gate_at_half_the_run_is_asked_at_its_own_level(tiny_parts):
    victim = Victim(tiny_parts, SAMPLER, Restart(GATED, probe_gate(0.0, (0.5,), concept="fire")))
    late, ahead = gate_loss(victim, "fire").looks
    assert late.timestep == int(victim.timesteps()[2])
    assert late.steps == ahead.steps == LOOK.steps
    gate, start = gate_loss(victim, "fire"), noise(1, *tiny_parts.latent_shape, seed=1)
    with torch.no_grad():
        both, _ = gate.excess(victim, ["ab"], start)
        each = [replace(gate, looks=(one,)).excess(victim, ["ab"], start)[0] for one in gate.looks]
    assert float(both) == max(map(float, each))
    assert float(each[0]) != float(each[1])


def test_defences_without_a_gate_to_go_through(tiny_parts):
    for guidance in (None, METHOD, Gated(METHOD, Window(0, 0.5))):
        with pytest.raises(IneError, match=r"no gate with a probe to go through .*; name one with"):
            gate_loss(Victim(tiny_parts, SAMPLER, guidance), "fire")
    assert has_coarse_run(tiny_parts)


def test_models_of_few_steps_have_no_coarse_run(tmp_path):
    build_tiny("lcm").save_pretrained(tmp_path)
    parts = load_parts(tmp_path)
    assert not has_coarse_run(parts)
    with pytest.raises(IneError, match="model of few steps"):
        gate_loss(Victim(parts, SAMPLER, GATED), "fire")


def test_an_attack_is_another_one_with_the_term(tiny_parts, recipe, tmp_path):
    victim = Victim(tiny_parts, SAMPLER, GATED)
    plain = Attacker(
        victim=victim,
        base=tiny_parts,
        recipe=recipe,
        pictures=some_pictures(tiny_parts),
        folder=tmp_path,
    )
    shut, more = (replace(plain, gate=gate_loss(victim, "fire", w)) for w in (0.1, 0.2))
    assert len({plain.key("x"), shut.key("x"), more.key("x")}) == 3
    assert "gate" not in plain.marks("denoising", "")
    assert shut.marks("denoising", "")["gate"] == "kept shut, weight 0.1"
    objective = objective_of(shut, "denoising", [("a dog", "dog")])
    assert isinstance(objective, ShutDenoising)
    assert objective.victim.guidance is None
    with pytest.raises(IneError, match="cannot go through a gate"):
        objective_of(shut, "text", [("a dog", "dog")])


# ----------------------------------------------------------------------------- command and audit

TINY = (
    *("--set", "pictures.count=4", "--set", "pictures.steps=8", "--set", "pictures.batch=4"),
    *("--set", "inversion.steps=2", "--set", "inversion.batch=2"),
    *("--steps", "2", "--guidance-scale", "5", "--scheduler", "ddim", "--batch", "8"),
)


@pytest.fixture
def gate_file(mini_features, tmp_path):
    gate = probe_gate(0.0, (0.5,), mini_features, concept="fire")
    look = look_ahead(0.0, features=mini_features)
    path = tmp_path / "fire.gate.safetensors"
    write_calibration(Calibration(gate=gate, look_ahead=look, record={}), path)
    return path


def test_the_command_states_that_it_kept_the_gate_shut(run_ine, gate_file, tmp_path):
    args = (
        *("attack", "--concept", "fire", "--method", "embedding", "--limit", "2"),
        *("--negative-prompt", "fire", "--guidance", "additive", "--gate", gate_file, *TINY),
        *("--out", tmp_path / "shut"),
    )
    result = run_ine(*args, "--through-gate", "--gate-weight", "0.5")
    assert result.exit_code == 0, result.output
    for line in (tmp_path / "shut" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["gate"] == "kept shut, weight 0.5"
        assert "LookAhead" in row["defence"]
    # Without the option it is another attack, which does not go on from this one's vectors.
    assert "other settings" in run_ine(*args).stderr


def test_a_search_finds_words_with_the_term(mini, mini_features, recipe, tmp_path):
    victim = Victim(mini, SAMPLER, Gated(METHOD, look_ahead(0.0, features=mini_features, steps=1)))
    attacker = Attacker(
        victim=victim,
        base=mini,
        recipe=recipe,
        pictures=some_pictures(mini),
        folder=tmp_path,
        gate=gate_loss(victim, "fire"),
    )
    settings = SearchSettings(
        tokens=2, budget=150, children=4, top=4, views=1, final_views=1, finalists=2
    )
    [row] = search_prompts(attacker, "denoising", [("a dog", "dog")], settings)
    assert row["gate"] == f"kept shut, weight {WEIGHT:g}"
    assert row["prompt"] == f"{row['phrase']} a dog"
    assert 0 < row["spent"] <= 150


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--negative-prompt", "fire", "--method", "text"), "not with text"),
        (("--negative-prompt", "fire", "--method", "ring-a-bell"), "not with ring-a-bell"),
        ((), "there is no gate"),
        (("--negative-prompt", "fire", "--no-gate"), "there is no gate"),
        (("--negative-prompt", "fire", "--gate-window", "0:0.5"), "no gate with a probe"),
        (("--negative-prompt", "fire", "--gate-weight", "0"), "--gate-weight"),
    ],
)
def test_what_cannot_go_through_a_gate_is_refused(run_ine, tmp_path, more, message):
    result = run_ine(
        *("attack", "--concept", "fire", "--through-gate", "--out", tmp_path / "out", *TINY, *more)
    )
    assert result.exit_code != 0
    assert message in result.stderr


def test_the_weights_of_both_commands_are_the_librarys():
    for name in ("attack", "audit"):
        [weight] = [p for p in cli.commands[name].params if "--gate-weight" in p.opts]
        assert weight.default == WEIGHT


def test_an_audit_of_a_gated_defence_also_keeps_the_gate_shut(
    mini, mini_features, recipe, tmp_path
):
    """One attack on the gate, however many rounds: they add to the negative alone."""

    def audited(guidance):
        audit = Audit(
            victim=Victim(mini, replace(SAMPLER, steps=2, batch=8), guidance),
            recipe=recipe,
            pictures=some_pictures(mini, 4, ("dog", "cat", "bus", "apple")),
            folder=tmp_path,
            settings=AuditSettings(rounds=1, threshold=1.0, pictures=4, benign=4),
        )
        seen = []
        rounds = run_audit(audit, lambda what, *_: seen.append(what))
        return audit, rounds, seen

    method = Additive(Negative("fire"), 3.0)
    gated = Gated(method, look_ahead(0.0, features=mini_features))
    audit, [found], seen = audited(gated)
    assert [a.name for a in found.attacks] == [
        "inverted without knowing the defence",
        SHUT,
        "inverted through the defence",
    ]
    assert seen.count("attack shut") == 2
    assert (tmp_path / "fire-shut.safetensors").exists()
    text = write_audit(audit, [found]).read_text()
    assert "some to keep its gate shut" in text
    assert "as if always open" not in text
    # One that ends in another guidance is attacked through that too.
    probe = gated.gate.probes[0].probe
    ended = Restart(gated, ProbeGate(0.0, (probe,)), (1.0,), Additive(Negative("fire"), 9.0))
    _, [found], _ = audited(ended)
    assert [a.name for a in found.attacks][-2:] == [
        "inverted through the defence",
        "inverted through its last restart",
    ]
    names = ("fire-round-a", "fire-round-a-last")
    both = [load_file(tmp_path / f"{name}.safetensors")["emb_params"] for name in names]
    assert not torch.equal(*both)
    windowed, [found], seen = audited(Gated(method, Window(0, 0.5)))
    assert windowed.gate is None
    assert SHUT not in [a.name for a in found.attacks]
    assert "as if always open" in write_audit(windowed, [found]).read_text()
