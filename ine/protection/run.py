"""One call of a protected pipeline, from its first denoising step to its last.

`ine.protection.pipeline` has the formulas. Shape letters: B pictures of a call, C latent channels,
H W latent size.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ine.errors import IneError
from ine.guidance.cfg import classifier_free
from ine.guidance.gates import remembering
from ine.guidance.protocol import (
    Gate,
    Guidance,
    Notes,
    QueryUNet,
    Step,
    UNetQuery,
)
from ine.guidance.restart import Restart
from ine.models.parts import DiffusionParts
from ine.protection.call import Call
from ine.protection.first_step import FirstStep, find_empty
from ine.protection.parts import signal_power
from ine.protection.prompts import USER, PipelinePrompts, UnseenTexts
from ine.protection.restarts import Beginning, copied
from ine.protection.second_look import SecondLook, leading
from ine.text.condition import Condition
from ine.watch import Watch


class Run:
    """One call of the pipeline."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        parts: DiffusionParts,
        method: Guidance,
        gate: Gate | None,
        raises: bool = True,
        restart: Restart | None = None,
        withhold: bool = False,
    ):
        """Prepare; the method begins with the first step.

        Args:
            pipe: The pipeline.
            parts: Its pieces.
            method: A guidance without gates.
            gate: When it acts; None is always.
            raises: Whether predictions that are not finite end the run early.
            restart: The guidance whose first attempt method and gate are; None restarts nothing.
            withhold: Whether pictures that its last attempt leaves become empty latents.
        """
        self.pipe, self.parts, self.method, self.gate = pipe, parts, method, gate
        self.raises, self.restart, self.withhold = raises, restart, withhold
        self.guided = bool(pipe.do_classifier_free_guidance)
        self.stack = ExitStack()
        self.first: FirstStep | None = None
        self.thread = threading.get_ident()
        self.disturbed = False
        self.cache: str | None = None
        self.index = 0
        self.nfe: list[int] = []
        """U-Net evaluations, one number per picture."""
        self.second: SecondLook | None = None

    def notes(self) -> list[Notes]:
        """Return the notes of method and gate, one dict per picture."""
        if self.first is None:
            return []
        notes = self.first.session.notes()
        if self.first.gate is not None:
            notes = [{**n, **g} for n, g in zip(notes, self.first.gate.notes(), strict=True)]
        if self.second is not None:
            notes = self.second.notes(notes)
        bad = self.first.watch.bad()
        return [
            {**note, "not_finite": {"step": bad[i] + 1}} if i in bad else note
            for i, note in enumerate(notes)
        ]

    def check_finite(self) -> None:
        """Raise `NotFinite` if anything that was predicted in this run is not finite."""
        if self.first is not None:
            self.first.watch.look()

    def predict(self, forward: Callable[..., Any], given: dict[str, Any]) -> torch.Tensor:
        """Return what makes the pipeline's prediction the method's, (2B or B, C, H, W)."""
        call = Call(forward, given, 2 if self.guided else 1)
        self._check_guided(call)
        first = self.first = self.first or self._begin(call)
        if call.count != len(self.nfe):
            raise IneError(
                f"the batch changed from {len(self.nfe)} to {call.count} pictures within a run"
            )
        step = self._step(call)
        self.index += 1
        own, known = self._plain(first, call, step)
        query_unet = remembering(
            lambda queries: self._answer(first, call, known, queries), call.count
        )
        opened = tuple(range(call.count))
        if first.gate is not None:
            opened = tuple(first.gate.open(step, query_unet))
            step = replace(step, found=first.gate.found, named=first.gate.named)
        if self.second is not None:
            self.second.open(step, query_unet, first.gate, self.nfe)
            opened = tuple(i for i in opened if i not in self.second.ends)
        if opened:
            output = self._steered(first, call, step, query_unet, own, opened)
        else:
            assert own is not None  # the gate was asked
            output = own
        if self.second is not None:
            output = leading(step, self.second.ends, output, self.pipe.scheduler)
        for half in output.chunk(call.halves):
            first.watch.stepped(step.index, half, look=self.raises)
        return output

    def _check_guided(self, call: Call) -> None:
        if bool(self.pipe.do_classifier_free_guidance) != self.guided or (
            len(call.sample) != call.halves * call.count
        ):
            raise IneError(
                f"at step {self.index} guidance_scale is {self.pipe.guidance_scale} and guidance "
                f"is {'off' if self.guided else 'on'}, which it was not when the run began: the "
                "rest would be undefended; keep it on one side of 1"
            )

    def _scale(self) -> float:
        return float(self.pipe.guidance_scale) if self.guided else 1.0

    def _begin(self, call: Call) -> FirstStep:
        """Begin the method, now that the pipeline's own states are known."""
        self.nfe = [0] * call.count
        sample = call.sample
        prompts = PipelinePrompts(
            parts=self.parts,
            texts=UnseenTexts(call.count),
            scale=self._scale(),
            own_positive=call.condition(1),
        )
        empty, own_negative = find_empty(prompts, call)
        user = call.condition(0) if own_negative else None
        prompts = replace(prompts, own_empty=empty, own_negative=user)
        if self.restart is not None:
            start = Beginning(
                call=call,
                prompts=prompts,
                scheduler=copied(self.pipe.scheduler),
                own_negative=own_negative,
                rescale=float(getattr(self.pipe, "guidance_rescale", 0.0)),
            )
            watch = self.restart.gate.begin(prompts)
            self.second = SecondLook(start, self.restart, watch, self.withhold)
        return FirstStep(
            scale=prompts.scale,
            empty=empty,
            own_negative=own_negative,
            session=self.stack.enter_context(self.method.begin(prompts)),
            gate=None if self.gate is None else self.gate.begin(prompts),
            watch=Watch(call.count, max(self.pipe.num_timesteps, 1), sample.device, sample.dtype),
        )

    def _plain(
        self, first: FirstStep, call: Call, step: Step
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Return the pipeline's own outputs where they are needed, and what they answer."""
        if first.gate is None and not first.own_negative:
            return None, {}
        # The very call of the undefended pipeline: closed pictures keep it bit by bit.
        own = call.own()
        for half in own.chunk(call.halves):
            first.watch.saw(step.index, half)
        self.nfe = [n + call.halves for n in self.nfe]
        known = {"positive": own.chunk(call.halves)[-1]}
        if self.guided:
            known[USER if first.own_negative else "empty"] = own.chunk(2)[0]
        return own, known

    def _steered(
        self,
        first: FirstStep,
        call: Call,
        step: Step,
        query_unet: QueryUNet,
        own: torch.Tensor | None,
        opened: tuple[int, ...],
    ) -> torch.Tensor:
        """Return the outputs with those of opened pictures steered, (2B or B, C, H, W)."""
        pictures = None if len(opened) == call.count else opened
        guided = first.session.predict(step, query_unet, pictures).float()
        if not self.guided:
            return _placed(guided, own, opened, call.sample.dtype)
        scale = self._scale()

        def output(name: str, condition: Condition) -> torch.Tensor:
            return query_unet([UNetQuery.of(name, condition, pictures)])[name].float()

        positive = output("positive", call.condition(1))
        if first.own_negative or scale != first.scale:
            empty = output("empty", first.empty)
            user = empty if own is None or not first.own_negative else own[list(opened)].float()
            theirs = classifier_free(user, positive, scale)
            guided = guided + theirs - classifier_free(empty, positive, first.scale)
        answer = (guided - scale * positive) / (1 - scale)
        if own is None:
            return torch.cat([answer, positive]).to(call.sample.dtype)
        return _placed(answer, own, opened, own.dtype)

    def _answer(
        self,
        first: FirstStep,
        call: Call,
        known: dict[str, torch.Tensor],
        queries: Sequence[UNetQuery],
    ) -> dict[str, torch.Tensor]:
        """Answer queries from the pipeline's own call where it did, else run the U-Net."""
        # As of now: a callback may have changed them since the run began.
        current = {"positive": call.condition(1)}
        if self.guided and not first.own_negative:
            current["empty"] = call.condition(0)
        for query in queries:
            if query.name not in known:
                for i in range(call.count) if query.pictures is None else query.pictures:
                    self.nfe[i] += 1
        out = call.answer(queries, known, current)
        first.watch.answered(self.index - 1, queries, out)
        return out

    def _step(self, call: Call) -> Step:
        t = torch.as_tensor(call.given["timestep"]).flatten()[0]
        x_t = call.sample[: call.count, : self.parts.unet.config.out_channels]
        return Step(
            index=self.index,
            # As far as it is known: a pipeline may skip steps, never take more.
            count=max(self.pipe.num_timesteps, self.index + 1),
            t=t,
            x_t=x_t,
            alpha_bar=signal_power(self.pipe.scheduler, t).to(x_t.device, torch.float32),
            prediction_type=self.pipe.scheduler.config.get("prediction_type", "epsilon"),
        )


def _placed(
    rows: torch.Tensor, own: torch.Tensor | None, opened: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Return the pipeline's own outputs with the rows of opened pictures replaced."""
    if own is None:
        return rows.to(dtype)
    own = own.clone()
    own[list(opened)] = rows.to(own.dtype)
    return own
