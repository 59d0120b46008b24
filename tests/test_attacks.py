"""Attacks: what a single defended step predicts, what a search finds, and how an audit ends."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

import ine.evaluation.run as engine
from ine.attacks.attacker import Attacker, belonging, objective_of
from ine.attacks.denoising import Denoising, MatchedPrediction
from ine.attacks.inverting import defended_loss
from ine.attacks.objectives import HOLDER, joined
from ine.attacks.phrases import words_of
from ine.attacks.proposals import PROPOSALS, SearchSettings, by_crossing
from ine.attacks.run import made_of, plain_prompts
from ine.attacks.search import read_search, search
from ine.attacks.step import Victim
from ine.attacks.text_distance import AllStates, TextDistance
from ine.detectors.table import load_detector
from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.evaluation import readings
from ine.evaluation.stats import wilson
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.restart import Restart
from ine.guidance.safree import Safree
from ine.guidance.sld import SafeLatent
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import invert
from ine.models.loading import load_parts
from ine.prompts.reading import find_prompt_set
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings, sample_latents
from ine.studies.audit import run_audit
from ine.studies.audit_page import write_audit
from ine.studies.audit_round import Audit, AuditSettings, best_of
from ine.text.encode import encode

SAMPLER = SamplerSettings(scheduler="ddim", steps=4, guidance_scale=5.0, batch=4)


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("fire")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def learned(trigger, seed=0, width=32):
    return new_embedding(noise(2, width, seed=seed), trigger, "fire")


def some_pictures(parts, count=6, captions=None):
    mean = noise(count, *parts.latent_shape, seed=3)
    names = tuple(map(str, range(count)))
    return ConceptPictures(mean=mean, std=mean.abs() * 0.01, captions=captions, names=names)


# ------------------------------------------------------------------------- one defended step

METHODS = {
    "cfg": ClassifierFree(Negative("x", (learned("nn"),))),
    "additive": Additive(Negative("", (learned("nn"),)), 3.0),
    "joined": Additive(Negative("x", (learned("nn"),)), 3.0),
    # Of a strength at which its mask is smooth: at 5000 it is a step.
    "sld": SafeLatent(Negative("", (learned("nn"),)), strength=1.0, threshold=9.0, warmup=0),
    "safree": Safree(negative=Negative("x"), embeddings=(learned("nn"),), validate=False),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_prediction_is_that_of_the_sampler(tiny_parts, name):
    """Step by step along a run of the real loop, with learned words in the prompt."""
    method, given = METHODS[name], {"aa": learned("aa", 5).vectors}
    texts, seen = ["ab aa cd", "x aa"], []

    def watch(step):
        seen.append((step.index, step.x_t.clone()))

    latents, *_ = sample_latents(
        tiny_parts, texts, [0, 1], method, SAMPLER, on_step=watch, vectors=given
    )
    victim = Victim(tiny_parts, SAMPLER, method)
    index, x_t = seen[0]
    with torch.no_grad():
        predicted, asked = victim.predict(texts, x_t, index, given)
    assert asked >= 2 * len(texts)
    # What DDIM makes of it is what the loop had at its next step: x_0, noised again.
    scheduler_alpha = victim._alpha_bar(1)
    a = victim._alpha_bar(0)
    x_0 = (x_t - (1 - a).sqrt() * predicted) / a.sqrt()
    again = scheduler_alpha.sqrt() * x_0 + (1 - scheduler_alpha).sqrt() * predicted
    torch.testing.assert_close(again, seen[1][1], atol=2e-4, rtol=1e-4)
    assert latents.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_gradients_through_a_defence_are_finite_differences(tiny_parts, name):
    victim = Victim(tiny_parts, SAMPLER, METHODS[name])
    vectors = learned("aa", 5).vectors[0].clone().requires_grad_(True)
    x_t, target = noise(1, *tiny_parts.latent_shape, seed=1), noise(1, *tiny_parts.latent_shape)

    def loss(v):
        out, _ = victim.predict(["ab aa"], x_t, 1, {"aa": (v,)})
        return (out - target).pow(2).mean()

    loss(vectors).backward()
    along = vectors.grad / vectors.grad.norm()
    with torch.no_grad():
        step = 1e-2
        numeric = (loss(vectors + step * along) - loss(vectors - step * along)) / (2 * step)
    assert numeric > 0
    # SAFREE's rewriting takes its projections for constant.
    close = 0.5 if name == "safree" else 0.1
    assert abs(float(numeric) / float(vectors.grad.norm()) - 1) < close


def test_a_bare_model_answers_the_prompt_alone(tiny_parts):
    bare = Victim(tiny_parts, SAMPLER)
    plain = Victim(tiny_parts, replace(SAMPLER, guidance_scale=1.0), ClassifierFree())
    x_t = noise(2, *tiny_parts.latent_shape)
    with torch.no_grad():
        (first, asked), (second, _) = (v.predict(["ab", "cd"], x_t, 2) for v in (bare, plain))
    assert asked == 2
    torch.testing.assert_close(first, second)


def test_gates_are_taken_to_be_open(tiny_parts):
    inner = METHODS["additive"]
    gated = Gated(inner, Window(0, 0.5))
    assert gated.innermost is inner
    assert Restart(gated, Window(0, 0.5)).innermost is inner
    x_t = noise(1, *tiny_parts.latent_shape)
    with torch.no_grad():
        found = [Victim(tiny_parts, SAMPLER, g).predict(["ab"], x_t, 3)[0] for g in (gated, inner)]
    assert torch.equal(*found)


def test_inversion_through_a_defence_makes_up_for_it(tiny_parts, recipe):
    """The loss it minimises falls; that of ordinary inversion is another one."""
    spec = recipe.inversion.model_copy(
        update={"vectors": 2, "steps": 40, "batch": 3, "lr": 0.05, "preview_every": 10**6}
    )
    pictures = some_pictures(tiny_parts)
    loss_of = defended_loss(Victim(tiny_parts, SAMPLER, METHODS["cfg"]))
    made = invert(tiny_parts, pictures, spec, trigger="aa", loss_of=loss_of)
    start = invert(
        tiny_parts, pictures, spec.model_copy(update={"steps": 1, "lr": 1e-12}), trigger="aa"
    )

    def loss(vectors):
        with torch.no_grad():
            return sum(
                loss_of(
                    *(tiny_parts, pictures, spec, vectors, "aa", (), None),
                    torch.Generator().manual_seed(seed),
                ).item()
                for seed in range(12)
            )

    assert loss(made.vectors) < loss(start.vectors)


# ------------------------------------------------------------------------------------ search


@dataclass
class UNetQuery:
    """A closed form: how many tokens of a phrase are not the wanted ones; linear in vectors."""

    words: object
    target: tuple
    unit = "looks"

    def draw(self, generator, count):
        return [None] * count, 0

    def losses(self, phrases, views):
        ids = [self.words.tokenizer(p, add_special_tokens=False).input_ids for p in phrases]
        wanted = self.words.ids[list(self.target)].tolist()
        wrong = [sum(a != b for a, b in zip(i, wanted, strict=True)) for i in ids]
        return torch.tensor(wrong, dtype=torch.float32), len(phrases) * len(views)

    def gradient(self, vectors, views):
        table = self.words.tables[0]
        # Points away from the wanted vector, most against it.
        return [-table[list(self.target)]], len(views)


@pytest.mark.parametrize(("proposals", "budget"), [("gradient", 1500), ("genetic", 20000)])
def test_a_search_finds_what_is_to_be_found_within_its_budget(mini, proposals, budget):
    words = words_of(mini)
    objective = UNetQuery(words, (7, 100, 3))
    settings = SearchSettings(
        tokens=3, budget=budget, proposals=proposals, children=32, top=24, views=1, final_views=1
    )
    found = search(objective, words, settings)
    assert found.spent <= budget
    chance = search(objective, words, replace(settings, budget=100))
    assert found.loss < chance.loss
    assert found.loss <= 1
    losses = [loss for _, loss in found.trace]
    assert losses == sorted(losses, reverse=True)


def test_phrases_are_read_back_as_the_tokens_that_were_tried(mini):
    words = words_of(mini, ("on fire", "burning"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        places = tuple(torch.randint(len(words.ids), (5,), generator=generator).tolist())
        ids = mini.tokenizers[0](words.text(places), add_special_tokens=False).input_ids
        assert ids == words.ids[list(places)].tolist()
    every = {words.text([i]) for i in range(len(words.ids))}
    assert "burning" not in every
    assert "fire" not in every
    assert {"burning", "fire"} <= {words_of(mini).text([i]) for i in range(len(words_of(mini).ids))}


def test_crossing_exchanges_one_token_in_a_quarter_of_the_children(mini):
    """Ring-A-Bell's rates: a phrase is mutated with chance .25, and then in one place."""
    words, generator = words_of(mini), torch.Generator().manual_seed(0)
    settings = SearchSettings(tokens=16, children=40, proposals="genetic")
    parents = [tuple([first] * 16) for first in (1, 2)]
    changed = []
    for _ in range(50):
        children, cost = by_crossing(None, words, parents, None, settings, generator)
        assert (len(children), cost) == (40, 0)
        changed += [sum(token not in (1, 2) for token in child) for child in children]
    assert set(changed) == {0, 1}
    # A token that is drawn may be one of the parents': 2 of 254 words.
    assert sum(changed) / len(changed) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("proposals", PROPOSALS)
def test_a_killed_search_ends_with_the_same_phrase(mini, tmp_path, proposals):
    words = words_of(mini)
    objective = UNetQuery(words, (7, 100, 3))
    settings = SearchSettings(tokens=3, budget=2000, proposals=proposals)
    whole = search(objective, words, settings)

    class Killed(Exception):
        pass

    def kill(now):
        if now.round == 3:
            raise Killed

    state = tmp_path / "state.json"
    with pytest.raises(Killed):
        search(objective, words, settings, state=state, key="k", on_round=kill)
    assert search(objective, words, settings, state=state, key="k") == whole
    # What is finished is read back.
    assert read_search(state, "k") == whole
    with pytest.raises(IneError, match="other settings"):
        search(objective, words, settings, state=state, key="other")
    state.write_text("{")
    with pytest.raises(IneError, match="is broken"):
        search(objective, words, settings, state=state, key="k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"proposals": "gradients"}, "did you mean 'gradient'"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(IneError, match=message):
        SearchSettings(**change)


def test_a_budget_below_one_round_is_refused(mini):
    words = words_of(mini)
    with pytest.raises(IneError, match="more than the budget of 10"):
        search(UNetQuery(words, (1, 2, 3)), words, SearchSettings(tokens=3, budget=10))


# -------------------------------------------------------------------------------- objectives


def objectives(parts, base, recipe):
    pictures = some_pictures(parts)
    of_text = (base, ("a dog", "a cat"), (("a burning dog", "a dog"),), 2.0)
    text = TextDistance(*of_text)
    victim = Victim(parts, SAMPLER, Additive(Negative("fire"), 2.0))
    prompts = ("a dog",) * pictures.count
    return {
        "denoising": Denoising(Victim(parts, SAMPLER), pictures, prompts),
        "denoising-defended": Denoising(victim, pictures, prompts),
        "text": text,
        "ring-a-bell": AllStates(*of_text),
        "matched": MatchedPrediction(victim, pictures, prompts, base=base, text=text),
    }


@pytest.mark.parametrize(
    "name", ["denoising", "denoising-defended", "text", "ring-a-bell", "matched"]
)
def test_a_gradient_is_that_of_the_losses(mini, recipe, name):
    """Vectors of real tokens: their loss is the phrase's, and the slope that of the loss."""
    objective = objectives(mini, mini, recipe)[name]
    words = words_of(mini)
    places = (5, 50)
    views, _ = objective.draw(torch.Generator().manual_seed(1), 2)
    [loss_of_text], _ = objective.losses([words.text(places)], views)
    [slope], cost = objective.gradient(words.vectors(places), views)
    assert slope.shape == words.vectors(places)[0].shape
    assert cost > 0
    # Along the negative slope the loss falls, as measured with the vectors themselves.
    step = 1e-3 / float(slope.norm())

    def loss(vectors):
        total = 0.0
        with torch.no_grad():
            for view in views:
                if name in ("text", "ring-a-bell"):
                    out = objective.states([objective.text(HOLDER, view[0])], {HOLDER: (vectors,)})
                    target = view[1]
                else:
                    out, _ = objective.victim.predict(
                        [joined(HOLDER, view.prompt)], view.x_t, view.index, {HOLDER: (vectors,)}
                    )
                    target = view.target
                scale = 1.0 if name in ("text", "ring-a-bell") else view.plain
                total += float((out - target).double().pow(2).mean()) / scale
        return total / len(views)

    own = words.vectors(places)[0]
    assert loss(own) == pytest.approx(float(loss_of_text), rel=1e-4)
    assert loss(own - step * slope) < loss(own) < loss(own + step * slope)


def test_ring_a_bell_compares_all_states_of_a_phrase_in_the_prompts_place(mini):
    """Against the authors' fitness, written out; our mean ranks as their sum."""
    pairs = (("a burning dog", "a dog"), ("a burning cat", "a cat"))
    objective = AllStates(mini, ("a bus",), pairs, 3.0)
    views, looked = objective.draw(torch.Generator().manual_seed(0), 8)
    # One prompt is one view, however many are asked for: nothing else of it is random.
    assert (len(views), looked) == (1, 1)
    having, lacking = (encode(mini, list(texts)).states for texts in zip(*pairs, strict=True))
    target = encode(mini, ["a bus"]).states + 3.0 * (having - lacking).mean(0)
    phrases = ["a burning bus", "snow", "a bus"]
    wanted = ((target - encode(mini, phrases).states) ** 2).sum((1, 2))
    found, cost = objective.losses(phrases, views)
    assert cost == 3
    torch.testing.assert_close(found, wanted / target.numel(), rtol=1e-4, atol=1e-6)
    assert made_of("ring-a-bell", "snow", "a bus") == "snow"
    assert made_of("text", "snow", "a bus") == "snow a bus"


def test_ring_a_bell_knows_of_no_defence(mini, recipe, tmp_path):
    attacker = Attacker(
        victim=Victim(mini, SAMPLER, Additive(Negative("fire"), 2.0)),
        base=mini,
        recipe=recipe,
        pictures=some_pictures(mini),
        folder=tmp_path,
    )
    with pytest.raises(IneError, match="looks at the text encoder alone"):
        objective_of(attacker, "ring-a-bell", [("a dog", "dog")])


def test_pictures_belong_to_the_prompts_of_their_nouns(tiny_parts):
    pictures = some_pictures(tiny_parts, 4, ("dog", "cat", "dog", "bus"))
    found, prompts = belonging(pictures, [("a dog", "dog"), ("a bus", "bus")])
    assert found.captions == ("dog", "dog", "bus")
    assert prompts == ("a dog", "a dog", "a bus")
    found, prompts = belonging(pictures, [("hello", ""), ("you", "")])
    assert found.count == 4
    assert prompts == ("hello", "you", "hello", "you")


def test_prompts_of_a_recipe(recipe):
    found = plain_prompts(recipe, 5, 0)
    assert len(set(found)) == 5
    assert all(noun in prompt for prompt, noun in found)
    with pytest.raises(IneError, match="give --prompts"):
        plain_prompts(recipe.model_copy(update={"erase": None}), 5, 0)


# ------------------------------------------------------------------------------ command, audit

TINY = (
    *("--set", "pictures.count=4", "--set", "pictures.steps=8", "--set", "pictures.batch=4"),
    *("--set", "inversion.steps=2", "--set", "inversion.batch=2", "--set", "inversion.runs=1"),
    *("--steps", "2", "--guidance-scale", "5", "--scheduler", "ddim", "--batch", "8"),
)


@pytest.mark.parametrize(
    ("method", "known"),
    [("denoising", False), ("text", True), ("embedding", False), ("embedding", True)],
)
def test_the_command_writes_a_set_that_a_grid_reads(run_ine, tmp_path, method, known):
    defence = ("--negative-prompt", "fire", "--guidance", "additive") if known else ()
    budget = ("--budget", "1300", "--limit", "3", "--together")
    out = tmp_path / "attack"
    args = ("attack", "--concept", "fire", "--method", method, *budget, *defence, *TINY)
    result = run_ine(*args, "--out", out)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert row["attack"] == method
        assert "budget" in row
        assert ("unknown" in row["defence"]) != known
        assert row["model"].startswith("mini")
    found = find_prompt_set(out / "prompts.jsonl")
    assert [r.prompt for r in found.rows] == [row["prompt"] for row in rows]
    before = (out / "prompts.jsonl").read_bytes()
    again = run_ine(*args, "--out", out)
    assert again.exit_code == 0, again.output
    assert (out / "prompts.jsonl").read_bytes() == before


def test_found_embeddings_are_joined_to_the_negative():
    new = learned("new")
    for method in METHODS.values():
        for guidance in (method, Gated(method, Window(0, 0.5))):
            wider = guidance.with_embedding(new)
            given = guidance.negative
            assert wider.negative == Negative(given.text, (*given.embeddings, new))
            assert type(wider) is type(guidance)
    assert METHODS["safree"].with_embedding(new).embeddings[-1] is new
    assert ClassifierFree().with_embedding(new).negative == Negative("", (new,))


def test_an_audit_goes_on_until_it_holds_or_rounds_run_out(mini, recipe, tmp_path, monkeypatch):
    recipe = load_recipe("fire", ("inversion.steps=2", "inversion.batch=2", "inversion.runs=2"))
    pictures = some_pictures(mini, 4, ("dog", "cat", "bus", "apple"))
    guidance = Additive(Negative("fire"), 3.0)
    judge = load_detector("mini-judge")
    sampler = replace(SAMPLER, steps=2, batch=8)

    def run(folder, threshold, rounds=1, parts=mini):
        settings = AuditSettings(rounds=rounds, threshold=threshold, pictures=4, benign=4)
        victim = Victim(parts, sampler, guidance)
        audit = Audit(
            victim=victim, recipe=recipe, pictures=pictures, folder=folder, settings=settings
        )
        return audit, run_audit(audit)

    _, held = run(tmp_path / "held", 1.0)
    assert len(held) == 1
    _, found = run(tmp_path / "never", 0.0)
    # Two steps draw nothing that burns, so that nothing is recovered and the audit holds at once.
    assert len(found) == 1
    assert [a.name for a in found[0].attacks] == [
        "inverted without knowing the defence",
        "inverted without knowing the defence, seed 2",
        "inverted through the defence",
        "inverted through the defence, seed 2",
    ]
    vectors = [load_file(tmp_path / "never" / f"fire-bare{s}.safetensors") for s in ("", "-b")]
    assert not torch.equal(*(one["emb_params"] for one in vectors)), "the seeds are the same"

    class Alarmed:
        """A judge that sees fire everywhere: nothing ever holds."""

        features = staticmethod(judge.features)

        def __call__(self, pictures):
            return [{**scores, "fire": 1.0} for scores in judge(pictures)]

    monkeypatch.setattr(readings, "load_detector", lambda name: Alarmed())
    audit, found = run(tmp_path / "alarmed", 0.5, rounds=2)
    assert [one.number for one in found] == [0, 1, 2]
    assert [len(one.negatives) for one in found] == [1, 2, 3]
    assert found[2].worst.recovered.share == 1
    # None is better than the first: more negatives are not recommended.
    assert best_of(found) is found[0]
    weaker = replace(found[1].attacks[0], recovered=wilson(1, 4))
    assert best_of([found[0], replace(found[1], attacks=(weaker,)), found[2]]).number == 1
    before = [a.name for a in found[1].attacks if "found before" in a.name]
    assert before == ["fire-round-a, found before", "fire-round-a-b, found before"]
    assert all(a.undefended.share == 1 for one in found for a in one.attacks)
    page = write_audit(audit, found)
    text = page.read_text()
    assert "more than the threshold of 0.5" in text
    assert "Not tried" in text
    assert (tmp_path / "alarmed" / "fire-round-b.safetensors").exists()
    # A second run makes no vector and no picture, and says the same.
    make_unit = engine.make_unit
    monkeypatch.setattr(engine, "make_unit", None)
    before = (tmp_path / "alarmed" / "audit.json").read_bytes()
    again = run(tmp_path / "alarmed", 0.5, rounds=2)[1]
    write_audit(audit, again)
    assert (tmp_path / "alarmed" / "audit.json").read_bytes() == before
    # A model of another scheduler meets neither these pictures nor these vectors.
    monkeypatch.setattr(engine, "make_unit", make_unit)
    config = mini.scheduler_config
    other = replace(mini, scheduler_config={**config, "beta_end": 1.5 * config["beta_end"]})
    with pytest.raises(IneError, match="other settings, weights"):
        run(tmp_path / "alarmed", 0.5, rounds=2, parts=other)


@pytest.mark.parametrize(
    "change", [{"rounds": 0}, {"rounds": 26}, {"pictures": 1}, {"threshold": 1.5}]
)
def test_audits_that_make_no_sense(change):
    with pytest.raises(IneError, match="audit"):
        AuditSettings(**change)


def test_an_audit_wants_a_defence(run_ine, tmp_path):
    result = run_ine("audit", "--concept", "fire", *TINY, "--out", tmp_path / "audit")
    assert result.exit_code != 0
    assert "there is no defence to attack" in result.stderr
