"""What `ine --help` and the help of commands show, and old names of options."""

import inspect
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from ine.cli import COMMANDS, TASKS, choices, cli
from ine.cli.command import ExpertOption, IneCommand, expert, ordinary_and_expert
from ine.cli.old_names import OLD_OPTIONS, current_arguments
from ine.cli.reference import cli_reference


def leaves(group=cli, path=()):
    """Yield (full name, command) of every command that is no group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


LEAVES = dict(leaves())


def help_of(name):
    done = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="ine")
    assert done.exit_code == 0, done.output
    return done.stdout


def options_in(text):
    """The first name of every option in a piece of help."""
    words = (line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  -"))
    return list(words)


# --- tasks ------------------------------------------------------------------------------------


def test_every_command_belongs_to_one_task():
    assert sorted(name for names in TASKS.values() for name in names) == sorted(COMMANDS)


def test_commands_are_listed_under_their_tasks():
    text = help_of("")
    for task, names in TASKS.items():
        section = text.split(f"{task}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == list(names)


# --- ordinary and expert options ----------------------------------------------------------------


@pytest.mark.parametrize("name", LEAVES)
def test_ordinary_help_is_short(name):
    ordinary, _, special = help_of(name).partition("Expert options:\n")
    assert len(options_in(ordinary.split("Options:\n")[1])) < 15
    shown = options_in(ordinary.split("Options:\n")[1]) + options_in(special)
    declared = [p for p in LEAVES[name].params if isinstance(p, click.Option) and not p.hidden]
    assert len(shown) == len(declared) + 1  # and --help


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_is_of_our_class(name):
    assert isinstance(LEAVES[name], IneCommand)


def test_expert_options_are_a_list_of_their_own_only_where_there_are_many():
    assert "Expert options:" in help_of("generate")
    assert "Expert options:" not in help_of("recipe show")
    assert any(isinstance(p, ExpertOption) for p in LEAVES["recipe show"].params)
    section = cli_reference().split("## ine generate")[1].split("## ine ")[0]
    ordinary, special = section.split("Expert options:")
    assert "`--prompt TEXT`" in ordinary
    assert "`--scheduler " in special


def test_a_short_list_is_not_divided():
    @click.command(cls=IneCommand)
    @click.option("--plain")
    @expert("--special")
    def few(**given):
        pass

    ordinary, special = ordinary_and_expert(few, click.Context(few))
    assert [o.opts[-1] for o in ordinary] == ["--plain", "--special", "--help"]
    assert special == []


def body_lines(function):
    """The lines of a function without its decorators."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return len(lines) - start


@pytest.mark.parametrize("name", LEAVES)
def test_command_functions_are_short(name):
    assert body_lines(LEAVES[name].callback) <= 60


# --- choices ----------------------------------------------------------------------------------


def test_choices_are_those_of_the_tables():
    from ine.attacks.attacker import METHODS as ATTACKS
    from ine.attacks.proposals import PROPOSALS
    from ine.embeddings.export import TARGETS
    from ine.guidance.away import Steer
    from ine.guidance.table import METHODS
    from ine.observers.unknown import OnUnknown
    from ine.refining.settings import PRESETS
    from ine.sampling import SCHEDULERS
    from ine.unlearning.esd import GROUPS
    from ine.unlearning.run import SETTINGS
    from ine.unlearning.uce import UceSettings

    presets = {name: method.presets for name, method in METHODS.items() if method.presets}
    tables = {
        "PRESETS": presets.pop("sld"),
        "OBSERVED": presets.pop("vl-dnp"),
        "STEER": get_args(Steer),
        "ON_UNKNOWN": get_args(OnUnknown),
        "SCHEDULERS": tuple(SCHEDULERS),
        "TARGETS": tuple(TARGETS),
        "ERASERS": tuple(SETTINGS),
        "VARIANTS": get_args(UceSettings.__annotations__["variant"]),
        "GROUPS": tuple(GROUPS),
        "ATTACKS": tuple(ATTACKS),
        "PROPOSALS": tuple(PROPOSALS),
        "REFINE_PROTOCOLS": tuple(PRESETS),
    }
    assert not presets
    assert tables == {name: getattr(choices, name) for name in vars(choices) if name.isupper()}


@pytest.mark.parametrize(
    ("name", "option", "table"),
    [
        ("generate", "--scheduler", "SCHEDULERS"),
        ("embedding convert", "--to", "TARGETS"),
        ("unlearn", "--method", "ERASERS"),
        ("attack", "--method", "ATTACKS"),
    ],
)
def test_options_offer_the_choices(name, option, table):
    [param] = [p for p in LEAVES[name].params if option in p.opts]
    assert tuple(param.type.choices) == getattr(choices, table)


# --- old names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "args", "now", "notice"),
    [
        ("generate", ["--rewind", "1,2"], ["--restart", "1,2"], "--rewind is now --restart"),
        ("attack", ["--rewind=1,2"], ["--restart=1,2"], "--rewind is now --restart"),
        ("calibrate", ["--gate", "recognition", "a"], ["a"], "--gate recognition: this is always"),
        ("calibrate", ["a", "--gate=recognition"], ["a"], "--gate recognition: this is always"),
        ("generate", ["--several", "join", "--seed", "1"], ["--seed", "1"], "--several join: this"),
        ("evaluate", ["g.yaml", "--several", "join"], ["g.yaml"], "--several join: this"),
    ],
)
def test_old_names_are_read_with_a_notice(caplog, command, args, now, notice):
    with caplog.at_level("WARNING", "ine"):
        assert current_arguments(args, command) == now
    [message] = caplog.messages
    assert message.startswith(notice)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("calibrate", ["--gate", "presence"], "--gate presence: .*probe gate"),
        ("calibrate", ["--gate=posterior"], "--gate posterior: .*probe gate"),
        ("calibrate", ["--measure", "cosine"], "--measure cosine: .*presence gate"),
        ("generate", ["--several", "match"], "--several match: .*always joined"),
        ("evaluate", ["--several", "match"], "--several match: .*always joined"),
        ("invert", ["--clusters", "4"], "--clusters 4: .*inversion.vectors=16"),
        ("generate", ["--guidance", "dynamic"], "--guidance dynamic: .*was removed"),
        ("compare", ["--guidance=dynamic"], "--guidance dynamic: .*was removed"),
    ],
)
def test_what_was_removed_is_refused_with_the_reason(command, args, words):
    with pytest.raises(click.UsageError, match=words) as refused:
        current_arguments(args, command)
    assert "docs/lab-log.md" in refused.value.message


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("generate", ["--guidance", "sld", "--gate", "recognition"]),
        ("generate", ["--prompt", "a dog", "--", "--rewind"]),
        ("unet show", ["--rewind", "1"]),
        ("calibrate", []),
    ],
)
def test_other_arguments_stay(caplog, command, args):
    assert current_arguments(args, command) == args
    assert not caplog.messages


def test_old_names_work_from_the_command_line(run_ine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_ine("generate", "--prompt", "x", "--rewind", "1,2", "--dry-run")
    assert "Warning: --rewind is now --restart; the old name works in this release only\n" in (
        done.stderr
    )
    assert "--restart needs --gate FILE" in done.stderr
    done = run_ine("calibrate", "x.safetensors", "--gate", "presence")
    assert done.exit_code == 2
    assert "--gate presence: the presence and posterior gates were removed" in done.stderr


def test_old_options_are_hidden_and_of_commands_that_exist():
    for old in OLD_OPTIONS:
        for name in set(old.commands) & set(LEAVES):
            options = {option for param in LEAVES[name].params for option in param.opts}
            assert old.removed is not None or old.option not in options
            assert not old.new_name or old.new_name in options
    assert "--rewind" not in cli_reference()
