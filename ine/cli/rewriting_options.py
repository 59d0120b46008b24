"""Options about rewriting prompts before any picture, and the rewriter that they stand for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ine.cli import options
from ine.cli.command import expert

if TYPE_CHECKING:
    from ine.posi.requests import RewrittenRequests
    from ine.posi.table import Rewriting
    from ine.sampling import PictureRequest

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class RewritingOptions:
    """What the options about rewriting say."""

    rewriter: str | None = None
    rewrite_instruction: str | None = None
    rewrite_temperature: float = 0.95

    def planned(self) -> "Rewriting | None":
        """Return who rewrites, None for nobody; nothing is loaded.

        Raises:
            IneError: There is no such rewriter.
        """
        if self.rewriter is None:
            return None
        from ine.posi.table import RewriteSettings, rewriting_of

        settings = RewriteSettings(
            instruction=self.rewrite_instruction, temperature=self.rewrite_temperature
        )
        return rewriting_of(self.rewriter, settings)

    def rewritten(
        self, requests: Sequence["PictureRequest"], device: str, cache: Path
    ) -> "RewrittenRequests | None":
        """Return requests with their rewritten prompts, None if nobody rewrites.

        Args:
            requests: As the user gave them.
            device: Of a local model.
            cache: Folder of a server's replies, so that nothing is asked twice.

        Raises:
            IneError: The rewriter cannot be loaded or gave no answer, or none is usable.
        """
        planned = self.planned()
        if planned is None:
            return None
        from ine.observers.table import ObserverSettings
        from ine.posi.requests import rewrite_requests

        found = rewrite_requests(
            requests, planned.load(ObserverSettings(device=device, cache=cache))
        )
        changed = sum(row.changed for row in found.rows)
        log.info("rewriting: %d of %d prompts were changed", changed, len(found.rows))
        if found.unusable:
            why = ", ".join(f"{count} {why}" for why, count in found.unusable.items())
            log.warning(
                "%d of %d prompts have no usable rewrite (%s); nothing is generated from them",
                *(sum(found.unusable.values()), len(found.rows), why),
            )
        return found


rewriting = options.packed(
    "rewriting",
    RewritingOptions,
    expert(
        "--rewrite",
        "rewriter",
        metavar="SPEC",
        help="Rewrite prompts before any picture is made: model:BASE+ADAPTER of `ine posi train`, "
        "openai:URL#MODEL, or teacher:CONCEPT, rules for the bundled model.",
    ),
    expert(
        "--rewrite-instruction",
        metavar="TEXT",
        help="With --rewrite: what the model is asked (what it learned with).",
    ),
    expert(
        "--rewrite-temperature",
        type=options.FiniteRange(min=0),
        default=0.95,
        show_default=True,
        help="With --rewrite, of a local model; 0 always takes the likeliest word.",
    ),
)
"""Who rewrites prompts, as `rewriting: RewritingOptions`."""
