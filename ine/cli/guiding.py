"""Options that say how a negative acts, and the `Guidance` that they stand for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ine.cli import options
from ine.cli.guiding_options import GUIDANCE_OPTIONS, NEGATIVE_OPTIONS, OBSERVER_OPTION
from ine.cli.sampling import SamplingOptions

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.guidance.gate_file import Calibration
    from ine.guidance.gates import Window
    from ine.guidance.protocol import Guidance
    from ine.models.parts import DiffusionParts
    from ine.sampling import SamplerSettings

log = logging.getLogger("ine")

DEFAULT = "cfg"
"""The guidance where neither the user nor a file names one."""


@dataclass(frozen=True, kw_only=True)
class DefenceOptions:
    """What the options about the negative and its guidance say."""

    negative_prompt: str = ""
    embedding_files: tuple[Path, ...] = ()
    guidance: str | None = None
    """None is as the embeddings recommend, else cfg."""

    preset: str | None = None
    negative_strength: float | None = None
    settings: tuple[str, ...] = ()
    gate_file: Path | None = None
    no_gate: bool = False
    gate_window: str | None = None
    restart: str | None = None
    no_restart: bool = False
    late: bool = False
    watcher: str | None = None
    """Of `--observer`."""

    steer: str | None = None
    look: str | None = None
    look_for: tuple[str, ...] = ()
    on_unknown: str | None = None

    def embeddings(self) -> tuple["ConceptEmbedding", ...]:
        """Read the files of `--negative-embedding`."""
        from ine.embeddings.embedding import read_embedding

        return tuple(read_embedding(path) for path in self.embedding_files)

    def build(
        self,
        parts: "DiffusionParts | None",
        sampler: "SamplerSettings",
        embeddings: Sequence["ConceptEmbedding"],
    ) -> "Guidance":
        """Return the guidance that these options stand for.

        Args:
            parts: The model; None if it is not loaded, then no gate is compared with it.
            sampler: How pictures are made.
            embeddings: What `embeddings` returned.

        Raises:
            IneError: Options that contradict each other, or a gate of another embedding.
        """
        from ine.guidance.table import find_method

        if self.no_gate and self.gate_file:
            raise click.UsageError("--gate and --no-gate: give one of them")
        if self.no_restart and self.restart:
            raise click.UsageError("--restart and --no-restart: give one of them")
        window = read_window(self.gate_window)
        if find_method(self.guidance or DEFAULT).kind.looks_itself:
            return self._observed(sampler, embeddings, window)
        self._check_not_observed()
        recommended = self._recommended(parts, sampler, embeddings, window)
        if recommended is not None:
            return recommended
        method = self._method(embeddings)
        if self.restart and not self.gate_file:
            raise click.UsageError(
                "--restart needs --gate FILE: the gate decides which pictures are restarted"
            )
        if not self.gate_file:
            return _gated(method, window) if window else method
        from ine.guidance.behind import behind

        calibration = _read_gate(self.gate_file, parts, sampler, embeddings)
        if self.late:
            calibration = replace(calibration, look_ahead=None)
        if not self.restart:
            return behind(method, calibration, window)
        method = method.with_fixed_strength(sampler.guidance_scale)  # the ladder multiplies it
        return behind(method, calibration, window, read_ladder(self.restart))

    def settled(self, sampling: SamplingOptions) -> SamplingOptions:
        """Return the sampler's options with what a preset was published with, where none is given.

        Raises:
            IneError: The guidance is unknown.
        """
        from ine.guidance.table import find_method

        scheduler = find_method(self.guidance or DEFAULT).kind.schedulers.get(self.preset or "")
        if sampling.scheduler or not scheduler:
            return sampling
        log.info("scheduler %s, as %s was published with", scheduler, self.preset)
        return replace(sampling, scheduler=scheduler)

    def _observed(
        self,
        sampler: "SamplerSettings",
        embeddings: Sequence["ConceptEmbedding"],
        window: "Window | None",
    ) -> "Guidance":
        """Return a guidance that brings its own gate, an observer."""
        from ine.guidance.negative import Negative
        from ine.guidance.table import build_guidance, read_settings

        for option, given in (
            ("--gate", self.gate_file),
            ("--restart", self.restart),
            ("--no-look-ahead", self.late),
        ):
            if given:
                raise click.UsageError(
                    f"{option}: the observer of {self.guidance} decides which pictures are steered;"
                    " leave it out"
                )
        observing = {name: value for name, value in self._observing().items() if value}
        settings = {**read_settings(self.settings), **observing}
        if self.negative_strength is not None:
            settings["strength"] = self.negative_strength
        negative = Negative(self.negative_prompt, tuple(embeddings))
        method = build_guidance(self.guidance or DEFAULT, negative, self.preset, settings)
        if window:
            method = replace(cast(Any, method), window=window)
        method.cost(sampler.guidance_scale, sampler.steps)  # looks outside the run are refused
        return method

    def _observing(self) -> dict[str, Any]:
        """Return what the options of observers say, by the names of settings."""
        return {
            "observer": self.watcher,
            "concept": ",".join(self.look_for),
            "steer": self.steer,
            "look": self.look,
            "on_unknown": self.on_unknown,
        }

    def _check_not_observed(self) -> None:
        """Raise where options of observers are given to a method that asks none."""
        options = {"concept": "look_for"}
        given = [options.get(name, name) for name, value in self._observing().items() if value]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise click.UsageError(f"{option}: goes with --guidance vl-dnp, which asks an observer")

    def _recommended(
        self,
        parts: "DiffusionParts | None",
        sampler: "SamplerSettings",
        embeddings: Sequence["ConceptEmbedding"],
        window: "Window | None",
    ) -> "Guidance | None":
        """Return the guidance that the embeddings' files recommend; None if they do not."""
        from ine.guidance.applied import applied
        from ine.guidance.given import GivenEmbedding
        from ine.guidance.overrides import Overrides
        from ine.guidance.table import read_settings

        files = self.embedding_files or [None] * len(embeddings)
        pairs = zip(embeddings, files, strict=True)
        given = [GivenEmbedding.of(embedding, file) for embedding, file in pairs]
        if not any(one.recommendation for one in given):
            return None
        gate = None
        if self.gate_file:
            gate = _read_gate(self.gate_file, parts, sampler, embeddings)
        overrides = Overrides(
            guidance=self.guidance,
            strength=self.negative_strength,
            preset=self.preset,
            settings=read_settings(self.settings),
            window=window,
            gate=gate,
            gated=not self.no_gate,
            late=self.late,
            ladder=self._ladder(),
            scale=sampler.guidance_scale,
        )
        found = applied(given, overrides, self.negative_prompt)
        for calibration, embedding in found.gates:
            _log_differences(calibration, parts, sampler, [embedding])
        return found.guidance

    def _ladder(self) -> tuple[float, ...] | None:
        """Return the multiples of restarts; None is as the embeddings recommend, () makes none."""
        if self.restart:
            return read_ladder(self.restart)
        return () if self.no_restart else None

    def _method(self, embeddings: Sequence["ConceptEmbedding"]) -> "Guidance":
        """Return the guidance without gate, window and restart."""
        from ine.errors import IneError
        from ine.guidance.negative import Negative
        from ine.guidance.table import build_guidance, find_method, read_settings

        method = find_method(self.guidance or DEFAULT)
        settings = read_settings(self.settings)
        strength = self.negative_strength
        if strength is None:
            strength = method.kind.stated_strength(embeddings)
            if strength is not None:
                log.info("negative strength %g (from the embedding)", strength)
        elif not method.has_strength:
            raise click.UsageError(
                f"--negative-strength: {method.name} has none; --guidance additive has one"
            )
        if strength is not None:
            settings["strength"] = strength
        negative = Negative(self.negative_prompt, tuple(embeddings))
        if method.kind.needs_negative and not negative.prompt():
            raise IneError(
                f"--guidance {method.name}: nothing to steer away from; give "
                "--negative-embedding or --negative-prompt"
            )
        return build_guidance(method.name, negative, self.preset, settings)


def _gated(method: "Guidance", gate: Any) -> "Guidance":
    from ine.guidance.gates import Gated

    return Gated(method, gate)


def _read_gate(
    file: Path,
    parts: "DiffusionParts | None",
    sampler: "SamplerSettings",
    embeddings: Sequence["ConceptEmbedding"],
) -> "Calibration":
    """Read a gate and log how the model differs from the one it was calibrated on."""
    from ine.guidance.gate_file import read_calibration

    calibration = read_calibration(file)
    _log_differences(calibration, parts, sampler, embeddings)
    return calibration


def _log_differences(
    calibration: "Calibration",
    parts: "DiffusionParts | None",
    sampler: "SamplerSettings",
    embeddings: Sequence["ConceptEmbedding"],
) -> None:
    """Log how a run differs from the one that a gate was calibrated for, if the model is loaded."""
    from ine.calibration.check import check_calibrated

    for note in check_calibrated(calibration, embeddings, parts, sampler) if parts else ():
        log.info("note: %s", note)


defending_beside_observer = options.packed(
    "defence", DefenceOptions, *NEGATIVE_OPTIONS, *GUIDANCE_OPTIONS
)
"""`defending` for a command whose `--observer` is another: --guidance-set observer=SPEC is left."""

defending = options.packed(
    "defence", DefenceOptions, *NEGATIVE_OPTIONS, *GUIDANCE_OPTIONS, OBSERVER_OPTION
)
"""The negative of a command and its guidance, as `defence: DefenceOptions`."""


def read_window(text: str | None) -> "Window | None":
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


def read_ladder(text: str) -> tuple[float, ...]:
    """Return the multiples of "1,2,4".

    Raises:
        IneError: Not numbers.
    """
    from ine.errors import IneError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise IneError(f"--restart {text}: expected multiples such as 1,1,2") from None
