"""POSI's reward of a rewritten prompt: its pictures are harmless, and show what was asked for.

    5 - 5 mean_K toxicity(picture) + weight min(mean_K cos(picture, text), .31)

The release takes Q16's probability as the toxicity, and as the text the rewritten prompt itself,
which lets a model drift to any harmless prompt; with the original prompt as the text, drift costs.

Sources:
    Wu et al. 2024 (POSI), and its released code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ine.detectors.features import check_extractor, load_extractor
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.rules import find_rule
from ine.detectors.table import check_detector, load_detector
from ine.prompts.screening import is_refused
from ine.training.kept_pictures import KeptPictures, Wanted
from ine.yaml_files import Section

Align = Literal["modified", "original"]


class RewardSettings(Section):
    """How rewritten prompts are scored; the defaults are those of POSI's release."""

    rules: Annotated[tuple[str, ...], Field(min_length=1)] = ("q16@0.5",)
    """Whose scores are the toxicity; of several rules the largest counts. The release asks Q16,
    the paper Q16 and NudeNet."""

    clip: str = "clip[openai/clip-vit-base-patch32]"
    """What compares a picture with a text: mini-judge, clip or clip[FOLDER]."""

    align: Align = "modified"
    """The text: the rewritten prompt, as released, or the original one."""

    cap: Annotated[float, Field(gt=0)] = 0.31
    """The most that the cosine earns."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the cosine; the toxicity has 5. At 1, as released, a model may cut harmless prompts short
    without losing much."""

    characters: Annotated[int, Field(ge=1)] | None = 77
    """Where the text is cut; None leaves it whole."""

    pictures: Annotated[int, Field(ge=1)] = 10
    """Of each prompt, K."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first picture; the others have the next ones."""


def check_reward(settings: RewardSettings) -> None:
    """Raise if a model of the reward is missing; nothing is loaded.

    Raises:
        RecipeError: A rule or CLIP model is unknown.
        MissingDependency: It is not on this machine.
    """
    for name in settings.rules:
        check_detector(find_rule(name).detector)
    check_extractor(settings.clip)


@dataclass(frozen=True)
class Judges:
    """The models of the reward, loaded."""

    rules: tuple[tuple[Rule | AnyOf, Any], ...]
    """Each rule with its detector."""

    clip: Any
    """See `ine.detectors.clip.ClipJudge`."""


def load_judges(settings: RewardSettings) -> Judges:
    """Return the models of the reward; raises as `check_reward`."""
    check_reward(settings)
    rules = [find_rule(name) for name in settings.rules]
    loaded = {name: load_detector(name) for name in {rule.detector for rule in rules}}
    return Judges(
        rules=tuple((rule, loaded[rule.detector]) for rule in rules),
        clip=load_extractor(settings.clip),
    )


@dataclass(frozen=True)
class PictureReward:
    """Scores rewritten prompts by pictures of them; see `ine.training.rollouts.RewardOf`."""

    settings: RewardSettings
    pictures: KeptPictures
    judges: Judges

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[dict[str, float]]:
        """Return per answer its reward and what it consists of.

        "toxicity" and "alignment" are the two means; "to_answer" and "to_prompt" the cosines with
        either text, whichever counts. An empty answer, or one that screening refuses, earns 0, and
        no picture of it is made.

        Args:
            prompts: The original ones.
            answers: The rewritten ones.

        Raises:
            IneError: A picture could not be made, or is blank.
        """
        usable = [bool(a) and not is_refused(p, a) for p, a in zip(prompts, answers, strict=True)]
        asked = [a for a, fine in zip(answers, usable, strict=True) if fine]
        self.pictures.make([one for answer in asked for one in self._wanted(answer)])
        return [
            self._score(prompt, answer) if fine else _nothing()
            for prompt, answer, fine in zip(prompts, answers, usable, strict=True)
        ]

    def _wanted(self, answer: str) -> list[Wanted]:
        first = self.settings.seed
        return [(answer, first + k) for k in range(self.settings.pictures)]

    def _score(self, prompt: str, answer: str) -> dict[str, float]:
        wanted = self._wanted(answer)
        toxic = self._toxicity(wanted)
        features = self.pictures.features(self.settings.clip, self.judges.clip, wanted)
        to_answer, to_prompt = (self._cosine(features, text) for text in (answer, prompt))
        alignment = to_answer if self.settings.align == "modified" else to_prompt
        return {
            "reward": 5 - 5 * toxic + self.settings.weight * min(alignment, self.settings.cap),
            "toxicity": toxic,
            "alignment": alignment,
            "to_answer": to_answer,
            "to_prompt": to_prompt,
            "unusable": 0.0,
        }

    def _toxicity(self, wanted: list[Wanted]) -> float:
        """Return the mean over pictures of the largest score of any rule, in [0, 1]."""
        found = []
        for rule, detector in self.judges.rules:
            seen = self.pictures.scores(rule.detector, detector, wanted)
            found.append([min(1.0, rule.score(scores)) for scores in seen])
        return float(np.max(found, axis=0).mean())

    def _cosine(self, features: np.ndarray, text: str) -> float:
        cut = text[: self.settings.characters]
        return float(self.judges.clip.alignment(features, [cut] * len(features)).mean())


def _nothing() -> dict[str, float]:
    zeros = dict.fromkeys(("alignment", "to_answer", "to_prompt"), 0.0)
    return {"reward": 0.0, "toxicity": 1.0, **zeros, "unusable": 1.0}
