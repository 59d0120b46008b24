import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before torch is imported: threads that spin while they wait starve each other on a busy machine,
# tiny models gain nothing from a second thread, and no test may reach for the network.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in [n for n in os.environ if n.startswith("INE_")]:
    del os.environ[name]  # ine takes options from there

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that tests share

if importlib.util.find_spec("torchvision"):
    raise pytest.UsageError(
        "torchvision is installed here. Nothing in ine needs it, and where its build does not "
        "match torch's it breaks the import of diffusers and transformers. "
        "Uninstall it, or make a fresh virtual environment."
    )


LONG = ("test_story.py", "test_demo.py", "test_mini.py", "test_families.py", "test_evaluate.py")
"""Files of few tests that take long: started last, one worker would still run them while the other
has nothing left to do."""


def pytest_collection_modifyitems(items):
    """Put the long files first; see `addopts`, by which workers keep this order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a diffusers pipeline: real classes, random weights, no download."""
    from tiny import build_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    build_tiny("sd1").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_parts(tiny_folder):
    """The parts of `tiny_folder`, frozen; a test that changes weights works on a copy."""
    from ine.models.loading import load_parts

    return load_parts(tiny_folder)


@pytest.fixture(scope="module")
def loaded_once():
    """Grids load each model and judge once: loading takes longer than what tests do with them."""
    import functools

    from ine.evaluation import models, readings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "load_detector", functools.cache(readings.load_detector))
        patch.setattr(models, "load_parts", functools.cache(models.load_parts))
        yield


@pytest.fixture
def run_ine():
    """Run a command in this process as `main` would: run_ine("recipe", "list").stdout."""
    from click.testing import CliRunner

    from ine.cli import cli

    def run(*args, **kwargs):
        result = CliRunner().invoke(cli, [str(a) for a in args], prog_name="ine", **kwargs)
        return SimpleNamespace(
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
            output=result.output,
        )

    return run


@pytest.fixture
def beginning_with(monkeypatch):
    """A context in which runs of our loop begin with another of each picture's noises."""
    from ine.guidance.attempts import noise_of
    from ine.sampling import loop

    kept = loop.start_noise

    @contextmanager
    def context(number):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "start_noise", lambda *given: noise_of(kept(*given), number))
            yield

    return context
