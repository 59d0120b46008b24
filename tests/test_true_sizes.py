"""SD 1.5 at its true size: python -m pytest -m slow -n 0 (ten minutes on two cores, 8 GB)."""

import pytest

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_every_step_once_at_the_size_of_sd15(tmp_path):
    from benchmarks.true_sizes import run

    found = run("sd1", folder=tmp_path)
    steps = {row["step"]: row for row in found["rows"]}
    assert found["latent"] == 64
    applied = steps["apply a partial ESD file (80 tensors)"]
    assert applied["peak"] <= (found["model"] + found["largest"]) * 1.1
    guided = [row for name, row in steps.items() if name.startswith("one step of guidance")]
    assert [row["unet_calls"] for row in guided] == [2, 2, 3, 3, 2, 3, 3]
    # Frozen weights keep no gradients: what inversion adds are activations.
    inverted = next(row for name, row in steps.items() if name.startswith("one inversion step"))
    assert inverted["peak"] <= found["model"] + 3e9
