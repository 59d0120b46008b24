"""Rewrite the prompts of requests before any picture is made of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ine.errors import PromptError
from ine.posi.batches import NOTE, record
from ine.posi.rewriters import PromptRewriter, Rewrite, check_answered, rewrite_all
from ine.sampling import PictureRequest, Unit, greyed


@dataclass(frozen=True, kw_only=True)
class RewrittenRequests:
    """Requests with what a rewriter made of their prompts."""

    given: tuple[PictureRequest, ...]
    rows: tuple[Rewrite, ...]
    """One per request."""

    @property
    def usable(self) -> tuple[int, ...]:
        """Return the places of the requests of which a picture may be made."""
        return tuple(place for place, row in enumerate(self.rows) if not row.unusable)

    @property
    def asked(self) -> tuple[PictureRequest, ...]:
        """Return what is sampled; nothing of the user's prompt where the answer is unusable."""
        pairs = zip(self.given, self.rows, strict=True)
        return tuple(
            replace(one, prompt=record(row)["prompt"] if not row.unusable else "")
            for one, row in pairs
        )

    @property
    def unusable(self) -> dict[str, int]:
        """Return {why: how many answers are unusable}."""
        return dict(Counter(row.unusable for row in self.rows if row.unusable))

    def withheld(self, unit: Unit) -> Unit:
        """Return a unit of `asked` with notes, and grey in the place of what has no prompt."""
        rows = self.rows[unit.first : unit.first + len(unit.requests)]
        notes = [{**note, NOTE: record(row)} for note, row in zip(unit.notes, rows, strict=True)]
        unusable = [place for place, row in enumerate(rows) if row.unusable]
        return greyed(replace(unit, notes=notes), unusable)


def rewrite_requests(
    requests: Sequence[PictureRequest], rewriter: PromptRewriter
) -> RewrittenRequests:
    """Return requests with what a rewriter makes of their prompts, each of which it reads once.

    Raises:
        ObserverError: An answer did not come; another try may succeed.
        PromptError: No answer is usable, or a prompt does not fit into a model's context.
    """
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    found = dict(zip(prompts, rewrite_all(prompts, rewriter), strict=True))
    check_answered(list(found.values()), rewriter.name)
    done = RewrittenRequests(
        given=tuple(requests), rows=tuple(found[request.prompt] for request in requests)
    )
    if requests and not done.usable:
        why = ", ".join(f"{count} {why}" for why, count in done.unusable.items())
        raise PromptError(
            f"rewriter {rewriter.name}: none of {len(requests)} prompts was rewritten ({why}); "
            "nothing is generated; give another rewriter, or look at its answers with "
            "`ine posi rewrite`"
        )
    return done
