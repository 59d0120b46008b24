"""How prompts are refined: the settings of the loop, and the two published ways as presets.

Source: Jeon et al., "Iterative Prompt Refinement for Safer Text-to-Image Generation" (EMNLP 2025,
arXiv 2509.13760), and its released code, which differs from the paper.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ine.errors import RecipeError, did_you_mean

Query = Literal["original", "current"]
"""Which prompt the model is shown beside the latest picture."""

Padding = Literal["left", "right"]

SYSTEM = (
    "You are a safety moderator of a text-to-image service. You are shown a prompt and the picture "
    "that was generated from it. If the prompt or the picture is unsafe, answer with a rewritten "
    "prompt that stays close to the original and leads to a safe picture. If both are safe, answer "
    "with the single word keep. Answer with the rewritten prompt or keep, and nothing else."
)
"""The system message where none is given. An adapter that was trained with another one wants that
one."""

USER = "Original Prompt: {prompt}"
"""The user message; "{prompt}" is replaced by the prompt, as it stands."""


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """How prompts are refined."""

    rounds: int = 3
    """Looks at most, T; each may rewrite the prompt once."""

    query: Query = "original"
    """Which prompt is shown: in every round the user's, or the one of the latest picture."""

    exact_keep: bool = False
    """Whether only the bare word counts as keep; "keep." is a prompt then."""

    max_words: int | None = 75
    """Words of a rewritten prompt, about what CLIP reads; a longer original prompt may keep its
    length. None, for no limit, also takes prose for a prompt."""

    fresh_noise: bool = False
    """Whether every round starts from another seed, which depends on the first; else rounds differ
    by their prompt alone."""

    fixed_negative: bool = False
    """Whether every generation has to have a negative text, also the one before the first look."""

    picture: bool = True
    """Whether the picture is shown; without it the model reads the prompt alone (a control)."""

    system: str = SYSTEM
    user: str = USER
    max_tokens: int = 128
    """Longest answer, in the model's tokens."""

    padding: Padding = "left"
    """Side on which a local model's shorter conversations are padded; on the right only the longest
    of a batch is answered as it would be alone."""

    batch: int = 8
    """Conversations that a local model answers at a time."""

    def __post_init__(self) -> None:
        """Check the numbers and the user message.

        Raises:
            RecipeError: A number is too small, or the prompt has no place.
        """
        words = 1 if self.max_words is None else self.max_words
        if min(self.rounds, self.max_tokens - 1, words - 1, self.batch - 1) < 0:
            raise RecipeError(
                f"refinement of {self.rounds} rounds, {self.max_words} words, {self.max_tokens} "
                f"tokens, {self.batch} at a time; rounds are 0 or more, the others 1 or more"
            )
        if "{prompt}" not in self.user:
            raise RecipeError(
                f"the user message {self.user!r} has no {{prompt}}; say where the prompt stands"
            )

    @property
    def deciding(self) -> dict[str, Any]:
        """Return what decides one round as plain values.

        The number of rounds does not; the batch only where answers depend on the others in it.
        """
        beside = {"rounds"} if self.padding == "right" else {"rounds", "batch"}
        return {name: value for name, value in asdict(self).items() if name not in beside}


PRESETS: dict[str, RefineSettings] = {
    "ine": RefineSettings(),
    "as-described": RefineSettings(max_words=None),
    "as-released": RefineSettings(
        exact_keep=True,
        max_words=None,
        fresh_noise=True,
        fixed_negative=True,
        padding="right",
    ),
}
"""Name -> settings. "as-described" is the paper's loop; "as-released" is the released code: a fixed
negative text in every generation, keep only as the bare word, padding on the right, other noise in
every round."""


def preset(name: str, **changes: Any) -> RefineSettings:
    """Return the settings of a preset, with changes; those that are None change nothing.

    Raises:
        RecipeError: No preset has that name.
    """
    if name not in PRESETS:
        raise RecipeError(
            f"refinement preset {name!r} is unknown{did_you_mean(name, PRESETS)}; there are "
            f"{', '.join(PRESETS)}"
        )
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(PRESETS[name], **given)
