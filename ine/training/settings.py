"""How language models are fine-tuned: frozen values, also the sections of recipes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ine.yaml_files import Section

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Schedule = Literal["constant", "linear", "cosine"]


class LoraSettings(Section):
    """The low-rank matrices that are trained beside frozen weights; defaults as IPR."""

    rank: Count = 8
    """Rank r of both matrices."""

    alpha: Positive = 16
    """The product is multiplied by alpha / r."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of inputs that a step leaves out; POSI takes .1."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")
    """Ends of the names of the linear layers; the output layer cannot be one."""

    vision: bool = False
    """Whether layers of those names in a model's vision part are trained too."""


class SftSettings(Section):
    """Supervised fine-tuning; defaults as IPR, whose 3 epochs of 3,390 rows are 636 steps.

    POSI differs: dropout .1, schedule cosine.

    Sources:
        Jeon et al. 2025 (IPR), Wu et al. 2024 (POSI), each with its released code.
    """

    lora: LoraSettings = LoraSettings()
    learning_rate: Positive = 5e-5
    """The highest, of AdamW without weight decay."""

    schedule: Schedule = "constant"
    """How the learning rate goes on after the warm-up; all but constant end at 0."""

    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0."""

    epochs: Count = 3
    """Times that every row is seen."""

    steps: Count | None = None
    """Optimiser steps in all, instead of `epochs`."""

    batch: Count = 4
    """Rows of one forward pass."""

    accumulation: Count = 4
    """Forward passes of a step."""

    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""

    completion_only: bool = True
    """Whether only the answers are learned. IPR's release also learns instruction and prompt, all
    but the picture's places; `False` does that."""

    max_tokens: Count | None = None
    """Longest row, prompt, picture and answer together; a longer one is an error, since cutting it
    would cut the answer's end."""

    checkpointing: bool = False
    """Whether activations are computed twice instead of kept: less memory, a third more time."""

    seed: int = 0
    """Of the matrices' first values, the order of rows and the dropout."""

    save_every: Count = 50
    """Steps between two checkpoints, from which a killed run goes on."""


class GroupSettings(Section):
    """Group relative policy optimisation of any language model; defaults as IPR.

    Sources:
        Shao et al. 2024 (GRPO), Jeon et al. 2025 (IPR) with its released code.
    """

    lora: LoraSettings = LoraSettings()
    """Of a new adapter; one to go on from has its own."""

    learning_rate: Positive = 1.9e-5
    schedule: Schedule = "constant"
    steps: Count = 100
    """Optimiser steps."""

    generations: Annotated[int, Field(ge=2)] = 4
    """Answers to one prompt, of a refiner to one prompt and picture: a group."""

    batch: Count = 4
    """Answers of one forward pass."""

    accumulation: Count = 4
    """Forward passes of a step; a step's answers are whole groups."""

    kl: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the divergence from the reference."""

    reference: Literal["start", "base"] = "start"
    """What it stays near: the adapter that it starts from, or the base without one, as released."""

    temperature: Positive = 1.0
    """Of the drawn answers."""

    max_tokens: Count = 200
    """Longest answer."""

    max_grad_norm: Positive = 0.1
    checkpointing: bool = False
    seed: int = 0
    save_every: Count = 10

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        """Check that a step has whole groups."""
        if self.batch * self.accumulation % self.generations:
            raise ValueError(
                f"batch {self.batch} times accumulation {self.accumulation} is no multiple of "
                f"generations {self.generations}"
            )
        return self


class GrpoSettings(GroupSettings):
    """GRPO of a refiner; IPR's release differs from its paper, see `reference` and `pictures`."""

    keep: float = 0.3
    """Reward of keep."""

    unusable: float = -1.0
    """Reward of an answer that is neither keep nor a prompt, of which no picture is made."""

    pictures: Literal["one", "each"] = "one"
    """Whether a group looks at one picture, or each of its answers at its own, as released: then
    the group's mean compares rewrites of different pictures."""

    pool: bool = True
    """Whether pictures of rewritten prompts are looked at in later steps."""
