"""Group relative policy optimisation of a refiner, by trl: pictures in, answers out, rewards.

trl draws the answers and takes the steps. Which picture a prompt shows is decided when trl reads
the rows of a step, since pictures of rewritten prompts join those of a prompt as training goes on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ine.errors import PromptError
from ine.observers.adapters import needs_training_packages
from ine.pictures import as_image
from ine.refining.asking import conversation_of
from ine.refining.trained import asked_of
from ine.runtime import generator_for
from ine.store.units import key_of
from ine.training.bases import Base, load_base
from ine.training.lora import with_lora
from ine.training.pool import Pool
from ine.training.refining_reward import RefiningReward, Scored
from ine.training.running import OnStep, quiet
from ine.training.settings import GroupSettings, GrpoSettings
from ine.training.stage import key_of_adapter, shared_arguments, train_adapter

VERSION = 2
"""Raised when the same settings would train another adapter."""


@dataclass(frozen=True, kw_only=True)
class GrpoResult:
    """A finished training."""

    out: Path
    """The adapter, in PEFT's layout."""

    rewards: tuple[float, ...]
    """Mean reward of the answers of every step."""

    answers: dict[str, int]
    """Answers drawn in this call, by what they were: keep, rewrite, or why unusable."""


@dataclass(frozen=True)
class Groups:
    """Prepares the groups of a step, and scores their answers."""

    reward: RefiningReward
    pool: Pool
    settings: GrpoSettings
    tally: Counter[str] = field(default_factory=Counter)

    def shown(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        """Return rows of trl's data with the messages and pictures of their step.

        Args:
            batch: Under "number" the places of the rows in the order of all steps, and under "row"
                the numbers of their prompts; each row stands there once per answer of its group.
        """
        count, each = self.settings.generations, self.settings.pictures == "each"
        steps = [number // groups_of(self.settings) for number in batch["number"]]
        self.pool.check_ready(max(steps))
        chosen = [
            self.pool.choose(row, step, k % count if each else 0)
            for k, (row, step) in enumerate(zip(batch["row"], steps, strict=True))
        ]
        self.reward.pictures.make(chosen)
        pictures = self.reward.pictures.pictures(chosen)
        staged = [
            self._input(*one) for one in zip(batch["row"], chosen, pictures, steps, strict=True)
        ]
        return {name: [one[name] for one in staged] for name in staged[0]}

    def _input(self, row: int, current: tuple[str, int], picture: Any, step: int) -> dict[str, Any]:
        reading = self.reward.reading
        asked = conversation_of(self.pool.prompts[row], picture, reading)
        more = {"images": [as_image(picture)]} if reading.picture else {}
        return {
            "prompt": [{"role": turn.role, "content": turn.text} for turn in asked.turns],
            "row": row,
            "current": current,
            "step": step,
            **more,
        }

    def score(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the rewards of a step's answers; trl calls this with a list per column."""
        texts = [one[0]["content"] for one in completions]
        rows, step = columns["row"], columns["step"][0]
        current = [(prompt, seed) for prompt, seed in columns["current"]]
        rewards: list[float] = []
        for first in range(0, len(texts), self.settings.generations):
            group = slice(first, first + self.settings.generations)
            scored = self.reward(self.pool.prompts[rows[first]], texts[group], current[group])
            rewards += [one.reward for one in scored]
            self._note(rows[first], step, scored)
        self.pool.scored.add(step)
        return rewards

    def _note(self, row: int, step: int, scored: Sequence[Scored]) -> None:
        """Count the answers of a group, and let the prompt's pictures grow."""
        self.tally.update(one.verdict.why or one.verdict.kind for one in scored)
        if self.settings.pool:
            rewrites = [one.verdict.prompt for one in scored if one.verdict.kind == "rewrite"]
            self.pool.add(row, step, rewrites)


def reinforce(
    base: Path | Base,
    prompts: Sequence[str],
    reward: RefiningReward,
    settings: GrpoSettings,
    out: Path,
    *,
    adapter: Path | None = None,
    device: str = "auto",
    force: bool = False,
    on_step: OnStep | None = None,
) -> GrpoResult:
    """Train an adapter by the reward of its answers and write it; a killed run resumes.

    Args:
        base: The folder of a vision-language model, or one that is loaded.
        prompts: What users typed, screened (`ine.prompts`).
        reward: Scores answers; it makes and keeps the pictures.
        settings: How.
        out: Folder of the result.
        adapter: Where it starts, mostly a supervised one; by default a new one on the base.
        device: See `ine.runtime.pick_device`.
        force: Replace a finished or unfinished training with other settings.
        on_step: Called after every step.

    Raises:
        CheckpointError: `adapter` is damaged, or of another base model.
        IneError: The loss or its gradient is not finite, or a picture could not be made.
        MissingDependency: peft or trl is not installed.
        ModelError: The base cannot be loaded, or its tokenizer has no end of text.
        OutputError: `out` holds another training or cannot be written.
        PromptError: There are fewer prompts than a step takes.
    """
    needs_training_packages()
    out = Path(out)
    check_groups(prompts, settings)
    loaded = base if isinstance(base, Base) else load_base(base, device)
    key = key_of(
        version=VERSION,
        prompts=list(prompts),
        settings=settings.model_dump(mode="json"),
        reward=reward.settings.model_dump(mode="json"),
        generator=reward.pictures.generator.name,
        reading=reward.reading.deciding,
        base=loaded.digest,
        adapter=key_of_adapter(adapter),
    )
    staged = Groups(reward, Pool(tuple(prompts), settings.seed), settings)
    about = train_adapter(
        *("grpo", key, loaded, settings, out, force),
        lambda folder: _trainer(loaded, staged, settings, folder, adapter),
        on_step,
        staged.pool,
        {"asked": asked_of(reward.reading)},
    )
    return GrpoResult(out=out, rewards=tuple(about["rewards"]), answers=dict(staged.tally))


def groups_of(settings: GroupSettings) -> int:
    """Return how many groups a step has."""
    return settings.batch * settings.accumulation // settings.generations


def check_groups(prompts: Sequence[str], settings: GroupSettings) -> None:
    """Raise where a step has more groups than there are prompts.

    Raises:
        PromptError: There are too few prompts.
    """
    groups = groups_of(settings)
    if len(prompts) < groups:
        raise PromptError(
            f"training: {len(prompts)} prompts, and a step takes {groups} (batch times "
            "accumulation by generations); give more, or lower these"
        )


def order_of(count: int, settings: GroupSettings) -> list[int]:
    """Return the numbers of the prompts of all steps, shuffled each time that all were seen."""
    wanted = settings.steps * groups_of(settings)
    order: list[int] = []
    while len(order) < wanted:
        draw = generator_for(settings.seed, "order", len(order))
        order += torch.randperm(count, generator=draw).tolist()
    return order[:wanted]


def _trainer(
    base: Base, groups: Groups, settings: GrpoSettings, folder: Path, adapter: Path | None
) -> Any:
    """Return trl's trainer, ready to run."""
    from datasets import Dataset

    rows = order_of(len(groups.pool.prompts), settings)
    data = Dataset.from_dict({"row": rows, "number": list(range(len(rows)))})
    shown = data.with_transform(groups.shown)
    return trainer_on(base, shown, groups.score, settings, folder, adapter)


def trainer_on(
    base: Base,
    data: Any,
    score: Callable[..., list[float]],
    settings: GroupSettings,
    folder: Path,
    adapter: Path | None,
) -> Any:
    """Return a trainer of trl, ready to run.

    Args:
        base: What is trained.
        data: The groups of all steps, in order, with a column "prompt", see `order_of`.
        score: Called with completions and the data's columns, a list each; returns the rewards.
        settings: How.
        folder: Of its checkpoints.
        adapter: Where it starts; None is a new one on the base.

    Raises:
        IneError: As `ine.training.lora.with_lora`.
    """
    from transformers import set_seed
    from trl import GRPOConfig, GRPOTrainer

    set_seed(settings.seed)
    model = with_lora(base, settings.lora, adapter)
    arguments = GRPOConfig(
        **shared_arguments(folder, base, settings),
        num_generations=settings.generations,
        max_completion_length=settings.max_tokens,
        max_steps=settings.steps,
        beta=settings.kl,
        temperature=settings.temperature,
        loss_type="grpo",
        # The order of prompts is decided below: trl's own is another one after a resume.
        shuffle_dataset=False,
    )
    trainer = quiet(GRPOTrainer)(
        model=model,
        reward_funcs=[score],
        args=arguments,
        train_dataset=data,
        processing_class=base.processor,
    )
    if settings.reference == "base" and "ref" in trainer.model.peft_config:
        # Without it trl switches adapters off for the reference.
        trainer.model.delete_adapter("ref")
    return trainer
