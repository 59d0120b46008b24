"""Inversion: formulas, start, captions, the loop and its state, pictures, previews, the run."""

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ine.inversion.invert as loop
from ine.detectors.rules import RULES, Rule
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.errors import EmbeddingError, IneError, OutputError, PicturesError, RecipeError
from ine.inversion.concept import concept_requests, make_pictures, share_with
from ine.inversion.history import History, state_file
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import (
    Preview,
    batch_loss,
    invert,
)
from ine.inversion.objective import denoising_target, learning_rate, noised
from ine.inversion.precision import in_type, inversion_dtype
from ine.inversion.preview import Previews, choose, revive
from ine.inversion.run import run_inversion
from ine.inversion.sources import RunOptions
from ine.inversion.start import start_vectors
from ine.inversion.templates import captions_for
from ine.models.loading import load_parts
from ine.pictures import write_png
from ine.recipe import InversionSettings, check_recipe, load_recipe
from ine.runtime import computes_bfloat16, generator_for
from ine.sampling import SamplerSettings, make_scheduler

TRIGGER = "thing-neg"
PLURAL = ("scissors",)


class Killed(Exception):
    """Stands for a kill at a certain moment."""


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spec_of(**fields):
    small = {"vectors": 2, "steps": 4, "batch": 2, "lr": 0.05, "preview_every": 100}
    small["precision"] = "float32"
    return InversionSettings(**small | fields)


@pytest.fixture
def pictures():
    """Random moments of three pictures, the last of an unknown subject."""
    return ConceptPictures(
        mean=noise(3, 4, 8, 8, seed=1),
        std=0.1 * noise(3, 4, 8, 8, seed=2).abs(),
        captions=("apple", "scissors", ""),
        names=("0", "1", "2"),
    )


def run(parts, pictures, spec=None, **kwargs):
    return invert(parts, pictures, spec or spec_of(), trigger=TRIGGER, plural=PLURAL, **kwargs)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.vectors, other.vectors, strict=True))


def alpha_bar_of(parts):
    return make_scheduler("ddim", parts.scheduler_config, 50).alphas_cumprod


def with_v_prediction(parts):
    return replace(
        parts, scheduler_config={**parts.scheduler_config, "prediction_type": "v_prediction"}
    )


# Formulas


def test_noising_keeps_the_variance_and_its_ends_are_picture_and_noise():
    x_0, eps = noise(3, 4, 64, 64, seed=1), noise(3, 4, 64, 64, seed=2)
    x_t = noised(x_0, eps, torch.tensor([1.0, 0.5, 0.0]))
    assert torch.equal(x_t[0], x_0[0])
    assert torch.equal(x_t[2], eps[2])
    assert x_t[1].var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("power", [0.999, 0.7, 0.3, 0.005])
def test_picture_and_noise_come_back_from_v_and_x_t(power):
    x_0, eps = noise(2, 4, 8, 8, seed=1).double(), noise(2, 4, 8, 8, seed=2).double()
    a = torch.full((2,), power, dtype=torch.float64)
    x_t, v = noised(x_0, eps, a), denoising_target(x_0, eps, a, "v_prediction")
    # Salimans and Ho 2022, appendix D: (x_t, v) is (x_0, eps) rotated.
    torch.testing.assert_close(power**0.5 * x_t - (1 - power) ** 0.5 * v, x_0)
    torch.testing.assert_close((1 - power) ** 0.5 * x_t + power**0.5 * v, eps)
    assert denoising_target(x_0, eps, a, "epsilon") is eps
    with pytest.raises(ValueError, match="expected epsilon or v_prediction"):
        denoising_target(x_0, eps, a, "sample")


def test_learning_rate():
    assert {learning_rate(k, 10, 0.5, "constant") for k in range(10)} == {0.5}
    linear = [learning_rate(k, 10, 0.5, "linear") for k in range(11)]
    assert linear[:6] == [0.5] * 6
    assert np.diff(linear[5:]) == pytest.approx([-0.1] * 5)
    assert linear[10] == 0
    assert min(linear[:10]) > 0
    assert [learning_rate(k, 1, 2.0, "linear") for k in (0,)] == [2.0]


# Where it starts


def test_the_mean_start_is_the_mean_of_the_token_table(tiny_parts):
    table = tiny_parts.text_encoders[0].get_input_embeddings().weight
    [start] = start_vectors(tiny_parts, spec_of(vectors=3, init_noise=0), seed=0)
    torch.testing.assert_close(start, table.mean(0, keepdim=True).repeat(3, 1))
    [parted] = start_vectors(tiny_parts, spec_of(vectors=75, init_noise=0.5), seed=0)
    assert (parted - start[:1]).std().item() == pytest.approx(0.5, rel=0.1)
    assert not torch.equal(parted[0], parted[1])
    [other] = start_vectors(tiny_parts, spec_of(vectors=75, init_noise=0.5), seed=1)
    assert not torch.equal(parted, other)


def test_words_start_from_their_own_vectors_taken_in_turn(tiny_parts):
    tokenizer = tiny_parts.tokenizers[0]
    table = tiny_parts.text_encoders[0].get_input_embeddings().weight
    ids = tokenizer("dog", add_special_tokens=False).input_ids
    assert len(ids) == 3
    [start] = start_vectors(tiny_parts, spec_of(vectors=5, init="dog", init_noise=0), seed=0)
    assert torch.equal(start, table[[*ids, *ids[:2]]])
    # A copy: training must not write into the table.
    assert start.data_ptr() != table.data_ptr()
    assert not start.requires_grad
    with pytest.raises(IneError, match="has no tokens"):
        start_vectors(tiny_parts, spec_of(init=" "), seed=0)


def test_a_file_starts_from_its_vectors_if_they_fit(tiny_parts, tmp_path):
    path = tmp_path / "a-neg.safetensors"
    write_embedding(new_embedding(noise(2, 32), "a-neg", "a"), path)
    [start] = start_vectors(tiny_parts, spec_of(init=str(path), init_noise=0), seed=0)
    assert torch.equal(start, noise(2, 32))
    with pytest.raises(EmbeddingError, match=r"has 2 vectors, inversion\.vectors is 3"):
        start_vectors(tiny_parts, spec_of(vectors=3, init=str(path)), seed=0)
    wide = tmp_path / "b-neg.safetensors"
    write_embedding(new_embedding(noise(2, 768), "b-neg", "b"), wide)
    with pytest.raises(EmbeddingError, match=r"width 768, the token table of .* has 32"):
        start_vectors(tiny_parts, spec_of(init=str(wide)), seed=0)


# Captions


def test_captions_have_the_trigger_and_right_articles():
    spec = spec_of(
        templates=["a picture of {v}"],
        named_templates=["a {v} {noun}", "a {noun} {v}", "a photo of a {v} {noun}"],
    )
    nouns = ["apple", "scissors", ""] * 40
    found = captions_for(spec, nouns, TRIGGER, PLURAL, torch.Generator().manual_seed(0))
    assert set(found[0::3]) == {
        "a thing-neg apple",
        "an apple thing-neg",
        "a photo of a thing-neg apple",
    }
    assert set(found[1::3]) == {
        "thing-neg scissors",
        "scissors thing-neg",
        "a photo of thing-neg scissors",
    }
    assert set(found[2::3]) == {"a picture of thing-neg"}


def test_without_named_templates_the_noun_is_left_out():
    spec = spec_of(templates=["{v}"], named_templates=[])
    generator = torch.Generator().manual_seed(0)
    assert captions_for(spec, ["apple"], TRIGGER, PLURAL, generator) == [TRIGGER]


# The loss


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_unet_that_knows_the_answer_has_no_loss(tiny_parts, pictures, monkeypatch, prediction):
    parts = with_v_prediction(tiny_parts) if prediction == "v_prediction" else tiny_parts
    one = ConceptPictures(
        mean=pictures.mean[:1], std=torch.zeros(1, 4, 8, 8), captions=None, names=("0",)
    )
    alpha_bar = alpha_bar_of(parts)

    def oracle(answers):
        def run_unet(unet, x_t, t, condition):
            a = alpha_bar[t].view(-1, 1, 1, 1)
            eps = (x_t - a.sqrt() * one.mean) / (1 - a).sqrt()
            return {
                "epsilon": eps,
                "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * one.mean,
            }[answers]

        return run_unet

    def loss():
        vectors = start_vectors(parts, spec_of(), 0)
        generator = torch.Generator().manual_seed(0)
        return batch_loss(
            parts, one, spec_of(batch=4), vectors, TRIGGER, (), alpha_bar, generator
        ).item()

    monkeypatch.setattr(loop, "run_unet", oracle(prediction))
    assert loss() < 1e-6
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[prediction]
    monkeypatch.setattr(loop, "run_unet", oracle(other))
    assert loss() > 0.1


def gradient_of(parts, pictures, spec, vectors):
    """Return (loss, gradient) at fixed noise."""
    asked = [v.clone().requires_grad_(True) for v in vectors]
    loss = batch_loss(
        parts,
        pictures,
        spec,
        asked,
        TRIGGER,
        PLURAL,
        alpha_bar_of(parts),
        torch.Generator().manual_seed(3),
    )
    loss.backward()
    return loss.item(), asked[0].grad


def test_the_gradient_is_that_of_the_loss(tiny_parts, pictures):
    spec = spec_of(batch=4)
    [start] = start_vectors(tiny_parts, spec, 0)
    _, gradient = gradient_of(tiny_parts, pictures, spec, [start])
    assert (gradient.norm(dim=1) > 0).all()
    direction, h = gradient / gradient.norm(), 0.02
    up, _ = gradient_of(tiny_parts, pictures, spec, [start + h * direction])
    down, _ = gradient_of(tiny_parts, pictures, spec, [start - h * direction])
    assert (up - down) / (2 * h) == pytest.approx(gradient.norm().item(), rel=0.05)


# The loop


def test_the_loss_falls_where_picture_and_noise_stay_the_same(tiny_parts, pictures, monkeypatch):
    monkeypatch.setattr(loop, "generator_for", lambda *_: torch.Generator().manual_seed(7))

    def losses(lr):
        found = []
        run(
            tiny_parts,
            pictures,
            spec_of(steps=10, lr=lr),
            on_step=lambda progress: found.append(progress.loss),
        )
        return found

    falling = losses(0.05)
    assert falling[-1] < falling[0] - 0.001
    still = losses(1e-12)
    assert abs(still[-1] - still[0]) < 1e-6


def test_only_the_vectors_move(tiny_parts, pictures):
    modules = [tiny_parts.unet, tiny_parts.text_encoders[0], tiny_parts.vae]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    hooks = {m: [len(inner._forward_hooks) for inner in m.modules()] for m in modules}
    start = start_vectors(tiny_parts, spec_of(), 0)[0]
    result = run(tiny_parts, pictures)
    with pytest.raises(Killed):
        run(tiny_parts, pictures, spec_of(gradient_checkpointing=True), on_step=kill_at(2))
    assert not torch.isclose(result.vectors[0], start).any()
    for module, state in zip(modules, before, strict=True):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
        assert not module.training
        # transformers leaves hooks of its own, where hidden states were asked for before.
        assert [len(m._forward_hooks) for m in module.modules()] == hooks[module]


def test_the_same_seed_gives_the_same_bytes(tiny_parts, pictures):
    one, two = run(tiny_parts, pictures, seed=4), run(tiny_parts, pictures, seed=4)
    assert same(one, two)
    assert one.loss == two.loss
    assert not same(one, run(tiny_parts, pictures, seed=5))
    assert [v.shape for v in one.vectors] == [(2, 32)]
    assert one.vectors[0].dtype == torch.float32
    assert not one.vectors[0].requires_grad


def kill_at(step):
    def on_step(progress):
        if progress.step == step:
            raise Killed

    return on_step


def best_at_six(seen=None):
    """Return a fake preview whose figures are best at step 6."""

    def preview(vectors, step):
        if seen is not None:
            seen[step] = vectors[0].clone()
        left = {3: 0.5, 6: 0.25, 9: 0.5, 10: 0.75}[step]
        return Preview(step=step, recovery=0.5, left=left, undefended=1.0)

    return preview


@pytest.mark.parametrize(
    ("kills", "previews"),
    [
        ((4,), False),
        ((2, 3, 8), False),
        ((1,), True),
        ((7,), True),
        ((10,), True),
        ((5, 5, 9), True),
    ],
)
def test_a_killed_run_ends_byte_equal(tiny_parts, pictures, tmp_path, monkeypatch, kills, previews):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    spec = spec_of(
        steps=10, batch=1, accumulation=2, schedule="linear", preview_every=3, average=0.5
    )
    preview = best_at_six() if previews else None
    whole = run(tiny_parts, pictures, spec, preview=preview, state=tmp_path / "whole", key="k")
    state = tmp_path / "killed"
    for step in kills:
        with pytest.raises(Killed):
            run(
                tiny_parts,
                pictures,
                spec,
                preview=preview,
                state=state,
                key="k",
                on_step=kill_at(step),
            )
    steps = []
    resumed = run(
        tiny_parts,
        pictures,
        spec,
        preview=preview,
        state=state,
        key="k",
        on_step=lambda progress: steps.append(progress.step),
    )
    assert steps == list(range(max(kills) // 2 * 2 + 1, 11))
    assert same(whole, resumed)
    assert whole.loss == resumed.loss
    assert whole.previews == resumed.previews
    assert state.read_bytes() == (tmp_path / "whole").read_bytes()
    assert (resumed.kept.step == 6) if previews else (resumed.kept is None)


def test_what_the_state_holds_is_needed(tiny_parts, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    whole = run(tiny_parts, pictures, state=tmp_path / "whole", key="k")
    with pytest.raises(Killed):
        run(tiny_parts, pictures, state=tmp_path / "state", key="k", on_step=kill_at(2))
    tensors = load_file(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        about = file.metadata()
    assert json.loads(about["state"])["step"] == 2
    for name in ("vectors.0", "first.0", "second.0"):
        changed = {k: v * 1.5 if k == name else v for k, v in tensors.items()}
        save_file(changed, tmp_path / "changed", metadata=about)
        assert not same(whole, run(tiny_parts, pictures, state=tmp_path / "changed", key="k"))
    save_file(tensors, tmp_path / "same", metadata=about)
    assert same(whole, run(tiny_parts, pictures, state=tmp_path / "same", key="k"))


def test_the_best_vectors_are_kept(tiny_parts, pictures):
    seen = {}
    result = run(
        tiny_parts, pictures, spec_of(steps=10, preview_every=3), preview=best_at_six(seen)
    )
    assert [p.step for p in result.previews] == [3, 6, 9, 10]
    assert result.kept == result.previews[1]
    assert torch.equal(result.vectors[0], seen[6])
    assert not torch.equal(seen[6], seen[10])


def seen_at(step, left, recovery):
    return Preview(step=step, recovery=recovery, left=left, undefended=None)


def test_previews_are_ordered_by_what_is_left_then_by_recovery():
    rows = [seen_at(1, 0.5, 1.0), seen_at(2, 0.2, 0.3), seen_at(3, 0.2, 0.6), seen_at(4, 0.9, 1.0)]
    assert [p.step for p in sorted(rows, key=lambda p: p.order())] == [3, 2, 1, 4]
    only_recovery = [seen_at(1, None, 0.1), seen_at(2, None, 0.8), seen_at(3, None, 0.2)]
    assert min(only_recovery, key=lambda p: p.order()).step == 2


def test_what_leaves_least_is_kept_among_what_preserves_the_target():
    rows = [
        Preview(step=1, recovery=None, left=0.5, undefended=0.6, preservation=0.99),
        Preview(step=2, recovery=None, left=0.2, undefended=0.6, preservation=0.95),
        Preview(step=3, recovery=None, left=0.2, undefended=0.6, preservation=0.97),
        Preview(step=4, recovery=None, left=0.0, undefended=0.6, preservation=0.80),
    ]

    def kept(target):
        return min(rows, key=lambda p: p.order(target)).step

    assert [kept(t) for t in (0.0, 0.9, 0.96, 0.98)] == [4, 3, 3, 1]
    # None of them preserves as much: what preserves most.
    assert kept(1.0) == 1
    assert min(rows[1:], key=lambda p: p.order(0.99)).step == 3


def falling(left, preservation=None):
    """Return a fake preview that reads its figures from lists, in turn."""
    kept = preservation or [None] * len(left)

    def preview(vectors, step):
        return Preview(
            step=step,
            recovery=0.5,
            left=left[step - 1],
            undefended=1.0,
            preservation=kept[step - 1],
        )

    return preview


@pytest.mark.parametrize(
    ("patience", "preservation", "taken", "kept"),
    [
        (0, None, 8, 7),
        (1, None, 3, 2),
        (2, None, 4, 2),
        (3, None, 8, 7),
        # From step 2 on too much is lost, so step 1 stays the best.
        (2, [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 3, 1),
    ],
)
def test_a_run_ends_when_previews_win_nothing_more(
    tiny_parts, pictures, tmp_path, monkeypatch, patience, preservation, taken, kept
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 100)
    preview = falling([0.8, 0.5, 0.6, 0.7, 0.4, 0.5, 0.3, 0.6], preservation)
    spec = spec_of(steps=8, batch=1, preview_every=1, patience=patience, target_preservation=0.9)
    seen = []

    def run_to(path, on_step):
        return run(
            tiny_parts, pictures, spec, preview=preview, state=path, key="k", on_step=on_step
        )

    whole = run_to(tmp_path / "whole", lambda progress: seen.append(progress.step))
    assert seen == [*range(1, taken + 1)]
    assert (whole.steps, whole.kept.step) == (taken, kept)
    # The state is written where it ends, and a finished run is read back, not continued.
    again = run_to(tmp_path / "whole", lambda progress: pytest.fail("a step too many"))
    assert same(whole, again)
    assert again.steps == taken
    monkeypatch.setattr(loop, "SAVE_EVERY", 1)
    with pytest.raises(Killed):
        run_to(tmp_path / "killed", kill_at(2))
    assert same(whole, run_to(tmp_path / "killed", None))
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_averaged_vectors_are_the_weighted_mean_of_all_steps(tiny_parts, pictures, monkeypatch):
    """sum_k d^(t-k) v_k / sum_k d^(t-k), and the optimiser goes where it went without."""
    decay, raw, means = 0.8, [], []

    def note(into):
        def preview(vectors, step):
            into.append(vectors[0].clone())
            return seen_at(step, 0.5, 0.5)

        return preview

    each = {"steps": 5, "preview_every": 1, "batch": 1}
    run(tiny_parts, pictures, spec_of(**each), preview=note(raw))
    run(tiny_parts, pictures, spec_of(**each, average=decay), preview=note(means))
    for t, mean in enumerate(means, 1):
        weights = torch.tensor([decay ** (t - k) for k in range(1, t + 1)])
        expected = torch.einsum("k,knd->nd", weights / weights.sum(), torch.stack(raw[:t]))
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(means[-1], raw[-1], atol=1e-3)
    plain = run(tiny_parts, pictures, spec_of(**each, average=decay))
    assert torch.equal(plain.vectors[0], means[-1])


def test_the_first_of_equal_previews_is_kept(tiny_parts, pictures):
    result = run(
        tiny_parts,
        pictures,
        spec_of(steps=4, preview_every=1),
        preview=lambda vectors, step: seen_at(step, 0.5, 0.5),
    )
    assert result.kept.step == 1


def test_a_state_is_small(tmp_path):
    """SD 1.x, four vectors, the longest history."""
    vector = torch.nn.Parameter(noise(4, 768))
    optimiser = torch.optim.AdamW([vector])
    vector.grad = noise(4, 768, seed=1)
    optimiser.step()
    previews = [Preview(step=s, recovery=1 / 3, left=1 / 7, undefended=2 / 3) for s in range(20)]
    best = (previews[3], [vector.detach().clone()])
    path = tmp_path / "state"
    history = History([vector], spec_of())
    history.losses, history.previews = [1 / 3] * 100, previews
    history.best, history.best_vectors = best
    state_file(path, "0" * 16).write(3000, {"0": vector}, optimiser, history)
    assert path.stat().st_size <= 64 * 1024


def test_states_of_other_runs_and_other_files_are_refused(tiny_parts, pictures, tmp_path):
    state = tmp_path / "state"
    spec = spec_of(steps=1)
    run(tiny_parts, pictures, spec, state=state, key="one")
    before = state.read_bytes()
    with pytest.raises(IneError, match=r"belongs to a run with other settings.*--force"):
        run(tiny_parts, pictures, spec, state=state, key="two")
    assert state.read_bytes() == before
    save_file({"x": torch.zeros(1)}, tmp_path / "a")
    save_file({"x": torch.zeros(1)}, tmp_path / "b", metadata={"state": "{}"})
    (tmp_path / "c").write_bytes(before[:-100])
    (tmp_path / "d").write_text("hello")
    for name in "abcd":
        with pytest.raises(IneError, match="is not a state of `ine invert`"):
            run(tiny_parts, pictures, spec, state=tmp_path / name, key="one")


def test_a_finished_run_is_read_back(tiny_parts, pictures, tmp_path):
    first = run(tiny_parts, pictures, state=tmp_path / "state", key="k")
    again = run(tiny_parts, pictures, state=tmp_path / "state", key="k", on_step=kill_at(1))
    assert same(first, again)
    assert first.loss == again.loss


def test_a_loss_that_is_not_finite_stops_the_run(tiny_parts, pictures, tmp_path):
    broken = replace(pictures, mean=pictures.mean * float("nan"))
    with pytest.raises(
        IneError, match=r"the loss is nan at step 1 of 4; use a smaller inversion\.lr"
    ):
        run(tiny_parts, broken, state=tmp_path / "state", key="k")
    assert not (tmp_path / "state").exists()


def test_gradient_checkpointing_gives_the_same_gradient(tiny_parts, pictures):
    spec = spec_of(batch=3)
    start = start_vectors(tiny_parts, spec, 0)
    _, plain = gradient_of(tiny_parts, pictures, spec, start)
    parts = tiny_parts.with_unet(copy.deepcopy(tiny_parts.unet), "copy")
    parts.unet.enable_gradient_checkpointing()
    _, recomputed = gradient_of(parts, pictures, spec, start)
    torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


def test_gradient_checkpointing_is_on_in_the_loop_and_off_afterwards(tiny_parts, pictures):
    unet, seen = tiny_parts.unet, []
    note = lambda progress: seen.append(unet.is_gradient_checkpointing)  # noqa: E731
    plain = run(tiny_parts, pictures, spec_of(steps=3), on_step=note)
    spared = run(tiny_parts, pictures, spec_of(steps=3, gradient_checkpointing=True), on_step=note)
    assert seen == [False] * 3 + [True] * 3
    torch.testing.assert_close(plain.vectors, spared.vectors, rtol=1e-4, atol=1e-4)
    assert not unet.is_gradient_checkpointing
    with pytest.raises(Killed):
        run(tiny_parts, pictures, spec_of(gradient_checkpointing=True), on_step=kill_at(1))
    assert not unet.is_gradient_checkpointing
    assert not unet.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_give_the_gradient_of_float32(dtype):
    """On the bundled model, whose gradients are those of a trained one."""
    parts = load_parts("mini")
    moments = noise(4, *parts.latent_shape, seed=1)
    some = ConceptPictures(
        mean=moments, std=0.1 * moments.abs(), captions=None, names=tuple("0123")
    )
    spec = spec_of(batch=8)
    start = start_vectors(parts, spec, 0)
    exact, gradient = gradient_of(parts, some, spec, start)
    cast = in_type(parts, dtype)
    coarse, rough = gradient_of(cast, some, spec, start)
    assert coarse != exact
    assert coarse == pytest.approx(exact, rel=0.01)
    assert torch.cosine_similarity(rough.flatten(), gradient.flatten(), dim=0) > 0.999
    assert rough.norm().item() == pytest.approx(gradient.norm().item(), rel=0.02)
    assert rough.dtype == torch.float32
    assert (cast.dtype, parts.dtype) == (dtype, torch.float32)


def test_weights_are_cast_once_and_the_model_stays_as_it_was(tiny_parts, pictures, monkeypatch):
    seen = []
    real = loop.run_unet

    def noted(unet, x_t, t, condition):
        seen.append((unet, x_t.dtype))
        return real(unet, x_t, t, condition)

    monkeypatch.setattr(loop, "run_unet", noted)
    before = [p.clone() for p in tiny_parts.unet.parameters()]
    made = run(tiny_parts, pictures, spec_of(steps=3, precision="bfloat16"))
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert len({id(unet) for unet, _ in seen}) == 1
    assert {p.dtype for p in seen[0][0].parameters()} == {torch.bfloat16}
    assert all(map(torch.equal, tiny_parts.unet.parameters(), before))
    assert made.vectors[0].dtype == torch.float32
    seen.clear()
    run(tiny_parts, pictures, spec_of(steps=1))
    assert seen == [(tiny_parts.unet, torch.float32)]


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_where_the_device_has_it(tiny_parts, monkeypatch, has):
    monkeypatch.setattr("ine.inversion.precision.computes_bfloat16", lambda device: has)
    auto = inversion_dtype("auto", tiny_parts)
    assert auto == (torch.bfloat16 if has else torch.float32)
    half = in_type(tiny_parts, torch.float16)
    assert inversion_dtype("auto", half) == torch.float16
    assert inversion_dtype("float32", half) == torch.float32
    with pytest.raises(
        IneError, match=r"inversion\.precision=float16: cpu devices.*do not compute"
    ):
        inversion_dtype("float16", tiny_parts)


def test_this_processor_is_asked_for_bfloat16(monkeypatch):
    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not computes_bfloat16(cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert computes_bfloat16(cpu)
    assert not computes_bfloat16(torch.device("mps"))


def test_v_prediction_runs_and_asks_for_something_else(tiny_parts, pictures):
    spec = spec_of(batch=3)
    start = start_vectors(tiny_parts, spec, 0)
    eps_loss, eps_gradient = gradient_of(tiny_parts, pictures, spec, start)
    v_loss, v_gradient = gradient_of(with_v_prediction(tiny_parts), pictures, spec, start)
    assert eps_loss != v_loss
    assert not torch.allclose(eps_gradient, v_gradient)
    assert run(with_v_prediction(tiny_parts), pictures).loss > 0


CHANGES = {
    "vectors": 3,
    "steps": 5,
    "batch": 1,
    "accumulation": 2,
    "lr": 0.06,
    "schedule": "linear",
    "weight_decay": 0.5,
    "init": "dog",
    "init_noise": 0.02,
    "templates": ["{v} here"],
    "named_templates": ["{noun} with {v}"],
    "precision": "bfloat16",
    "average": 0.5,
}
"""Fields that move the vectors."""

SEEN_ELSEWHERE = {
    "gradient_checkpointing",  # two tests above
    "preview_every",  # the test of the best vectors
    "preview_pictures",  # the test of previews
    "target_preservation",  # the tests of what is kept
    "patience",  # the test of when a run ends
    "runs",  # test_inversion_runs.py
    "preview_guidance",  # the same
    "preview_strength",  # the same
}


@pytest.fixture(scope="module")
def plain_run(tiny_parts):
    unnamed = ConceptPictures(
        mean=noise(3, 4, 8, 8, seed=1),
        std=0.1 * noise(3, 4, 8, 8, seed=2).abs(),
        captions=("apple", "scissors", ""),
        names=("0", "1", "2"),
    )
    return run(tiny_parts, unnamed)


@pytest.mark.parametrize("field", CHANGES)
def test_every_setting_of_inversion_does_something(tiny_parts, pictures, plain_run, field):
    changed = run(tiny_parts, pictures, spec_of(**{field: CHANGES[field]}))
    one, other = plain_run.vectors[0], changed.vectors[0]
    assert one.shape != other.shape or not torch.equal(one, other)


def test_no_setting_of_inversion_is_left_out(tiny_parts, pictures, plain_run):
    assert CHANGES.keys() | SEEN_ELSEWHERE == InversionSettings.model_fields.keys()
    assert same(plain_run, run(tiny_parts, pictures))


# Pictures that the base model makes


RULE = "test-thing@0.5"


@pytest.fixture
def thing_rule(monkeypatch):
    rule = Rule(name=RULE, detector="test", labels=("thing",), threshold=0.5)
    monkeypatch.setitem(RULES, RULE, rule)
    return rule


class Finder:
    """A fake detector that finds the thing in a share of all pictures, decided by the pixels."""

    def __init__(self, share=0.5):
        self.share, self.seen = share, []

    def __call__(self, pictures):
        self.seen.append(len(pictures))
        digests = [hashlib.sha256(p.tobytes()).digest() for p in pictures]
        return [{"thing": 0.9 if d[0] < 256 * self.share else 0.1} for d in digests]


def thing_recipe(*, tuning=True, **pictures):
    data = {
        "kind": "concept",
        "version": 1,
        "name": "thing",
        "base": "tiny",
        "plural": ["scissors"],
        "words": {"explicit": ["thing"]},
        "pictures": {
            "prompts": ["a {}", "a {} here"],
            "nouns": ["apple", "scissors"],
            "negative_prompt": "child, young",
            "count": 4,
            "tries": 4,
            "rule": RULE,
            "steps": 2,
            "batch": 2,
            **pictures,
        },
        "inversion": {
            "vectors": 2,
            "steps": 6,
            "preview_every": 3,
            "preview_pictures": 3,
            "named_templates": ["a {v} {noun}"],
        },
    }
    if tuning:
        data["tuning"] = {
            "prompts": ["a {} there"],
            "nouns": ["apple", "scissors"],
            "steps": 2,
        }
    return check_recipe(data, "thing.yaml")


def test_requests_take_every_template_and_noun_before_any_again():
    recipe = thing_recipe(count=4, tries=2)
    requests, nouns = concept_requests(recipe, seed=0)
    prompts = [r.prompt for r in requests]
    assert sorted(prompts[:4]) == ["an apple", "an apple here", "scissors", "scissors here"]
    assert prompts[4:] == prompts[:4]
    assert len({r.seed for r in requests}) == 8
    assert all(noun in prompt for noun, prompt in zip(nouns, prompts, strict=True))
    assert concept_requests(recipe, seed=0) == (requests, nouns)
    other, _ = concept_requests(recipe, seed=1)
    assert not {r.seed for r in other} & {r.seed for r in requests}


def test_pictures_are_made_until_enough_show_the_concept(tiny_parts, thing_rule):
    calls, finder = [], Finder()
    made = make_pictures(
        tiny_parts, thing_recipe(), finder, progress=lambda *figures: calls.append(figures)
    )
    assert made.kept >= 4
    assert made.pictures.count == 4
    assert made.pictures.mean.shape == made.pictures.std.shape == (4, 4, 8, 8)
    assert calls[-1] == (made.tried, made.kept, 4)
    assert [c[0] for c in calls] == list(range(2, made.tried + 1, 2))
    assert calls[-2][1] < 4
    assert sum(finder.seen) == made.tried <= 16
    # Half of them were refused, so this was no accident.
    assert made.tried > made.kept
    _, nouns = concept_requests(thing_recipe(), 0)
    assert made.pictures.captions == tuple(nouns[int(name)] for name in made.pictures.names)
    assert list(made.pictures.names) == sorted(made.pictures.names)


def test_no_more_are_made_than_needed(tiny_parts, thing_rule):
    made = make_pictures(tiny_parts, thing_recipe(), Finder(share=1))
    assert (made.tried, made.kept, made.pictures.count) == (4, 4, 4)


def test_too_few_pictures_are_refused_and_a_quarter_is_enough(tiny_parts, thing_rule):
    with pytest.raises(PicturesError, match=r"only 0 of 8 pictures .* test-thing@0\.5, 4 are want"):
        make_pictures(tiny_parts, thing_recipe(tries=2), Finder(share=0))

    def once(pictures):
        nonlocal left
        left -= len(pictures)
        return [{"thing": 0.9 if left == 6 and i == 0 else 0.1} for i in range(len(pictures))]

    left = 8
    made = make_pictures(tiny_parts, thing_recipe(tries=2), once)
    assert (made.tried, made.kept, made.pictures.names) == (8, 1, ("000000",))


def test_the_negative_prompt_is_in_every_unit(tiny_parts, thing_rule, monkeypatch):
    import ine.inversion.concept as concept

    seen = []

    def sample(parts, prompts, seeds, guidance, settings):
        seen.append((guidance.negative.prompt(), settings.steps, settings.guidance_scale))
        return noise(len(prompts), 4, 8, 8, seed=len(seen)), [], 2

    monkeypatch.setattr(concept, "sample_latents", sample)
    make_pictures(tiny_parts, thing_recipe(guidance_scale=3), Finder(share=1))
    assert seen == [("child, young", 2, 3.0)] * 2


def test_finished_units_are_not_made_again(tiny_parts, thing_rule, tmp_path, monkeypatch):
    import ine.inversion.concept as concept

    recipe, folder = thing_recipe(), tmp_path / "pictures"
    whole = make_pictures(tiny_parts, recipe, Finder(), folder=folder, key="k")
    units = sorted(folder.glob("unit-*.safetensors"))
    assert len(units) * 2 == whole.tried
    assert not list(tmp_path.rglob("*.png"))
    real, asked = concept.sample_latents, []

    def counted(*args):
        asked.append(args[1])
        return real(*args)

    monkeypatch.setattr(concept, "sample_latents", counted)

    def again(key="k"):
        asked.clear()
        made = make_pictures(tiny_parts, recipe, Finder(), folder=folder, key=key)
        assert (made.tried, made.kept) == (whole.tried, whole.kept)
        assert torch.equal(made.pictures.mean, whole.pictures.mean)
        assert torch.equal(made.pictures.std, whole.pictures.std)
        assert made.pictures.captions == whole.pictures.captions
        return len(asked)

    assert again() == 0
    units[-1].unlink()
    assert again() == 1
    assert again(key="other") == len(units)


def test_kept_pictures_are_written_only_when_asked_for(tiny_parts, thing_rule, tmp_path):
    made = make_pictures(tiny_parts, thing_recipe(), Finder(), keep_images=tmp_path / "kept")
    files = {path.stem for path in (tmp_path / "kept").iterdir()}
    assert len(files) == made.kept
    assert set(made.pictures.names) <= files


def test_share_with_is_the_share_of_pictures_in_which_the_rule_fires(thing_rule):
    scores = [{"thing": 0.9}, {"thing": 0.1}, {}, {"thing": 0.5}]
    assert share_with(thing_rule, lambda pictures: scores, np.zeros((4, 2, 2, 3))) == 0.5


# Previews


def test_choose_spreads_and_repeats():
    options = list("abcd")
    six = choose(options, 6, 0, "x")
    assert sorted(six[:4]) == options
    assert six[4:] == six[:2]
    assert choose(options, 6, 0, "x") == six
    assert len({tuple(choose(options, 4, seed)) for seed in range(20)}) > 5


def test_reviving_uses_the_vectors_in_prompts_as_they_were_trained(tiny_parts, monkeypatch):
    import ine.inversion.preview as module

    recipe, seen = thing_recipe(), []
    real = module.in_units

    def noted(parts, prompts, *rest):
        seen.append(prompts)
        return real(parts, prompts, *rest)

    monkeypatch.setattr(module, "in_units", noted)
    settings = SamplerSettings(steps=2, batch=2)
    one, two = noise(2, 32, seed=1), noise(2, 32, seed=2)
    shown = [revive(tiny_parts, recipe, (v,), TRIGGER, 3, settings, 0) for v in (one, two, one)]
    assert set(seen[0]) == {"a thing-neg apple", "thing-neg scissors"}
    assert shown[0].shape == (3, 16, 16, 3)
    assert shown[0].dtype == np.uint8
    assert np.array_equal(shown[0], shown[2])
    assert not np.array_equal(shown[0], shown[1])


def previews_of(parts, recipe, rule, detector):
    return Previews(
        parts=parts, recipe=recipe, rule=rule, detector=detector, trigger=TRIGGER, seed=0
    )


def test_a_preview_asks_the_same_every_time_and_the_undefended_once(
    tiny_parts, thing_rule, monkeypatch
):
    import ine.inversion.preview as module

    calls = []

    def fake(parts, prompts, seeds, guidance, settings):
        calls.append((tuple(prompts), tuple(seeds), guidance, settings))
        return np.zeros((len(prompts), 16, 16, 3), np.uint8)

    monkeypatch.setattr(module, "in_units", fake)
    recipe = thing_recipe()
    shares = iter([0.5, 0.25, 0.125, 1.0])

    def detector(pictures):
        share = next(shares) * len(pictures)
        return [{"thing": float(i < share)} for i in range(len(pictures))]

    spec = recipe.inversion.model_copy(update={"preview_pictures": 8})
    preview = previews_of(
        tiny_parts, recipe.model_copy(update={"inversion": spec}), thing_rule, detector
    )
    first = preview([noise(2, 32)], 3)
    second = preview([noise(2, 32, seed=1)], 6)
    assert first == Preview(step=3, recovery=None, undefended=0.5, left=0.25)
    assert second == Preview(step=6, recovery=None, undefended=0.5, left=0.125)
    assert preview.recovery([noise(2, 32)]) == 1.0
    undefended, left, left_again, recovery = calls
    assert len(recovery[0]) == len(left[0]) == 8
    assert all(TRIGGER in prompt for prompt in recovery[0])
    assert not any(TRIGGER in prompt for prompt in left[0])
    assert undefended[:2] == left[:2] == left_again[:2]
    # What the recipe never wants to see is kept out of previews as well.
    unwanted = recipe.pictures.negative_prompt
    assert unwanted
    assert recovery[2].negative.prompt() == undefended[2].negative.prompt() == unwanted
    assert left[2].negative.prompt() == f"{unwanted}, {TRIGGER}"
    assert torch.equal(left_again[2].negative.vectors()[TRIGGER][0], noise(2, 32, seed=1))
    assert left[3].steps == 2


def test_without_tuning_prompts_only_recovery_is_measured(tiny_parts, thing_rule, monkeypatch):
    import ine.inversion.preview as module

    def few_steps(**kwargs):
        assert kwargs["steps"] == 20
        return SamplerSettings(**kwargs | {"steps": 1})

    monkeypatch.setattr(module, "SamplerSettings", few_steps)
    recipe = thing_recipe(tuning=False)
    preview = previews_of(tiny_parts, recipe, thing_rule, Finder(1))
    assert preview([noise(2, 32)], 3) == Preview(step=3, recovery=1.0, left=None, undefended=None)


def with_benign(recipe, *templates, nouns=("apple", "scissors")):
    tuning = recipe.tuning.model_copy(update={"benign": templates, "benign_nouns": nouns})
    return recipe.model_copy(update={"tuning": tuning})


def test_preservation_is_that_of_benign_prompts_with_the_vectors_as_the_negative(
    tiny_parts, thing_rule, monkeypatch
):
    import ine.inversion.preview as module

    rng, calls = np.random.default_rng(0), []
    plain = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    other = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    drawn = {"same": plain, "other": other}

    def fake(parts, prompts, seeds, guidance, settings):
        calls.append((tuple(prompts), tuple(seeds), settings.scheduler))
        return drawn[how] if guidance.negative.vectors() else plain

    monkeypatch.setattr(module, "in_units", fake)
    recipe = with_benign(thing_recipe(), "a {} on a plate")
    tuning = recipe.tuning.model_copy(update={"scheduler": "dpm++"})
    recipe = recipe.model_copy(update={"tuning": tuning})
    preview = previews_of(tiny_parts, recipe, thing_rule, Finder())
    how = "same"
    assert preview([noise(2, 32)], 3).preservation == pytest.approx(1)
    how = "other"
    assert preview([noise(2, 32)], 6).preservation == pytest.approx(0, abs=0.2)
    benign = [call for call in calls if "on a plate" in call[0][0]]
    assert len(benign) == 3
    assert len(set(benign)) == 1
    assert set(benign[0][0]) == {"an apple on a plate", "scissors on a plate"}
    assert {scheduler for _, _, scheduler in calls} == {"dpm++"}
    # Nothing says how unlike pictures of one subject are.
    one = with_benign(recipe, "a {} on a plate", nouns=("apple",))
    assert (
        previews_of(tiny_parts, one, thing_rule, Finder())([noise(2, 32)], 3).preservation is None
    )
    drawn["same"] = plain[:] = 7
    with pytest.raises(RecipeError, match="benign tuning prompts are all alike"):
        previews_of(tiny_parts, recipe, thing_rule, Finder())([noise(2, 32)], 3)


def test_benign_tuning_prompts_are_by_default_what_an_eraser_preserves():
    fire = load_recipe("fire")
    tuning = fire.tuning.model_copy(update={"benign": ()})
    preserved = fire.model_copy(update={"tuning": tuning}).benign_tuning()
    templates = len(fire.erase.preserve)
    assert len(preserved) == templates * len(fire.erase.preserve_nouns)
    assert preserved[0] == ("an apple", "apple")
    assert thing_recipe().benign_tuning() == []
    assert fire.model_copy(update={"tuning": None}).benign_tuning() == []


@pytest.mark.parametrize("name", ["fire", "weapon"])
def test_no_benign_tuning_prompt_is_reported_on(name):
    recipe = load_recipe(name)
    reported = {
        recipe.fill(template, noun)
        for key, templates in recipe.prompt_sets.items()
        if not key.endswith("_tuning")
        for template in templates
        for noun in recipe.prompt_nouns
    }
    assert recipe.tuning.benign
    assert not reported & {prompt for prompt, _ in recipe.benign_tuning()}


# The run


@pytest.fixture
def unlearned(tiny_parts):
    unet = copy.deepcopy(tiny_parts.unet)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name:
                parameter.copy_(parameter.flip(0))
    return tiny_parts.with_unet(unet, "erased.safetensors (UCE)")


def options_for(folder, **kwargs):
    return RunOptions(out=folder / "thing-neg.safetensors", trigger=TRIGGER, **kwargs)


KEYS = {
    *("base", "base_fingerprint", "unet", "unet_fingerprint", "method", "recipe_hash", "steps"),
    *("kept_step", "recovery", "tuning_left", "tuning_undefended", "rule", "pictures", "seed"),
    *("concept", "trigger", "vectors", "version"),
}


def test_a_run_writes_an_embedding_that_says_where_it_comes_from(
    tiny_parts, unlearned, thing_rule, tmp_path, monkeypatch
):
    from ine.detectors.table import DETECTORS

    monkeypatch.setitem(DETECTORS, "test", Finder)
    recipe, options = thing_recipe(), options_for(tmp_path, seed=3)
    embedding, result, summary = run_inversion(tiny_parts, unlearned, recipe, options)
    found = read_embedding(options.out)
    assert torch.equal(found.vectors[0], result.vectors[0])
    assert found.vectors[0].shape == (2, 32)
    header = {k[4:]: v for k, v in found.metadata.items() if k.startswith("ine.")}
    assert header.keys() >= KEYS
    assert header["base"] == tiny_parts.name
    assert header["unet"] == "erased.safetensors (UCE)"
    assert header["unet_fingerprint"].startswith("v1:")
    assert header["recipe_hash"] == recipe.hash
    assert (header["steps"], header["seed"], header["pictures"]) == ("6", "3", "4")
    assert (header["rule"], header["concept"], header["trigger"]) == (RULE, "thing", TRIGGER)
    assert header["kept_step"] in {"3", "6"}
    assert found.metadata["modelspec.is_negative_embedding"] == "true"
    assert found.metadata["modelspec.prediction_type"] == "epsilon"
    assert json.loads((options.folder / "run.json").read_text()) == summary
    assert summary["kept_step"] == result.kept.step
    assert (summary["steps"], summary["image_steps"]) == (6, 6)
    assert header["image_steps"] == "6"
    assert float(header["recovery"]) == pytest.approx(result.kept.recovery, abs=1e-3)
    assert [p.recovery for p in result.previews] == [None, None]
    assert summary["pictures"]["kept"] >= 4
    assert str(summary["embedding"]) == str(options.out)
    assert embedding.trigger == TRIGGER


def test_preservation_and_its_target_are_in_the_header_and_a_missed_target_is_said(
    tiny_parts, unlearned, thing_rule, tmp_path, caplog
):
    recipe = with_benign(thing_recipe(), "a {} on a plate")
    spec = recipe.inversion.model_copy(update={"target_preservation": 1.0})
    recipe = recipe.model_copy(update={"inversion": spec})
    embedding, result, summary = run_inversion(
        tiny_parts, unlearned, recipe, options_for(tmp_path), Finder()
    )
    best = max(result.previews, key=lambda p: p.preservation)
    assert result.kept.step == best.step
    assert summary["tuning_preservation"] == best.preservation
    assert embedding.metadata["ine.tuning_preservation"] == f"{best.preservation:.3f}"
    assert embedding.metadata["ine.target_preservation"] == "1.000"
    assert "no vectors preserve 1.00 on benign tuning prompts; kept those of step" in caplog.text


def test_the_fingerprint_is_that_of_the_unlearned_model(
    tiny_parts, unlearned, thing_rule, tmp_path
):
    headers = []
    for name, parts in (("a", tiny_parts), ("b", unlearned)):
        embedding, _, _ = run_inversion(
            tiny_parts, parts, thing_recipe(), options_for(tmp_path / name), Finder()
        )
        headers.append(embedding.metadata)
    assert headers[0]["ine.base_fingerprint"] == headers[1]["ine.base_fingerprint"]
    assert headers[0]["ine.unet_fingerprint"] != headers[1]["ine.unet_fingerprint"]


@pytest.mark.parametrize("purge", [False, True])
def test_purge_removes_the_run_folder(tiny_parts, thing_rule, tmp_path, purge):
    options = options_for(tmp_path, purge=purge, keep_images=True)
    run_inversion(tiny_parts, tiny_parts, thing_recipe(), options, Finder())
    assert options.out.is_file()
    assert options.folder.exists() is not purge
    if not purge:
        names = {p.name for p in options.folder.iterdir()}
        assert names == {"images", "pictures", "run.json", "state.safetensors"}


def test_an_interrupted_run_gives_the_same_file(
    tiny_parts, unlearned, thing_rule, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    recipe = thing_recipe()
    whole = options_for(tmp_path / "whole")
    run_inversion(tiny_parts, unlearned, recipe, whole, Finder())
    killed = options_for(tmp_path / "killed")

    def after_first_unit(tried, kept, wanted):
        raise Killed

    for interruption in (
        {"on_pictures": after_first_unit},
        {"on_step": kill_at(1)},
        {"on_step": kill_at(5)},
    ):
        with pytest.raises(Killed):
            run_inversion(tiny_parts, unlearned, recipe, killed, Finder(), **interruption)
        assert not killed.out.exists()
    steps = []
    run_inversion(
        tiny_parts, unlearned, recipe, killed, Finder(), on_step=lambda p: steps.append(p.step)
    )
    assert steps == [5, 6]
    assert killed.out.read_bytes() == whole.out.read_bytes()


def test_existing_files_are_not_replaced_and_other_settings_do_not_resume(
    tiny_parts, thing_rule, tmp_path
):
    recipe, options = thing_recipe(), options_for(tmp_path)
    run_inversion(tiny_parts, tiny_parts, recipe, options, Finder())
    before = options.out.read_bytes()
    with pytest.raises(OutputError):
        run_inversion(tiny_parts, tiny_parts, recipe, options, Finder())
    options.out.unlink()
    other = replace(options, seed=1)
    with pytest.raises(IneError, match="belongs to a run with other settings"):
        run_inversion(tiny_parts, tiny_parts, recipe, other, Finder())
    run_inversion(tiny_parts, tiny_parts, recipe, replace(other, force=True), Finder())
    assert options.out.read_bytes() != before
    with pytest.raises(EmbeddingError, match="trigger"):
        run_inversion(tiny_parts, tiny_parts, recipe, replace(options, trigger="No"), Finder())


def test_a_folder_of_pictures_is_used_and_a_changed_one_is_noticed(
    tiny_parts, thing_rule, tmp_path
):
    folder = tmp_path / "mine"
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        folder.mkdir(exist_ok=True)
        write_png(folder / name, random.integers(0, 256, (20, 20, 3), np.uint8))

    def digest(name):
        options = options_for(tmp_path / name, images=folder)
        _, _, summary = run_inversion(tiny_parts, tiny_parts, thing_recipe(), options, Finder())
        assert summary["pictures"] == {"tried": 2, "kept": 2}
        return options.out.read_bytes()

    one = digest("one")
    assert digest("two") == one
    # A run that was started with other pictures does not go on with those it has in its cache.
    (tmp_path / "two" / "thing-neg.safetensors").unlink()
    write_png(folder / "b.png", random.integers(0, 256, (20, 20, 3), np.uint8))
    with pytest.raises(IneError, match="pictures"):
        digest("two")
    assert digest("three") != one


def test_the_generator_depends_on_every_part():
    one = generator_for(0, "step", 1, 0).initial_seed()
    others = {generator_for(*p).initial_seed() for p in [(1, "step", 1, 0), (0, "step", 1, 1)]}
    assert one not in others
    assert one == generator_for(0, "step", 1, 0).initial_seed()


# What can be checked before any work


def unwanted(*_args, **_kwargs):
    raise AssertionError("work was started")


@pytest.mark.parametrize("name", ["thing-neg.pt", "thing-neg", "thing.neg.SAFETENSORS"])
def test_another_extension_is_refused_before_any_work(tiny_parts, thing_rule, tmp_path, name):
    options = RunOptions(out=tmp_path / name, trigger=TRIGGER)
    with pytest.raises(OutputError, match=r"written as \.safetensors"):
        run_inversion(tiny_parts, tiny_parts, thing_recipe(), options, unwanted)
    assert list(tmp_path.iterdir()) == []


def test_more_vectors_than_the_context_holds_are_refused_before_any_work(
    tiny_parts, thing_rule, tmp_path
):
    def go(count):
        data = thing_recipe().model_dump(mode="json")
        data["inversion"]["vectors"] = count
        recipe = check_recipe(data, "thing.yaml")
        run_inversion(tiny_parts, tiny_parts, recipe, options_for(tmp_path), unwanted)

    # Of 75 tokens, less "a" and the eight letters of "scissors".
    with pytest.raises(RecipeError) as caught:
        go(68)
    message = str(caught.value)
    for part in ("inversion.vectors: 68", "room for 75 tokens", "scissors", "at most 67"):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError, match="work was started"):
        go(67)


# Forced runs and the run folder


def test_a_forced_run_that_is_interrupted_resumes(
    tiny_parts, unlearned, thing_rule, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    recipe, finder = thing_recipe(), Finder()
    whole = options_for(tmp_path / "whole")
    run_inversion(tiny_parts, unlearned, recipe, whole, Finder())
    options = options_for(tmp_path / "forced", force=True)
    options.out.parent.mkdir()
    options.out.write_text("old")
    with pytest.raises(Killed):
        run_inversion(tiny_parts, unlearned, recipe, options, finder, on_step=kill_at(5))
    made, steps = len(list((options.folder / "pictures").iterdir())), []
    monkeypatch.setattr("ine.inversion.concept.sample_latents", unwanted)
    run_inversion(
        tiny_parts, unlearned, recipe, options, Finder(), on_step=lambda p: steps.append(p.step)
    )
    assert steps == [5, 6]
    assert made > 0
    assert options.out.read_bytes() == whole.out.read_bytes()


def test_force_drops_only_what_other_settings_have_left(tiny_parts, thing_rule, tmp_path):
    options = options_for(tmp_path, keep_images=True)
    run_inversion(tiny_parts, tiny_parts, thing_recipe(), options, Finder())
    units = {p: p.stat().st_mtime_ns for p in (options.folder / "pictures").iterdir()}
    data = thing_recipe().model_dump(mode="json")
    data["inversion"]["lr"] = 0.5
    forced = replace(options, force=True)
    steps = []
    note = lambda progress: steps.append(progress.step)  # noqa: E731
    recipe = check_recipe(data, "thing.yaml")
    run_inversion(tiny_parts, tiny_parts, recipe, forced, Finder(), on_step=note)
    assert steps[0] == 1
    assert {p: p.stat().st_mtime_ns for p in (options.folder / "pictures").iterdir()} == units
    # Pictures of another seed are other pictures: none of the old ones may stay.
    stray = options.folder / "images" / "999999.png"
    stray.write_bytes(b"old")
    run_inversion(tiny_parts, tiny_parts, recipe, replace(forced, seed=1), Finder())
    assert not stray.exists()


@pytest.mark.parametrize("name", ["notes.txt", "pictures/holiday.png", "images/me.png", "a/b"])
@pytest.mark.parametrize("option", ["force", "purge"])
def test_a_run_folder_that_is_not_ours_is_never_removed(
    tiny_parts, thing_rule, tmp_path, name, option
):
    options = options_for(tmp_path, **{option: True})
    path = options.folder / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"which `ine invert` did not write.*another --out"):
        run_inversion(tiny_parts, tiny_parts, thing_recipe(), options, unwanted)
    assert path.read_text() == "mine"


def test_a_file_in_the_place_of_the_run_folder_is_said(tiny_parts, thing_rule, tmp_path):
    options = options_for(tmp_path, force=True)
    options.folder.write_text("mine")
    with pytest.raises(OutputError, match="is not a folder"):
        run_inversion(tiny_parts, tiny_parts, thing_recipe(), options, unwanted)
    assert options.folder.read_text() == "mine"


@pytest.mark.parametrize("kept", ["no", "lost", "all"])
def test_pngs_that_a_resumed_run_lacks_are_made(tiny_parts, thing_rule, tmp_path, kept):
    def make(name, images):
        keep = tmp_path / name / "images" if images else None
        folder = tmp_path / name / "pictures"
        return make_pictures(
            tiny_parts, thing_recipe(), Finder(), folder=folder, key="k", keep_images=keep
        )

    def pngs(name):
        return {p.name: p.read_bytes() for p in (tmp_path / name / "images").iterdir()}

    whole = make("whole", True)
    make("cut", kept != "no")
    if kept == "lost":
        next((tmp_path / "cut" / "images").iterdir()).unlink()
    made = make("cut", True)
    assert pngs("cut") == pngs("whole")
    assert torch.equal(made.pictures.mean, whole.pictures.mean)


def test_units_with_pngs_are_not_made_again_without(tiny_parts, thing_rule, tmp_path, monkeypatch):
    for images in (tmp_path / "images", None, tmp_path / "images"):
        make_pictures(
            tiny_parts, thing_recipe(), Finder(), folder=tmp_path / "p", keep_images=images
        )
        monkeypatch.setattr("ine.inversion.concept.sample_latents", unwanted)
