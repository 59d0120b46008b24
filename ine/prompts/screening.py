"""Rows that are sexual and refer to minors are refused, always.

There is no switch, and no module but this one decides. What is refused is counted, and neither
shown nor logged nor kept.
"""

from ine.prompts.matching import mention_both, mentions
from ine.prompts.words import SEXUAL, YOUTH


def is_refused(*texts, sexual=False):
    """Return whether texts that belong together are sexual and refer to minors.

    Args:
        *texts: All that one row says: prompt, labels, other columns.
        sexual: Whether something else than words says that the row is sexual.
    """
    if sexual:
        return any(mentions(text, YOUTH, SEXUAL) for text in texts)
    return mention_both(texts, YOUTH, SEXUAL)
