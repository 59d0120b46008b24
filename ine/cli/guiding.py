"""Options that say how a negative acts, and the `Guidance` that they stand for."""

import logging
from pathlib import Path

import click

from ine.cli import options

log = logging.getLogger("ine")


def guiding(command):
    """Add the options of guidance to a command."""
    return options.together(*OPTIONS)(command)


OPTIONS = (
    click.option(
        "--guidance",
        type=click.Choice(["cfg", "additive", "sld", "safree", "dynamic"]),
        default="cfg",
        show_default=True,
        help="How the negative acts.",
    ),
    click.option(
        "--preset",
        metavar="NAME",
        help="sld: weak, weak-diffusers, medium, strong or max.",
    ),
    click.option(
        "--negative-strength",
        type=click.FloatRange(min=0),
        metavar="S",
        help="Strength of the negative (additive: default what the embedding states, else W - 1).",
    ),
    click.option(
        "--guidance-set",
        "settings",
        multiple=True,
        metavar="SETTING=VALUE",
        help="Another setting of the method, such as warmup=5; may be repeated.",
    ),
    options.several,
    click.option(
        "--gate",
        "gate_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Act only on pictures for which this gate of `ine calibrate` opens.",
    ),
    click.option(
        "--gate-window",
        metavar="FROM:TO",
        help="Act only in this part of the run, such as 0:0.6.",
    ),
    click.option(
        "--rewind",
        is_flag=False,
        flag_value="1,2,4",
        metavar="LADDER",
        help="Begin a picture anew, steered from its start, where the gate opens; again and "
        "stronger where it opens again (default 1,2,4 times the strength).",
    ),
)


def read_window(text):
    """Return the `Window` of "FROM:TO", or None without a text.

    Raises:
        IneError: Not two fractions of the run.
    """
    from ine.errors import IneError
    from ine.guidance.gates import Window

    if text is None:
        return None
    first, _, last = text.partition(":")
    try:
        return Window(float(first), float(last))
    except ValueError:
        raise IneError(f"--gate-window {text}: expected two fractions such as 0:0.6") from None


def read_ladder(text):
    """Return the multiples of "1,2,4".

    Raises:
        IneError: Not numbers.
    """
    from ine.errors import IneError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise IneError(f"--rewind {text}: expected multiples such as 1,2,4") from None


def guidance_of(parts, sampler, embeddings, text, given):
    """Return the `Guidance` that the options of `guiding` stand for.

    Args:
        parts: The model.
        sampler: `SamplerSettings`.
        embeddings: What was read of `--negative-embedding`.
        text: `--negative-prompt`.
        given: {option: value} as click gives them.

    Raises:
        IneError: Options that make no sense together, or a gate of another embedding.
    """
    from dataclasses import replace

    from ine.errors import IneError
    from ine.guidance.additive import suggested_strength
    from ine.guidance.calibrate import check_calibrated, read_calibration
    from ine.guidance.gates import Gated
    from ine.guidance.negative import join_or_match
    from ine.guidance.rewind import Rewind
    from ine.guidance.table import build_guidance, read_settings

    settings = read_settings(given["settings"])
    strength = given["negative_strength"]
    if given["guidance"] == "additive" and strength is None:
        strength = suggested_strength(embeddings)
        if strength is not None:
            log.info("negative strength %g (from the embedding)", strength)
        elif given["rewind"]:
            strength = sampler.guidance_scale - 1  # the method's own, as a number to multiply
    if strength is not None:
        if given["guidance"] in ("cfg", "safree"):
            raise click.UsageError(
                f"--negative-strength: {given['guidance']} has none; --guidance additive has one"
            )
        settings["strength"] = strength
    negative = join_or_match(text, embeddings, given["several"])
    if given["guidance"] != "cfg" and not negative.prompt():
        raise IneError(
            f"--guidance {given['guidance']}: nothing to steer away from; give "
            "--negative-embedding or --negative-prompt"
        )
    guidance = build_guidance(given["guidance"], negative, given["preset"], settings)
    window = read_window(given["gate_window"])
    if given["rewind"] and not given["gate_file"]:
        raise click.UsageError("--rewind needs --gate FILE: who is begun anew is for a gate to say")
    if given["gate_file"]:
        calibration = read_calibration(given["gate_file"])
        for note in check_calibrated(calibration, embeddings, parts, sampler):
            log.info("note: %s", note)
        if given["rewind"]:
            # The gate looks when it wants; the window is for what acts in the attempts after.
            method = Gated(guidance, window) if window else guidance
            return Rewind(method, calibration.gate, read_ladder(given["rewind"]))
        gate = calibration.gate if window is None else replace(calibration.gate, window=window)
        return Gated(guidance, gate)
    return Gated(guidance, window) if window else guidance
