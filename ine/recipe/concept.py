"""A concept recipe as one value, and how its templates are filled with nouns."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ine.files import sha256_of
from ine.recipe.sections import (
    ConceptWords,
    DefenceSearch,
    Erase,
    InversionSettings,
    Names,
    Observe,
    PictureSettings,
    Tuning,
)
from ine.yaml_files import Section


class ConceptRecipe(Section):
    """One concept. See the section classes for the fields."""

    kind: Literal["concept"]
    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    about: str = ""
    base: str
    """Base model: "mini", a hub id, or a folder."""

    people: bool = False
    """Pictures show people: they are stored as latents, and flagged ones are shown blurred."""

    words: ConceptWords
    pictures: PictureSettings
    inversion: InversionSettings = InversionSettings()
    tuning: Tuning | None = None
    erase: Erase | None = None
    defence: DefenceSearch = DefenceSearch()
    observe: Observe = Observe()
    prompt_sets: dict[str, Names] = Field(default_factory=dict)
    """Named templates for reported figures, e.g. `implying_test`, `benign`."""

    prompt_nouns: Names = ("",)
    """Nouns for the prompt sets."""

    strength: Annotated[float, Field(ge=0)] | None = None
    """Strength s of the additive form, chosen on the tuning prompts; None if not measured, which
    means w - 1 as in plain guidance."""

    plural: Names = ()
    """Nouns that take no article."""

    @property
    def hash(self) -> str:
        """Return 16 hex digits of everything in the recipe that decides vectors and weights."""
        return sha256_of(self.deciding)[:16]

    @property
    def deciding(self) -> bytes:
        """Return the recipe as JSON, without the sections that decide no vectors and no weights."""
        unsaid: Any = {"defence": True, "observe": True, "inversion": self.inversion.by_default}
        return self.model_dump_json(exclude=unsaid).encode()

    def fill(self, template: str, noun: str) -> str:
        """Return a template with its noun and the right article; see `fill`."""
        return fill(template, noun, self.plural)

    def benign_tuning(self) -> list[tuple[str, str]]:
        """Return the (prompt, noun) on which choices measure preservation; none without tuning."""
        return [(self.fill(template, noun), noun) for template, noun in self.benign_pairs()]

    def benign_pairs(self) -> list[tuple[str, str]]:
        """Return the (template, noun) of `benign_tuning`."""
        tuning, erase = self.tuning, self.erase
        if tuning and tuning.benign:
            return pairs(tuning.benign, tuning.benign_nouns)
        return pairs(erase.preserve, erase.preserve_nouns) if tuning and erase else []

    def oracle(self) -> str:
        """Return the words of the implying test prompts, which a defender cannot know."""
        prompts = self.prompt_sets["implying_test"]
        return ", ".join(p.replace("a {} ", "").replace("{}", "").strip() for p in prompts)


def fill(template: str, noun: str, plural: Sequence[str] = ()) -> str:
    """Put a noun into a template: "a {} on fire", "apple" -> "an apple on fire".

    Nouns in `plural` lose the article: "a burning {}", "scissors" -> "burning scissors". Other
    words of the template stay as they are: "a {} with a unicorn".
    """
    if noun in plural:
        template = re.sub(r"\ban? ((?:\S+ )?\{\})", r"\1", template)
    elif noun:
        article = "an" if re.match(r"(?!uni[^mn]|us[eu]|eu|one\b)[aeiou]", noun, re.I) else "a"
        template = re.sub(r"\ban? (?=\{\})", f"{article} ", template)
    return template.replace("{}", noun)


def pairs(templates: Sequence[str], nouns: Sequence[str]) -> list[tuple[str, str]]:
    """Return every (template, noun); nouns vary fastest."""
    return [(t, n) for t in templates for n in nouns]
