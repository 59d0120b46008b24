"""Several files of unlearned weights at once, with and without weights."""

import copy
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from ine.cli import options
from ine.errors import CheckpointError
from ine.weights.apply import apply_weights
from ine.weights.read import read_weights, weights_metadata
from ine.weights.stack import Layer, WeightStack, as_unet, parse_layer
from ine.weights.unlearned import AppliedStack

# Parsing.


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", None),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:1", "a.safetensors", 1.0),
        ("dir/a.pt:-1e-1", "dir/a.pt", -0.1),
        (r"C:\models\a.pt", r"C:\models\a.pt", None),
        (r"C:\models\a.pt:2", r"C:\models\a.pt", 2.0),
        ("a:b.pt", "a:b.pt", None),
        ("a:nan", "a:nan", None),
        ("a:inf", "a:inf", None),
        (":1", ":1", None),
        ("a.pt:", "a.pt:", None),
    ],
)
def test_a_file_and_its_weight(monkeypatch, tmp_path, text, path, weight):
    monkeypatch.chdir(tmp_path)
    assert parse_layer(text) == Layer(Path(path), weight)


def test_a_path_that_exists_is_never_split(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_layer("a.pt:1") == Layer(Path("a.pt"), 1.0)
    Path("a.pt:1").touch()
    assert parse_layer("a.pt:1") == Layer(Path("a.pt:1"))
    assert parse_layer("a.pt:1:0.5") == Layer(Path("a.pt:1"), 0.5)


@pytest.mark.parametrize("tail", ["x", "", "nan", "1,0"])
def test_what_is_no_weight_behind_a_file_that_exists(tmp_path, tail):
    (tmp_path / "a.pt").touch()
    with pytest.raises(CheckpointError, match="is not a weight; give a number"):
        parse_layer(f"{tmp_path / 'a.pt'}:{tail}")


def test_one_path_stays_a_path():
    assert as_unet(()) is None
    assert as_unet([Layer(Path("a"))]) == Path("a")
    assert as_unet([Layer(Path("a"), 1.0)]) == WeightStack((Layer(Path("a"), 1.0),))
    both = as_unet([Layer(Path("d/a"), 0.5), Layer(Path("b"))])
    assert str(both) == "d/a:0.5 --unet b"
    assert both.name == "a:0.5 + b"


@click.command(context_settings={"auto_envvar_prefix": "X"})
@options.unet
def command(unet):
    click.echo(repr(unet))


def test_the_option(tmp_path):
    def run(*args, **env):
        result = CliRunner().invoke(command, args, env=env)
        return result.stdout.strip() or (result.exit_code, result.stderr)

    assert run() == "None"
    assert run("--unet", "a.pt") == repr(Path("a.pt"))
    both = WeightStack((Layer(Path("a.pt"), 1.0), Layer(Path("b.pt"), 0.5)))
    assert run("--unet", "a.pt:1.0", "--unet", "b.pt:0.5") == repr(both)
    assert run(X_UNET="a.pt:1 b.pt:0.5") == repr(both)
    spaced = tmp_path / "my file.pt"
    spaced.touch()
    assert run(X_UNET=str(spaced)) == repr(spaced)
    assert run("--unet", f"{spaced}:much")[0] == 2


# Applying.


@pytest.fixture
def files(tiny_parts, tmp_path):
    """Paths of full and partial files, and a LoRA; and what each adds to the base."""
    base, made, differences = tiny_parts.unet.state_dict(), {}, {}

    def write(name, test, seed):
        generator = torch.Generator().manual_seed(seed)
        state = {
            n: t + 0.1 * torch.randn(t.shape, generator=generator)
            for n, t in base.items()
            if test(n)
        }
        made[name] = tmp_path / f"{name}.safetensors"
        save_file(state, made[name], {"ine.concept": name, "ine.base": "x"})
        differences[name] = {n: t - base[n] for n, t in state.items()}

    write("full", lambda n: True, 1)
    write("other", lambda n: True, 2)
    write("cross", lambda n: ".attn2." in n, 3)
    write("down", lambda n: n.startswith("down_blocks"), 4)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down = torch.ones(32, 2), 0.05 * torch.ones(2, 32)
    made["lora"] = tmp_path / "lora.safetensors"
    save_file({f"{path}.lora.up.weight": up, f"{path}.lora.down.weight": down}, made["lora"])
    differences["lora"] = {f"{path}.weight": up @ down}
    return made, differences


def stack(files, *given):
    layers = [Layer(files[0][n], *weight) for n, *weight in given]
    return WeightStack(tuple(layers))


def summed(parts, files, *given):
    """base + sum of weight * difference, by hand."""
    state = {n: t.clone() for n, t in parts.unet.state_dict().items()}
    for name, weight in given:
        for n, difference in files[1][name].items():
            state[n] += weight * difference
    return state


def assert_applied(parts, wanted):
    state = parts.unet.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(state[name], tensor, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        [("full", 1.0)],
        [("full", 0.5)],
        [("full", -1.0)],
        [("cross", 2.0)],
        [("lora", 0.25)],
        [("full", 1.0), ("other", 1.0)],
        [("full", 0.3), ("other", 0.5), ("cross", 1.5), ("lora", 2.0)],
    ],
)
def test_weights_scale_the_difference_from_the_base(tiny_parts, files, given):
    parts, weights = apply_weights(tiny_parts, stack(files, *given))
    wanted = summed(tiny_parts, files, *given)
    assert_applied(parts, wanted)
    touched = set().union(*(files[1][name] for name, _ in given))
    assert weights.changed == len(touched) == len(weights.differing)
    base = tiny_parts.unet.state_dict()
    assert all(torch.equal(parts.unet.state_dict()[n], base[n]) for n in set(base) - touched)


def test_the_order_of_weighted_files_does_not_matter(tiny_parts, files):
    given = [("full", 0.3), ("cross", 0.7), ("lora", 1.0)]
    one, _ = apply_weights(tiny_parts, stack(files, *given))
    other, _ = apply_weights(tiny_parts, stack(files, *given[::-1]))
    assert_applied(one, other.unet.state_dict())


def test_one_file_with_weight_one_is_the_file(tiny_parts, files):
    alone, _ = apply_weights(tiny_parts, files[0]["full"])
    assert_applied(
        apply_weights(tiny_parts, stack(files, ("full", 1.0)))[0], alone.unet.state_dict()
    )


def test_a_weight_of_zero_is_the_base(tiny_parts, files, caplog):
    parts, weights = apply_weights(tiny_parts, stack(files, ("full", 0.0)))
    assert weights.is_base
    assert "nothing was unlearned" in caplog.text
    base = tiny_parts.unet.state_dict()
    assert all(torch.equal(t, base[n]) for n, t in parts.unet.state_dict().items())


def test_without_weights_later_files_replace(tiny_parts, files, caplog):
    parts, weights = apply_weights(tiny_parts, stack(files, ("full",), ("cross",), ("lora",)))
    wanted = summed(tiny_parts, files, ("full", 1.0))
    wanted |= {n: tiny_parts.unet.state_dict()[n] + d for n, d in files[1]["cross"].items()}
    [(name, difference)] = files[1]["lora"].items()
    wanted[name] = wanted[name] + difference
    assert_applied(parts, wanted)
    assert "cross.safetensors replaces" in caplog.text
    assert len(weights.layers) == 3
    text = weights.describe()
    assert "full.safetensors: full diffusers UNet" in text
    assert "Together (full.safetensors + cross.safetensors + lora.safetensors)" in text
    assert parts.unet_name.startswith("full.safetensors + cross.safetensors + lora.safetensors (")


@pytest.mark.parametrize(
    "given",
    [
        [("full",), ("other",)],
        [("cross",), ("full",)],
        [("lora",), ("full",)],
        [("full", 0.5), ("other",)],
        [("cross",), ("cross",)],
        [("down",), ("cross",), ("full",)],
    ],
)
def test_a_file_that_would_undo_an_earlier_one(tiny_parts, files, given):
    with pytest.raises(CheckpointError) as caught:
        apply_weights(tiny_parts, stack(files, *given))
    first, last = files[0][given[0][0]], files[0][given[-1][0]]
    text = str(caught.value)
    assert text.startswith(f"{last}: replaces all")
    assert f"--unet {first}:0.5 --unet {last}:0.5" in text


def test_files_that_touch_other_tensors_are_applied_in_any_order(tiny_parts, files):
    for given in ([("lora",), ("cross",)], [("cross",), ("lora",)], [("full",), ("other", 0.5)]):
        _, weights = apply_weights(tiny_parts, stack(files, *given))
        assert len(weights.layers) == 2
        assert weights.changed >= max(layer.changed for layer in weights.layers) > 0


def test_weights_are_applied_without_reading_them_again(tiny_parts, files, monkeypatch):
    one, several = files[0]["cross"], stack(files, ("cross", 1.0), ("down", 0.5))
    found = [(read_weights(given), apply_weights(tiny_parts, given)) for given in (one, several)]
    monkeypatch.setattr("ine.weights.read.open_source", None)
    for read, (wanted, described) in found:
        parts, weights = apply_weights(tiny_parts, read)
        assert weights.describe() == described.describe()
        assert parts.unet_name == wanted.unet_name
        state = wanted.unet.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in parts.unet.state_dict().items())


def test_unlearned_text_encoders_add_up(tiny_parts, files, tmp_path):
    encoder = tiny_parts.text_encoders[0].state_dict()
    paths = []
    for n in (1, 2):
        paths.append(tmp_path / f"encoder{n}.pt")
        torch.save(
            {f"text_model.{k.removeprefix('text_model.')}": t + n for k, t in encoder.items()},
            paths[-1],
        )
    layers = [Layer(paths[0], 0.5), Layer(paths[1], 0.25), Layer(files[0]["cross"])]
    parts, weights = apply_weights(tiny_parts, WeightStack(tuple(layers)))
    applied = parts.text_encoders[0].state_dict()
    for name, tensor in encoder.items():
        torch.testing.assert_close(applied[name], tensor + 1, atol=1e-5, rtol=1e-5)
    assert weights.encoder_changed == len(encoder)


def test_rounding_is_not_multiplied(tiny_parts, tmp_path):
    """A float16 copy of the base with a weight of 100 leaves it alone."""
    state = {n: t.half() for n, t in tiny_parts.unet.state_dict().items()}
    state["conv_in.bias"] = state["conv_in.bias"] + 1
    save_file(state, tmp_path / "half.safetensors")
    layers = WeightStack((Layer(tmp_path / "half.safetensors", 100.0),))
    parts, weights = apply_weights(tiny_parts, layers)
    assert weights.differing == ("conv_in.bias",)
    base = tiny_parts.unet.state_dict()
    assert all(
        torch.equal(t, base[n]) for n, t in parts.unet.state_dict().items() if n != "conv_in.bias"
    )


def test_sums_are_rounded_once(tiny_parts, files):
    half = tiny_parts.with_unet(copy.deepcopy(tiny_parts.unet).bfloat16(), "half")
    given = [("full", 0.4), ("other", 0.4)]
    parts, _ = apply_weights(half, stack(files, *given))
    base, applied = half.unet.state_dict(), parts.unet.state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    exact = base[name].float()
    for file, weight in given:
        theirs = tiny_parts.unet.state_dict()[name] + files[1][file][name]
        exact = exact + weight * (theirs - base[name].float())
    assert (applied[name].float() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_sums_that_overflow(tiny_parts, files):
    half = tiny_parts.with_unet(copy.deepcopy(tiny_parts.unet).half(), "half")
    with pytest.raises(CheckpointError, match=r"leaves the range of torch\.float16"):
        apply_weights(half, stack(files, ("full", 1e7)))


def test_every_file_is_checked_against_the_base(tiny_parts, files, tmp_path):
    save_file({"conv_in.weight": torch.ones(2)}, tmp_path / "bad.safetensors")
    layers = (Layer(files[0]["full"], 1.0), Layer(tmp_path / "bad.safetensors", 1.0))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: 1 tensors"):
        apply_weights(tiny_parts, WeightStack(layers))


def test_reading_a_stack(files):
    given = stack(files, ("cross", 1.0), ("down", 0.5))
    weights = read_weights(given)
    assert [layer.path for layer in weights.layers] == [files[0]["cross"], files[0]["down"]]
    assert weights.metadata == weights_metadata(given) == {"ine.concept": "cross", "ine.base": "x"}
    assert "cross.safetensors" in weights.describe()
    assert not isinstance(weights, AppliedStack)
