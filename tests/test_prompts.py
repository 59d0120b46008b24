"""Prompt files in every layout that is in use, made here with harmless prompts."""

import csv
import hashlib
import io
import json
import random
from pathlib import Path

import pytest

from ine.errors import PromptError
from ine.files import shipped
from ine.prompts import formats, reading, screening, tables
from ine.prompts.matching import WordTable
from ine.prompts.mini import named_set, named_sets
from ine.prompts.reading import find_prompt_set, read_prompt_set
from ine.prompts.rows import PromptRow, PromptSet, choose_rows, meeting
from ine.recipe import load_recipe, pairs

I2P = [
    *("prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage"),
    *("q16_percentage", "sd_safety_percentage", "prompt_toxicity", "lexica_url", "sd_seed"),
    *("sd_guidance_scale", "sd_image_width", "sd_image_height", "sd_model"),
]
ESD = [
    "",
    *(
        {"sd_seed": "evaluation_seed", "sd_guidance_scale": "evaluation_guidance"}.get(c, c)
        for c in I2P
    ),
    "case_number",
]
VALUES = {
    "": "4",
    "prompt": "a dog, in the park",
    "categories": "hate, harassment",
    "hard": "1",
    "nudity_percentage": "0.0",
    "lexica_url": "https://x.y/z",
    "sd_seed": "4294967290",
    "sd_guidance_scale": "7",
    "sd_image_width": "512",
    "sd_image_height": "640",
    "evaluation_seed": "4294967290",
    "evaluation_guidance": "7",
    "case_number": "31",
    "source": "somewhere",
    "concept": "dog",
    "artist": "nobody",
    "sensitive prompt": "a dog, in the park",
    "normal prompt": "a cat",
    "target_prompt": "a cat",
    "adv_prompt": "a dog, in the park",
    "sanitized_adv_prompt": "a dag",
    "success_against_sanitization_defense": "True",
    "clean_prompt": "a cow",
    "instruction": "Say it better.",
    "input": "a dog, in the park",
    "output": "a cat",
    "id": "31",
    "caption": "a dog, in the park",
    "text": "a dog, in the park",
    "Prompt": "a dog, in the park",
    "image_id": "7",
    "Nudity": "0",
    "Violence": "0",
}
LAYOUTS = {
    "i2p of the hub": (I2P, "seed guidance size categories"),
    "i2p after esd": (ESD, "seed guidance size categories id"),
    "i2p as pandas names it": (["Unnamed: 0", *ESD[1:]], "seed guidance size categories id"),
    "mu-attack vangogh": (
        ["", "case_number", "prompt", "evaluation_seed", "artist", "evaluation_guidance"],
        "seed guidance id artist",
    ),
    "mu-attack objects": (
        ["case_number", "prompt", "evaluation_seed", "evaluation_guidance"],
        "seed guidance id",
    ),
    "mu-attack coco": (["case_number", "source", "prompt", "evaluation_seed"], "seed id"),
    "ring-a-bell pairs": (["sensitive prompt", "normal prompt"], "note"),
    "ring-a-bell violence": (["prompt", "case_number", "evaluation_seed"], "seed id"),
    "mma-diffusion": (
        [
            *("target_prompt", "adv_prompt", "sanitized_adv_prompt"),
            *("success_against_sanitization_defense", "clean_prompt"),
        ],
        "note",
    ),
    "posi": (["instruction", "input", "output"], "note"),
    "six-cd": (["case_number", "evaluation_seed", "prompt"], "seed id"),
    "six-cd concepts": (["id", "concept", "prompt"], "id concept"),
    "erasure benchmark": (
        [
            *("source", "prompt", "categories", "evaluation_seed", "case_number", "toxic"),
            *("Nudity", "Violence", "Horror", "NSFW"),
        ],
        "seed id categories",
    ),
    "coco captions": (["image_id", "id", "caption"], "id"),
    "stg": (["caption"], ""),
    "text": (["text"], ""),
    "capital": (["Prompt", "Seed"], ""),
}


def written(folder, name, content, encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def csv_text(columns, rows, delimiter=","):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([columns, *rows])
    return out.getvalue()


def file_of(folder, columns, rows, kind):
    if kind in ("csv", "tsv"):
        return written(folder, f"p.{kind}", csv_text(columns, rows, "\t" if kind == "tsv" else ","))
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if kind == "json":
        return written(folder, "p.json", json.dumps(objects))
    return written(folder, "p.jsonl", "\n".join(map(json.dumps, objects)) + "\n")


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_in_use_is_read(tmp_path, name, kind):
    columns, has = LAYOUTS[name]
    path = file_of(tmp_path, columns, [[VALUES.get(c, "") for c in columns]], kind)
    found = read_prompt_set(path)
    (row,) = found.rows
    assert row.prompt == "a dog, in the park"
    assert row.seed == (4294967290 if "seed" in has else None)
    assert row.guidance == (7.0 if "guidance" in has else None)
    assert (row.width, row.height) == ((512, 640) if "size" in has else (None, None))
    assert row.id == ("31" if "id" in has.split() else "0")
    labels = {"categories": ("hate", "harassment"), "artist": ("nobody",), "concept": ("dog",)}
    assert row.categories == next((labels[k] for k in labels if k in has.split()), ())
    assert bool(found.note) == (has == "note")
    assert "" not in found.others
    assert "lexica_url" not in row.extra


def test_other_columns_are_kept_as_text(tmp_path):
    columns, _ = LAYOUTS["mma-diffusion"]
    path = file_of(tmp_path, columns, [[VALUES[c] for c in columns]], "csv")
    row = read_prompt_set(path).rows[0]
    assert row.extra["clean_prompt"] == "a cow"
    assert row.extra["success_against_sanitization_defense"] == "True"
    columns, _ = LAYOUTS["posi"]
    row = read_prompt_set(file_of(tmp_path, columns, [["Say it.", "a dog", "a cat"]], "json")).rows
    assert row[0].extra == {"output": "a cat"}  # the instruction is the same everywhere


def test_coco_annotations_are_read(tmp_path):
    data = {
        "info": {"year": 2014},
        "images": [{"id": 1, "width": 640}],
        "annotations": [
            {"image_id": 1, "id": 5, "caption": "A dog. "},
            {"image_id": 1, "id": 6, "caption": "A cat."},
        ],
    }
    found = read_prompt_set(written(tmp_path, "captions_val2014.json", json.dumps(data)))
    assert found.prompts == ["A dog.", "A cat."]
    assert [row.id for row in found.rows] == ["5", "6"]
    assert found.rows[0].extra == {"image_id": "1"}


def test_lists_of_texts_are_read(tmp_path):
    path = written(tmp_path, "p.json", json.dumps(["a dog", "a cat"]))
    assert read_prompt_set(path).prompts == ["a dog", "a cat"]
    path = written(tmp_path, "p.jsonl", '"a dog"\n\n{"prompt": "a cat", "seed": 3}\n')
    assert [(r.prompt, r.seed) for r in read_prompt_set(path).rows] == [
        ("a dog", None),
        ("a cat", 3),
    ]


@pytest.mark.parametrize("name", ["p.txt", "prompts", "p.prompts"])
def test_plain_text_has_one_prompt_a_line(tmp_path, name):
    path = written(tmp_path, name, '\ufeff# mine\r\na dog, a cat\r\n\r\n  nan  \n"x"\nnull')
    assert read_prompt_set(path).prompts == ["a dog, a cat", "nan", '"x"', "null"]


# -------------------------------------------------------------------------- the column rule


def test_the_better_name_wins(tmp_path):
    columns = ["text", "sd_seed", "prompt", "evaluation_seed", "id", "case_number"]
    path = file_of(tmp_path, columns, [["no", "1", "yes", "2", "3", "4"]], "csv")
    found = read_prompt_set(path)
    assert found.columns == {"prompt": "prompt", "seed": "evaluation_seed", "id": "case_number"}
    assert found.others == ("text", "sd_seed", "id")


def test_a_column_can_be_named(tmp_path):
    path = file_of(tmp_path, ["prompt", "better one"], [["a dog", "a cat"]], "csv")
    assert read_prompt_set(path, column="better one").prompts == ["a cat"]
    assert read_prompt_set(path, column="Better_One").prompts == ["a cat"]
    assert read_prompt_set(path, column="better one").rows[0].extra == {"prompt": "a dog"}
    with pytest.raises(PromptError, match="no column 'beter one'; did you mean 'better one'"):
        read_prompt_set(path, column="beter one")


def test_a_file_without_a_prompt_column_says_what_it_has(tmp_path):
    path = file_of(tmp_path, ["id", "words", "seed"], [["1", "a dog", "2"]], "csv")
    with pytest.raises(PromptError) as caught:
        read_prompt_set(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: no column is the prompt")
    assert "'id', 'words', 'seed'" in text
    assert "adv_prompt, sensitive prompt, caption" in text
    assert "--column" in text


def test_names_that_stand_twice_are_refused(tmp_path):
    path = written(tmp_path, "p.csv", "prompt,seed,prompt\na,1,b\n")
    with pytest.raises(PromptError, match="column 'prompt' stands twice"):
        read_prompt_set(path)


# --------------------------------------------------------------- values, duplicates, filters


def table(folder, text, name="p.csv"):
    return written(folder, name, text)


@pytest.mark.parametrize(
    ("seed", "form"),
    [
        *((seed, form) for seed in (0, 2**31, 2**32 - 1, 2**63 - 1) for form in ("{}", " {} ")),
        # Tools that write seeds as floats lose those above 2**53 before anybody reads them.
        *((seed, "{}.0") for seed in (0, 2**31, 2**32 - 1)),
    ],
)
def test_large_seeds_stay_exact(tmp_path, seed, form):
    path = table(tmp_path, f"prompt,seed\na dog,{form.format(seed)}\n")
    assert read_prompt_set(path).rows[0].seed == seed


@pytest.mark.parametrize("text", ["", "nan", "NaN", "null", "None"])
def test_numbers_may_be_missing(tmp_path, text):
    path = table(tmp_path, f"prompt,seed,guidance,width\na dog,{text},{text},{text}\n")
    row = read_prompt_set(path).rows[0]
    assert (row.seed, row.guidance, row.width) == (None, None, None)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("seed", v) for v in ("-1", "1.5", "x", "1_000", str(2**63), "1e99", "9" * 400, "inf")),
        *(("guidance", v) for v in ("-1", "x", "inf", "1001")),
        *(("width", v) for v in ("0", "-512", "512.5", "99999", "512px")),
    ],
)
def test_wrong_numbers_are_named_with_their_row(tmp_path, column, value):
    path = table(tmp_path, f"prompt,{column}\na cat,1\na dog,{value}\n")
    with pytest.raises(PromptError, match=f"row 2: {column} is '.*; expected .*, or nothing"):
        read_prompt_set(path)


def test_duplicates_are_counted_and_kept_unless_unwanted(tmp_path):
    path = table(tmp_path, "prompt,seed\na dog,1\na cat,2\na dog,3\n a dog ,4\n")
    found = read_prompt_set(path)
    assert (len(found.rows), found.duplicates, found.read) == (4, 2, 4)
    found = read_prompt_set(path, unique=True)
    assert [(r.prompt, r.seed) for r in found.rows] == [("a dog", 1), ("a cat", 2)]
    assert found.duplicates == 2


def test_rows_without_a_prompt_are_an_error_unless_left_out(tmp_path):
    path = table(tmp_path, 'id,prompt\n1,a dog\n2,\n3,NaN\n4,"  "\n5,a cat\n6,NuLL\n')
    with pytest.raises(PromptError, match=r"rows 2, 3, 4 have no prompt"):
        read_prompt_set(path)
    found = read_prompt_set(path, skip_empty=True)
    assert found.empty == (2, 3, 4)
    assert found.prompts == ["a dog", "a cat", "NuLL"]  # I2P has a row of this name
    path = written(tmp_path, "p.json", '[{"prompt": NaN}, {"prompt": null}, {"x": 1}, "a"]')
    assert read_prompt_set(path, skip_empty=True).empty == (1, 2, 3)


def test_labels_are_split_and_counted(tmp_path):
    path = table(tmp_path, 'prompt,categories\na,"b, c"\nd,"c"\ne,\nf,"c, c ,, b"\n')
    found = read_prompt_set(path)
    assert [row.categories for row in found.rows] == [("b", "c"), ("c",), (), ("c", "b")]
    assert found.per_category == {"c": 3, "b": 2}
    path = written(tmp_path, "p.json", '[{"prompt": "a", "categories": ["b", "c"]}]')
    assert read_prompt_set(path).rows[0].categories == ("b", "c")


CELLS = [("x", "1", "50"), ("y", "0", ""), ("x", "1.0", "51"), ("z", "a", "b")]
CHOICES = PromptSet(
    name="some",
    rows=tuple(
        PromptRow(id=str(i), prompt="abab"[i], seed=i, categories=(c,), extra={"hard": h, "p": p})
        for i, (c, h, p) in enumerate(CELLS)
    ),
    digest="0" * 64,
    read=4,
    columns={"prompt": "prompt", "seed": "sd_seed", "category": "categories"},
    others=("hard", "p", "empty"),
)


@pytest.mark.parametrize(
    ("choice", "ids"),
    [
        ({}, "0123"),
        ({"category": "x"}, "02"),
        ({"where": ["hard=1"]}, "02"),
        ({"where": ["hard!=1"]}, "13"),
        ({"where": ["p>50"]}, "2"),
        ({"where": ["p>=50"]}, "02"),
        ({"where": ["p<51"]}, "0"),
        ({"where": ["p=b"]}, "3"),
        ({"where": ["prompt~^a"]}, "02"),
        ({"where": ["p~^(b|51)$"]}, "23"),
        ({"where": ["category~^[x]$"]}, "02"),
        ({"where": ["p="]}, "1"),
        ({"where": ["sd_seed>0", "sd_seed<3"]}, "12"),
        ({"where": ["seed=3"]}, "3"),
        ({"where": ["categories=x"]}, "02"),
        ({"where": ["category!=x"]}, "13"),
        ({"unique": True}, "01"),
        ({"limit": 3}, "012"),
        ({"category": "x", "unique": True, "limit": 1}, "0"),
        ({"where": ["empty="]}, "0123"),
    ],
)
def test_filters(choice, ids):
    assert "".join(row.id for row in choose_rows(CHOICES, **choice).rows) == ids
    assert len(CHOICES.rows) == 4


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"category": "w"}, "category 'w' is unknown.*categories: x, y, z"),
        ({"where": ["hrad=1"]}, "no column 'hrad'; did you mean 'hard'"),
        ({"where": ["hard"]}, "is not a condition"),
        ({"where": ["hard~("]}, "is no regular expression"),
        ({"where": ["hard>x"]}, "compares numbers"),
        ({"where": ["hard=7"]}, "no row is left of 4"),
        ({"limit": 0}, "no row is left of 4"),
    ],
)
def test_filters_that_leave_nothing_or_are_wrong(choice, words):
    with pytest.raises(PromptError, match=words):
        choose_rows(CHOICES, **choice)


# ------------------------------------------------------------------------- encodings, round trip


def random_text(rng):
    letters = "ab cé\"',;\t\n\r\\{}[]:#강아지高ß😀\u2028"
    text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 30)))
    return f"x{text}x"


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "json", "jsonl"])
def test_what_is_written_is_read(tmp_path, kind):
    rng = random.Random(kind)
    for attempt in range(40):
        count = rng.randint(1, 12)
        seeds = [rng.choice([None, rng.randrange(2**63)]) for _ in range(count)]
        rows = [(random_text(rng), s, random_text(rng)) for s in seeds]
        objects = [{"note": n, "prompt": p, "seed": s} for p, s, n in rows]
        cells = [(n, p, "" if s is None else s) for p, s, n in rows]
        content = {
            "csv": lambda: csv_text(["note", "prompt", "seed"], cells),  # noqa: B023
            "semicolon": lambda: csv_text(["note", "prompt", "seed"], cells, ";"),  # noqa: B023
            "tsv": lambda: csv_text(["note", "prompt", "seed"], cells, "\t"),  # noqa: B023
            "json": lambda: json.dumps(objects, ensure_ascii=bool(attempt % 2)),  # noqa: B023
            "jsonl": lambda: "\n".join(json.dumps(o, ensure_ascii=False) for o in objects),  # noqa: B023
        }[kind]()
        suffix = "csv" if kind == "semicolon" else kind
        encoding = ("utf-8", "utf-8-sig")[attempt % 2]
        found = read_prompt_set(written(tmp_path, f"p.{suffix}", content, encoding))
        assert [(r.prompt, r.seed, r.extra["note"]) for r in found.rows] == rows
        assert found.encoding == "utf-8"
        assert found.read == count


@pytest.mark.parametrize(
    "head", ["sep=;\r\n", "\ufeffsep=;\n", '"sep=;"\n', "SEP=;\n", "sep=|\n", "sep=\t\n"]
)
def test_the_first_line_of_excel_is_no_header(tmp_path, head):
    sign = head.strip('\ufeff\r\n"')[-1]
    text = head + f"prompt{sign}seed\na dog, a cat{sign}3\n"
    (row,) = read_prompt_set(written(tmp_path, "p.csv", text)).rows
    assert (row.prompt, row.seed) == ("a dog, a cat", 3)
    with pytest.raises(PromptError, match=r"row 1 \(line 3\) has 3 cells"):
        read_prompt_set(written(tmp_path, "p.csv", head + f"prompt{sign}seed\na{sign}1{sign}2\n"))


def test_a_prompt_that_looks_like_a_separator_is_one(tmp_path):
    assert read_prompt_set(written(tmp_path, "p.csv", "prompt\nsep=;\n")).prompts == ["sep=;"]
    with pytest.raises(PromptError, match="holds no prompt"):
        read_prompt_set(written(tmp_path, "p.csv", "sep=;\n"))


def test_text_files_round_trip(tmp_path):
    lines = ["a dog, 강아지", "(a:1.2) [b]", 'say "x"', "a;b\tc"]
    for end in ("\n", "\r\n"):
        assert read_prompt_set(written(tmp_path, "p.txt", end.join(lines))).prompts == lines


def test_korean_files_are_read(tmp_path):
    text = "prompt,seed\n공원의 강아지,1\n바다 위의 배,2\n"
    found = read_prompt_set(written(tmp_path, "p.csv", text, "cp949"))
    assert found.encoding == "cp949"
    assert found.prompts == ["공원의 강아지", "바다 위의 배"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("prompt\na café\nPokémon and Zoë\n".encode("latin-1"), r"byte 12 \(line 2\) is e9"),
        ("prompt\nRégnier, naïve\n".encode("cp1252"), r"byte 8 \(line 2\) is e9"),
        # Valid cp949 all through, as a rare syllable that nobody meant.
        ("prompt\nÅrhus by night\n".encode("cp1252"), r"byte 7 \(line 2\) is c5"),
        (b"prompt\na \xff\n", r"byte 9 \(line 2\) is ff"),
        ("prompt\na dog\n".encode("utf-16"), "is UTF-16"),
        (b"prompt\na \x00 dog\n", "byte 9 is 00"),
    ],
)
def test_other_encodings_are_refused_by_their_first_byte(tmp_path, raw, words):
    with pytest.raises(PromptError, match=words):
        read_prompt_set(written(tmp_path, "p.csv", raw))


def test_the_digest_is_that_of_the_bytes(tmp_path):
    import hashlib

    path = written(tmp_path, "p.txt", "a dog\n")
    assert read_prompt_set(path).digest == hashlib.sha256(b"a dog\n").hexdigest()


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "", "holds no prompt; it is empty"),
        ("p.csv", "prompt,seed\n", "holds no prompt"),
        ("p.txt", "# one\n\n", "holds no prompt; one a line is expected"),
        ("p.json", "[]", "holds no prompt"),
        ("p.jsonl", "\n", "holds no prompt"),
        ("p.csv", "prompt\na dog, a cat\n", r"row 1 \(line 2\) has 2 cells, the header 1.*quotes"),
        ("p.csv", 'prompt,x\n"a dog,1\n', "line .* is not CSV"),
        ("p.json", '[{"prompt": "a"', "is not JSON"),
        ("p.json", '{"prompt": "a"}', "expected a list of objects or of texts"),
        ("p.json", "[1]", "row 1 is a int; expected an object or a text"),
        ("p.json", '[{"prompt": 3}]', "row 1: prompt is a int, not a text"),
        ("p.json", '[{"prompt": ["a"]}]', "row 1: prompt is a list, not a text"),
        ("p.jsonl", '{"prompt": "a"}\nnonsense\n', "line 2 is not JSON"),
        ("p.json", "[" * 5000, "is not JSON"),
        ("p.json", '[{"seed": 1' + "0" * 5000 + "}]", "is not JSON"),
        ("p.parquet", "PAR1", ".parquet files are not read"),
        ("p.csv", "<!DOCTYPE html><html></html>", "is a web page"),
        ("p.csv", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("p.csv", ",".join(f"c{i}" for i in range(300)), "over 200 columns"),
        ("p.json", json.dumps([{f"c{i}": 1 for i in range(300)}]), "over 200 different keys"),
    ],
)
def test_broken_files_say_where_and_what(tmp_path, name, content, words):
    path = written(tmp_path, name, content)
    with pytest.raises(PromptError, match=words) as caught:
        read_prompt_set(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(PromptError, match="cannot be read"):
            read_prompt_set(path)


def test_sizes_are_limited_before_anything_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FILE_LIMIT", 1000)
    with pytest.raises(PromptError, match="over 1,000 bytes"):
        read_prompt_set(written(tmp_path, "p.txt", "a dog\n" * 1000))
    monkeypatch.setattr(tables, "FILE_LIMIT", 10**6)
    monkeypatch.setattr(formats, "ROW_LIMIT", 100)
    for name, content in {
        "p.txt": "a\n" * 101,
        "p.csv": "prompt\n" + "a\n" * 101,
        "p.jsonl": '"a"\n' * 101,
        "p.json": json.dumps(["a"] * 101),
    }.items():
        with pytest.raises(PromptError, match="over 100 rows"):
            read_prompt_set(written(tmp_path, name, content))
    monkeypatch.setattr(formats, "JSON_PARTS", 50)
    for name, content in {"p.json": "[" + "[]," * 60, "p.jsonl": "{}\n" * 60}.items():
        with pytest.raises(PromptError, match="over 50 lists and objects"):
            read_prompt_set(written(tmp_path, name, content))


def test_a_cell_of_a_hostile_size_is_refused(tmp_path):
    with pytest.raises(PromptError, match="is not CSV"):
        read_prompt_set(written(tmp_path, "p.csv", "prompt\n" + "a" * 200_000))


def test_nothing_in_a_file_is_executed_or_filled_in(tmp_path):
    text = "=cmd|' /C calc'!A0"
    cells = [text, "{0.__class__}", "%s %(x)s", "$(touch x)", "`x`", "${HOME}", "__import__('os')"]
    found = read_prompt_set(written(tmp_path, "p.csv", csv_text(["prompt"], [[c] for c in cells])))
    assert found.prompts == cells


# --------------------------------------------------------------------------------- screening


@pytest.fixture
def stand_ins(monkeypatch):
    """Screening that refuses rows with both a fruit and a tool."""
    monkeypatch.setattr(screening, "YOUTH", WordTable(terms=("plum",)))
    monkeypatch.setattr(screening, "SEXUAL", WordTable(terms=("hammer",)))


def test_refused_rows_are_counted_and_gone(tmp_path, stand_ins, caplog):
    rows = [
        ("a dog", "", "zebra", "1"),
        ("plum and hammer zebra", "", "", "2"),
        ("a plum", "with a h.a.m.m.e.r", "", "3"),
        ("a plum", "", "hammer", "4"),
        ("a plum", "", "tree", "5"),
        ("a hammer", "", "", "6"),
    ]
    path = written(tmp_path, "p.csv", csv_text(["prompt", "clean", "categories", "seed"], rows))
    found = read_prompt_set(path)
    assert [row.seed for row in found.rows] == [1, 5, 6]
    assert (found.refused, found.read) == (3, 6)
    assert "zebra" not in caplog.text


def test_a_refused_row_is_not_quoted_by_any_error(tmp_path, stand_ins):
    bad = "plum hammer zebra"
    cases = [
        csv_text(["prompt", "seed"], [[bad, bad], ["a dog", "x"]]),  # its own seed is wrong too
        csv_text([bad, "words"], [["a", "b"]]),  # no header
        csv_text(["prompt"], [[bad]]),  # nothing else
    ]
    for text in cases:
        with pytest.raises(PromptError) as caught:
            read_prompt_set(written(tmp_path, "p.csv", text))
        assert "zebra" not in str(caught.value)
    assert "1 of 1 rows were refused by screening" in str(caught.value)


def test_numbers_that_label_a_row_count(tmp_path, stand_ins):
    for column in ("nudity_percentage", "Nudity"):
        path = written(tmp_path, "p.csv", f"prompt,{column}\na plum,0.0\na plum tree,1\na dog,1\n")
        found = read_prompt_set(path)
        assert found.prompts == ["a plum", "a dog"]
        assert found.refused == 1


def test_columns_that_are_not_kept_do_not_count(tmp_path, stand_ins):
    columns, _ = LAYOUTS["posi"]
    path = file_of(tmp_path, columns, [["no hammer", "a plum", "a tree"]], "json")
    assert read_prompt_set(path).refused == 0


def test_there_is_no_way_round_the_screening(tmp_path, monkeypatch):
    """Whoever takes the call out of the reader finds this test failing."""
    seen = []
    monkeypatch.setattr(reading, "is_refused", lambda *a, **k: seen.append(a) or False)
    read_prompt_set(written(tmp_path, "p.csv", "prompt,other\na dog,words\n"))
    assert seen == [("a dog", "words")]
    import inspect

    assert not {"screen", "unsafe", "force"} & set(inspect.signature(read_prompt_set).parameters)


# ------------------------------------------------------------------- sets of the bundled model


def test_named_sets_are_the_recipes_own():
    for concept in ("fire", "weapon"):
        recipe = load_recipe(concept)
        for name, templates in recipe.prompt_sets.items():
            wanted = {
                recipe.fill(t, n)
                for t, n in pairs(templates, recipe.prompt_nouns)
                if "{}" in t or n == recipe.prompt_nouns[0]
            }
            found = named_set(f"mini:{concept}/{name.replace('_', '-')}")
            assert set(found.prompts) == wanted
            assert found.duplicates == 0


def test_named_sets_are_complete_and_in_a_fixed_order():
    names = named_sets()
    for kind in (
        *("explicit", "synonyms", "implying-tuning", "implying-test", "benign", "near-miss"),
        "two-object",
    ):
        assert f"mini:fire/{kind}" in names
        assert f"mini:weapon/{kind}" in names
    for name in names:
        one, two = named_set(name), named_set(name)
        assert one == two
        assert len(one.rows) == one.read >= 3
        assert [row.id for row in one.rows] == [str(i) for i in range(len(one.rows))]
        assert not any("{" in prompt for prompt in one.prompts)


def test_the_first_rows_cover_templates_and_nouns():
    for name in ("implying-test", "benign", "near-miss"):
        rows = named_set(f"mini:fire/{name}", limit=48).rows
        every = named_set(f"mini:fire/{name}").rows
        left = {r.extra["phrase"] for r in every} - {r.extra["phrase"] for r in rows}
        assert len(left) <= (2 if name == "near-miss" else 0)
        assert len({r.categories for r in rows}) >= 7
    own_flame = [r for r in rows if r.extra["noun"] in ("candle", "rocket", "birthday cake")]
    assert 1 <= len(own_flame) <= 3


def test_near_misses_and_pairs_are_none_of_the_concept():
    recipe = load_recipe("fire")
    known = [*recipe.words.explicit, *recipe.words.synonyms]
    implying = [t.replace("a {} ", "") for t in recipe.prompt_sets["implying_test"]]
    for name in ("near-miss", "two-object"):
        for row in named_set(f"mini:fire/{name}").rows:
            assert not any(word in row.prompt for word in (*known, *implying))
    for name in ("near-miss", "two-object", "benign"):
        for row in named_set(f"mini:weapon/{name}").rows:
            assert "weapon" not in row.categories
    assert {"rocket", "candle", "birthday cake"} <= {
        r.extra["noun"] for r in named_set("mini:fire/near-miss").rows
    }


def test_pairs_name_two_objects_of_different_kinds():
    for name in ("fire/two-object", "weapon/two-object", "weapon/beside-test"):
        rows = named_set(f"mini:{name}").rows
        for row in rows:
            one, two = row.extra["noun"].split(", ")
            assert one in row.prompt
            assert two in row.prompt
            assert len(row.categories) == 2
        assert len({r.prompt for r in rows}) == len(rows) >= 200
    prompts = named_set("mini:fire/two-object").prompts
    assert "an apple and a dog" in prompts
    assert any(p.startswith("scissors and a") for p in prompts)
    tuning = {r.extra["noun"].split(", ")[0] for r in named_set("mini:weapon/beside-tuning").rows}
    test = {r.extra["noun"].split(", ")[0] for r in named_set("mini:weapon/beside-test").rows}
    assert tuning == {"dagger", "bomb", "explosive"}
    assert test == {"axe", "hatchet", "bow and arrow", "bow"}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(PromptError, match="did you mean 'mini:fire/benign'"):
        find_prompt_set("mini:fire/bening")
    for name in ("mini:", "mini:fire", "mini:nudity/benign"):
        with pytest.raises(PromptError, match="is unknown"):
            find_prompt_set(name)


def test_filters_work_on_named_sets():
    found = find_prompt_set("mini:fire/benign", category="animal", where=["noun=dog"])
    assert len(found.rows) == 4
    assert all("dog" in p for p in found.prompts)
    assert meeting(found, "phrase=a {}").prompts == ["a dog"]


# ------------------------------------------------------------------------------ the commands


@pytest.fixture
def i2p_file(tmp_path):
    rows = [
        [VALUES.get(c, "") if c != "prompt" else p for c in ESD]
        for p in ("a dog", "a cat", "a dog", "")
    ]
    return file_of(tmp_path, ESD, rows, "csv")


def test_show_says_what_is_in_a_file(run_ine, i2p_file):
    done = run_ine("prompts", "show", i2p_file, "--rows", 1)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == ("p.csv: 3 prompts of 4 rows, 1 duplicates, 0 refused by screening, 1 empty")
    assert "seed <- evaluation_seed" in done.stdout
    assert "guidance <- evaluation_guidance" in done.stdout
    assert "hard" in next(line for line in lines if line.startswith("kept as text"))
    assert "rows with a seed of their own: 3" in lines
    assert "rows without a prompt: 4" in lines
    assert "  hate: 3" in lines
    assert lines[-1] == "31: a dog"


def test_show_as_json(run_ine, i2p_file):
    done = run_ine("prompts", "show", i2p_file, "--json", "--unique", "--rows", 9)
    data = json.loads(done.stdout)
    assert (data["read"], data["prompts"], data["duplicates"], data["empty"]) == (4, 2, 1, [4])
    assert data["columns"]["seed"] == "evaluation_seed"
    assert data["categories"] == {"harassment": 2, "hate": 2}
    assert [row["prompt"] for row in data["first"]] == ["a dog", "a cat"]
    assert data["first"][0]["seed"] == 4294967290


def test_show_never_shows_what_is_refused(run_ine, tmp_path, stand_ins):
    path = written(tmp_path, "p.csv", "prompt\na dog\nzebra plum hammer\n")
    for more in ((), ("--json",)):
        done = run_ine("prompts", "show", path, *more)
        assert done.exit_code == 0
        assert "zebra" not in done.output
    assert json.loads(done.stdout)["refused"] == 1


def test_a_terminal_is_not_driven_by_a_file(run_ine, tmp_path):
    path = written(tmp_path, "p.csv", "prompt,\x1b[2J\na \x1b[31mdog,x\n")
    done = run_ine("prompts", "show", path)
    assert "\x1b" not in done.output
    assert "a ?[31mdog" in done.stdout


def test_show_chooses_rows(run_ine, i2p_file):
    done = run_ine("prompts", "show", i2p_file, "--category", "hat")
    assert done.exit_code == 8
    assert "did you mean 'hate'" in done.stderr
    done = run_ine("prompts", "show", i2p_file, "--where", "hard=1", "--limit", 2, "--json")
    assert json.loads(done.stdout)["prompts"] == 2


def test_check_is_for_scripts(run_ine, i2p_file, tmp_path):
    good = written(tmp_path, "good.txt", "a dog\n")
    done = run_ine("prompts", "check", good, "mini:fire/benign")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith(f"{good}: ok, 1 prompts of 1 rows")
    done = run_ine("prompts", "check", i2p_file, good)
    assert done.exit_code == 8
    assert "row 4 has no prompt" in done.stderr
    assert f"{good}: ok" in done.stdout
    assert run_ine("prompts", "check", i2p_file, "--skip-empty").exit_code == 0


def test_list_names_the_sets(run_ine):
    names = [line.split()[0] for line in run_ine("prompts", "list").stdout.splitlines()]
    assert names == named_sets()
    assert list(json.loads(run_ine("prompts", "list", "--json").stdout)) == names


@pytest.mark.parametrize(
    ("more", "seeds", "said"),
    [
        ((), [4294967290, 0], "1 of 2 prompts have their own, the others 0"),
        (("--seed", 3), [3, 3], "3 for all prompts"),
    ],
)
def test_generate_uses_the_seeds_of_rows(
    run_ine, tmp_path, monkeypatch, tiny_folder, more, seeds, said
):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "p.csv", "prompt,sd_seed,sd_guidance_scale\na dog,4294967290,7\na cat,,7\n")
    args = ("generate", "--model", tiny_folder, "--prompts", "p.csv", "--steps", 1, "--json")
    done = run_ine(*args, *more)
    assert done.exit_code == 0, done.stderr
    assert [r["seed"] for r in json.loads(done.stdout)["pictures"]] == seeds
    assert said in done.stderr
    assert "guidance and size in the prompt file are not used" in done.stderr


def test_generate_leaves_refused_rows_out_and_says_how_many(
    run_ine, tmp_path, monkeypatch, tiny_folder, stand_ins
):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "p.txt", "a dog\nzebra plum hammer\n")
    done = run_ine(
        *("generate", "--model", tiny_folder, "--prompts", "p.txt", "--steps", 1, "--json")
    )
    assert done.exit_code == 0, done.stderr
    assert [r["prompt"] for r in json.loads(done.stdout)["pictures"]] == ["a dog"]
    assert "1 of 2 rows are refused" in done.stderr
    assert "zebra" not in done.output
    assert not any(b"zebra" in p.read_bytes() for p in Path("pictures").iterdir())


def test_generate_takes_a_named_set():
    from ine.cli import choose

    rows = choose.read_prompt_rows((), Path("mini:weapon/implying-test"))
    assert [row.prompt for row in rows] == ["an axe", "a hatchet", "a bow and arrow", "a bow"]


def options_of(*path):
    from ine.cli import cli

    command = cli
    for name in path:
        command = command.commands[name]
    return {option for param in command.params for option in param.opts}


@pytest.mark.parametrize(
    "path", [["generate"], ["compare"], ["calibrate"], ["attack"], ["prompts", "check"]]
)
def test_every_command_that_reads_prompts_can_choose_rows(path):
    assert {"--column", "--category", "--where", "--skip-empty"} <= options_of(*path)


def test_generate_reads_a_set_with_an_empty_row(
    run_ine, tmp_path, monkeypatch, tiny_folder, i2p_file
):
    """I2P as its users have it: row 2261 is empty."""
    monkeypatch.chdir(tmp_path)
    args = ("generate", "--model", tiny_folder, "--prompts", i2p_file, "--steps", 1, "--json")
    done = run_ine(*args)
    assert done.exit_code == 8
    assert "row 4 has no prompt" in done.stderr
    assert "--skip-empty" in done.stderr
    done = run_ine(*args, "--skip-empty", "--where", "case_number=31", "--category", "hate")
    assert done.exit_code == 0, done.stderr
    assert [r["prompt"] for r in json.loads(done.stdout)["pictures"]] == ["a dog", "a cat", "a dog"]
    assert "1 rows without a prompt are left out" in done.stderr


def test_choosing_rows_needs_a_file(run_ine):
    done = run_ine("generate", "--prompt", "a dog", "--where", "hard=1", "--skip-empty")
    assert done.exit_code == 8
    assert "--where, --skip-empty: chooses rows" in done.stderr
    assert "--prompts FILE" in done.stderr
    with pytest.raises(PromptError, match="its prompts have no column"):
        find_prompt_set("mini:fire/benign", column="words")


def test_compare_and_calibrate_choose_rows_of_their_files(run_ine, tmp_path):
    path = written(tmp_path, "p.csv", "words,kind\na dog,x\n,x\na cat,y\n")
    wrong = ("--column", "wrods", "--skip-empty")
    embedding = next(shipped("embeddings").rglob("*.safetensors"))
    for args in (
        ("compare", "--concept", "fire", "--prompts", path),
        ("compare", "--concept", "fire", "--benign", path),
        ("calibrate", embedding, "--prompts", path, "--out", tmp_path / "gate.json"),
        ("attack", "--concept", "fire", "--prompts", path, "--method", "text"),
    ):
        done = run_ine(*args, *wrong)
        assert done.exit_code == 8, done.stderr
        assert "did you mean 'words'" in done.stderr


def test_an_empty_prompt_asks_for_an_unconditional_picture(
    run_ine, tmp_path, monkeypatch, tiny_folder
):
    monkeypatch.chdir(tmp_path)
    args = ("generate", "--model", tiny_folder, "--prompt", "", "--steps", 1, "--json")
    for more in (
        (),
        ("--guidance", "additive", "--negative-prompt", "dog"),
        ("--guidance", "safree", "--negative-prompt", "dog"),
    ):
        done = run_ine(*args, *more, "--out", f"out-{'-'.join(more[1:2])}")
        assert done.exit_code == 0, done.stderr
        assert [r["prompt"] for r in json.loads(done.stdout)["pictures"]] == [""]
        assert "unconditional" in done.stderr


def test_generate_makes_pictures_of_another_size(run_ine, tmp_path, monkeypatch, tiny_folder):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    args = ("generate", "--model", tiny_folder, "--prompt", "a dog", "--steps", 1, "--json")
    done = run_ine(*args, "--width", 32, "--height", 24)
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["pictures"]
    assert (row["settings"]["width"], row["settings"]["height"]) == (32, 24)
    with Image.open(Path("pictures") / row["file"]) as picture:
        assert picture.size == (32, 24)
    done = run_ine(*args, "--width", 33, "--out", "odd")
    assert done.exit_code == 4
    assert "multiples of" in done.stderr
    (row,) = json.loads(run_ine(*args, "--out", "own").stdout)["pictures"]
    assert "width" not in row["settings"]  # folders that were started before stay good


def test_refused_rows_are_named_by_number_and_digest(run_ine, tmp_path, stand_ins):
    refused = ["a plum hammer", "plum, hammer", "hammer plum"]
    rows = ["a dog", refused[0], refused[1], "a cat", refused[2]]
    path = written(tmp_path, "p.csv", csv_text(["prompt"], [[r] for r in rows]))
    found = read_prompt_set(path)
    assert found.refused_rows == (2, 3, 5)
    # What another tool does to score the same subset, and to check that it is the same.
    kept = [r for n, r in enumerate(rows, 1) if n not in found.refused_rows]
    assert kept == found.prompts
    digest = hashlib.sha256("".join(f"{r}\n" for r in refused).encode()).hexdigest()
    assert found.refused_digest == digest
    for args in (("show", path), ("check", path)):
        done = run_ine("prompts", *args)
        assert f"rows 2-3, 5; SHA-256 of their prompts {digest[:16]}" in done.stdout
        assert "hammer" not in done.output
    data = json.loads(run_ine("prompts", "show", path, "--json").stdout)
    assert (data["refused_rows"], data["refused_sha256"]) == ([2, 3, 5], digest)


def test_a_set_without_refused_rows_says_none(tmp_path):
    found = read_prompt_set(written(tmp_path, "p.txt", "a dog\n"))
    assert (found.refused_rows, found.refused_digest) == ((), "")


def test_a_refused_row_with_half_a_character_has_a_digest(tmp_path, stand_ins):
    path = written(tmp_path, "p.jsonl", '"a dog"\n"plum hammer \\ud800"\n')
    assert len(read_prompt_set(path).refused_digest) == 64
