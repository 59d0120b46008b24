"""From pictures and prompts to adversarial prompts in a file that `ine evaluate` reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ine.attacks.inverting import defended_loss
from ine.attacks.objectives import (
    Denoising,
    MatchedPrediction,
    TextDistance,
    joined,
)
from ine.attacks.prediction import Victim
from ine.attacks.search import SearchSettings, search, words_of
from ine.embedding import new_embedding, write_embedding
from ine.errors import IneError
from ine.files import sha256_of, write_text
from ine.guidance.table import describe
from ine.inversion.invert import invert
from ine.inversion.preview import reviving_prompts
from ine.models.fingerprint import exact_digest
from ine.recipe import pairs
from ine.runtime import seed_for

METHODS = {"text": "genetic", "denoising": "gradient", "embedding": None}
"""Name -> the proposals that its authors use."""


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """Who attacks what, knowing what."""

    victim: Victim
    """With a guidance where the attacker knows the defence."""

    base: object
    """Parts of the model before unlearning, for what is aimed at."""

    recipe: object
    pictures: object
    """`ConceptPictures` that the attacker has."""

    folder: Path
    seed: int = 0

    def key(self, *more):
        """Return what a state depends on, 16 hex digits."""
        parts = self.victim.parts
        about = [
            exact_digest([parts.unet, *parts.text_encoders]),
            repr(self.victim.sampler),
            describe(self.victim.guidance),
            self.pictures.names,
            self.recipe.model_dump_json(),
            self.seed,
            *more,
        ]
        return sha256_of(json.dumps(about, default=str).encode())[:16]

    def marks(self, method, budget):
        """Return what every row of a set says of its making."""
        parts = self.victim.parts
        defence = describe(self.victim.guidance) if self.victim.guidance else None
        return {
            "attack": method,
            "concept": self.recipe.name,
            "model": f"{parts.name}, U-Net {parts.unet_name}",
            "defence": "unknown to the attacker" if defence is None else json.dumps(defence),
            "budget": budget,
        }


def plain_prompts(recipe, count, seed):
    """Return `count` pairs (prompt without the concept, noun): what a recipe's erasers aim at.

    Raises:
        IneError: The recipe has none.
    """
    if recipe.erase is None:
        raise IneError(
            f"attack: recipe {recipe.name} has no erase section to take prompts "
            "from; give --prompts"
        )
    options = pairs(dict.fromkeys(recipe.erase.targets), recipe.erase.nouns)
    order = sorted(range(len(options)), key=lambda i: seed_for(seed, "attack prompts", i))
    return [(recipe.fill(t, n), n) for t, n in (options[i] for i in order[:count])]


def belonging(pictures, rows):
    """Return (`ConceptPictures`, prompt of each): those of the rows' nouns, else all in turn.

    Args:
        pictures: What the attacker has.
        rows: (prompt, noun) pairs.
    """
    of_noun = {noun: prompt for prompt, noun in rows if noun}
    captions = pictures.captions or ("",) * pictures.count
    fitting = [i for i, caption in enumerate(captions) if caption in of_noun]
    if fitting:
        return pictures.of(fitting), tuple(of_noun[captions[i]] for i in fitting)
    return pictures, tuple(rows[i % len(rows)][0] for i in range(pictures.count))


def objective_of(attacker, method, rows, strength=3.0):
    """Return the `Objective` of a method for a group of prompts."""
    pictures, prompts = belonging(attacker.pictures, rows)
    if method == "denoising":
        return Denoising(attacker.victim, pictures, prompts)
    erase, recipe = attacker.recipe.erase, attacker.recipe
    if erase is None:
        raise IneError(
            f"attack text: recipe {recipe.name} has no erase section, whose texts with and without "
            "the concept give its direction"
        )
    nouns = list(dict.fromkeys(erase.nouns))[:16]
    texts = tuple(
        (recipe.fill(having, noun), recipe.fill(lacking, noun))
        for having, lacking in zip(erase.concepts, erase.targets, strict=True)
        for noun in nouns
    )
    text = TextDistance(attacker.base, tuple(p for p, _ in rows), texts, strength)
    if attacker.victim.guidance is None:
        return text
    return MatchedPrediction(attacker.victim, pictures, prompts, base=attacker.base, text=text)


def search_prompts(
    attacker,
    method,
    rows,
    settings: SearchSettings,
    *,
    together=False,
    allow_words=False,
    direction=3.0,
    tell=None,
):
    """Search a phrase for every prompt, or one for all; return the rows of the set.

    Args:
        attacker: `Attacker`.
        method: "text" or "denoising".
        rows: (prompt, noun) pairs.
        settings: `SearchSettings`.
        together: One phrase for all prompts.
        allow_words: Whether a phrase may have the concept's own words.
        direction: For "text", how far to go along the concept's direction.
        tell: Called with (group, groups, `Search`) after every round.

    Returns:
        Dicts with "prompt", "noun", "phrase", and how they were made.
    """
    recipe = attacker.recipe
    without = () if allow_words else (*recipe.words.explicit, *recipe.words.synonyms)
    words = words_of(attacker.victim.parts, without)
    groups = [list(rows)] if together else [[row] for row in rows]
    found = []
    for number, group in enumerate(groups):
        objective = objective_of(attacker, method, group, direction)
        now = search(
            objective,
            words,
            settings,
            seed=seed_for(attacker.seed, "attack", number),
            state=attacker.folder / "states" / f"{number:04d}.json",
            key=attacker.key(method, asdict(settings), group, allow_words, direction),
            on_round=lambda s, n=number: tell and tell(n, len(groups), s),
        )
        marks = attacker.marks(method, f"{settings.budget} {objective.unit} a phrase")
        found += [
            {
                "prompt": joined(now.phrase, prompt),
                "noun": noun,
                "phrase": now.phrase,
                "original": prompt,
                **marks,
                "proposals": settings.proposals,
                "spent": now.spent,
                "loss": now.loss,
            }
            for prompt, noun in group
        ]
    return found


def invert_prompts(attacker, trigger, count, on_step=None):
    """Invert the concept, through the defence where it is known; write and return an embedding.

    Returns:
        (path of the embedding, rows of the set whose prompts have the trigger in them).
    """
    recipe, victim = attacker.recipe, attacker.victim
    spec = recipe.inversion.model_copy(update={"preview_every": 10**9})
    made = invert(
        victim.parts,
        attacker.pictures,
        spec,
        trigger=trigger,
        seed=attacker.seed,
        plural=recipe.plural,
        state=attacker.folder / "states" / "embedding.safetensors",
        key=attacker.key("embedding", trigger),
        on_step=on_step,
        loss_of=None if victim.guidance is None else defended_loss(victim),
    )
    path = attacker.folder / f"{trigger}.safetensors"
    write_embedding(new_embedding(made.vectors, trigger, recipe.name), path, force=True)
    budget = f"{spec.steps} steps of {spec.batch * spec.accumulation} pictures"
    marks = attacker.marks("embedding", budget)
    rows = [
        {"prompt": prompt, "noun": noun, "phrase": trigger, **marks}
        for prompt, noun in reviving_prompts(recipe, trigger, count, attacker.seed)
    ]
    return path, rows


def write_set(path, rows):
    """Write a prompt set as JSON lines, atomically."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))
