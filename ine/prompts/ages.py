"""Whether a text mentions an age below 18."""

import re

GROWN = 18
BORN_GROWN = 2008
"""A person born in this year or later counts as below 18. A fixed number, not the clock's, so that
a set is screened alike today and next year; it errs on the side of refusing."""

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
TEENTHS = tuple(f"{number}th" for number in SMALL[13:18])

THINGS = (
    *("whisky", "whiskey", "scotch", "bourbon", "malt", "rum", "wine", "port", "cognac", "brandy"),
    *("tequila", "vinegar", "cheese", "bread", "cheddar", "gouda", "parmesan", "bottle"),
    *("barrel", "cask"),
    *("car", "truck", "van", "bus", "motorcycle", "motorbike", "bike", "bicycle", "boat", "ship"),
    *("yacht", "tractor", "train", "plane", "house", "building", "church", "bridge", "tower"),
    *("cottage", "farmhouse", "barn", "computer", "laptop", "phone", "camera", "television"),
    *("sofa", "couch", "chair", "table", "carpet", "mattress", "piano", "guitar", "violin"),
    *("book", "software", "website", "company", "tree", "oak", "bonsai", "shoe", "jacket"),
    *("dog", "cat", "horse", "tortoise", "parrot", "elephant", "cow"),
)
"""Things that have an age; no words for pictures, which may show a person of that age."""

OF_THINGS = (
    *("single", "blended", "islay", "highland", "irish", "japanese", "oak", "red", "blue", "green"),
    *("black", "white", "silver", "grey", "gray", "yellow", "brown", "wooden", "stone", "brick"),
    *("used", "rusty", "vintage", "classic", "sports", "family", "sedan", "pickup", "leather"),
    *("electric", "toyota", "honda", "ford", "volvo", "bmw", "mercedes", "volkswagen"),
)
BEHIND_THINGS = (
    *("in", "on", "at", "with", "and", "by", "of", "from", "for", "under", "near", "is", "was"),
    *("are", "were", "that", "which", "beside", "behind", "against", "parked"),
)


def _spaced(word: str) -> str:
    """Return a pattern for a word with possible signs between its letters."""
    return r"[\W_]{0,2}".join(word)


def _one_of(words: tuple[str, ...] | list[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


GAP = r"[\W_]{0,3}"
START = r"(?<![^\W_])"
END = r"(?![^\W_])"
ALONE = (
    r"(?=\W*$|\s*[^\w\s'’%°:-]|\s+(?:and|or|who|with|in|on|at|is|was|by|from|years?|summers?|winters?|springs?|wearing"  # noqa: RUF001
    r"|sitting|standing|today|now|soon|tomorrow|yesterday)\b)"
)
"""Follows a number without a noun to count."""

NUMBER = (
    # "twenty-five" does not contain five, "1,500" one, nor "18.5" eighteen or five.
    r"(?<![^\W_])(?<!\d[.,])(?:"
    rf"(?P<more>(?:{_one_of([*TENS, 'hundred', 'thousand'])})(?:[\W_]+and)?[\W_]{{1,2}})?"
    rf"(?P<word>{_one_of(SMALL)})"
    r"|(?P<digits>\d{1,3}(?:,\d{3})+|[\doil]{1,5})(?:\.\d+)?)"
)
UPTO = rf"(?P<upto>\d{{1,3}}|{_one_of([*SMALL, *TENS])})"
RANGE = rf"(?:[\W_]{{0,2}}(?:[-–—/]|\bto\b|\bor\b)[\W_]{{0,2}}{UPTO})?"  # noqa: RUF001
RANGE_AND = rf"(?:[\W_]{{0,2}}(?:[-–—/]|\bto\b|\bor\b|\band\b)[\W_]{{0,2}}{UPTO})?"  # noqa: RUF001
YEARS = (
    rf"(?:{_spaced('years')}|{_spaced('year')}|summers?|winters?|springs?|yrs?|ys?)"  # "12 summers"
)
YOUNGER = rf"(?:months?|mos?|weeks?|days?)\W{{0,2}}(?:olds?|of{GAP}age)"
AGED = re.compile(
    rf"{NUMBER}{RANGE}(?:{GAP}and{GAP}a{GAP}half)?{GAP}(?:(?P<under>{YOUNGER})"
    rf"|{YEARS}{GAP}(?:{_spaced('olds')}|{_spaced('old')}|o|of{GAP}age|young)){END}"
)
"""15-year-old, 15 yo, 15 y/o, fifteen years of age, 13-15 years old, 6 months old."""

LITTLE = re.compile(
    rf"{START}a(?:{GAP}(?:dozen|few))?{GAP}(?:years?|months?|weeks?|days?)\W{{0,2}}(?:olds?|of{GAP}age){END}"
)
"""a year old, a dozen years old."""

BEFORE = (
    "of|is|was|only|just|about|at|between|from|around|approximately|roughly|nearly|almost|barely"
    "|over|group|range|bracket|the"
)
AGE = re.compile(
    rf"{START}age[ds]?{GAP}(?:(?:{BEFORE}){END}{GAP}){{0,3}}{NUMBER}{END}{RANGE_AND}{END}"
)
"""aged 15, age: 15, at the age of fifteen, aged between 12 and 14, age group 12-14."""

BETWEEN = re.compile(
    rf"{START}(?:between|from){GAP}{NUMBER}{END}{RANGE_AND}{GAP}{YEARS}{GAP}(?:olds?|of{GAP}age){END}"
)
"""between 12 and 20 years old."""

GROUP = re.compile(
    rf"{NUMBER}{END}{RANGE}{GAP}(?:{YEARS}{GAP})?age{GAP}(?:group|range|bracket){END}"
)
"""the 12 to 14 age group."""

PERSON = (
    "lady|ladies|woman|women|man|men|gentleman|gentlemen|person|people|female|male|beauty|maiden"
    "|maid|damsel|princess|prince|student|bride|model|dancer|actress|actor|singer|heroine|hero"
)
OF_AGE = re.compile(
    rf"{START}(?:(?:{PERSON}){GAP}of(?:{GAP}(?:only|just|about|barely))?"
    rf"|turn(?:s|ed|ing)?|barely"
    rf"|(?:she|he|who|i){GAP}(?:is|was|am|m|s)(?:{GAP}(?:only|just|barely|still|about|nearly))?)"
    rf"[\W_]{{1,3}}{NUMBER}{ALONE}"
)
"""a young lady of nine, she is only twelve, turning sixteen."""

BIRTHDAY = re.compile(
    rf"{START}(?:(?P<nth>\d{{1,2}}){GAP}(?:st|nd|rd|th)|{_one_of([*ORDINALS, *TEENTHS])})"
    rf"{GAP}birthday{END}"
)
"""her 12th birthday, a sixteenth birthday."""

WHEN = (
    "in|on|of|the|year|date|is|was|after|since|around|about|back|early|late|spring|summer|autumn|fall|winter"
    "|jan[a-z]*|feb[a-z]*|mar[a-z]*|apr[a-z]*|may|june?|july?|aug[a-z]*|sep[a-z]*|oct[a-z]*"
    r"|nov[a-z]*|dec[a-z]*|\d{1,2}(?:st|nd|rd|th)?"
)
BORN = re.compile(
    rf"(?:{START}(?:(?:born|birth(?:day|date)?|birth{GAP}year|dob)\W{{1,3}}(?:(?:{WHEN})\W{{1,3}}){{0,4}}?|b\W{{1,3}})"
    rf"(?P<year>20\d\d|(?P<century>two{GAP}thousand(?:{GAP}and)?|twenty){GAP}"
    rf"(?P<rest>(?:twenty{GAP})?(?:{_one_of(SMALL[1:])})|twenty)))(?!\d)s?{END}"
    rf"|(?<!\d)(?P<before>20\d\d){GAP}(?:born|birth(?:{GAP}year)?){END}"
)
"""born in 2015, born on 3 May 2015, date of birth: 2015-05-03, born in twenty fifteen."""

LIMIT = rf"(?P<limit>1[2-8]|{_one_of(SMALL[12:19])})s?{END}"
UNDER = re.compile(
    rf"{START}(?:(?:under|below|younger{GAP}than|less{GAP}than|not{GAP}yet|almost|nearly){GAP}"
    rf"|(?:before|until|till|not|never|hasn{GAP}t|hadn{GAP}t)\W{{1,3}}(?:[^\W_]{{1,12}}\W{{1,3}}){{0,3}}?"
    rf"turn(?:s|ed|ing)?{GAP}|sweet{GAP}){LIMIT}"
)
"""sweet sixteen, under 18, not yet eighteen, under-sixteens, before she turned 18."""

_GRADES = rf"(?:1[0-2]|[1-9]|{_one_of(SMALL[1:13])})"
GRADE = re.compile(
    rf"{START}(?:1[0-2]|[1-9]){GAP}(?:st|nd|rd|th){GAP}grade(?:rs?)?{END}"
    rf"|{START}(?:{_one_of(ORDINALS)}){GAP}grade(?:rs?)?{END}"
    rf"|{START}(?:grade|year){GAP}{_GRADES}{GAP}(?:student|class|schooler)s?{END}"
    rf"|{START}in{GAP}grade{GAP}{_GRADES}{END}{ALONE}"
    rf"|{START}k{GAP}12{END}"
)
"""6th grade, sixth grader, a year 9 student, in grade six, K-12."""

THING = re.compile(
    rf"(?:[\s-]+(?:{_one_of([*OF_THINGS, *THINGS])})){{0,3}}[\s-]+(?:{_one_of(THINGS)})s?"
    rf"(?=\W*$|\s*[,.;:!?)\]]|\s+(?:{_one_of(BEHIND_THINGS)})\b)"
)
"""Follows an age: a thing of that age, and no noun behind it ("car thief") that may have it."""

AGES = (AGED, LITTLE, AGE, BETWEEN, GROUP)
_DIGITS = str.maketrans("oil", "011")


def says_under_age(plain: str) -> bool:
    """Return whether a text mentions an age below 18, an age in months, or a school grade.

    An age before a thing ("12-year-old whisky") belongs to the thing.

    Args:
        plain: A text from `ine.prompts.disguises.simplify`.
    """
    if UNDER.search(plain) or GRADE.search(plain):
        return True
    if any(map(_is_early, BIRTHDAY.finditer(plain))) or any(map(_is_late, BORN.finditer(plain))):
        return True
    found = (match for pattern in AGES for match in pattern.finditer(plain))
    return any(
        (match.re is LITTLE or _of(match, "under") or _is_small(match)) and not _is_of_thing(match)
        for match in found
    ) or any(map(_is_small, OF_AGE.finditer(plain)))


def _of(match: re.Match[str], group: str) -> str | None:
    """Return what a group matched; None if nothing, or if the pattern lacks the group."""
    return match.groupdict().get(group)


def _is_of_thing(match: re.Match[str]) -> bool:
    """Return whether an age precedes a thing that is written without any disguise."""
    return match.re in (AGED, LITTLE) and THING.match(match.string, match.end()) is not None


def _is_early(birthday: re.Match[str]) -> bool:
    return birthday["nth"] is None or int(birthday["nth"]) < GROWN


def _is_late(born: re.Match[str]) -> bool:
    """Return whether a year of birth is `BORN_GROWN` or later."""
    if born["before"] or not born["century"]:
        return int(born["before"] or born["year"]) >= BORN_GROWN
    rest = re.findall(r"[a-z]+", born["rest"])
    number = sum(20 if word == "twenty" else SMALL.index(word) for word in rest)
    # "two thousand and eight" is a year, "twenty eight" is not.
    return number >= BORN_GROWN % 100 and (born["century"].startswith("two") or number >= 10)


def _is_small(match: re.Match[str]) -> bool:
    upto = _of(match, "upto")
    if upto and (int(upto) if upto.isdigit() else _value(upto)) < GROWN:
        return True
    if match["word"]:
        return match["more"] is None and SMALL.index(match["word"]) < GROWN
    digits = match["digits"].replace(",", "")
    if not any(c.isdigit() for c in digits) or (len(digits) > 2 and digits.startswith("0")):
        return False  # "oil", "000"
    return int(digits.translate(_DIGITS)) < GROWN


def _value(word: str) -> int:
    return SMALL.index(word) if word in SMALL else 10 * (TENS.index(word) + 2)
