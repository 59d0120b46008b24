"""Families of prompts that are nearly the same, so that a test prompt's sister is never trained on.

Two prompts are sisters if they share a phrase that the prompt file names, or else most of their
words; a family is everything that sisters connect.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

ALIKE = 0.6
"""Share of the words of two prompts together that both have, from which on they are sisters."""


def families_of(prompts: Sequence[str], phrases: Sequence[str] | None = None) -> list[int]:
    """Return the number of each prompt's family.

    Args:
        prompts: The texts.
        phrases: What each was made from, such as "a {} on fire"; prompts with the same non-empty
            phrase are sisters, and their words are not compared.
    """
    parents = list(range(len(prompts)))

    def top(k: int) -> int:
        while parents[k] != k:
            parents[k] = parents[parents[k]]
            k = parents[k]
        return k

    first: dict[Hashable, int] = {}
    named = list(phrases or [""] * len(prompts))
    for k, phrase in enumerate(named):
        if phrase:
            parents[top(k)] = top(first.setdefault(phrase, k))
    loose = [k for k, phrase in enumerate(named) if not phrase]
    for k, other in _alike(loose, prompts):
        parents[top(k)] = top(other)
    return [top(k) for k in range(len(prompts))]


def _alike(places: Sequence[int], prompts: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of places whose prompts share most of their words."""
    words = {k: frozenset(re.findall(r"\w+", prompts[k].lower())) for k in places}
    holders: dict[str, list[int]] = defaultdict(list)
    found = []
    for k in places:
        shared: dict[int, int] = defaultdict(int)
        for word in words[k]:
            for other in holders[word]:
                shared[other] += 1
            holders[word].append(k)
        for other, count in shared.items():
            if count >= ALIKE * len(words[k] | words[other]):
                found.append((k, other))
    return found


def held_back(families: Sequence[int], prompts: Sequence[str], share: float, seed: int) -> set[int]:
    """Return the places of the prompts that are not trained on: whole families.

    Args:
        families: Of `families_of`.
        prompts: The texts; a family is drawn by its first one, so that the choice does not depend
            on the order of others.
        share: Of the prompts to hold back, at least; 0 holds none back.
        seed: Of the drawing.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for k, family in enumerate(families):
        members[family].append(k)

    def drawn(places: list[int]) -> str:
        name = min(prompts[k] for k in places)
        return hashlib.sha256(f"{seed}\x1f{name}".encode()).hexdigest()

    found: set[int] = set()
    for places in sorted(members.values(), key=drawn):
        if len(found) >= share * len(prompts):
            break
        found.update(places)
    return found
