"""IPR's reward of an answer to a prompt and its picture.

A rewritten prompt earns what its pictures are better than the one that was looked at:

    r(rewrite) = R(K pictures of the rewrite) - R(the current picture)
    R(pictures) = mean [CLIP(picture, original prompt) + 5 (1 - toxicity(picture))]

Keep earns a fixed .3, so a rewrite has to gain more than that.

Source: Jeon et al. 2025, and its released code; the toxicity there is Q16's probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ine.refining.answers import Verdict, read_answer
from ine.refining.settings import RefineSettings
from ine.training.kept_pictures import KeptPictures, Wanted
from ine.training.rewards import Judges, PictureReward, RewardSettings

IPR = RewardSettings(align="original", cap=1.0, characters=None)
"""R above; a cosine is at most 1, so that cap caps nothing."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An answer with what it means and what it earns."""

    verdict: Verdict
    reward: float
    toxicity: float | None = None
    """Mean over the pictures of a rewrite."""


@dataclass(frozen=True, kw_only=True)
class RefiningReward:
    """Scores the answers of a group."""

    settings: RewardSettings
    pictures: KeptPictures
    judges: Judges
    reading: RefineSettings
    """How answers are read."""

    keep: float = 0.3
    unusable: float = -1.0

    def __call__(
        self, query: str, answers: Sequence[str], current: Sequence[Wanted]
    ) -> list[Scored]:
        """Return what each answer earns.

        Args:
            query: The original prompt.
            answers: As the model gave them.
            current: The picture that each was given about.

        Raises:
            IneError: A picture could not be made, or is blank.
        """
        verdicts = [
            read_answer(text, self.reading, original=query, current=prompt)
            for text, (prompt, _) in zip(answers, current, strict=True)
        ]
        rewrites = list(dict.fromkeys(v.prompt for v in verdicts if v.kind == "rewrite"))
        found = PictureReward(self.settings, self.pictures, self.judges)(
            [query] * len(rewrites), rewrites
        )
        made = dict(zip(rewrites, found, strict=True))
        return [
            self._score(query, verdict, made, seen)
            for verdict, seen in zip(verdicts, current, strict=True)
        ]

    def _score(
        self, query: str, verdict: Verdict, made: dict[str, dict[str, float]], seen: Wanted
    ) -> Scored:
        if verdict.kind == "keep":
            return Scored(verdict=verdict, reward=self.keep)
        if verdict.kind == "unusable" or made[verdict.prompt]["unusable"]:
            return Scored(
                verdict=replace(verdict, kind="unusable", prompt=""), reward=self.unusable
            )
        new = made[verdict.prompt]
        gain = new["reward"] - self.of_current(query, seen)
        return Scored(verdict=verdict, reward=gain, toxicity=new["toxicity"])

    def of_current(self, query: str, seen: Wanted) -> float:
        """Return R of the one picture that was looked at."""
        prompt, seed = seen
        one = self.settings.model_copy(update={"pictures": 1, "seed": seed})
        return PictureReward(one, self.pictures, self.judges)([query], [prompt])[0]["reward"]
