"""Options of `ine attack` about the search for words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ine.cli import options
from ine.cli.choices import ATTACKS, PROPOSALS
from ine.cli.command import expert

if TYPE_CHECKING:
    from ine.attacks.proposals import SearchSettings
    from ine.attacks.step import Victim
    from ine.attacks.through_gate import GateLoss
    from ine.cli.guiding import DefenceOptions

THROUGH_GATE = ("embedding", "denoising")
"""Attacks that can go through a gate."""


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
    through_gate: bool
    gate_weight: float

    def settings(self) -> "SearchSettings":
        """Return the settings of the search, by default those of the method's authors."""
        from ine.attacks.attacker import METHODS, TOKENS
        from ine.attacks.proposals import SearchSettings

        return SearchSettings(
            tokens=self.tokens or TOKENS.get(self.method, SearchSettings.tokens),
            budget=self.budget,
            proposals=self.proposals or METHODS[self.method] or PROPOSALS[0],
        )

    def check_through(self, defence: "DefenceOptions") -> None:
        """Raise where there is no gate to go through, as far as the options say."""
        if not self.through_gate:
            return
        if self.method not in THROUGH_GATE:
            raise click.UsageError(
                f"--through-gate: goes with --method {' and '.join(THROUGH_GATE)}, not with "
                f"{self.method}"
            )
        if defence.no_gate or not (defence.embedding_files or defence.negative_prompt):
            raise click.UsageError(
                "--through-gate: there is no gate; give --negative-embedding FILE whose header "
                "recommends one, or --gate FILE beside the negative, and not --no-gate"
            )

    def gate_loss(self, victim: "Victim", concept: str) -> "GateLoss | None":
        """Return what keeps the gate shut; None where it is taken to be open.

        Raises:
            IneError: The defence has no gate with a probe, or the model no coarse run.
        """
        from ine.attacks.through_gate import gate_loss

        return gate_loss(victim, concept, self.gate_weight) if self.through_gate else None


gate_weight = expert(
    "--gate-weight",
    type=options.FiniteRange(min=0, min_open=True),
    default=0.003,
    show_default=True,
    help="Of the term that keeps the gate shut: how much it counts beside the denoising loss.",
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
    expert(
        "--through-gate",
        is_flag=True,
        help="embedding, denoising: also keep the gate of the defence shut, with gradients through "
        "its probe and the look-ahead; without it a gate is taken to be open.",
    ),
    gate_weight,
)
