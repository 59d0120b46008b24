"""A gate that an observer decides: it looks at the picture that forms, and may change its mind.

    x_0 hat = (x_t - sqrt(1 - abar) eps_pos) / sqrt(abar)      eps_pos = eps_0 + w (eps_c - eps_0)

is decoded and shown to the observer at some steps. eps_pos never contains the negative, so that an
observer does not see a concept vanish because it is being steered away from, and open and shut in
turn. What it found is held until its next look: VL-DNP (arXiv 2510.26052), section 3.

Before the first step a coarse run of the undefended model can be shown to it
(`ine.guidance.coarse`), so that a picture is steered from its first step.

    cost        what plain guidance asks, which the run asks anyway; a look ahead 2 k rows
                beside them

Shape letters: B pictures, C latent channels, H W latent size.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ine.decoding import decode
from ine.errors import IneError
from ine.guidance.ahead import CoarseRun, plainly
from ine.guidance.gates import Window
from ine.guidance.look_ahead import STEPS, TIMESTEP
from ine.guidance.looks import AHEAD, Looks
from ine.guidance.protocol import Cost, Notes, Prompts, QueryUNet, Step
from ine.guidance.released import SIDE, matched
from ine.models.parts import DiffusionParts
from ine.observers.base import Answer, Observation
from ine.observers.unknown import OnUnknown, is_found
from ine.observers.watching import Sought, Watcher
from ine.pictures import as_image
from ine.text.condition import Condition

Held = dict[str, tuple[str, ...]]
"""{concept that counts as found: words by which it was named}."""


@dataclass(frozen=True, kw_only=True)
class ObserverGate:
    """Open for a picture in which the observer found a concept at its last look."""

    watcher: Watcher
    looks: Looks = field(default_factory=Looks)
    on_unknown: OnUnknown = "steer"
    as_released: bool = False
    """Previews and replies as in the released code, see `ine.guidance.released`."""

    window: Window = field(default_factory=Window)
    """Part of the run in which an open gate lets the method act."""

    def cost(self, inner: Cost, steps: int) -> Cost:
        """Return the mean of a picture that is never steered and one that always is.

        Raises:
            IneError: It looks at steps that the run does not have.
        """
        self.looks.of(steps)
        return Cost(
            (2 * steps + inner.nfe) / 2 + (2 * STEPS if self.looks.ahead else 0), exact=False
        )

    def begin(self, prompts: Prompts) -> "_ObserverSession":
        """Load the observer, and encode what the undefended run uses.

        Raises:
            IneError: The observer cannot be loaded, or the model cannot be previewed.
        """
        self.check(prompts.parts)
        count = len(prompts.texts)
        looks = self.looks
        return _ObserverSession(
            gate=self,
            parts=prompts.parts,
            texts=prompts.shown(),
            plain=prompts.plain(),
            positive=prompts.positive(),
            scale=prompts.scale,
            coarse=CoarseRun.of(prompts, STEPS, TIMESTEP, None) if looks.ahead else None,
            held=[{} for _ in range(count)],
            log=[[] for _ in range(count)],
            seconds=[0.0] * count,
        )

    def check(self, parts: DiffusionParts) -> None:
        """Load the observer and look whether a model's latents can be shown to it.

        Raises:
            IneError: One of the two is not possible.
        """
        vae, channels = parts.vae, parts.unet.config.out_channels
        own = getattr(getattr(vae, "config", None), "latent_channels", None)
        if vae is None or own != channels:
            reads = "is missing" if vae is None else f"decodes {own}"
            raise IneError(
                f"{parts.name}: the U-Net makes latents of {channels} channels and the VAE {reads},"
                " so that no preview can be shown to an observer; give a model with its own VAE"
            )
        _ = self.watcher.observer


@dataclass(kw_only=True)
class _ObserverSession:
    gate: ObserverGate
    parts: DiffusionParts
    texts: tuple[str, ...]
    plain: tuple[str, Condition]
    positive: Condition
    scale: float
    coarse: CoarseRun | None
    held: list[Held]
    """Per picture, as after the last look."""

    log: list[list[Notes]]
    """Per picture, its looks."""

    seconds: list[float]
    """Per picture, its share of the time that looks took, previews included."""

    started: bool = False

    @property
    def found(self) -> tuple[frozenset[str], ...]:
        return tuple(frozenset(one) for one in self.held)

    @property
    def named(self) -> tuple[Held, ...]:
        return tuple(self.held)

    def open(self, step: Step, query_unet: QueryUNet) -> tuple[int, ...]:
        planned, first = self.gate.looks.of(step.count), not self.started
        self.started = True
        if first and self.coarse is not None:
            end = self.coarse.end(step, query_unet)
            self._look(AHEAD, end, self.coarse.ask(end, self.coarse.steps, query_unet))
        # A run that begins late, as from a picture, looks at once in the place of earlier looks.
        if step.index in planned or (first and planned and planned[0] < step.index):
            output = plainly(query_unet, self.plain, self.positive, self.scale)
            self._look(step.index, step, output)
        if not self.gate.window.holds(step):
            return ()
        return tuple(i for i, one in enumerate(self.held) if one)

    def _look(self, when: int | str, place: Step, output: torch.Tensor) -> None:
        """Show every picture's preview to the observer, and keep what it finds."""
        start, gate = time.monotonic(), self.gate
        pictures, _ = decode(self.parts, place.preview(output), truncated=gate.as_released)
        if gate.as_released:
            pictures = _resized(pictures)
        seen = gate.watcher.look(pictures, self.texts)
        for i, one in enumerate(seen):
            before = self.held[i]
            found = [(s, self._decided(s, one.answers[s.concept], before)) for s in self.sought]
            self.held[i] = {s.concept: words for s, words in found if words is not None}
            self.log[i].append(self._note(when, one, self.held[i]))
        share = (time.monotonic() - start) / len(seen)
        self.seconds = [before + share for before in self.seconds]

    @property
    def sought(self) -> tuple[Sought, ...]:
        return self.gate.watcher.sought

    def _decided(self, sought: Sought, answer: Answer, before: Held) -> tuple[str, ...] | None:
        """Return the words of a concept that counts as found, which may be none; else None."""
        gate, earlier = self.gate, before.get(sought.concept)
        if gate.as_released and answer.unknown not in ("time-out", "error"):
            return matched(answer.raw, sought.vocabulary) or None
        if not is_found(answer, gate.on_unknown, earlier is not None):
            return None
        if answer.unknown and gate.on_unknown == "hold":
            return earlier
        return tuple(word for word in answer.words if word in sought.vocabulary)

    def _note(self, when: int | str, one: Observation, held: Held) -> Notes:
        known = {name: round(float(value), 4) for name, value in one.found.items()}
        note: Notes = {"step": when, "found": known, "steered": sorted(held)}
        words = [word for named in held.values() for word in named]
        return note | {k: v for k, v in (("words", words), ("unknown", one.unknown)) if v}

    def notes(self) -> list[Notes]:
        calls = self.gate.watcher.calls
        return [
            {
                "looks": looks,
                "observer": {
                    "calls": calls * len(looks),
                    "unknown": sum(len(one.get("unknown", ())) for one in looks),
                    "seconds": round(seconds, 4),
                },
            }
            for looks, seconds in zip(self.log, self.seconds, strict=True)
        ]


def _resized(pictures: np.ndarray) -> np.ndarray:
    """Return pictures of the side that the released code shows, uint8 (B, SIDE, SIDE, 3)."""
    sides = (SIDE, SIDE)
    resized = [as_image(p).resize(sides, Image.Resampling.BICUBIC) for p in pictures]
    return np.stack([np.asarray(one) for one in resized])
