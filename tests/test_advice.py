"""Advice in messages names only options that the command at hand has.

Which commands can show a message is read from the source: from a command's function along every
name that functions, classes and tables mention. That finds too many ways rather than too few;
ways that cannot be gone are listed with their reason.
"""

import ast
import logging
from functools import cache
from pathlib import Path

import click
import pytest

from ine.cli import cli
from ine.cli.advice import ANYWHERE, INSTEAD, OPTION, advised, fitted, options_of
from ine.errors import OutputError
from ine.files import check_free

ROOT = Path(__file__).parent.parent

IMPOSSIBLE = {
    ("demo", None): "the bundled model and the demo's own files, never those of a user",
    ("judge check", "--floor"): "it has no PICTURES",
    ("judge", "--model"): "it loads no base model",
    ("observe", "--model"): "it loads no base model",
    ("posi pairs", "--model"): "its one base model is the bundled one, with which rules look",
    ("posi rewrite", "--model"): "its one base model is the bundled one, with which rules look",
    ("refine dataset check", "--skip-empty"): "it reads a set that build has checked",
    ("refine dataset check", "--column"): "it reads a set, whose columns are fixed",
    ("refine dataset check", "--model"): "it loads no base model",
    ("refine dataset check", "--dtype"): "it loads no base model",
    ("unet show", "--dtype"): "it compares in float32",
    ("prompts show", "--skip-empty"): "it leaves empty rows out by itself",
    ("report", "--model"): "it loads no model; the type of a metric mentions what does",
    ("report", "--dtype"): "it loads no model; the type of a metric mentions what does",
    ("report", "--out"): "it removes and locks nothing in a store",
    ("report diff", "--store"): "it removes and locks nothing in a store",
    ("report show", "--store"): "it has --store",
    ("audit", "--column"): "its prompts are the recipe's",
    ("audit", "--skip-empty"): "its prompts are the recipe's",
    ("defend", "--column"): "its prompts are the recipe's",
    ("defend", "--skip-empty"): "its prompts are the recipe's",
    ("defend", "--gate"): "its grids name their gates",
    ("defend", "--no-gate"): "its grids name their gates",
    ("defend", "--no-look-ahead"): "its grids name their gates",
    ("compare", "--no-gate"): "its grids name their gates",
    ("compare", "--no-look-ahead"): "its grids name their gates",
    ("defend", "--pictures"): "it leaves out rates that its pictures cannot tell",
    ("defend", "--false-open"): "it leaves out rates that its pictures cannot tell",
}
"""{(command or group, option or None for any): why such advice is never shown there}."""

NO_MESSAGES = {"ine.report.frontier", "ine.cli.old_names", "ine.embeddings.uses"}
"""Modules with custom properties of CSS, with what other programs are given, and with the reasons
for which click refuses an option, which name that command's own."""


@cache
def sources():
    """{module: its tree}."""
    found = {}
    for path in sorted((ROOT / "ine").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


@cache
def definitions():
    """{(module, name): node} of functions, classes and assignments at the top of modules."""
    found = {}
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[module, node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                found |= {(module, n.id): node for n in names}
    return found


def imported(tree):
    """{name: (module, attribute or None)} of what a tree imports from ine."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ine"):
            found |= {a.asname or a.name: (node.module, a.name) for a in node.names}
    return found


@cache
def mentioned(module, name):
    """The definitions that one mentions."""
    node, top = definitions()[module, name], sources()[module].body
    imports = [n for n in top if isinstance(n, ast.ImportFrom)]
    names = imported(ast.Module(body=imports, type_ignores=[])) | imported(node)
    found = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name):
            found.add(names.get(n.id, (module, n.id)))
        elif isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in names:
            found.add((".".join(names[n.value.id]), n.attr))
    return found & set(definitions())


def reached(start):
    """Every definition that is reached from one."""
    seen, todo = set(), [start]
    while todo:
        key = todo.pop()
        if key not in seen:
            seen.add(key)
            todo += mentioned(*key)
    return seen


@cache
def messages(module, name):
    """The texts of a definition, docstrings and declarations of options left out."""
    node = definitions()[module, name]
    skipped = set()
    for n in ast.walk(node):
        if isinstance(n, ast.FunctionDef | ast.ClassDef):
            skipped |= {id(d) for d in n.decorator_list}
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant):
            skipped.add(id(n))
    found, todo = [], [node]
    while todo:
        n = todo.pop()
        if id(n) in skipped:
            continue
        if isinstance(n, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "X" for v in n.values]
            found.append("".join(parts))
            todo += [v for v in n.values if not isinstance(v, ast.Constant)]
        elif isinstance(n, ast.Constant) and isinstance(n.value, str):
            found.append(n.value)
        else:
            todo += ast.iter_child_nodes(n)
    return [text for text in found if OPTION.search(text)]


def commands(group=cli, path=()):
    for name in group.commands:
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def function_of(command):
    function = command.callback
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__module__, function.__name__


def is_possible(name, option):
    return not any(
        name.split()[: len(where.split())] == where.split() and what in (None, option)
        for where, what in IMPOSSIBLE
    )


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda v: str(v)[:20])
def test_advice_names_only_options_that_the_command_has(name, command):
    wrong = []
    for key in reached(function_of(command)):
        if key[0] in NO_MESSAGES:
            continue
        for text in messages(*key):
            shown = fitted(text, name, command, cli.find)
            if shown.count("has no") > text.count("has no"):
                lacking = OPTION.findall(shown.rsplit("has no", 1)[1])
                wrong += [f"{key}: {o}: {text}" for o in lacking if is_possible(name, o)]
    advice = (
        "reword it, give ine/cli/advice.py what to say instead, or say here why it cannot be shown"
    )
    assert not wrong, "\n".join([*wrong, advice])


def test_the_reader_of_sources_finds_them_all():
    found = reached(("ine.cli.evaluate", "evaluate"))
    assert ("ine.prompts.reading", "_whole_set") in found
    assert any("--skip-empty" in text for text in messages("ine.prompts.reading", "_whole_set"))
    assert ("ine.weights.fit", "check_tensors") in reached(("ine.cli.generate", "generate"))
    assert sum(len(messages(*key)) for key in definitions()) > 100


def test_every_entry_of_the_tables_is_of_use():
    texts = "\n".join(text for key in definitions() for text in messages(*key))
    fragments = [phrase for _, phrase, _ in ANYWHERE]
    fragments += [phrase for phrases in INSTEAD.values() for phrase, _ in phrases]
    parts = [p for f in fragments for p in f.split(" ") if p.startswith("--")]
    assert parts
    assert [p for p in parts if p.rstrip(",;)") not in texts] == []
    assert set(INSTEAD) <= {name for name, _ in commands()}


def found_in(name):
    return dict(commands())[name]


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("generate", "choose a base with --model", "choose a base with --model"),
        ("evaluate", "choose a base with --model", "choose a base as base of the grid's model"),
        ("generate", "free space or choose another --out", "free space or choose another --out"),
        ("audit", "give --force to start over", "delete it to start over"),
        ("compare", "use --clip-skip 2", "use --clip-skip 2 (`ine compare` has no --clip-skip)"),
        ("compare", "use: ine generate --clip-skip 2", "use: ine generate --clip-skip 2"),
        ("compare", "get it: `hf download x --include y`", "get it: `hf download x --include y`"),
        ("compare", "--clip-skip: was given", "--clip-skip: was given"),
        ("report show", "use --out", "use --out (`ine report show` has no --out)"),
    ],
)
def test_messages_are_fitted(name, text, shown):
    assert fitted(text, name, found_in(name), cli.find) == shown


def test_options_of_a_group_are_those_of_its_commands():
    assert {"--skip-empty", "--rows"} <= options_of(cli.commands["prompts"])
    assert list(advised("see `ine prompts check --skip-empty`, or --rows", cli.find)) == ["--rows"]


def test_errors_and_warnings_are_fitted_where_they_are_shown(run_ine, tmp_path, monkeypatch):
    target = tmp_path / "mine.yaml"
    target.write_text("")
    with pytest.raises(OutputError, match="another --out"):
        check_free(target, force=False)
    done = run_ine("recipe", "copy", "fire", target)
    assert "give --force to replace it, or another DEST" in done.stderr
    assert "--out" not in done.stderr

    def note(*args):
        logging.getLogger("ine").warning("%s; choose another --out", target)

    monkeypatch.setattr("ine.cli.recipe.check_free", note)
    done = run_ine("recipe", "copy", "fire", target)
    assert f"Warning: {target}; choose another DEST" in done.stderr
