"""Make pairs from prompts and a teacher: screened, each once, test families held back."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ine.errors import PromptError
from ine.posi.families import families_of, held_back
from ine.posi.pair_files import Pair, screened, unique
from ine.posi.rewriters import PromptRewriter, rewrite_all
from ine.prompts.rows import PromptRow


@dataclass(frozen=True, kw_only=True)
class MadePairs:
    """Pairs to train on, and pairs of other families to test with."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    unusable: dict[str, int]
    """{why: number} of the prompts that the teacher gave no usable answer for; left out."""

    unchanged: int
    """Toxic prompts that the teacher repeated; left out."""

    refused: int
    """Pairs that screening left out."""

    duplicates: int
    families: int


def make_pairs(
    toxic: Sequence[PromptRow],
    benign: Sequence[PromptRow],
    teacher: PromptRewriter,
    *,
    test_share: float = 0.2,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> MadePairs:
    """Return pairs: toxic prompts with what the teacher makes of them, benign ones unchanged.

    Args:
        toxic: Rows whose prompts shall change; rows of one `phrase` are a family.
        benign: Rows whose prompts shall stay.
        teacher: Rewrites the toxic ones.
        test_share: Of the prompts of either kind to hold back, whole families.
        seed: Which families.
        progress: Called with the number of rewritten prompts.

    Raises:
        PromptError: No pair to train on is left.
        ObserverError: The teacher answered nothing.
    """
    unusable: Counter[str] = Counter()
    unchanged = 0
    pairs = []
    for row in rewrite_all([one.prompt for one in toxic], teacher, progress):
        same = row.rewritten.strip() == row.prompt.strip()
        if row.unusable:
            unusable[row.unusable] += 1
        elif same:
            unchanged += 1
        else:
            pairs.append(Pair(toxic=row.prompt, clean=row.rewritten.strip()))
    pairs += [Pair(toxic=row.prompt, clean=row.prompt) for row in benign]
    fine, refused = screened(pairs)
    found = unique(fine)
    phrases = {row.prompt: row.extra.get("phrase", "") for row in (*benign, *toxic)}
    train, test, families = _split(found, phrases, test_share, seed)
    if not train:
        raise PromptError(
            f"no pair to train on is left of {len(toxic) + len(benign)} prompts: {len(test)} are "
            f"held back, {sum(unusable.values())} were not answered, {unchanged} not changed; give "
            "more prompts, or lower --test"
        )
    return MadePairs(
        train=train,
        test=test,
        unusable=dict(unusable),
        unchanged=unchanged,
        refused=refused,
        duplicates=len(fine) - len(found),
        families=families,
    )


def _split(
    pairs: Sequence[Pair], phrases: dict[str, str], share: float, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...], int]:
    """Return (train, test, number of families); toxic and benign pairs are held back apart."""
    prompts = [pair.toxic for pair in pairs]
    families = families_of(prompts, [phrases.get(prompt, "") for prompt in prompts])
    back: set[int] = set()
    for harmless in (False, True):
        own = [k for k, pair in enumerate(pairs) if (pair.toxic == pair.clean) == harmless]
        held = held_back([families[k] for k in own], [prompts[k] for k in own], share, seed)
        back |= {own[k] for k in held}
    # A family that has both kinds is held back whole.
    held_families = {families[k] for k in back}
    train = tuple(p for p, f in zip(pairs, families, strict=True) if f not in held_families)
    test = tuple(p for p, f in zip(pairs, families, strict=True) if f in held_families)
    return train, test, len(set(families))
