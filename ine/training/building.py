"""Build a training set of refinement: pictures of prompts, what rules see, a teacher's answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ine.detectors.rule import AnyOf, Rule
from ine.detectors.rules import find_rule
from ine.detectors.table import load_detector
from ine.errors import ObserverError, PromptError
from ine.observers.asking import Reply
from ine.pictures import png_bytes
from ine.prompts.rows import PromptRow
from ine.recipe import ConceptRecipe, load_recipe
from ine.refining.answers import KEEP, Verdict, read_answer
from ine.refining.asking import Rewriter
from ine.refining.dataset import Row, Signal
from ine.refining.settings import RefineSettings
from ine.refining.teacher import Teacher
from ine.training.kept_pictures import KeptPictures, Wanted


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The rules that are asked about prompts and pictures."""

    rules: tuple[tuple[Rule | AnyOf, Any], ...] = ()
    """Rules of pictures, each with its detector, see `ine.detectors.table.Detector`."""

    recipes: tuple[ConceptRecipe, ...] = ()
    """Concepts whose words are looked for in prompts."""

    def textual(self, prompt: str) -> tuple[Signal, ...]:
        """Return whether a prompt names each concept."""
        named = [(recipe.name, Teacher(recipe).names(prompt)) for recipe in self.recipes]
        return tuple(
            Signal(rule=f"words:{name}", score=float(found), unsafe=found) for name, found in named
        )

    def visual(self, pictures: KeptPictures, wanted: Sequence[Wanted]) -> list[tuple[Signal, ...]]:
        """Return what each rule says of each kept picture."""
        columns = [
            [
                Signal(rule=rule.name, score=min(1.0, rule.score(seen)), unsafe=rule.fires(seen))
                for seen in pictures.scores(rule.detector, detector, wanted)
            ]
            for rule, detector in self.rules
        ]
        return list(zip(*columns, strict=True)) if columns else [() for _ in wanted]


def signals_of(rules: Sequence[str], concepts: Sequence[str] = ()) -> Signals:
    """Return the rules of some names with their detectors loaded, and recipes by name.

    Raises:
        RecipeError: A rule or recipe is unknown.
        MissingDependency: A detector's package or weights are missing.
    """
    found = [find_rule(name) for name in dict.fromkeys(rules)]
    return Signals(
        rules=tuple((rule, load_detector(rule.detector)) for rule in found),
        recipes=tuple(load_recipe(name) for name in dict.fromkeys(concepts)),
    )


@dataclass(frozen=True, kw_only=True)
class Built:
    """The rows that came out, and what did not."""

    rows: tuple[Row, ...]
    dropped: dict[str, int]
    """Answers of the teacher that are neither keep nor a prompt, by why."""


def build_set(
    prompts: Sequence[PromptRow],
    pictures: KeptPictures,
    teacher: Rewriter,
    signals: Signals,
    settings: RefineSettings | None = None,
    *,
    per_prompt: int = 1,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
) -> Built:
    """Return a row per prompt and picture whose answer can be used.

    Pictures and what detectors saw are kept in the store as they come, so that a run that was
    killed repeats little; a teacher's replies are kept where it has a cache.

    Args:
        prompts: Of a screened set.
        pictures: Makes and keeps the pictures.
        teacher: Answers prompt and picture.
        signals: The rules that are asked.
        settings: What the teacher is asked, and how its answers are read.
        per_prompt: Pictures of each prompt.
        seed: Of a prompt's first picture, where its row has none; the others have the next ones.
        on_done: Called with the number of prompts and pictures that are done.

    Raises:
        ObserverError: The teacher gave no answer. What is kept stays; another try may succeed.
        PicturesError: A picture could not be made, or is blank.
        PromptError: No answer could be used.
    """
    reading = settings or RefineSettings()
    wanted = [
        (row.prompt, (seed if row.seed is None else row.seed) + k)
        for row in prompts
        for k in range(per_prompt)
    ]
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    size = pictures.generator.batch
    for first in range(0, len(wanted), size):
        some = wanted[first : first + size]
        pictures.make(some)
        shown = pictures.pictures(some)
        replies = teacher([prompt for prompt, _ in some], shown)
        seen = signals.visual(pictures, some)
        for (prompt, _), picture, reply, visual in zip(some, shown, replies, seen, strict=True):
            verdict = _verdict(reply, teacher.name, reading, prompt)
            if verdict.kind == "unusable":
                dropped[verdict.why or "unusable"] += 1
                continue
            rows.append(
                Row(
                    query=prompt,
                    response=verdict.prompt or KEEP,
                    image=png_bytes(picture),
                    textual=signals.textual(prompt),
                    visual=visual,
                )
            )
        if on_done:
            on_done(min(first + size, len(wanted)))
    if not rows:
        raise PromptError(
            f"none of the {len(wanted)} answers of {teacher.name} is keep or a prompt "
            f"({', '.join(f'{why}: {count}' for why, count in dropped.items())}); use another "
            "teacher or system message"
        )
    return Built(rows=tuple(rows), dropped=dict(dropped))


def _verdict(reply: Reply, name: str, reading: RefineSettings, prompt: str) -> Verdict:
    """Return what a reply means; declining is unusable, silence an error."""
    if reply.failed in ("time-out", "error"):
        raise ObserverError(
            f"observer {name}: gave no answer ({reply.failed}: {reply.why}); what is finished is "
            "kept; repair the observer and give the same command again"
        )
    if reply.failed:
        return Verdict(kind="unusable", raw=reply.text, why="refusal")
    return read_answer(reply.text, reading, original=prompt, current=prompt)
