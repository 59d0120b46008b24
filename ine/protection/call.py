"""One call of a pipeline to its U-Net, and the same call with other texts.

Shape letters: B pictures of a call, C latent channels, H W latent size.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ine.guidance.step import Point, UNetQuery, point_of
from ine.text.condition import Condition

ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
"""Names of what a U-Net's forward takes, in order."""


@dataclass(frozen=True)
class Call:
    """What the pipeline asks of its U-Net: 2B rows, the unconditional ones first; or B rows."""

    forward: Callable[..., Any]
    """The U-Net's own forward."""

    given: dict[str, Any]
    """Arguments by name, without `return_dict`."""

    halves: int = 2
    """2, or 1 without guidance."""

    @property
    def sample(self) -> torch.Tensor:
        """Latents, (2B or B, C, H, W)."""
        return self.given["sample"]

    @property
    def states(self) -> torch.Tensor:
        """Text states, (2B or B, L, D)."""
        return self.given["encoder_hidden_states"]

    @property
    def count(self) -> int:
        """B."""
        return len(self.sample) // self.halves

    def row(self, half: int, picture: int) -> int:
        """Return the number of a row; `half` is 0 unconditional, 1 conditional."""
        return half * self.count + picture if self.halves == 2 else picture

    def of(self, pictures: Sequence[int]) -> "Call":
        """Return the same call about some of its pictures."""
        rows = [self.row(half, i) for half in range(self.halves) for i in pictures]
        return replace(self, given=pick_rows(self.given, rows, len(self.sample)))

    def condition(self, half: int) -> Condition:
        """Return the condition of one half, 0 unconditional, 1 conditional; B rows."""
        first = self.row(half, 0)
        rows = slice(first, first + self.count)
        pooled = (self.given.get("added_cond_kwargs") or {}).get("text_embeds")
        return Condition(states=self.states[rows], pooled=None if pooled is None else pooled[rows])

    def answer(
        self,
        queries: Sequence[UNetQuery],
        known: Mapping[str, torch.Tensor],
        current: Mapping[str, Condition],
    ) -> dict[str, torch.Tensor]:
        """Return the outputs for queries by name, (pictures of the query, C, H, W).

        Args:
            queries: At one place. Those whose name begins with "positive" are asked on the
                conditional rows, all others on the unconditional ones.
            known: Outputs by name, B rows, that are not asked again.
            current: Conditions by name, B rows, in the place of the queries' own; those of the
                prompts, "positive", are among them.
        """
        out: dict[str, torch.Tensor] = {}
        point = point_of(queries)
        # Weighted and overlong prompts come with contexts of other lengths than ours.
        lengths: dict[int, list[tuple[str, list[int], Condition]]] = {}
        for query in queries:
            pictures = list(range(self.count) if query.pictures is None else query.pictures)
            if query.name in known:
                out[query.name] = known[query.name][pictures]
                continue
            half = int(query.name.startswith("positive"))
            rows = [self.row(half, i) for i in pictures]
            if query.name in current:
                condition = current[query.name].rows(pictures)
            elif query.offset is not None:
                condition = current["positive"].rows(pictures).moved(query.offset)
            else:
                condition = query.condition.repeat(len(rows))
            length = condition.states.shape[1]
            lengths.setdefault(length, []).append((query.name, rows, condition))
        for group in lengths.values():
            names, rows_of, conditions = zip(*group, strict=True)
            outputs = self.run([i for rows in rows_of for i in rows], conditions, point)
            out.update(zip(names, outputs.split([len(rows) for rows in rows_of]), strict=True))
        return out

    def own(self) -> torch.Tensor:
        """Return the outputs that the pipeline would have got, (2B or B, C, H, W)."""
        return self.forward(**self.given, return_dict=False)[0]

    def at(self, point: Point | None) -> dict[str, Any]:
        """Return the call's arguments at a place, all rows."""
        if point is None:
            return self.given
        x_t = point.x_t.to(self.sample.dtype).repeat(self.halves, 1, 1, 1)
        sample = torch.cat([x_t, self.sample[:, x_t.shape[1] :]], dim=1)
        own = torch.as_tensor(self.given["timestep"])
        t = point.t.to(own.device, own.dtype).expand(own.shape)
        return {**self.given, "sample": sample, "timestep": t}

    def run(
        self, rows: Sequence[int], conditions: Sequence[Condition], point: Point | None = None
    ) -> torch.Tensor:
        """Run the U-Net on some rows, with conditions in the place of the rows' own.

        What else the pipeline passes per row stays with its row: a ControlNet's residuals, an
        inpainting U-Net's mask, IP-Adapter and SDXL's size numbers.

        Args:
            rows: K row numbers of the call.
            conditions: Conditions of K rows in all.
            point: Where to run it, if not at the call's own latents and timestep; channels
                beside the latents (an inpainting U-Net's) stay.
        """
        given = pick_rows(self.at(point), rows, len(self.sample))
        states = [c.states.to(self.states.device, self.states.dtype) for c in conditions]
        given["encoder_hidden_states"] = torch.cat(states)
        if (given.get("added_cond_kwargs") or {}).get("text_embeds") is not None:
            own = given["added_cond_kwargs"]["text_embeds"]
            pooled = torch.cat(
                [c.pooled.to(own.device, own.dtype) for c in conditions if c.pooled is not None]
            )
            given["added_cond_kwargs"]["text_embeds"] = pooled
        return self.forward(**given, return_dict=False)[0]


def pick_rows(value: Any, rows: Sequence[int], total: int) -> Any:
    """Return a value with every tensor of `total` rows in it reduced to some of them."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and len(value) == total else value
    if isinstance(value, Mapping):
        return {k: pick_rows(v, rows, total) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pick_rows(v, rows, total) for v in value)
    return value
