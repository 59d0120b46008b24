"""Screening, with harmless stand-ins: fruit for one table, tools for the other.

No text of the kind that is refused stands here. What the real tables refuse is made from their
own terms, in loops whose messages show nothing.
"""

import itertools

import pytest

from ine.embeddings.names import vocabulary
from ine.errors import PromptError
from ine.prompts.ages import says_under_age
from ine.prompts.disguises import simplify
from ine.prompts.matching import WordTable, mention_both, mentions
from ine.prompts.mini import named_set, named_sets
from ine.prompts.screening import BOTH, SEXUAL, YOUTH, is_refused

FRUIT = WordTable(terms=("apple", "plum", "passion fruit", "beet", "soon"), innocent=("sooon",))
TOOLS = WordTable(
    terms=("hammer", "saw", "tape measure", "level"),
    ambiguous=("level",),
    settled_by=("crossing", "ground"),
)


# ------------------------------------------------------------------------------- the matcher


@pytest.mark.parametrize(
    "text",
    [
        "a plum on a table",
        "PLUM",
        "two plums",
        "the plum's stone",
        "a passion fruit",
        "passion-fruit",
        "passionfruits",
        "ｐｌｕｍ",  # noqa: RUF001
        "𝐩𝓵𝖚𝗺",
        "ⓟⓛⓤⓜ",
        "plúm",
        "p\u0336l\u0336u\u0336m",
        "p\u200bl\u200du\ufeffm",
        "pl\u00adum",
        "\u0440lum",  # Cyrillic er
        "\u03c1lu\u1d0d",  # Greek rho, small capital m
        "p.l.u.m",
        "pl-um",
        "p_l_u_m",
        "p/l\\u|m",
        "(pl)um",
        "p l u m",
        "a p l u m a",
        "p  l - u . m",
        "p1um",
        "4pple",
        "@pple",
        "|plum|",
        "p|um",
        "a99le and 4pp1e",
        "pl*m",
        "b**t",
        "pluuuuum",
        "pppllluuummm",
        "a beeeet",
        "hammerplum",
        "plumsaw",
        "(plum:1.3)",
        "[plum]",
        "rotten,plum,old",
        "#plum",
    ],
)
def test_a_word_is_found_however_it_is_written(text):
    assert mentions(text, FRUIT, TOOLS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "plumber",
        "plumage",
        "aplum",
        "pineapple",
        "a bet",  # not "beet": letters may be drawn out, not left out
        "pl um",
        "p***m",
        "****",
        "passion for fruit",
        "fruit passion",
        "l u m p",
        "1234 5678 90",
        "https://x.y/ab12-cd34",
        "sooon",  # declared innocent
    ],
)
def test_other_words_are_left_alone(text):
    assert not mentions(text, FRUIT, TOOLS)


def test_two_words_as_one_need_both_tables():
    assert not mentions("plumsaw", FRUIT)
    assert mentions("plumsaw", FRUIT, TOOLS)
    assert mentions("plumsaw", TOOLS, FRUIT)
    assert not mentions("plumdog", FRUIT, TOOLS)


def test_both_may_stand_in_different_texts():
    assert mention_both(["a plum", "a hammer"], FRUIT, TOOLS)
    assert mention_both(["a plum and a s a w"], FRUIT, TOOLS)
    assert mention_both(["plumsaw"], FRUIT, TOOLS)
    assert not mention_both(["a plum", "an apple"], FRUIT, TOOLS)
    assert not mention_both([], FRUIT, TOOLS)


def test_an_ambiguous_word_is_settled_by_the_next_ones():
    assert mentions("a level", TOOLS)
    assert not mentions("a level crossing", TOOLS)
    assert not mentions("level and even ground", TOOLS)
    assert mentions("level and even and quite flat ground", TOOLS)
    assert mentions("a level crossing with a saw", TOOLS)
    assert mentions("a level crossing, a level", TOOLS)


def test_innocent_phrases_pass_as_they_are_spelled_and_nowhere_else():
    sweets = WordTable(terms=("plum", "apple"), innocent_phrases=("plum pudding", "apple s core"))
    for text in ("a plum pudding", "Plum-Puddings, hot", "the apple's core", "plum  pudding"):
        assert not mentions(text, sweets)
    for text in ("a plum", "plum puddings and a plum", "p.l.u.m pudding", "plum, pudding"):
        assert mentions(text, sweets)
    for text in ("plum puddingy", "a plum and pudding", "apple plum pudding"):
        assert mentions(text, sweets)


def test_disguises_may_be_combined():
    words = ["plum", "hammer"]
    disguises = [
        lambda w: w.upper(),
        lambda w: ".".join(w),
        lambda w: " ".join(w),
        lambda w: "".join(c * 3 for c in w),
        lambda w: "\u200b".join(w),
        lambda w: w.replace("u", "\u03c5").replace("e", "3").replace("a", "\u0430"),
    ]
    for one, two in itertools.product(disguises, repeat=2):
        for word in words:
            text = f"old {two(one(word))} here"
            assert mentions(text, FRUIT, TOOLS) or mentions(text, TOOLS, FRUIT), text


def test_the_work_is_linear_in_the_length():
    text = "p.l.u-n 9a*b " * 8000  # 100,000 characters, most windows of the worst kind
    assert not mentions(text, FRUIT, TOOLS)
    assert not says_under_age("1 9 " * 25_000 + "y e a r " * 10_000)


def test_simplify_takes_away_what_hides_letters():
    assert simplify("\uff21\u0301 \u0410\u200b\u1d00") == "a aa"
    assert simplify("Hi") == "hi"


# ------------------------------------------------------------------------------------ ages


@pytest.mark.parametrize("age", range(41))
def test_ages_are_separated_at_eighteen(age):
    small = [
        *("{}-year-old", "{} years old", "{}yo", "{} y/o", "{} y.o.", "aged {}", "age {}"),
        *("{} years of age", "at the age of {}", "{}yrs old", "a {} year-old guest", "age: {}"),
        *("{} y e a r s o l d", "{}-year-olds", "{}\u2010year\u2010old"),
    ]
    for form in small:
        assert says_under_age(simplify(form.format(age))) == (age < 18), form.format(age)


@pytest.mark.parametrize(
    ("text", "under"),
    [
        ("seventeen-year-old", True),
        ("eighteen-year-old", False),
        ("twenty-five years old", False),
        ("twenty five years old", False),
        ("one hundred and five years old", False),
        ("aged fifteen", True),
        ("1,500 year old oak", False),
        ("2000 years old", False),
        ("17.5 years old", True),
        ("18.5 years old", False),
        ("15-17 years old", True),
        ("25 to 15 year olds", True),
        ("20-30 year olds", False),
        ("2 30-year-old trees", False),
        ("l5 years old", True),
        ("\uff11\uff15 years old", True),
        ("6 months old", True),
        ("three weeks old", True),
        ("under 18", True),
        ("under eighteen", True),
        ("under 20", False),
        ("6th grade", True),
        ("sixth grader", True),
        ("20th grade", False),
        ("for 15 years", False),
        ("15 years older", False),
        ("15 apples", False),
        ("oil year old", False),
        ("the year 15", False),
        ("old age", False),
    ],
)
def test_ages_in_words_and_digits(text, under):
    assert says_under_age(simplify(text)) == under


@pytest.mark.parametrize(
    "text",
    [
        *("aged between 12 and 14", "ages 12 to 14", "aged twelve to fourteen", "aged 12-14"),
        *("between the ages of twelve and fourteen", "the 12-14 age group", "age range: 12 to 14"),
        *("between 12 and 20 years old", "ten to twenty year olds", "a young lady of nine"),
        *("she is twelve", "he's only 12.", "who is 13 and tall", "12 summers old"),
        *("turning sixteen", "her 12th birthday", "a sixteenth birthday", "sweet sixteen"),
        *("under-sixteens", "before she turned 18", "has not turned eighteen"),
        *("born in 2015", "born on 3 May 2015", "date of birth: 2015-05-03", "a 2015-born guest"),
        *("born in twenty fifteen", "born in two thousand and nine"),
        *(
            "a maiden of sixteen summers",
            "a 15 and a half year old",
            "barely sixteen",
            "a month-old",
        ),
        *("born after 2010", "birth year: 2012", "a 2012 birth year", "a dozen years old"),
        *("a year 9 student", "grade six students", "in grade 7, smiling", "a K-12 school"),
    ],
)
def test_ages_in_plain_english(text):
    assert says_under_age(simplify(text))


@pytest.mark.parametrize(
    "text",
    [
        *("aged between 20 and 24", "ages 20 to 40", "the 20-24 age group", "age of empires 2"),
        *(
            "between 12 and 14 apples",
            "she is one of them",
            "she is 12 feet tall",
            "he is eighteen",
        ),
        *("a queen of nine realms", "a lady of nineteen", "turned 12 pages", "her 18th birthday"),
        *(
            "born in 1990",
            "born in 2007",
            "born in twenty",
            "born to run",
            "a band of the 2015 tour",
        ),
        *("grade 5 titanium", "20 to 30 year olds", "the under 20 team", "aged cheese", "a yo-yo"),
        *("b&w photo, 2015", "a star in 2015", "born in 1990s style"),
    ],
)
def test_other_numbers_are_no_ages_below_eighteen(text):
    assert not says_under_age(simplify(text))


@pytest.mark.parametrize(
    "text",
    [
        *("12-year-old whisky", "a 16 year old car", "a twelve year old oak tree, painting"),
        *(
            "a glass of 12 year old single malt scotch whisky on a table",
            "6 months old cheese",
            "a year old car",
        ),
        *("a 16 year old red sports car parked on a street", "15-year-old dogs"),
    ],
)
def test_an_age_before_a_thing_is_the_things(text):
    assert not says_under_age(simplify(text))


@pytest.mark.parametrize(
    "text",
    [
        *("a 16 year old in a car", "a 16 year old car thief", "a 12-year-old whisky drinker"),
        *("a 12 year old dog owner", "a 12 year old and a dog", "a 12 year old photo"),
        *("a 16 year old car, driven by a 12 year old", "12-year-olds, a car", "aged 12, a car"),
        *("a 12-y.e.a.r-old, whisky", "a 12 year old, whisky", "a 16 year old red car dealer"),
    ],
)
def test_an_age_of_somebody_beside_a_thing_counts(text):
    assert says_under_age(simplify(text))


def test_ages_belong_to_a_table_that_says_so():
    assert not mentions("15 years old", FRUIT)
    assert mentions("15 years old", WordTable(terms=("plum",), ages=True))


# --------------------------------------------------------------------------- the real tables


def alone(table):
    return [term for term in table.terms if term not in BOTH]


@pytest.mark.parametrize(
    "text",
    [
        *("a pupil at a desk", "two lads", "her grandchildren", "an orphan", "choirboys in church"),
        *("a sixth former", "a jr. high classroom", "a tot with a toy", "my niece and nephew"),
        *("an altar boy", "her little sister", "a boarding school", "a first communion"),
        *("aged between 12 and 14", "a young lady of nine", "born in 2015", "a street urchin"),
        *("a minor", "the kid", "a minor and a key", "a baby in a blue coat"),
    ],
)
def test_plain_words_for_youth(text):
    assert mentions(text, YOUTH)


@pytest.mark.parametrize(
    "text",
    [
        *("a sonata in a minor key", "Ursa Minor at night", "kid gloves", "a kid-leather bag"),
        *("a prelude in C sharp minor", "minor repairs", "a baby blue coat", "baby's breath"),
        *("cat eyes with slit pupils", "a sea urchin", "tater tots", "Billy the Kid, a poster"),
        *("12-year-old whisky", "a 16 year old car", "a toot of a horn", "a young lady in a hat"),
    ],
)
def test_innocent_phrases_are_no_youth(text):
    assert not mentions(text, YOUTH)


@pytest.mark.parametrize(
    "text",
    [
        *("stars seen with the naked eye", "chicken breasts with rice", "grilled chicken-breast"),
        *("the naked truth", "a naked mole-rat", "a breast pocket", "nude lipstick", "Moby Dick"),
        *("pussy willows in a vase", "a robin red breast", "a bottomless pit", "wire strippers"),
    ],
)
def test_innocent_phrases_are_not_sexual(text):
    assert not mentions(text, SEXUAL)


@pytest.mark.parametrize("text", ["a naked statue", "an eye of a nude", "chicken, a bare breast"])
def test_outside_of_innocent_phrases_the_words_count(text):
    assert mentions(text, SEXUAL)


def test_each_term_alone_passes():
    for term in alone(YOUTH) + alone(SEXUAL):
        assert not is_refused(term), "a term of one table alone is refused"


def test_every_pair_of_terms_is_refused_in_either_order():
    """Every pair in one of the two orders, by turns: there are 30,000 of them."""
    passed = [
        (i, k)
        for i, youth in enumerate(alone(YOUTH))
        for k, sexual in enumerate(alone(SEXUAL))
        if not is_refused(f"{youth} {sexual}" if (i + k) % 2 else f"{sexual}, {youth}")
    ]
    # An adult noun behind "young" would settle it; no term of the other table is one.
    assert passed == []


def test_terms_in_different_texts_of_a_row_are_refused_together():
    youth, sexual = alone(YOUTH)[0], alone(SEXUAL)[0]
    assert is_refused(youth, sexual)
    assert not is_refused(youth, youth)


def test_terms_that_say_both_need_no_second_one():
    assert all(is_refused(term) for term in BOTH)


def test_a_row_that_is_labelled_needs_the_other_half_only():
    assert all(is_refused(term, sexual=True) for term in alone(YOUTH))
    assert not is_refused("a statue in a garden", sexual=True)


def test_ages_count_for_the_real_table():
    sexual = alone(SEXUAL)[0]
    assert all(is_refused(f"{sexual} {age} years old") for age in (1, 12, 17))
    assert not any(is_refused(f"{sexual} {age} years old") for age in (18, 19, 45, 80))


def test_tables_are_plain_and_disjoint():
    for table in (YOUTH, SEXUAL):
        assert len(set(table.terms)) == len(table.terms)
        for term in table.terms:
            assert term == term.lower() == simplify(term)
            assert term.replace(" ", "").isalpha()
            assert len(term.replace(" ", "")) >= 3
    assert set(alone(YOUTH)).isdisjoint(alone(SEXUAL))


@pytest.mark.parametrize(
    "text",
    [
        "children playing football in the park",
        "a baby elephant with its mother",
        "a boy and a girl on a beach, oil painting",
        "a 12 year old at a school desk",
        "a class of a primary school visits a museum",
        "a family looks at stars with the naked eye, their son holds a lamp",
        "a boy eats chicken breast",
        "nude painting beside a 12-year-old whisky",
        "a nude beach, a song in a minor key",
        "a marble statue of a nude man, museum photograph",
        "the naked mole-rat is a rodent",
        "nude woman, charcoal drawing, 45 years old",
        "a nude couple, both 30 years old",
        "a naked young woman in a painting by Titian",
        "chicken breast with rice",
        "Moby Dick, book cover",
        "see you soon, naked truth",
        "a nude beach under the 18th century fort",
        "the minority report, sexual politics",
        "Kidderminster and Sussex, a map",
        "a scunthorpe street, in the style of Youthon",
    ],
)
def test_ordinary_captions_pass(text):
    assert not is_refused(text)


def test_all_prompts_of_the_bundled_model_pass():
    prompts = [p for name in named_sets() for p in named_set(name).prompts]
    assert len(prompts) > 3000
    assert not any(map(is_refused, prompts))


def test_few_words_of_english_are_taken_for_terms_that_are_none():
    words = [word.removesuffix("</w>") for word in vocabulary("sd1")]
    assert len(words) > 30_000
    odd = set()
    for own, other in ((YOUTH, SEXUAL), (SEXUAL, YOUTH)):
        odd |= {w for w in words if mentions(w, own, other) and w not in own.singles}
    assert len(odd) <= 8, odd


def test_prompts_on_the_command_line_are_screened_and_not_shown(run_ine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    youth, sexual = alone(YOUTH)[-1], alone(SEXUAL)[0]
    done = run_ine("generate", "--prompt", "a dog", "--prompt", f"zebra {youth} {sexual}")
    assert done.exit_code == PromptError.exit_code
    assert "refused" in done.stderr
    assert "zebra" not in done.output
