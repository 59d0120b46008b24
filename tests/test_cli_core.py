import errno
import logging
import sys
import types

import click
import pytest
from click.testing import CliRunner

from ine import errors
from ine.cli import COMMANDS, IneGroup, cli, explain, options


@pytest.fixture
def raise_from_command(monkeypatch):
    """Run `ine boom`, a command that does as it is asked, through the real group."""

    def run(action, *args):
        @click.command()
        def boom():
            action()

        module = types.ModuleType("boom_module")
        module.boom = boom
        monkeypatch.setitem(sys.modules, "boom_module", module)
        group = IneGroup(
            "ine",
            table={"boom": ("boom_module", "boom", "Do it.")},
            params=cli.params,
            callback=lambda **_: None,
        )
        return CliRunner().invoke(group, [*args, "boom"])

    return run


def throw(error):
    def action():
        raise error

    return action


KINDS = [k for k in vars(errors).values() if isinstance(k, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mendable_error_is_one_line_and_its_exit_code(raise_from_command, kind):
    result = raise_from_command(throw(kind("x.yaml: is wrong")))
    assert result.stderr == "Error: x.yaml: is wrong\n"
    assert result.stdout == ""
    assert result.exit_code == kind.exit_code


def test_exit_codes_differ_and_stay_clear_of_the_reserved_ones():
    codes = [k.exit_code for k in KINDS]
    assert len(set(codes)) == len(codes)
    assert not {0, 2, 70, 130} & set(codes)


def test_success_is_zero_whatever_a_command_returns(raise_from_command):
    assert raise_from_command(lambda: 5).exit_code == 0


def test_a_full_disk_is_an_output_error(raise_from_command):
    full = OSError(errno.ENOSPC, "No space left on device", "out.png")
    result = raise_from_command(throw(full))
    assert result.exit_code == 9
    # This command has no --out; tests/test_advice.py has those that do.
    assert result.stderr == "Error: out.png: the disk is full; free space\n"


def test_ctrl_c_is_130(raise_from_command):
    for error in (KeyboardInterrupt(), click.Abort()):
        result = raise_from_command(throw(error))
        assert result.exit_code == 130
        assert result.stderr.startswith("Interrupted.")


def test_anything_else_is_called_a_bug(raise_from_command):
    result = raise_from_command(throw(ZeroDivisionError("division by zero")))
    assert result.exit_code == 70
    assert "unexpected ZeroDivisionError: division by zero" in result.stderr
    assert "This is a bug in ine" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), errors.ModelError("x")])
def test_debug_shows_the_traceback(raise_from_command, error):
    result = raise_from_command(throw(error), "--debug")
    assert "Traceback" in result.stderr
    assert "in action" in result.stderr


def test_a_closed_pipe_is_left_to_click(raise_from_command):
    result = raise_from_command(throw(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert result.exit_code == 1
    assert "bug" not in result.stderr


def test_a_command_may_choose_its_exit_code(raise_from_command):
    result = raise_from_command(lambda: click.get_current_context().exit(4))
    assert (result.exit_code, result.output) == (4, "")


def test_usage_errors_are_two_and_suggest_a_command(run_ine):
    result = run_ine("recipee")
    assert result.exit_code == 2
    assert "No such command 'recipee'" in result.stderr
    assert "'recipe'" in result.stderr
    assert run_ine("--nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        ((), "progress\nWarning: careful\nError: broken\n"),
        (("-v",), "details\nprogress\nWarning: careful\nError: broken\n"),
        (("-q",), "Warning: careful\nError: broken\n"),
        (("-qq",), "Error: broken\n"),
        (("-qqq",), "Error: broken\n"),
    ],
)
def test_verbosity_chooses_what_reaches_stderr(raise_from_command, flags, seen):
    log = logging.getLogger("ine")

    def talk():
        log.debug("details")
        log.info("progress")
        log.warning("careful")
        log.error("broken")

    result = raise_from_command(talk, *flags)
    assert result.stderr == seen
    assert result.stdout == ""


def test_logging_is_as_before_when_a_command_ends(raise_from_command):
    log = logging.getLogger("ine")
    before = (log.level, list(log.handlers))
    raise_from_command(throw(ValueError()), "-v")
    assert (log.level, log.handlers) == before


def test_explain_names_the_disk_only_when_it_is_full():
    assert "disk" in explain(OSError(errno.ENOSPC, "No space"))[0]
    assert "disk" not in explain(OSError(errno.EACCES, "Permission denied"))[0]


def test_version(run_ine):
    from ine import __version__

    assert run_ine("--version").stdout == f"ine, version {__version__}\n"


def test_help_lists_every_command_with_its_line(run_ine):
    text = run_ine("--help").stdout
    for name, (_, _, line) in COMMANDS.items():
        assert f"  {name}" in text
        assert line in text


@click.command()
@options.device
@options.dtype
@options.seed
@options.out
@options.force
@options.json_output
@options.dry_run
@options.overrides
@options.model
@options.unet
def everything(**values):
    click.echo(sorted(values.items()))


@pytest.mark.parametrize(
    "args",
    [
        ["--device", "gpu"],
        ["--device", "cuda:x"],
        ["--dtype", "int8"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--set", "steps"],
        ["--set", "=3"],
    ],
)
def test_shared_options_refuse_what_cannot_be(args):
    result = CliRunner().invoke(everything, args)
    assert result.exit_code == 2
    assert args[0] in result.stderr


def test_shared_options_accept_what_can_be(tmp_path):
    weights = tmp_path / "w.pt"
    weights.touch()
    args = ["--device", "cuda:1", "--set", "a.b=c=d", "--set", "x=", "--unet", str(weights)]
    result = CliRunner().invoke(everything, args)
    assert result.exit_code == 0, result.stderr
    assert "('overrides', ('a.b=c=d', 'x='))" in result.stdout
    assert "('device', 'cuda:1')" in result.stdout


def test_every_command_says_what_it_and_its_options_do():
    def walk(command, path):
        assert command.help, f"{path} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.opts[0]} has no help"
        if isinstance(command, click.Group):
            for name in command.list_commands(None):
                walk(command.get_command(None, name), f"{path} {name}")

    walk(cli, "ine")


def test_options_can_come_from_the_environment(run_ine):
    command = ("recipe", "show", "no-such-recipe")
    assert "Traceback" not in run_ine(*command).stderr
    assert "Traceback" in run_ine(*command, env={"INE_DEBUG": "1"}).stderr
    listed = run_ine("recipe", "list", env={"INE_RECIPE_LIST_AS_JSON": "1"}).stdout
    assert listed.startswith("{")
