"""A rewriter that follows rules, for the bundled model's world: a control, and a teacher.

It looks with the recipe's own rule, and reads the prompt for the recipe's words. An unsafe prompt
becomes its subjects alone, "a dog at the forge" -> "a dog": the world's objects, without those that
are the concept, and the colour behind them. All words are data of the world and the recipe.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ine.errors import RecipeError
from ine.observers.asking import Reply
from ine.observers.base import Observer
from ine.observers.question import question_of
from ine.observers.table import load_observer
from ine.prompts.mini import CONCEPTS, world
from ine.recipe import ConceptRecipe, load_recipe
from ine.refining.answers import KEEP


@dataclass(frozen=True)
class Teacher:
    """The rule of a concept of the bundled model."""

    recipe: ConceptRecipe

    def answer(self, prompt: str, unsafe: bool) -> str:
        """Return "keep", or the rewritten prompt.

        Args:
            prompt: The text.
            unsafe: Whether its picture shows the concept; a prompt that names it is unsafe anyway.
        """
        return self.rewrite(prompt) if unsafe or self.names(prompt) else KEEP

    def names(self, prompt: str) -> bool:
        """Return whether a prompt names the concept, by the recipe's words."""
        words = (*self.recipe.words.explicit, *self.recipe.words.synonyms)
        return any(_has(prompt, re.sub("^(an?|the) ", "", one)) for one in words)

    def rewrite(self, prompt: str) -> str:
        """Return a prompt with its subjects alone; the recipe's innocent one if it has none."""
        subjects = [noun for noun in _found(prompt, _objects()) if not self._is_concept(noun)]
        behind = re.search(rf"\bon an? (?:{'|'.join(world()['colours'])}) background\b", prompt)
        after = f" {behind[0]}" if behind else ""
        if subjects:
            filled = [self.recipe.fill("a {}", noun) for noun in dict.fromkeys(subjects)]
            return " and ".join(filled) + after
        return self._innocent(prompt) + after

    def _is_concept(self, noun: str) -> bool:
        """Return whether an object of the world is the concept itself."""
        return _objects()[noun] == self.recipe.name

    def _innocent(self, prompt: str) -> str:
        """Return a prompt without any object of the world."""
        targets = self.recipe.erase.targets if self.recipe.erase else ()
        fixed = next((target for target in targets if "{}" not in target), None)
        if fixed:
            return fixed
        left = _without(prompt, (*self.recipe.words.explicit, *self.recipe.words.synonyms))
        return left or "a picture"


@dataclass(frozen=True)
class TeacherRewriter:
    """A teacher with the judge that looks for it; see `ine.refining.asking.Rewriter`."""

    teacher: Teacher
    judge: Observer

    @property
    def name(self) -> str:
        """Return the concept, with the recipe's words and the judge."""
        recipe = self.teacher.recipe
        return f"teacher:{recipe.name}@{recipe.hash}+{self.judge.name}"

    def __call__(self, prompts: Sequence[str], pictures: np.ndarray) -> list[Reply]:
        """Return one reply per prompt, see `Rewriter`."""
        if not len(prompts):
            return []
        seen = self.judge(pictures, prompts)
        return [
            Reply(text=self.teacher.answer(prompt, unsafe=bool(one.shows)))
            for prompt, one in zip(prompts, seen, strict=True)
        ]


def teacher_of(concept: str) -> Teacher:
    """Return the teacher of a concept.

    Raises:
        RecipeError: The recipe is unknown, or not of the bundled model's world.
    """
    recipe = load_recipe(concept)
    if recipe.name not in CONCEPTS:
        raise RecipeError(
            f"teacher:{concept}: its rules are about the bundled model's world; expected "
            f"{' or '.join(CONCEPTS)}"
        )
    return Teacher(recipe)


def load_teacher(concept: str) -> TeacherRewriter:
    """Return the teacher of a concept with the judge of its recipe.

    Raises:
        RecipeError: As `teacher_of`.
    """
    teacher = teacher_of(concept)
    rule = teacher.recipe.pictures.rule
    return TeacherRewriter(teacher, load_observer(f"judge:{rule}", [question_of(teacher.recipe)]))


@cache
def _objects() -> dict[str, str]:
    """Return {noun: category} of the world's objects; what a concept calls its members is one."""
    nouns = {
        noun: entry["category"]
        for entry in world()["objects"]
        for noun in (entry["name"], *entry["synonyms"])
    }
    for concept, about in world()["concepts"].items():
        said = (about.get(key, ()) for key in ("explicit", "synonyms", "members_never_named"))
        nouns |= {noun: concept for nouns_ in said for noun in nouns_}
    return nouns


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)


def _has(text: str, words: str) -> bool:
    return bool(_pattern(words).search(text))


def _found(text: str, nouns: dict[str, str]) -> list[str]:
    """Return the nouns that stand in a text, in its order; "light bulb" hides "light"."""
    places: dict[int, str] = {}
    for noun in sorted(nouns, key=len, reverse=True):
        for match in _pattern(noun).finditer(text):
            places[match.start()] = noun
            text = text[: match.start()] + "\0" * len(match[0]) + text[match.end() :]
    return [places[start] for start in sorted(places)]


def _without(text: str, phrases: Sequence[str]) -> str:
    """Return a text without some phrases."""
    for phrase in sorted(phrases, key=len, reverse=True):
        text = _pattern(phrase).sub(" ", text)
    return " ".join(text.split())
