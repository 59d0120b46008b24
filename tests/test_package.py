import ast
import configparser
import fnmatch
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    ".ci", ".gitignore", ".ruff.toml", "LICENSE", "NOTICE", "README.md", "constraints.txt",
    "docs", "embeddings", "ine", "recipes", "setup.cfg", "setup.py", "tests",
}  # fmt: skip
LAYERS = (
    *("errors", "files", "locks", "yaml_files", "schedules", "families", "weights", "models"),
    *("embeddings", "finite", "watch", "runtime", "decoding", "text", "recipe", "pictures"),
    *("display", "prompts", "detectors", "store", "observers", "guidance", "sampling", "gallery"),
    *("refining", "optim", "training", "posi", "inversion"),
    *("calibration", "unlearning", "verification", "attacks", "evaluation", "report", "studies"),
    *("protection", "cli", "__main__"),
)
"""The parts of ine from the ground up, one per folder; each imports only from those before it."""


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def is_ignored(name):
    patterns = [
        line.strip().strip("/")
        for line in (ROOT / ".gitignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def python(*args, **kwargs):
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=120, **kwargs
    )


# ------------------------------------------------------------------------------ the repository


def test_the_top_level_holds_what_belongs_there_and_nothing_else():
    names = {p.name for p in ROOT.iterdir()} - {".git"}
    assert {n for n in names if not is_ignored(n)} == TOP_LEVEL


@pytest.mark.parametrize("args", [("check",), ("format", "--check")], ids=["check", "format"])
def test_ruff_is_content(args):
    done = python("-m", "ruff", *args, "--no-cache", ".", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torchvision_is_absent():
    assert importlib.util.find_spec("torchvision") is None


def test_constraints_pin_every_direct_dependency():
    pinned = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    wanted = setup_cfg()["options"]["install_requires"]
    wanted += "".join(setup_cfg()["options.extras_require"].values())
    names = re.findall(r"^([\w.-]+)", wanted, re.MULTILINE)
    assert names
    assert set(names) <= set(pinned)


def test_every_library_that_ine_imports_is_declared():
    trees = [ast.parse(p.read_text()) for p in (ROOT / "ine").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    used = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"ine"}
    wanted = setup_cfg()["options"]["install_requires"]
    extras = setup_cfg()["options.extras_require"]
    wanted += extras["vlm"] + extras["train"]
    declared = set(re.findall(r"^([\w.-]+)", wanted, re.MULTILINE))
    # NudeNet brings OpenCV, under either of two names, and its own runtime.
    packages = {"yaml": "pyyaml", "PIL": "pillow", "cv2": "nudenet", "onnxruntime": "nudenet"}
    assert {packages.get(name, name) for name in used} <= declared


def test_notice_names_every_icon_set_with_its_licence():
    notice = (ROOT / "NOTICE").read_text()
    world = yaml.safe_load((ROOT / "recipes/mini/world.yaml").read_text())
    sets = {name: world["sets"][name] for name in world["drawn_by"]}
    titles = {
        "Apache-2.0": "Apache License 2.0",
        "MIT": "MIT License",
        "CC-BY-4.0": "Creative Commons Attribution 4.0",
    }
    sections = notice.split("\n\n")
    for entry in sets.values():
        name, version = entry["package"].rsplit("@", 1)
        section = next(s for s in sections if f"npm {name} {version};" in s)
        assert section.startswith(titles[entry["licence"]]), name


# ----------------------------------------------------------------------------------- imports


def test_help_imports_neither_torch_nor_the_commands():
    code = (
        "import sys\n"
        "from ine.cli import cli\n"
        "try: cli(['--help'], prog_name='ine')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'yaml'}\n"
        "ours = {m for m in sys.modules if m.startswith('ine.')}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert ours == {'ine.cli', 'ine.cli.logs', 'ine.errors'}, ours\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Make a defence:" in done.stdout


def test_importing_the_command_modules_imports_no_torch():
    code = (
        "import sys\n"
        "from ine.cli import COMMANDS, cli\n"
        "import ine.cli.reference\n"
        "assert all(cli.commands[name].name == name for name in COMMANDS)\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_import_ine_is_free_of_torch_until_a_name_is_used():
    code = (
        "import sys, ine\n"
        "assert 'torch' not in sys.modules\n"
        "ine.negative_prompt_embeds\n"
        "assert 'torch' in sys.modules\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_every_exported_name_exists():
    import ine

    for name in ine.__all__:
        assert getattr(ine, name) is not None


def module_of(path):
    """The part of `ine` that a file belongs to: "text", "models", ...; "" for ine itself."""
    first = path.relative_to(ROOT / "ine").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def parts_imported_by(source):
    """The parts of `ine` that a source text imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names = [node.module]
            if node.module == "ine":
                names = [f"ine.{alias.name}" for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("ine.")}
    return found - {"__version__"}


def level(part):
    assert part in LAYERS, f"ine.{part} has no place in LAYERS; add it there and in architecture.md"
    return LAYERS.index(part)


def wrong_directions(own, source):
    """Return the parts above `own` that a source text imports."""
    return {other for other in parts_imported_by(source) if level(other) > level(own)}


def test_the_reader_of_imports_sees_them_all():
    source = "import ine.text.encode\ndef f():\n    from ine.cli import x\n"
    source += "    from ine import sampling\n"
    assert parts_imported_by(source) == {"text", "cli", "sampling"}
    assert level("text") < level("sampling") < level("cli")


SOURCES = [p for p in (ROOT / "ine").rglob("*.py") if module_of(p)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    wrong = wrong_directions(module_of(path), path.read_text())
    assert not wrong, f"{path} imports {wrong}, which stand above it in LAYERS"


@pytest.mark.parametrize("own", LAYERS[:-1])
def test_an_import_from_above_is_found(own):
    """The test above can fail: for every part, an import of the next one above is wrong."""
    above = LAYERS[level(own) + 1]
    assert wrong_directions(own, f"from ine.{above} import x") == {above}
    assert not wrong_directions(above, f"from ine.{own} import x")


def modules_imported_by(source, known):
    """Return the modules among `known` that a source text imports, inside functions as well."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= whole & known or {node.module}
    return names & known


def circle_in(imports):
    """Return modules that import each other in a circle, or None; {module: those it imports}."""
    done = set()

    def walk(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        found = next(filter(None, (walk(m, [*path, module]) for m in imports[module])), None)
        done.add(module)
        return found

    return next(filter(None, (walk(module, []) for module in sorted(imports))), None)


def test_no_modules_import_each_other_in_a_circle():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES]
    modules = dict(zip((n.removesuffix(".__init__") for n in names), SOURCES, strict=True))
    known = set(modules)
    imports = {m: modules_imported_by(p.read_text(), known) - {m} for m, p in modules.items()}
    assert circle_in(imports) is None


def test_a_circle_of_imports_is_found():
    known = {"ine.a.x", "ine.a.y", "ine.b"}
    source = "import ine.b\ndef f():\n    from ine.a import y\n    from ine.a.x import z\n"
    assert modules_imported_by(source, known) == known
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_every_part_has_a_place():
    assert {module_of(path) for path in SOURCES} == set(LAYERS)


# -------------------------------------------------------------------------------- the package


def test_every_package_folder_is_listed_in_setup_cfg():
    listed = set(setup_cfg()["options"]["packages"].split())
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "ine").rglob("__init__.py")}
    shipped = {"ine.shipped.recipes", "ine.shipped.embeddings"}
    assert listed == {".".join(f.parts) for f in folders} | shipped


def test_the_console_script_is_main():
    import ine.cli

    (script,) = entry_points(group="console_scripts", name="ine")
    assert script.load() is ine.cli.main


def shipped_files():
    """Files that an installed ine has, by their place in it -> their place in the repository."""
    places = {
        "ine/shipped/recipes": "recipes",
        "ine/shipped/embeddings": "embeddings",
        "ine/models": "ine/models",
        "ine/evaluation": "ine/evaluation",
        "ine/cli": "ine/cli",
    }
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}": path
        for place, folder in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != ".gitkeep"
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with ine as installed from its wheel, built from nothing but the known files."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for name in TOP_LEVEL - {"tests", "docs", ".ci"}:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=skip)
        else:
            shutil.copy(path, source / name)
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    build = ("wheel", "--no-deps", "--no-build-isolation", "-w", work, ".")
    done = python(*pip, *map(str, build), cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = work.glob("ine-*.whl")
    target = work / "target"
    done = python(*pip, "install", "--no-deps", "--target", str(target), str(wheel))
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_wheel_holds_every_shipped_file(installed):
    expected = shipped_files()
    folders = {"shipped", "models", "evaluation", "cli"}
    assert {n.split("/")[1] for n in expected} == folders
    for name, path in expected.items():
        assert (installed / name).is_file(), name
        assert (installed / name).read_bytes() == path.read_bytes(), name


def test_the_wheel_holds_one_top_level_package(installed):
    names = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert names - {"bin"} == {"ine"}
    assert not list(installed.glob("ine/**/tests"))


def test_the_licence_travels_with_the_wheel(installed):
    names = {p.name for p in installed.glob("ine-*.dist-info/**/*")}
    assert {"LICENSE", "NOTICE"} <= names


def run_installed(installed, folder, *args):
    # The installed copy must win over a checkout that is installed in editable mode.
    return python(*args, cwd=folder, env={**os.environ, "PYTHONPATH": str(installed)})


def test_an_installed_ine_finds_what_ships_with_it(installed, tmp_path):
    done = run_installed(installed, tmp_path, "-m", "ine", "recipe", "list")
    assert done.returncode == 0, done.stderr
    from ine.recipe import list_recipes

    assert [line.split()[0] for line in done.stdout.splitlines()] == list(list_recipes())
    code = (
        "from pathlib import Path\n"
        "import ine\n"
        "from ine.files import shipped\n"
        "from ine.models.parts import MINI_FOLDER\n"
        "home = Path(ine.__file__).parent\n"
        f"assert home == Path({str(installed)!r}) / 'ine', home\n"
        "for folder in (shipped('recipes'), shipped('embeddings'), MINI_FOLDER):\n"
        "    assert folder.is_relative_to(home), folder\n"
        "    assert folder.is_dir(), folder\n"
        "assert (MINI_FOLDER / 'model_index.json').is_file()\n"
        "assert (shipped('recipes') / 'mini' / 'world.yaml').is_file()\n"
    )
    done = run_installed(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_checkout_finds_what_ships_with_it():
    from ine.files import shipped

    assert shipped("recipes") == ROOT / "recipes"
    assert shipped("embeddings") == ROOT / "embeddings"
    with pytest.raises(FileNotFoundError, match="shipped nonsense are missing"):
        shipped("nonsense")
