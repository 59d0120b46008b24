"""SAFREE on one batch, step by step; see `ine.guidance.safree`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ine.guidance.cfg import classifier_free
from ine.guidance.method import MethodSession
from ine.guidance.protocol import Notes, QueryUNet, Step, UNetQuery
from ine.guidance.reattention import Reattention, reattending
from ine.guidance.safree_rewrite import Rewrite
from ine.text.condition import Condition


@dataclass(frozen=True, kw_only=True)
class SafreeSession(MethodSession):
    """SAFREE on one batch."""

    validate: bool
    """Whether a filter ends it."""

    last: Callable[[Rewrite, int], int]
    """Returns the last step that uses a rewrite, of a run of so many; -1 for none."""

    reattention: Reattention | None
    unet: nn.Module
    positive: Condition
    rewritten: Condition
    rewrites: list[Rewrite]
    negative: Condition
    scale: float

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """Return the guided U-Net output of a step, (pictures, C, H, W)."""
        rows = tuple(range(len(self.rewrites))) if pictures is None else tuple(pictures)
        last = {i: self.last(self.rewrites[i], step.count) for i in rows}
        new = tuple(i for i in rows if step.index <= last[i])
        own = tuple(i for i in rows if i not in new)
        queries = [UNetQuery.of("negative", self.negative, pictures)]
        if own:
            queries.append(UNetQuery.of("positive", self.positive, self._whole(own)))
        filtering: AbstractContextManager[None] = nullcontext()
        if new:
            queries.append(UNetQuery.of("positive-safree", self.rewritten, self._whole(new)))
            if self.reattention:
                # A name of its own: behind a gate, "positive" is remembered and not asked again,
                # but the features are compared within one call. Both have to come last in it.
                beside = UNetQuery.of("positive-beside", self.positive, self._whole(new))
                queries.append(beside)
                filtering = reattending(self.unet, self.reattention, len(new))
        with filtering:
            out = query_unet(queries)
        if not new:
            return classifier_free(out["negative"], out["positive"], self.scale)
        used = dict(zip(own, out.get("positive", ()), strict=True))
        used.update(zip(new, out["positive-safree"], strict=True))
        positive = torch.stack([used[i] for i in rows])
        return classifier_free(out["negative"], positive, self.scale)

    def _whole(self, pictures: tuple[int, ...]) -> tuple[int, ...] | None:
        return None if pictures == tuple(range(len(self.rewrites))) else pictures

    def notes(self) -> list[Notes]:
        """Return triggers, beta and the last step of the filter, per picture."""
        return [
            {
                "safree": {
                    "triggers": list(r.words),
                    "beta": round(r.beta, 4),
                    "last": self.last(r, 0) if self.validate or not r.triggers else None,
                },
            }
            for r in self.rewrites
        ]
