"""A negative of the user's own beside a defence: it acts on every picture, as it would alone.

    eps* = M + [u + w (c - u)] - [eps_0 + w (c - eps_0)]  =  M + (1 - w) (u - eps_0)

with M the defence's prediction, u that of the user's negative, eps_0 that of no text. So a gate
decides about the defence alone, and a picture whose gate stays closed is the one that plain
guidance makes with the user's negative. `ine.protect` does the same with a pipeline's own negative.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ine.guidance.cfg import check_guided
from ine.guidance.gates import remembering
from ine.guidance.method import Around, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.prompts import OWN
from ine.guidance.protocol import (
    Again,
    Cost,
    Guidance,
    Notes,
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.text.condition import Condition


@dataclass(frozen=True)
class Beside(Around):
    """A defence, and a negative that acts on every picture beside it."""

    own: Negative

    @property
    def negative(self) -> Negative:  # type: ignore[override]
        """What both steer away from."""
        inner = self.guidance.negative
        text = ", ".join(filter(None, (self.own.text.strip(), inner.text.strip())))
        return Negative(text, (*self.own.embeddings, *inner.embeddings))

    @property
    def attempts(self) -> tuple[Guidance, ...]:
        """Those of the defence, each with the negative beside it."""
        inner = self.guidance.attempts
        return (self,) if len(inner) == 1 else tuple(replace(self, guidance=a) for a in inner)

    def cost(self, scale: float, steps: int) -> Cost:
        """Return the defence's cost and one evaluation more per step."""
        inner = self.guidance.cost(scale, steps)
        return Cost(inner.nfe + steps, exact=inner.exact)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Begin the defence, and encode the negative.

        Raises:
            IneError: The guidance scale leaves the negative without effect.
        """
        check_guided(prompts.scale, self.own, "the negative beside the defence")
        own = self.own.condition(prompts).repeat(len(prompts.texts))
        # So that a look-ahead follows the run that the picture would have had.
        with self.guidance.begin(replace(prompts, own=own)) as inner:
            yield _BesideSession(
                inner=inner,
                positive=prompts.positive(),
                empty=prompts.empty(),
                own=own,
                scale=prompts.scale,
            )


@dataclass(frozen=True, kw_only=True)
class _BesideSession(MethodSession):
    inner: Session
    positive: Condition
    empty: Condition
    own: Condition
    scale: float

    @property
    def again(self) -> Mapping[int, Again]:  # type: ignore[override]
        """Those of the defence."""
        return self.inner.again

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        query_unet = remembering(query_unet, len(self.positive))
        output = self.inner.predict(step, query_unet, pictures)
        out = query_unet(
            [
                UNetQuery.of("empty", self.empty, pictures),
                UNetQuery.of(OWN, self.own, pictures),
            ]
        )
        return output + (1 - self.scale) * (out[OWN] - out["empty"])

    def notes(self) -> list[Notes]:
        return self.inner.notes()
