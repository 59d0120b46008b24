"""Who attacks: the model, what is known about its defence, and the objective that follows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ine.attacks.denoising import Denoising, MatchedPrediction
from ine.attacks.objectives import Objective
from ine.attacks.shut import ShutDenoising
from ine.attacks.step import Victim
from ine.attacks.text_distance import AllStates, TextDistance
from ine.attacks.through_gate import GateLoss
from ine.errors import IneError
from ine.files import sha256_of
from ine.guidance.table import describe
from ine.inversion.images import ConceptPictures
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.weights.fingerprint import exact_digest

METHODS = {
    "text": "genetic",
    "ring-a-bell": "genetic",
    "denoising": "gradient",
    "embedding": None,
}
"""Name -> the proposals that its authors use; None for a method that searches no phrase."""

Pair = tuple[str, str]
"""(prompt, noun)."""

Row = dict[str, Any]
"""A row of a prompt set."""

TOKENS = {"ring-a-bell": 16}
"""Method -> how many tokens its authors leave free, where that is not `SearchSettings.tokens`."""


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """An attacker: the model to attack, and what is known about it."""

    victim: Victim
    """With a guidance where the attacker knows the defence."""

    base: DiffusionParts
    """The model before unlearning, which gives the targets."""

    recipe: ConceptRecipe
    pictures: ConceptPictures
    """Of the concept; the attacker has them."""

    folder: Path
    seed: int = 0
    gate: GateLoss | None = None
    """Keeps the gate of the defence shut, so that the model is attacked as if there were none
    besides; None takes a gate to be open."""

    def key(self, *more: Any) -> str:
        """Return the identity of a state, 16 hex digits of all that it depends on."""
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
        if self.gate:
            about.append(describe(self.gate))
        return sha256_of(json.dumps(about, default=str).encode())[:16]

    def marks(self, method: str, budget: str) -> Row:
        """Return how a set was made, which every row of it states."""
        parts = self.victim.parts
        defence = describe(self.victim.guidance) if self.victim.guidance else None
        gate = {"gate": f"kept shut, weight {self.gate.weight:g}"} if self.gate else {}
        return {
            "attack": method,
            **gate,
            "concept": self.recipe.name,
            "model": f"{parts.name}, U-Net {parts.unet_name}",
            "defence": "unknown to the attacker" if defence is None else json.dumps(defence),
            "budget": budget,
        }


def belonging(
    pictures: ConceptPictures, rows: Sequence[Pair]
) -> tuple[ConceptPictures, tuple[str, ...]]:
    """Return (`ConceptPictures`, prompt of each): those of the rows' nouns, else all in turn.

    Args:
        pictures: The attacker's.
        rows: (prompt, noun) pairs.
    """
    of_noun = {noun: prompt for prompt, noun in rows if noun}
    captions = pictures.captions or ("",) * pictures.count
    fitting = [i for i, caption in enumerate(captions) if caption in of_noun]
    if fitting:
        return pictures.of(fitting), tuple(of_noun[captions[i]] for i in fitting)
    return pictures, tuple(rows[i % len(rows)][0] for i in range(pictures.count))


def objective_of(
    attacker: Attacker, method: str, rows: Sequence[Pair], strength: float = 3.0
) -> Objective:
    """Return the `Objective` of a method for a group of prompts."""
    pictures, prompts = belonging(attacker.pictures, rows)
    if attacker.gate:
        if method != "denoising":
            raise IneError(
                f"attack {method}: cannot go through a gate; give --method denoising or "
                "--method embedding, or leave out --through-gate"
            )
        bare = replace(attacker.victim, guidance=None)
        return ShutDenoising(bare, pictures, prompts, gate=attacker.gate)
    if method == "denoising":
        return Denoising(attacker.victim, pictures, prompts)
    erase, recipe = attacker.recipe.erase, attacker.recipe
    if erase is None:
        raise IneError(
            f"attack {method}: recipe {recipe.name} has no erase section, whose texts with and "
            "without the concept give its direction"
        )
    nouns = list(dict.fromkeys(erase.nouns))[:16]
    texts = tuple(
        (recipe.fill(having, noun), recipe.fill(lacking, noun))
        for having, lacking in zip(erase.concepts, erase.targets, strict=True)
        for noun in nouns
    )
    kind = AllStates if method == "ring-a-bell" else TextDistance
    text = kind(attacker.base, tuple(p for p, _ in rows), texts, strength)
    if attacker.victim.guidance is None:
        return text
    if method == "ring-a-bell":
        raise IneError(
            "attack ring-a-bell: looks at the text encoder alone, so that knowing a defence is of "
            "no use to it; leave the negative out and measure its prompts against the defence, or "
            "use text, which then matches the defended prediction"
        )
    return MatchedPrediction(attacker.victim, pictures, prompts, base=attacker.base, text=text)
