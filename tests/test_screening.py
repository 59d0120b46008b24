"""Screening, with harmless stand-ins: fruit for one table, tools for the other.

No text of the kind that is refused stands here. What the real tables refuse is made from their
own terms, in loops whose messages show nothing.
"""

import itertools

import pytest

from ine.errors import PromptError
from ine.formats.names import vocabulary
from ine.prompts.ages import says_under_age
from ine.prompts.matching import Words, mention_both, mentions, simplify
from ine.prompts.mini import named_set, named_sets
from ine.prompts.screening import is_refused
from ine.prompts.words import BOTH, SEXUAL, YOUTH

FRUIT = Words(terms=("apple", "plum", "passion fruit", "beet", "soon"), innocent=("sooon",))
TOOLS = Words(
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
def test_ages_are_told_apart_at_eighteen(age):
    small = [
        *("{}-year-old", "{} years old", "{}yo", "{} y/o", "{} y.o.", "aged {}", "age {}"),
        *("{} years of age", "at the age of {}", "{}yrs old", "a {} year-old oak", "age: {}"),
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


def test_ages_belong_to_a_table_that_says_so():
    assert not mentions("15 years old", FRUIT)
    assert mentions("15 years old", Words(terms=("plum",), ages=True))


# --------------------------------------------------------------------------- the real tables


def alone(table):
    return [term for term in table.terms if term not in BOTH]


def test_each_term_alone_passes():
    for term in alone(YOUTH) + alone(SEXUAL):
        assert not is_refused(term), "a term of one table alone is refused"


def test_every_pair_of_terms_is_refused_in_either_order():
    passed = [
        (i, k)
        for i, youth in enumerate(alone(YOUTH))
        for k, sexual in enumerate(alone(SEXUAL))
        if not (is_refused(f"{youth} {sexual}") and is_refused(f"{sexual}, {youth}"))
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
