"""Who rewrites prompts that no picture was seen of: rules, any server, or a model trained here.

`ine.posi.table` has them by name, `ine.posi.trained` the trained model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ine.errors import ObserverError
from ine.observers.asking import Asker
from ine.observers.question import Conversation, Turn
from ine.posi.pair_files import INSTRUCTION
from ine.refining.answers import read_answer
from ine.refining.settings import RefineSettings
from ine.refining.teacher import Teacher

READING = RefineSettings(fresh_noise=True)
"""How an answer is read: as in refinement, and an unchanged prompt is an answer."""

STEP = 64
"""Prompts that a rewriter is given at a time."""

SILENT = ("time-out", "error")
"""What is said of a prompt that a server did not answer."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What a rewriter made of a prompt."""

    prompt: str
    rewritten: str = ""
    """The new prompt, or the same where the rewriter kept it."""

    unusable: str = ""
    """Why no answer can be used; nothing says then that the prompt is harmless."""

    @property
    def changed(self) -> bool:
        """Return whether there is another prompt than the user's."""
        return bool(self.rewritten) and self.rewritten != self.prompt.strip()


class PromptRewriter(Protocol):
    """Rewrites prompts; what it makes of one does not depend on the others."""

    @property
    def name(self) -> str:
        """Return what tells its answers from those of others; holds no key."""

    def __call__(self, prompts: Sequence[str]) -> list[Rewrite]:
        """Return one rewrite per prompt.

        Raises:
            ObserverError: None of them was answered.
        """


def rewrite_all(
    prompts: Sequence[str],
    rewriter: PromptRewriter,
    progress: Callable[[int], None] | None = None,
) -> list[Rewrite]:
    """Return one rewrite per prompt, asked for `STEP` at a time.

    Args:
        prompts: In any number.
        rewriter: Who rewrites.
        progress: Called with the number of prompts that are done.

    Raises:
        ObserverError: Of some `STEP` prompts none was answered.
    """
    found: list[Rewrite] = []
    for first in range(0, len(prompts), STEP):
        found += rewriter(prompts[first : first + STEP])
        if progress:
            progress(len(found))
    return found


@dataclass(frozen=True)
class RuleRewriter:
    """The rules of a concept; all prompts count as toxic, as no picture is seen."""

    teacher: Teacher

    @property
    def name(self) -> str:
        """Return the concept and its recipe."""
        recipe = self.teacher.recipe
        return f"teacher:{recipe.name}@{recipe.hash}"

    def __call__(self, prompts: Sequence[str]) -> list[Rewrite]:
        """Return the prompts' subjects alone, see `ine.refining.teacher`."""
        return [Rewrite(prompt=p, rewritten=self.teacher.rewrite(p)) for p in prompts]


@dataclass(frozen=True)
class AskingRewriter:
    """A model that is asked to rewrite, without any training."""

    asker: Asker
    instruction: str = INSTRUCTION
    max_tokens: int = 128

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.asker.name

    def __call__(self, prompts: Sequence[str]) -> list[Rewrite]:
        """Return one rewrite per prompt, see `PromptRewriter`."""
        asked = [
            Conversation(
                turns=(
                    Turn(role="system", text=self.instruction),
                    Turn(role="user", text=prompt),
                ),
                max_tokens=self.max_tokens,
            )
            for prompt in prompts
        ]
        replies = self.asker.ask(asked) if asked else []
        failed = [reply for reply in replies if reply.failed in SILENT]
        if failed and len(failed) == len(replies):
            raise ObserverError(
                f"observer {self.name}: none of {len(replies)} prompts was answered (the last: "
                f"{failed[-1].failed}: {failed[-1].why}); repair the observer and run again"
            )
        return [
            Rewrite(prompt=prompt, unusable=reply.failed)
            if reply.failed
            else read_rewrite(prompt, reply.text)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]


def read_rewrite(prompt: str, answer: str) -> Rewrite:
    """Return what an answer makes of a prompt; prose, refusals and what is screened are unusable.

    The word keep leaves the prompt as it is.
    """
    verdict = read_answer(answer, READING, original=prompt)
    if verdict.kind == "unusable":
        return Rewrite(prompt=prompt, unusable=verdict.why or "unusable")
    return Rewrite(prompt=prompt, rewritten=verdict.prompt or prompt)


def check_answered(rows: Sequence[Rewrite], name: str) -> None:
    """Raise where a model gave no answer; an answer that cannot be used is one.

    Raises:
        ObserverError: A request failed; another try may succeed.
    """
    silent = [row.unusable for row in rows if row.unusable in SILENT]
    if silent:
        raise ObserverError(
            f"rewriter {name}: {len(silent)} of {len(rows)} prompts were not answered ({silent[0]})"
            "; what is finished is kept; repair the rewriter and give the same command again"
        )
