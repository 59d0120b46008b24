"""`ine embedding convert` and `card`: what is written for other programs."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ine.embeddings.export as export
from ine.cli.embedding import WARNING, convert
from ine.embeddings.card import as_text, model_card
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.embeddings.export import TARGETS, convert_embedding
from ine.embeddings.names import check_name, vocabulary
from ine.embeddings.uses import USES, uses_of
from ine.errors import EmbeddingError, OutputError
from ine.protection.loaders import load_into_pipeline

ROOT = Path(__file__).parent.parent


def numbers(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


ONE = (numbers(3, 768),)
PAIR = (numbers(3, 768), numbers(3, 1280))
FACTS = {
    "ine.base": "CompVis/stable-diffusion-v1-4",
    "ine.unet": "esd.pt (ESD)",
    "ine.steps": "800",
    "ine.kept_step": "600",
    "ine.seed": "7",
    "modelspec.author": "somebody",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(folder, vectors=ONE, metadata=FACTS, name="ine-neg"):
    path = folder / "in" / f"{name}.safetensors"
    write_embedding(new_embedding(vectors, name, "fire", metadata), path)
    return path


def same(found, vectors):
    return len(found.vectors) == len(vectors) and all(map(torch.equal, found.vectors, vectors))


def header(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


# ------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("to", "vectors", "files"),
    [
        ("universal", ONE, ["ine-neg.safetensors"]),
        ("universal", PAIR, ["ine-neg.safetensors"]),
        ("sdxl", PAIR, ["ine-neg.safetensors"]),
        ("a1111-pt", ONE, ["ine-neg.pt"]),
        ("a1111-pt", (numbers(2, 1024),), ["ine-neg.pt"]),
        ("diffusers", ONE, ["ine-neg/learned_embeds.safetensors"]),
        ("diffusers", PAIR, [f"ine-neg/learned_embeds{x}.safetensors" for x in ("", "_2")]),
    ],
)
def test_every_layout_reads_back_equal_and_the_same_bytes_come_twice(place, to, vectors, files):
    given = source(place, vectors)
    written, made = convert_embedding(given, to)
    assert [str(p) for p in written] == files
    for path in written:
        found = read_embedding(path)
        assert same(found, vectors)
        assert found.trigger == made.trigger == "ine-neg"
    first = [p.read_bytes() for p in written]
    convert_embedding(given, to, force=True)
    assert [p.read_bytes() for p in written] == first


@pytest.mark.parametrize("to", ["universal", "diffusers"])
def test_uis_learn_base_author_trigger_and_that_it_is_a_negative(place, to):
    written, _ = convert_embedding(source(place), to, name="no-fire", author="A. Body")
    about = header(written[0])
    assert about["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert about["modelspec.author"] == "A. Body"
    assert about["modelspec.trigger_phrase"] == "no-fire"
    assert about["modelspec.usage_hint"] == "put no-fire in the negative prompt"
    assert about["modelspec.is_negative_embedding"] == "true"
    assert about["modelspec.sai_model_spec"] == "1.0.1"
    assert "esd.pt (ESD) over CompVis/stable-diffusion-v1-4" in about["modelspec.description"]
    assert "as a prompt it brings the concept back" in about["modelspec.description"]
    assert {k: about[k] for k in FACTS if k != "modelspec.author"}.items() <= FACTS.items()


def test_the_author_of_the_file_is_kept(place):
    written, _ = convert_embedding(source(place), "diffusers")
    assert header(written[0])["modelspec.author"] == "somebody"


def test_the_diffusers_layout_is_the_trigger_and_nothing_else(place):
    written, _ = convert_embedding(source(place, PAIR), "diffusers")
    assert [{k: tuple(t.shape) for k, t in load_file(p).items()} for p in written] == [
        {"ine-neg": (3, 768)},
        {"ine-neg": (3, 1280)},
    ]


def test_the_pt_is_plain_tensors_in_a_zip_that_a1111_lets_through(place):
    (path,), _ = convert_embedding(source(place), "a1111-pt")
    with zipfile.ZipFile(path) as archive:
        names, kinds = archive.namelist(), {m.compress_type for m in archive.infolist()}
        assert {m.date_time for m in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert sorted(names) == ["archive/data.pkl", "archive/data/0", "archive/version"]
    # A1111 1.10 lets members of these names through and no others.
    assert all(re.fullmatch(r"[^/]+/(data/\d+|version|data\.pkl)", name) for name in names)
    assert kinds == {zipfile.ZIP_STORED}
    content = torch.load(path, weights_only=True)
    assert type(content["string_to_param"]["*"]) is torch.Tensor
    assert torch.equal(content.pop("string_to_param")["*"], ONE[0])
    assert content == {
        "string_to_token": {"*": 265},
        "name": "ine-neg",
        "step": 600,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "CompVis/stable-diffusion-v1-4",
    }


def test_only_the_vectors_are_in_the_pt_not_the_storage_they_are_a_view_of(place):
    given = source(place, (numbers(1, 768),))
    (path,), _ = convert_embedding(given, "a1111-pt")
    assert path.stat().st_size < 768 * 4 + 1500


def test_what_an_a1111_file_said_is_said_again(place):
    content = {"string_to_param": {"*": ONE[0]}, "name": "neg-one", "step": 41}
    torch.save(content | {"sd_checkpoint": "abc"}, place / "x.pt")
    convert_embedding("x.pt", "universal")
    assert header("neg-one.safetensors")["sd_checkpoint"] == "abc"
    convert_embedding("neg-one.safetensors", "a1111-pt")
    content = torch.load("neg-one.pt", weights_only=True)
    assert (content["step"], content["sd_checkpoint"]) == (41, "abc")


@pytest.mark.parametrize("to", ["universal", "diffusers"])
def test_a_strangers_file_is_marked_as_a_negative_only_when_asked(place, to):
    save_file({"pretty-cat": ONE[0]}, place / "x.safetensors", {"format": "pt"})
    (path, *_), made = convert_embedding("x.safetensors", to)
    about = header(path)
    assert not made.negative
    assert "modelspec.is_negative_embedding" not in about
    assert "negative" not in about["modelspec.title"] + about.get("modelspec.description", "")
    assert about["modelspec.usage_hint"] == "put pretty-cat in the prompt or the negative prompt"
    assert not read_embedding(path).negative
    (path, *_), made = convert_embedding("x.safetensors", to, force=True, negative=True)
    assert header(path)["modelspec.is_negative_embedding"] == "true"
    assert made.negative
    assert read_embedding(path).negative
    # Once marked it stays marked, as do ine's own.
    (again, *_), _ = convert_embedding(path, "sdxl" if len(made.vectors) > 1 else "universal",
                                       out="again-neg.safetensors")  # fmt: skip
    assert header(again)["modelspec.is_negative_embedding"] == "true"


def test_a_file_that_says_that_it_is_no_negative_is_not_made_one(place):
    about = {"modelspec.is_negative_embedding": "false"}
    save_file({"pretty-cat": ONE[0]}, place / "x.safetensors", about)
    (path, *_), _ = convert_embedding("x.safetensors")
    assert header(path)["modelspec.is_negative_embedding"] == "false"


@pytest.mark.parametrize(
    ("to", "vectors", "message"),
    [
        ("sdxl", ONE, "of width 768 .family sd1., SDXL needs 768 . 1280.*invert again"),
        ("sdxl", (numbers(1, 32), numbers(1, 32)), "of width 32 . 32"),
        ("a1111-pt", PAIR, "has room for one; use --to sdxl"),
    ],
)
def test_vectors_that_a_layout_has_no_place_for(place, to, vectors, message):
    with pytest.raises(EmbeddingError, match=message):
        convert_embedding(source(place, vectors), to)
    assert [p.name for p in place.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("to", "out", "message"),
    [
        ("universal", "x.pt", r"use x\.safetensors"),
        ("a1111-pt", "x.safetensors", r"use x\.pt"),
        ("diffusers", "x.safetensors", "is a folder with learned_embeds.safetensors; give --out"),
    ],
)
def test_the_extension_has_to_be_the_layouts(place, to, out, message):
    with pytest.raises(OutputError, match=message):
        convert_embedding(source(place), to, out=out)


@pytest.mark.parametrize("to", ["universal", "a1111-pt", "diffusers"])
def test_what_exists_is_kept_without_force(place, to):
    written, _ = convert_embedding(source(place), to)
    other = source(place, (numbers(3, 768, seed=5),), name="other-neg")
    before = written[0].read_bytes()
    with pytest.raises(OutputError, match="exists already; give --force"):
        convert_embedding(other, to, name="ine-neg")
    assert written[0].read_bytes() == before
    convert_embedding(other, to, name="ine-neg", force=True)
    assert written[0].read_bytes() != before


def test_a_second_half_that_exists_is_noticed_before_the_first_is_written(place):
    (place / "ine-neg").mkdir()
    (place / "ine-neg" / "learned_embeds_2.safetensors").touch()
    with pytest.raises(OutputError, match=r"learned_embeds_2\.safetensors: exists already"):
        convert_embedding(source(place, PAIR), "diffusers")
    assert len(list((place / "ine-neg").iterdir())) == 1


def test_what_does_not_read_back_equal_is_an_error(place, monkeypatch):
    wrong = lambda e, path, force: TARGETS["universal"].write(  # noqa: E731
        replace(e, vectors=(e.vectors[0] + 1e-6,)), path, force
    )
    monkeypatch.setitem(export.TARGETS, "sdxl", replace(TARGETS["sdxl"], write=wrong))
    with pytest.raises(OutputError, match="did not read back as written"):
        convert_embedding(source(place), "sdxl")


def test_vectors_of_no_known_family_are_warned_about(place, caplog):
    given = source(place, (numbers(1, 128),))
    convert_embedding(given, "a1111-pt")
    assert "no program but ine runs models of family mini" in caplog.text


def test_the_choices_of_the_command_are_the_table():
    (option,) = [p for p in convert.params if p.name == "to"]
    assert list(option.type.choices) == list(TARGETS)


# --------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["EasyNegative", "<cat-toy>", "bad hands", "neg2", "b.d"])
def test_a_name_that_some_ui_misreads_needs_another(place, name):
    save_file({name: ONE[0]}, place / "x.safetensors")
    with pytest.raises(EmbeddingError, match=r"must be lower-case.*give another with --name"):
        convert_embedding("x.safetensors")
    written, _ = convert_embedding("x.safetensors", name="easy-neg")
    found = read_embedding(written[0])
    assert (found.trigger, found.concept) == ("easy-neg", name)


@pytest.mark.parametrize("name", ["bad", "xl", "nude", "photograph"])
def test_words_of_clips_vocabulary_are_no_names(place, name):
    with pytest.raises(EmbeddingError, match=r"is a token.*'ine-.*give another with --name"):
        convert_embedding(source(place), name=name)


def test_a_single_word_is_warned_about_when_it_is_chosen(place, caplog):
    given = source(place)
    convert_embedding(given, name="nudity")
    assert "'nudity' is one word; programs replace it wherever it stands" in caplog.text
    caplog.clear()
    convert_embedding("nudity.safetensors", "a1111-pt")
    convert_embedding(given, name="no-nudity")
    assert not caplog.records


def test_the_vocabularies():
    clip = vocabulary("sd1")
    assert clip == vocabulary("sd2") == vocabulary("sdxl")
    assert len(clip) == 38822
    assert {"cat", "photo", "ing", "easy"} < clip
    assert all(re.fullmatch("[a-z]{2,}", word) for word in clip)
    for name in ("easynegative", "ine-neg", "no_fire", "sd15-neg"):
        check_name(name, "sd1")
    check_name("nudity", "mini")
    with pytest.raises(EmbeddingError, match="'fire': is a token"):
        check_name("fire", "mini")


# ----------------------------------------------------------------------------------- diffusers


@pytest.fixture(scope="module")
def pipeline(tiny_folder):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_folder)


def rows_of(tokenizer, encoder, pipe, word):
    """What a prompt that is one word looks up in an encoder's token table."""
    prompt = pipe.maybe_convert_prompt(word, tokenizer)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    return encoder.get_input_embeddings().weight[ids]


@pytest.mark.parametrize(("to", "name"), [("diffusers", "one-neg"), ("a1111-pt", "two-neg")])
def test_diffusers_own_loader_takes_it_without_the_token(place, pipeline, to, name):
    vectors = numbers(3, 32)
    (path,), _ = convert_embedding(source(place, (vectors,), name=name), to)
    pipeline.load_textual_inversion(str(path.parent if to == "diffusers" else path))
    assert torch.equal(rows_of(pipeline.tokenizer, pipeline.text_encoder, pipeline, name), vectors)


def test_diffusers_own_loader_takes_the_universal_file(place, pipeline):
    vectors = numbers(3, 32)
    (path,), _ = convert_embedding(source(place, (vectors,), name="three-neg"))
    pipeline.load_textual_inversion(str(path), token="three-neg")
    got = rows_of(pipeline.tokenizer, pipeline.text_encoder, pipeline, "three-neg")
    assert torch.equal(got, vectors)


def test_a_trigger_in_another_case_is_its_first_vector_only_in_diffusers(pipeline):
    """As docs/using-in-uis.md says; with it fall the rule for names and the warning there."""
    vectors = numbers(3, 32)
    pipeline.load_textual_inversion(vectors.clone(), token="four-neg")
    got = [rows_of(pipeline.tokenizer, pipeline.text_encoder, pipeline, word)
           for word in ("four-neg", "Four-Neg")]  # fmt: skip
    assert torch.equal(got[0], vectors)
    assert torch.equal(got[1], vectors[:1])


class TwoEncoders:
    """A pipeline's loader with the two encoders of SDXL, 768 and 1280 wide, one layer each."""

    def __new__(cls, pipe):
        from copy import deepcopy

        from diffusers.loaders import TextualInversionLoaderMixin
        from transformers import CLIPTextConfig, CLIPTextModel

        class Pipe(TextualInversionLoaderMixin):
            hf_device_map = None
            components = {}  # noqa: RUF012

        made = Pipe()
        for suffix, width in (("", 768), ("_2", 1280)):
            config = CLIPTextConfig(
                vocab_size=len(pipe.tokenizer), hidden_size=width, intermediate_size=32,
                num_hidden_layers=1, num_attention_heads=8,
            )  # fmt: skip
            setattr(made, f"tokenizer{suffix}", deepcopy(pipe.tokenizer))
            setattr(made, f"text_encoder{suffix}", CLIPTextModel(config))
        return made


def test_both_encoders_of_sdxl(place, tiny_folder):
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(tiny_folder)
    files, made = convert_embedding(source(place, PAIR), "diffusers")
    by_file, by_helper = TwoEncoders(plain), TwoEncoders(plain)
    for file, suffix in zip(files, ("", "_2"), strict=True):
        by_file.load_textual_inversion(
            str(file.parent),
            weight_name=file.name,
            text_encoder=getattr(by_file, f"text_encoder{suffix}"),
            tokenizer=getattr(by_file, f"tokenizer{suffix}"),
        )
    assert load_into_pipeline(by_helper, made) == "ine-neg"
    for pipe in (by_file, by_helper):
        for suffix, vectors in zip(("", "_2"), PAIR, strict=True):
            tokenizer = getattr(pipe, f"tokenizer{suffix}")
            encoder = getattr(pipe, f"text_encoder{suffix}")
            assert torch.equal(rows_of(tokenizer, encoder, pipe, "ine-neg"), vectors)


@pytest.mark.parametrize("vectors", [(numbers(3, 32),), PAIR])
def test_the_calls_that_convert_prints_are_all_that_diffusers_needs(
    place, tiny_folder, run_ine, vectors
):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe = TwoEncoders(pipe) if len(vectors) > 1 else pipe
    printed = run_ine("embedding", "convert", source(place, vectors), "--to", "diffusers").stdout
    calls = [x.strip() for x in printed.splitlines() if x.strip().startswith("pipe.load")]
    assert len(calls) == len(vectors)
    assert ("Both calls are needed" in printed) == (len(vectors) > 1)
    facts = json.loads(
        run_ine("embedding", "convert", source(place, vectors, name="b-neg"), "--to", "diffusers",
                "--json").stdout
    )  # fmt: skip
    assert [c.replace("b-neg", "ine-neg") for c in facts["calls"]] == calls
    for call, suffix, given in zip(calls, ("", "_2"), vectors, strict=False):
        exec(call, {"pipe": pipe})
        tokenizer = getattr(pipe, f"tokenizer{suffix}")
        encoder = getattr(pipe, f"text_encoder{suffix}")
        assert torch.equal(rows_of(tokenizer, encoder, pipe, "ine-neg"), given)


# ----------------------------------------------------------------------------- what to type, card


def test_what_to_type_by_family_and_layout():
    one = new_embedding(ONE, "ine-neg", "fire")
    pair, mini = replace(one, vectors=PAIR), replace(one, vectors=(numbers(1, 128),))
    typed = {program: text for program, _, text in uses_of(one)}
    every = {program for program, _, _ in USES}
    assert set(typed) == every - {"Fooocus"}
    assert (typed["ComfyUI"], typed["InvokeAI"]) == ("embedding:ine-neg", "<ine-neg>")
    no_pair = {"stable-diffusion.cpp", "diffusers", "OpenVINO"}
    assert {p for p, _, _ in uses_of(pair)} == every - no_pair
    assert [p for p, _, _ in uses_of(one, "diffusers")] == ["diffusers", "OpenVINO"]
    assert [p for p, _, _ in uses_of(pair, "diffusers")] == ["diffusers"]
    assert {p for p, _, _ in uses_of(one, "a1111-pt")} == set(typed) - {"SwarmUI"}
    two = replace(one, vectors=(numbers(1, 1024),))
    assert {p for p, _, _ in uses_of(two)} == set(typed) - {"Forge Neo"}
    assert uses_of(mini) == []


@pytest.mark.parametrize(("program", "place", "typed"), USES)
def test_the_page_says_of_each_program_what_convert_prints(program, place, typed):
    page = (ROOT / "docs" / "using-in-uis.md").read_text()
    rows = [x for x in page.split("## ")[0].splitlines() if x.startswith("| ")]
    for name in program.split(", "):
        (row,) = [x for x in rows if re.search(rf"[\[, ]{re.escape(name)}[\],]", x)]
        assert f"`{typed.format(name='nudity-neg')}`" in row
        assert place.split("(")[0].rstrip("/") in row.replace("`", "")


def test_the_card_says_what_the_file_says():
    facts = FACTS | {"ine.recovery": "0.81", "ine.tuning_left": "0.1"}
    card = model_card(new_embedding(ONE, "ine-neg", "fire", facts), "ab" * 32)
    assert card.startswith("---\ntags:\n")
    assert "\nbase_model: CompVis/stable-diffusion-v1-4\n" in card
    for line in (
        "# ine-neg: negative embedding of fire",
        "| vectors | 3 of width 768 |",
        "| for | Stable Diffusion 1.x |",
        "| unlearned weights | esd.pt (ESD) |",
        "| seed | 7 |",
        "| pictures of the concept | not stated |",
        "| brings the concept back as a prompt (recovery) | 0.81 |",
        "| ComfyUI | models/embeddings/ | `embedding:ine-neg` |",
        f"| SHA-256 of the file | `{'ab' * 32}` |",
    ):
        assert f"\n{line}\n" in card
    words = " ".join(card.replace("\n> ", " ").split())
    assert "Used as a *prompt*, the same vectors bring fire back" in words
    assert "with esd.pt (ESD) over CompVis/stable-diffusion-v1-4: the weights on which" in words
    assert [h for h in re.findall(r"^## (.+)$", card, re.M)] == [
        "What it is", "Figures", "Intended use", "Limits",
    ]  # fmt: skip


def test_the_card_of_a_file_that_says_nothing():
    card = model_card(new_embedding(ONE, "EasyNegative", "EasyNegative"))
    assert "The file has no figures: measure it" in card
    assert "with Stable Diffusion 1.x; the file does not say on which weights" in card
    assert "base_model" not in card
    assert card.count("not stated") >= 8


def test_the_card_of_a_strangers_file_does_not_call_it_a_negative(place, run_ine):
    save_file({"pretty-cat": ONE[0]}, place / "x.safetensors")
    card = run_ine("embedding", "card", place / "x.safetensors").stdout
    assert "# pretty-cat: textual inversion of pretty-cat\n" in card
    assert "does not say whether it belongs into the prompt" in card
    assert "| program | where the file goes | what to type |" in card
    assert "- negative-embedding" not in card
    assert "does not exclude it" not in card


def test_the_card_of_a_pair_and_of_mini():
    pair = model_card(new_embedding(PAIR, "ine-neg", "fire"))
    assert "| vectors | 3 of width 768 + 1280 |" in pair
    assert "--to diffusers` writes two" in pair
    assert "Only `ine` runs such a model" in model_card(
        new_embedding(numbers(1, 128), "x-neg", "fire")
    )


HOSTILE = "a\n# b | <script> `c` [d](http://e.x) ![f](g) www.h.x \x1b[2J --- i@j.x"


def test_a_header_cannot_become_markup():
    keys = ("ine.base", "ine.unet", "ine.recovery", "ine.method", "modelspec.author")
    given = new_embedding(ONE, HOSTILE, HOSTILE, dict.fromkeys(keys, HOSTILE))
    clean = new_embedding(ONE, "t-neg", "fire", dict.fromkeys(keys, "x"))
    card, plain = model_card(given), model_card(clean)
    assert "\x1b" not in card
    assert len(card.splitlines()) == len(plain.splitlines())
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"\\.", "", card))
    assert not re.search(r"<script|\]\(|!\[|://|www\.|@j", outside)
    pipes = [line.count("|") for line in re.sub(r"\\.", "", card).splitlines()]
    assert pipes == [line.count("|") for line in plain.splitlines()]
    assert as_text("\n\x00") == as_text(None) == "not stated"


# --------------------------------------------------------------------------------- the commands


def test_convert_prints_what_a_person_needs(place, run_ine):
    result = run_ine("embedding", "convert", source(place), "--to", "a1111-pt", "--name", "no-fire")
    assert result.exit_code == 0
    first, *rest = result.stdout.splitlines()
    assert first == "wrote no-fire.pt: 3 x 768, trigger 'no-fire'"
    assert "  ComfyUI                embedding:no-fire" in rest
    assert rest[-1] == WARNING
    assert read_embedding("no-fire.pt").trigger == "no-fire"


def test_convert_prints_json(place, run_ine):
    result = run_ine("embedding", "convert", source(place, PAIR), "--to", "diffusers", "--json")
    facts = json.loads(result.stdout)
    assert [Path(f).name for f in facts["files"]] == [
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
    ]
    assert (facts["family"], facts["vectors"]) == ("sdxl", [[3, 768], [3, 1280]])
    assert facts["uses"][0]["program"] == "diffusers"
    assert "PROMPT" in facts["warning"]


def test_convert_refuses_with_the_embeddings_exit_code(place, run_ine):
    given = source(place)
    result = run_ine("embedding", "convert", given, "--name", "bad")
    assert (result.exit_code, result.stdout) == (6, "")
    result = run_ine("embedding", "convert", given, "--out", "x.pt")
    assert (result.exit_code, result.stdout) == (9, "")


def test_card_to_stdout_and_to_a_file(place, run_ine):
    given = source(place)
    shown = run_ine("embedding", "card", given)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("---\ntags:")
    assert run_ine("embedding", "card", given, "--out", "card.md").exit_code == 0
    assert (place / "card.md").read_text() == shown.stdout
    assert run_ine("embedding", "card", given, "--out", "card.md").exit_code == 9
    assert run_ine("embedding", "card", given, "--out", "card.md", "--force").exit_code == 0


def test_the_shipped_embeddings_have_cards(run_ine):
    for path in (ROOT / "embeddings").rglob("*.safetensors"):
        card = run_ine("embedding", "card", path).stdout
        assert "`mini`, the bundled model of ine" in card
        assert "recovery" in card
