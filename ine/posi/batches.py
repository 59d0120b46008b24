"""Rewrite the prompts of a batch of pictures: what is rewritten is generated again, the rest stays.

An unchanged prompt keeps its very picture, so that rewriting costs it nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ine.errors import PicturesError
from ine.posi.rewriters import PromptRewriter, Rewrite, check_answered
from ine.refining.rounds import Batch, Generate
from ine.sampling import PictureRequest
from ine.store.units import key_of

NOTE = "rewrite"
"""Key of a picture's note that holds what became of its prompt."""

VERSION = 1
"""Raised when the same key would stand for other pictures."""


def rewritten_key(before: str, rewriter: str) -> str:
    """Return the key of a stored batch after its prompts were rewritten, 64 hex digits."""
    return key_of(version=VERSION, before=before, prompts_by=rewriter)


def rewrite_batch(batch: Batch, rewriter: PromptRewriter, generate: Generate) -> Batch:
    """Return a batch with pictures of the rewritten prompts.

    Where an answer is unusable the picture of the user's prompt stays, so that a failure never
    counts as safe; the note says so. U-Net evaluations are those of the picture that is shown, as
    a host makes no other.

    Args:
        batch: With the pictures of the user's prompts.
        rewriter: Reads the prompts.
        generate: Who makes the pictures of rewritten prompts.

    Raises:
        ObserverError: An answer did not come. Nothing counts; another try may succeed.
        PicturesError: The new pictures have another size.
    """
    rows = rewriter([request.prompt for request in batch.requests])
    check_answered(rows, rewriter.name)
    changed = [place for place, row in enumerate(rows) if row.changed]
    pictures, notes, calls = batch.pictures.copy(), list(batch.notes), list(batch.calls)
    if changed:
        wanted = [replace(batch.requests[i], prompt=rows[i].rewritten) for i in changed]
        made, own, spent = generate(wanted)
        if made.shape[1:] != pictures.shape[1:]:
            raise PicturesError(
                f"rewritten prompts gave pictures of {made.shape[1:3]} pixels (height, width), the "
                f"others have {pictures.shape[1:3]}; set one size"
            )
        pictures[changed] = made
        for place, note, count in zip(changed, own, spent, strict=True):
            notes[place], calls[place] = note, count
    noted = [{**note, NOTE: record(row)} for note, row in zip(notes, rows, strict=True)]
    return replace(batch, pictures=pictures, notes=noted, calls=calls)


def record(row: Rewrite) -> dict[str, Any]:
    """Return what became of a prompt as plain values."""
    return {
        "prompt": row.rewritten if row.changed else row.prompt,
        "changed": row.changed,
        "unusable": row.unusable,
    }


def as_shown(batch: Batch) -> Batch:
    """Return a batch whose requests have the prompts that its pictures were generated from."""
    requests = tuple(map(_shown, batch.requests, batch.notes))
    return replace(batch, requests=requests)


def _shown(request: PictureRequest, note: Mapping[str, Any]) -> PictureRequest:
    return replace(request, prompt=note[NOTE]["prompt"]) if NOTE in note else request


def with_notes(
    after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Return notes of pictures that were refined, with what became of their prompts before."""
    return [
        {**late, **({NOTE: early[NOTE]} if NOTE in early else {})}
        for late, early in zip(after, before, strict=True)
    ]
