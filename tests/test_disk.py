"""A grid on a disk that takes no more, and in folders that cannot be written.

The operating system refuses here as it does in earnest: files beyond a size (what a full disk is
to whoever writes), folders without rights. `tests/benchmarks/full_disk.py` fills a real disk.
"""

import ctypes
import shutil
import sys
from contextlib import contextmanager

import pytest
from small_grid import contents, tuned_grid

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits and rights as Linux has them"),
    pytest.mark.usefixtures("loaded_once"),
]

GRID = tuned_grid(2)


@pytest.fixture(scope="module")
def grid(tmp_path_factory, tiny_folder):
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    path.write_text(GRID.replace("MODEL", str(tiny_folder)))
    return path


@pytest.fixture
def evaluate(run_ine, grid):
    return lambda folder, *options: run_ine("-qq", "evaluate", grid, "--out", folder, *options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, grid):
    """Folder of a run on which nothing was refused."""
    from click.testing import CliRunner

    from ine.cli import cli

    folder = tmp_path_factory.mktemp("whole") / "run"
    result = CliRunner().invoke(cli, ["-qq", "evaluate", str(grid), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def refused(result, words):
    """Assert that a run ended with one line of ine's and the exit code of outputs."""
    assert result.exit_code == 9, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def whole_as_far_as_it_goes(folder, wanted):
    found = contents(folder)
    assert {name: wanted[name] for name in found} == found


@contextmanager
def no_file_beyond(size):
    """Let this process write no file of more bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def rights_of_an_owner():
    """Take from root, in this thread, that it may read and write whatever the rights of a file.

    Whoever is not root has none of this to lose.
    """
    libc, override = ctypes.CDLL(None, use_errno=True), 0b110
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~override
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextmanager
def closed(folder, mode):
    """Set the rights of a folder and of those in it."""
    folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    for path in reversed(folders):
        path.chmod(mode)
    try:
        with rights_of_an_owner():
            yield
    finally:
        for path in folders:
            path.chmod(0o755)


def without_a_unit(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    min((folder / "units").rglob("*.zip")).unlink()
    return folder


# ---------------------------------------------------------------------------- no more room


def test_a_run_goes_on_wherever_there_was_no_room(evaluate, whole, tmp_path):
    """In one folder after another file that is too large: a unit, a table, the page."""
    wanted, folder = contents(whole), tmp_path / "run"
    sizes = [
        (100, "models/"),
        (max(len(d) for n, d in wanted.items() if n.startswith("models/")), "grid."),
        (1000, "units/"),
        (len(wanted["results.jsonl"]) - 1, "results.jsonl"),
        (len(wanted["report.html"]) - 1, "report.html"),
    ]
    for size, where in sizes:
        with no_file_beyond(size):
            result = evaluate(folder)
        refused(result, "cannot be written (File too large); choose another --out or free space")
        assert f"{folder}/{where}" in result.stderr
        whole_as_far_as_it_goes(folder, wanted)
    assert evaluate(folder).exit_code == 0
    assert contents(folder) == wanted


def test_results_are_all_of_one_run(run_ine, grid, tmp_path):
    """Those of a smaller run stay, all of them, where those of a larger one find no room."""
    text = grid.read_text().partition("metrics:")[0].replace("[1, 6]", "[1]")
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("limit: 2", "limit: 8").replace("batch: 2", "batch: 8"))
    folder, command = tmp_path / "run", ("-qq", "evaluate", path, "--out", tmp_path / "run")
    assert run_ine(*command, "--limit", 1).exit_code == 0
    before = results_of(folder)
    assert run_ine(*command).exit_code == 0
    after = results_of(folder)
    # What is written last finds no room, all others would.
    assert max(after, key=lambda name: len(after[name])) == "pictures.jsonl"
    assert run_ine(*command, "--limit", 1).exit_code == 0
    assert results_of(folder) == before
    with no_file_beyond(len(after["pictures.jsonl"]) - 1):
        refused(run_ine(*command), "pictures.jsonl: cannot be written (File too large)")
    assert results_of(folder) == before
    assert run_ine(*command).exit_code == 0
    assert results_of(folder) == after


def results_of(folder):
    names = ("results.jsonl", "results.csv", "chosen.json", "pictures.jsonl", "about.json")
    return {name: (folder / name).read_bytes() for name in names}


# -------------------------------------------------------------------------------- no rights


def test_positive_control_rights_are_taken_from_root_too(tmp_path):
    with closed(tmp_path, 0o555), pytest.raises(PermissionError):
        (tmp_path / "x").write_text("")
    (tmp_path / "x").write_text("")


@pytest.mark.parametrize("what", ["new", "started", "ended"])
def test_a_folder_that_cannot_be_written(evaluate, whole, tmp_path, what):
    (tmp_path / "closed").mkdir()
    folder = tmp_path / "closed" / "run"
    if what != "new":
        shutil.copytree(whole, folder)
    if what == "started":
        min((folder / "units").rglob("*.zip")).unlink()
    before = contents(tmp_path / "closed")
    with closed(tmp_path / "closed", 0o555):
        refused(evaluate(folder), "Permission denied")
        assert evaluate(folder, "--dry-run").exit_code == 0
    assert contents(tmp_path / "closed") == before
    assert evaluate(folder).exit_code == 0
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("name", ["run", "new"])
def test_a_folder_that_one_may_not_look_into(evaluate, whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "closed" / "run")
    with closed(tmp_path / "closed", 0):
        for options in ((), ("--store", whole)):
            refused(evaluate(tmp_path / "closed" / name, *options), "Permission denied")


def test_a_store_that_cannot_be_written_and_has_all(evaluate, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "store")
    with closed(store, 0o555):
        assert evaluate(tmp_path / "out", "--store", store).exit_code == 0
    ours, theirs = contents(tmp_path / "out"), contents(whole)
    results = {n for n in theirs if "/" not in n} - {"grid.json"}
    assert {n: ours[n] for n in results} == {n: theirs[n] for n in results}
    assert not [name for name in ours if "/" in name]


def test_a_store_that_cannot_be_written_and_lacks_a_unit(evaluate, whole, tmp_path):
    store = without_a_unit(whole, tmp_path)
    with closed(store, 0o555):
        refused(evaluate(tmp_path / "out", "--store", store), "Permission denied")
    assert evaluate(tmp_path / "out", "--store", store).exit_code == 0


@pytest.mark.parametrize("kind", ["units", "readings", ""])
def test_a_damaged_unit_that_can_be_neither_replaced_nor_removed(evaluate, whole, tmp_path, kind):
    store = shutil.copytree(whole, tmp_path / "run")
    unit = max((store / "units").rglob("*.zip"))
    data = bytearray(unit.read_bytes())
    data[len(data) // 3] ^= 255
    unit.write_bytes(data)
    for reading in (store / "readings").rglob(f"{unit.stem}*"):
        reading.unlink()
    with closed(store / kind, 0o555):
        refused(evaluate(store), "Permission denied")
    assert evaluate(store).exit_code == 0
    assert contents(store) == contents(whole)
