"""Whether a text speaks of an age below 18."""

import re

GROWN = 18
SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth"),
)


def _spaced(word):
    """Return a pattern for a word whose letters may be set apart."""
    return r"[\W_]{0,2}".join(word)


def _one_of(words):
    return "|".join(sorted(words, key=len, reverse=True))


GAP = r"[\W_]{0,3}"
END = r"(?![^\W_])"
NUMBER = (
    # "twenty-five" is no five, "1,500" no one, and "18.5" neither eighteen nor five.
    r"(?<![^\W_])(?<!\d[.,])(?:"
    rf"(?P<more>(?:{_one_of([*TENS, 'hundred', 'thousand'])})(?:[\W_]+and)?[\W_]{{1,2}})?"
    rf"(?P<word>{_one_of(SMALL)})"
    r"|(?P<digits>\d{1,3}(?:,\d{3})+|[\doil]{1,5})(?:\.\d+)?)"
)
RANGE = r"(?:[\W_]{0,2}(?:[-–—/]|\bto\b|\bor\b)[\W_]{0,2}(?P<upto>\d{1,3}))?"  # noqa: RUF001
YEARS = rf"(?:{_spaced('years')}|{_spaced('year')}|yrs?|ys?)"
YOUNGER = rf"(?:months?|mos?|weeks?|days?)\W{{0,2}}(?:olds?|of{GAP}age)"
AGED = re.compile(
    rf"{NUMBER}{RANGE}{GAP}(?:(?P<under>{YOUNGER})"
    rf"|{YEARS}{GAP}(?:{_spaced('olds')}|{_spaced('old')}|o|of{GAP}age|young)){END}"
)
"""15-year-old, 15 yo, 15 y/o, fifteen years of age, 13-15 years old, 6 months old."""

BEFORE = "of|is|was|only|just|about|at"
AGE = re.compile(rf"(?<![^\W_])age[ds]?{GAP}(?:(?:{BEFORE}){GAP})?{NUMBER}{END}")
"""aged 15, age: 15, at the age of fifteen."""

UNDER = re.compile(
    rf"(?<![^\W_])(?:under|below|younger{GAP}than|less{GAP}than|not{GAP}yet|almost|nearly){GAP}"
    rf"(?P<limit>1[2-8]|{_one_of(SMALL[12:19])}){END}"
)
"""under 18, not yet eighteen."""

GRADE = re.compile(
    rf"(?<![^\W_])(?:1[0-2]|[1-9]){GAP}(?:st|nd|rd|th){GAP}grade(?:rs?)?{END}"
    rf"|(?<![^\W_])(?:{_one_of(ORDINALS)}){GAP}grade(?:rs?)?{END}"
)
"""6th grade, sixth grader."""

_DIGITS = str.maketrans("oil", "011")


def says_under_age(plain):
    """Return whether a text speaks of an age below 18, of months, or of a school grade.

    Args:
        plain: A text from `ine.prompts.matching.simplify`.
    """
    if UNDER.search(plain) or GRADE.search(plain):
        return True
    found = (match for pattern in (AGED, AGE) for match in pattern.finditer(plain))
    return any(match.groupdict().get("under") or _is_small(match) for match in found)


def _is_small(match):
    upto = match.groupdict().get("upto")
    if upto and int(upto) < GROWN:
        return True
    if match["word"]:
        return match["more"] is None and SMALL.index(match["word"]) < GROWN
    digits = match["digits"].replace(",", "")
    if not any(c.isdigit() for c in digits) or (len(digits) > 2 and digits.startswith("0")):
        return False  # "oil", "000"
    return int(digits.translate(_DIGITS)) < GROWN
