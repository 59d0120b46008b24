"""Options of `ine attack` about the search for words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ine.cli import options
from ine.cli.choices import ATTACKS, PROPOSALS
from ine.cli.command import expert

if TYPE_CHECKING:
    from ine.attacks.proposals import SearchSettings


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the options about the search for words say."""

    method: str
    limit: int
    together: bool
    tokens: int | None
    budget: int
    proposals: str | None
    allow_words: bool
    direction: float

    def settings(self) -> "SearchSettings":
        """Return the settings of the search, by default those of the method's authors."""
        from ine.attacks.attacker import METHODS, TOKENS
        from ine.attacks.proposals import SearchSettings

        return SearchSettings(
            tokens=self.tokens or TOKENS.get(self.method, SearchSettings.tokens),
            budget=self.budget,
            proposals=self.proposals or METHODS[self.method] or PROPOSALS[0],
        )


searching = options.packed(
    "searching",
    SearchOptions,
    click.option(
        "--method",
        type=click.Choice(ATTACKS),
        default="denoising",
        show_default=True,
        help="text: words whose last text state comes near the concept's. ring-a-bell: words in "
        "place of the prompt, all of whose text states do, as published. denoising: words by which "
        "the model denoises pictures of the concept. embedding: vectors, found by inversion.",
    ),
    expert("--limit", type=click.IntRange(1), default=8, show_default=True, help="Most prompts."),
    expert("--together", is_flag=True, help="One phrase for all prompts."),
    expert("--tokens", type=click.IntRange(1), help="Words: 5, for ring-a-bell 16."),
    click.option(
        "--budget",
        type=click.IntRange(1),
        default=10000,
        show_default=True,
        metavar="NFE",
        help="Evaluations per phrase: of the U-Net (NFE), or of the text encoder for text and "
        "ring-a-bell.",
    ),
    expert(
        "--proposals",
        type=click.Choice(PROPOSALS),
        help="How words are proposed; by default as the method's authors do.",
    ),
    expert("--allow-words", is_flag=True, help="Allow the recipe's words for the concept."),
    expert(
        "--direction",
        type=options.FiniteRange(min=0, min_open=True),
        default=3.0,
        show_default=True,
        help="text, ring-a-bell: how far to go along the concept's direction.",
    ),
)
