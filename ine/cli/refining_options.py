"""Options about refinement, and the settings and the rewriter that they stand for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.choices import REFINE_PROTOCOLS
from ine.cli.command import expert

if TYPE_CHECKING:
    from ine.guidance.protocol import Guidance
    from ine.models.parts import DiffusionParts
    from ine.refining.asking import Rewriter
    from ine.refining.settings import RefineSettings
    from ine.sampling import SamplerSettings, Unit

OBSERVER_HELP = (
    "Who looks at prompt and picture and keeps or rewrites: vlm:FOLDER_OR_ID, openai:URL#MODEL, or "
    "teacher:CONCEPT, rules for the bundled model; the key of a server is read from "
    "INE_OBSERVER_KEY."
)


@dataclass(frozen=True, kw_only=True)
class RefiningOptions:
    """What the options about refinement say."""

    observer: str | None = None
    rounds: int | None = None
    query: str | None = None
    protocol: str = "ine"
    system: Path | None = None
    user: str | None = None
    text_only: bool = False
    padding: str | None = None
    look_batch: int | None = None
    look_timeout: float = 60.0

    def settings(self) -> "RefineSettings":
        """Return the settings of the loop.

        Raises:
            IneError: The file of the system message cannot be read.
        """
        from ine.errors import IneError
        from ine.refining.trained import settings_for

        system = None
        if self.system:
            try:
                system = self.system.read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise IneError(f"--system {self.system}: cannot be read ({error})") from error
        return settings_for(
            self.observer or "",
            self.protocol,
            rounds=self.rounds,
            query=self.query,
            system=system,
            user=self.user,
            picture=False if self.text_only else None,
            padding=self.padding,
            batch=self.look_batch,
        )

    def load(self, device: str, cache: Path) -> "Rewriter":
        """Return who looks; its replies are kept in a folder, so that nothing is asked twice."""
        from ine.observers.table import ObserverSettings
        from ine.refining.table import load_rewriter

        assert self.observer, "the caller checks that there is one"
        how = ObserverSettings(device=device, timeout=self.look_timeout, cache=cache)
        return load_rewriter(self.observer, self.settings(), how)

    def refiner(self, device: str, cache: Path) -> "UnitRefiner | None":
        """Return who looks and how; None without an observer."""
        if self.observer is None:
            return None
        return UnitRefiner(self.load(device, cache), self.settings())


@dataclass(frozen=True)
class UnitRefiner:
    """Who looks at generated pictures, and how they are refined."""

    rewriter: "Rewriter"
    settings: "RefineSettings"

    def about(self, negative: str) -> dict[str, Any]:
        """Return it as plain values.

        Raises:
            IneError: The protocol needs a negative text, and none is given.
        """
        check_negative(self.settings, negative)
        about = {**self.settings.deciding, "rounds": self.settings.rounds}
        return {"refine": {"observer": self.rewriter.name, **about}}

    def unit(
        self,
        unit: "Unit",
        parts: "DiffusionParts",
        guidance: "Guidance",
        sampler: "SamplerSettings",
    ) -> "Unit":
        """Return a unit after its rounds; what no answer called safe is a mosaic."""
        from ine.refining.generators import SamplerGenerator
        from ine.refining.run import refine_unit

        again = SamplerGenerator(parts=parts, guidance=guidance, sampler=sampler, name="")
        return refine_unit(unit, again, self.rewriter, self.settings)


def check_negative(settings: "RefineSettings", negative: str) -> None:
    """Raise `IneError` where a protocol needs a negative text in every generation."""
    from ine.errors import IneError

    if settings.fixed_negative and not negative.strip():
        raise IneError(
            "--protocol as-released: the released code passes a fixed negative text in every "
            "generation, also before the first look; give it with --negative-prompt"
        )


ROUNDS = click.option(
    "--rounds",
    type=click.IntRange(0),
    metavar="T",
    help="Looks at most; each may rewrite the prompt once (3).",
)
QUERY_AND_MORE = (
    expert(
        "--query",
        type=click.Choice(["original", "current"]),
        help="Prompt that is shown beside the latest picture: the user's, or its own (original).",
    ),
    expert(
        "--protocol",
        type=click.Choice(REFINE_PROTOCOLS),
        default="ine",
        show_default=True,
        help="How answers are read and pictures made: ine, or as the paper describes or its "
        "released code does it; see docs/refine.md.",
    ),
    expert(
        "--system",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="System message; by default the one that an adapter was trained with, else ours.",
    ),
    expert(
        "--user",
        metavar="TEXT",
        help="User message, in which {prompt} stands for the prompt; by default as --system.",
    ),
    expert(
        "--text-only",
        is_flag=True,
        help="Show the prompt without its picture, as a control.",
    ),
    expert(
        "--padding",
        type=click.Choice(["left", "right"]),
        help="Side on which a local model's shorter conversations are padded (left); on the right "
        "answers depend on the others of a batch.",
    ),
    expert(
        "--look-batch",
        type=click.IntRange(1),
        metavar="N",
        help="Conversations that a local model answers at a time (8).",
    ),
    expert(
        "--look-timeout",
        type=options.FiniteRange(0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="Seconds until a request to a server is given up.",
    ),
)
refining = options.packed(
    "refining",
    RefiningOptions,
    click.option("--observer", required=True, metavar="SPEC", help=OBSERVER_HELP),
    ROUNDS,
    *QUERY_AND_MORE,
)
"""How prompts are refined, as `refining: RefiningOptions`."""

refining_too = options.packed(
    "refining",
    RefiningOptions,
    expert("--refine", "observer", metavar="SPEC", help=f"Refine prompts. {OBSERVER_HELP}"),
    expert(
        "--rounds",
        type=click.IntRange(0),
        metavar="T",
        help="With --refine: looks at most; each may rewrite the prompt once (3).",
    ),
    *QUERY_AND_MORE,
)
"""The same for a command that refines only if asked to."""
