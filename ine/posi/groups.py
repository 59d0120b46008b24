"""GRPO of a rewriter, by trl, on the reward that PPO has (`ine.training.rewards`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ine.errors import IneError
from ine.observers.adapters import needs_training_packages
from ine.posi.picture_stage import ROLLOUTS, PictureStage, key_of_stage, write_rows
from ine.posi.recipe import PosiRecipe
from ine.posi.trained import Asking, with_adapters
from ine.refining.generators import Generator
from ine.store.pictures import Store
from ine.training.answers import Drawing, check_lengths
from ine.training.bases import Base, load_base
from ine.training.grpo import check_groups, order_of, trainer_on
from ine.training.kept_pictures import KeptPictures
from ine.training.rewards import PictureReward, load_judges
from ine.training.settings import GroupSettings
from ine.training.stage import train_adapter


@dataclass
class ScoredGroups:
    """Scores the answers of a step, and keeps the means of every step."""

    prompts: tuple[str, ...]
    reward_of: Callable[[Sequence[str], Sequence[str]], Sequence[Mapping[str, float]]]
    """See `ine.training.rollouts.RewardOf`."""

    rows: list[dict[str, float]] = field(default_factory=list)
    """Mean figures of each call, in order; a step has `accumulation` of them at most."""

    def score(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the rewards of answers; trl calls this with a list per column.

        Raises:
            IneError: A picture could not be made, or is blank.
        """
        texts = [
            (one if isinstance(one, str) else one[0]["content"]).strip() for one in completions
        ]
        asked = [self.prompts[row] for row in columns["row"]]
        scored = self.reward_of(asked, texts)
        bad = [one["reward"] for one in scored if not abs(one["reward"]) < float("inf")]
        if bad:
            raise IneError(
                f"grpo: a reward is {bad[0]}; a picture or a judge failed: repair it and run "
                "again, which resumes"
            )
        names = scored[0]
        self.rows.append({name: sum(one[name] for one in scored) / len(scored) for name in names})
        return [one["reward"] for one in scored]

    def pack(self) -> dict[str, Any]:
        """Return what belongs to the state of a run, as JSON values."""
        return {"rows": self.rows}

    def unpack(self, packed: dict[str, Any]) -> None:
        """Take over what `pack` returned."""
        self.rows[:] = packed["rows"]


def _trainer(
    base: Base, groups: ScoredGroups, asking: Asking, settings: GroupSettings, folder: Path
) -> Any:
    """Return a trainer of a new adapter on a base, ready to run.

    trl puts a tokenizer's first token before a text itself, so the prompts come without it.
    """
    from datasets import Dataset

    rows = order_of(len(groups.prompts), settings)
    asked = [_asked(asking, groups.prompts[row]) for row in rows]
    data = Dataset.from_dict({"row": rows, "prompt": asked})
    return trainer_on(base, data, groups.score, settings, folder, None)


def _asked(asking: Asking, prompt: str) -> Any:
    found = asking.template.asked(asking.instruction, prompt)
    if isinstance(found, str):
        return found
    return [{"role": turn.role, "content": turn.text} for turn in found]


@dataclass(frozen=True, kw_only=True)
class GroupsResult:
    """A finished training by GRPO."""

    rows: tuple[dict[str, float], ...]
    """One per step: mean reward and what it consists of, and the KL divergence of an answer."""


def train_in_groups(
    recipe: PosiRecipe,
    prompts: Sequence[str],
    asking: Asking,
    stage: PictureStage,
    generator: Generator,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> GroupsResult:
    """Train an adapter by GRPO on the reward that PPO has; a killed run goes on where it was.

    Args:
        recipe: Its GRPO and reward.
        prompts: As users write them.
        asking: How the model is asked.
        stage: Where from and to.
        generator: Makes the pictures of rewritten prompts.
        on_step: Called with (finished steps, steps in all, the last one's figures).

    Raises:
        IneError: As `ine.posi.stages.train_on_pictures`.
        PromptError: There are fewer prompts than a step takes, or one is too long.
    """
    needs_training_packages()
    check_groups(prompts, recipe.grpo)
    judges = load_judges(recipe.reward)
    base = with_adapters(load_base(stage.base, stage.device), stage.adapters)
    queries = [asking.query(base.processor, prompt) for prompt in prompts]
    longest = Drawing(max_tokens=recipe.grpo.max_tokens)
    check_lengths(base.model, base.tokenizer, queries, longest)
    kept = KeptPictures(generator, Store(stage.store))
    groups = ScoredGroups(tuple(prompts), PictureReward(recipe.reward, kept, judges))
    key = key_of_stage("grpo", recipe, prompts, asking, stage, base, generator)

    def note(done: int, total: int, row: dict[str, float]) -> None:
        length = row.get("completions/mean_length", 0.0)
        # trl's divergence is that of a token; ours, as PPO's, of an answer.
        groups.rows[-1] |= {"kl": row.get("kl", 0.0) * length, "tokens": length}
        if done == total:
            # Before the adapter, whose last file says that all is there.
            write_rows(stage, asking, groups.rows)
        if on_step:
            more = {**kept.tally, "making": kept.spent["seconds"]}
            on_step(done, total, {**groups.rows[-1], **more})

    train_adapter(
        *("grpo", key, base, recipe.grpo, stage.out, stage.force),
        lambda folder: _trainer(base, groups, asking, recipe.grpo, folder),
        note,
        groups,
    )
    lines = (stage.out / ROLLOUTS).read_text(encoding="utf-8").splitlines()
    return GroupsResult(rows=tuple(map(json.loads, lines)))
