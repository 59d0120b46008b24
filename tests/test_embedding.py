"""Embedding files: what is written, what is read, what is refused, what fits."""

import json
import logging
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ine.cli.embedding import WARNING
from ine.cli.embedding import embedding as group
from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.embeddings.fit import check_fits, fingerprints
from ine.embeddings.names import check_trigger
from ine.errors import EmbeddingError, OutputError
from ine.text.encode import encode


def numbers(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def sample(count=3, width=768, seed=0, **metadata):
    metadata = {f"ine.{key}": value for key, value in metadata.items()}
    return new_embedding(numbers(count, width, seed), "ine-neg", "fire", metadata)


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


# What is written


@pytest.mark.parametrize(
    ("count", "widths"), [(1, [768]), (75, [768]), (4, [1024]), (2, [128]), (5, [768, 1280])]
)
def test_reading_gives_what_was_written(tmp_path, count, widths):
    vectors = tuple(numbers(count, width, seed=width + count) for width in widths)
    given = new_embedding(vectors, "ine-neg", "fire", {"ine.seed": 7, "other": "ümlaut\n\u2028"})
    path = tmp_path / "ine-neg.safetensors"
    write_embedding(given, path)
    found = read_embedding(path)
    assert (found.trigger, found.concept) == ("ine-neg", "fire")
    assert (found.count, found.width) == (count, sum(widths))
    for one, other in zip(found.vectors, vectors, strict=True):
        assert torch.equal(one, other)
    assert given.metadata.items() <= found.metadata.items()
    again = tmp_path / "again" / "ine-neg.safetensors"
    write_embedding(found, again)
    assert again.read_bytes() == path.read_bytes()


def test_the_layout_is_the_universal_one(tmp_path):
    path = tmp_path / "ine-neg.safetensors"
    write_embedding(sample(steps=300), path)
    [(key, tensor)] = load_file(path).items()
    assert (key, tensor.dtype, tensor.shape) == ("emb_params", torch.float32, (3, 768))
    header = header_of(path)
    assert header["format"] == "pt"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert header["modelspec.is_negative_embedding"] == "true"
    assert header["modelspec.trigger_phrase"] == header["ine.trigger"] == "ine-neg"
    assert (header["ine.vectors"], header["ine.steps"]) == ("3", "300")
    assert "modelspec.date" not in header


def test_a_pair_is_exactly_clip_l_and_clip_g(tmp_path):
    path = tmp_path / "ine-neg.safetensors"
    write_embedding(new_embedding((numbers(2, 768), numbers(2, 1280)), "ine-neg", "fire"), path)
    assert {k: tuple(t.shape) for k, t in load_file(path).items()} == {
        "clip_l": (2, 768),
        "clip_g": (2, 1280),
    }
    architecture = header_of(path)["modelspec.architecture"]
    assert architecture == "stable-diffusion-xl-v1-base/textual-inversion"


@pytest.mark.parametrize(
    ("width", "prediction", "architecture"),
    [
        (128, None, "ine-mini/textual-inversion"),
        (1024, None, "stable-diffusion-v2-768-v/textual-inversion"),
        (1024, "v", "stable-diffusion-v2-768-v/textual-inversion"),
        (1024, "epsilon", "stable-diffusion-v2-512/textual-inversion"),
        (32, None, None),
    ],
)
def test_architecture_follows_the_width(tmp_path, width, prediction, architecture):
    path = tmp_path / "ine-neg.safetensors"
    metadata = {"modelspec.prediction_type": prediction}
    write_embedding(new_embedding(numbers(1, width), "ine-neg", "fire", metadata), path)
    assert header_of(path).get("modelspec.architecture") == architecture


def test_the_hash_is_of_the_tensor_bytes_alone(tmp_path):
    one, other, third = (tmp_path / f"{n}.safetensors" for n in ("one", "other", "third"))
    write_embedding(sample(), one)
    write_embedding(sample(steps=3), other)
    write_embedding(sample(seed=1), third)
    hashes = [header_of(p)["modelspec.hash_sha256"] for p in (one, other, third)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_same_embedding_gives_the_same_bytes_in_every_process(tmp_path):
    script = (
        "import sys, torch; from ine.embeddings.embedding import new_embedding, write_embedding\n"
        "extra = {f'ine.k{i}': i for i in range(20)}\n"
        "e = new_embedding(torch.arange(8.).reshape(2, 4), 'ine-neg', 'fire', extra)\n"
        "write_embedding(e, sys.argv[1] + '/ine-neg.safetensors')\n"
    )
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        root = Path(__file__).parent.parent
        subprocess.run(
            [sys.executable, "-c", script, str(folder)], check=True, env=environment, cwd=root
        )
        written.append((folder / "ine-neg.safetensors").read_bytes())
    assert written[0] == written[1]


def test_vectors_that_want_gradients_or_half_precision_are_written_as_plain_float32(tmp_path):
    values = numbers(2, 8).half()
    given = replace(sample(), vectors=(values.clone().requires_grad_(),))
    path = tmp_path / "ine-neg.safetensors"
    write_embedding(given, path)
    assert torch.equal(read_embedding(path).vectors[0], values.float())


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "ine-neg.safetensors"
    write_embedding(sample(seed=1), path)
    with pytest.raises(OutputError, match=r"exists already; give --force"):
        write_embedding(sample(seed=2), path)
    assert torch.equal(read_embedding(path).vectors[0], numbers(3, 768, seed=1))
    write_embedding(sample(seed=2), path, force=True)
    assert torch.equal(read_embedding(path).vectors[0], numbers(3, 768, seed=2))
    assert [p.name for p in tmp_path.iterdir()] == ["ine-neg.safetensors"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"cannot be written"):
        write_embedding(sample(), tmp_path / "file" / "ine-neg.safetensors")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
            write_embedding(sample(), tmp_path / "ine-neg.safetensors")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.full((2, 8), float("nan")), "2 of 2 vectors have values that are not finite"),
        (torch.tensor([[1.0, 2.0], [3.0, float("inf")]]), "1 of 2 vectors have values"),
        (torch.tensor([[1e300]], dtype=torch.float64), "1 of 1 vectors have values"),
        (torch.zeros(76, 8), r"has shape \[76, 8\], expected \[vectors, width\] with 1 to 75"),
        (torch.zeros(0, 8), r"has shape \[0, 8\]"),
        (torch.zeros(2, 2, 2), r"has shape \[2, 2, 2\]"),
        ((torch.zeros(2, 8), torch.zeros(3, 8)), "2 vectors in clip_l and 3 in clip_g"),
        ((torch.zeros(2, 8),) * 3, "vectors for 3 text encoders"),
    ],
)
def test_unusable_vectors_are_not_written(tmp_path, vectors, message):
    path = tmp_path / "ine-neg.safetensors"
    given = new_embedding(vectors, "ine-neg", "fire")
    with pytest.raises(EmbeddingError, match=message):
        write_embedding(given, path)
    assert not path.exists()


def test_metadata_must_be_strings(tmp_path):
    given = replace(sample(), metadata={"ine.steps": 300})
    with pytest.raises(ValueError, match=r"these are not: ine\.steps"):
        write_embedding(given, tmp_path / "ine-neg.safetensors")


def test_only_the_extension_that_uis_know_is_written(tmp_path):
    with pytest.raises(OutputError, match=r"use ine-neg\.safetensors"):
        write_embedding(sample(), tmp_path / "ine-neg.pt")


def test_a_stem_that_is_not_the_trigger_is_warned_about(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ine"):
        write_embedding(sample(), tmp_path / "ine-neg.safetensors")
        assert not caplog.records
        write_embedding(sample(), tmp_path / "other.safetensors")
    assert "the trigger, which is 'ine-neg'; rename it ine-neg.safetensors" in caplog.text


# Names


@pytest.mark.parametrize("name", ["ab", "ine-neg", "no_fire", "sd15-fire-v2b"])
def test_good_triggers(name, tiny_parts):
    check_trigger(name)
    check_trigger(name, tiny_parts.tokenizers[0])


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("EasyNegative", "easynegative"),
        ("neg2", "neg"),
        ("-neg", "neg"),
        ("bad hands", "bad-hands"),
        ("a", "my-negative"),
        ("", "my-negative"),
        ("ine-neg\n", "ine-neg"),
        ("nég.v2a", "n-g-v2a"),
    ],
)
def test_triggers_that_some_ui_misreads(tmp_path, name, example):
    with pytest.raises(EmbeddingError, match=rf"must be lower-case .* for example '{example}'$"):
        check_trigger(name)
    with pytest.raises(EmbeddingError, match="must be lower-case"):
        write_embedding(replace(sample(), trigger=name), tmp_path / "x.safetensors")


def test_a_word_of_the_vocabulary_is_no_trigger(tiny_parts):
    tokenizer = tiny_parts.tokenizers[0]
    other = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["zebra", "fire</w>"])
    for name in ("zebra", "fire"):
        check_trigger(name, tokenizer)
        with pytest.raises(EmbeddingError, match=f"vocabulary.*for example 'ine-{name}'"):
            check_trigger(name, other)


# Layouts of others

VALUES = numbers(4, 768, seed=9)
A1111 = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": VALUES},
    "name": "easyneg",
    "step": 500,
    "sd_checkpoint": "abc123",
    "sd_checkpoint_name": "model",
}


@pytest.mark.parametrize(
    ("content", "name", "trigger"),
    [
        ({"emb_params": VALUES}, "EasyNegative.safetensors", "EasyNegative"),
        ({"emb_params": VALUES, "step": torch.tensor([3])}, "x.safetensors", "x"),
        ({"emp_params": VALUES}, "x.safetensors", "x"),
        ({"*": VALUES}, "x.safetensors", "x"),
        ({"clip_l": VALUES}, "x.safetensors", "x"),
        ({"<cat-toy>": VALUES}, "learned_embeds.safetensors", "<cat-toy>"),
        ({"flora_texture": VALUES}, "x.safetensors", "flora_texture"),
        ({"<cat-toy>": VALUES}, "learned_embeds.bin", "<cat-toy>"),
        ({"<cat-toy>": VALUES}, "x.pt", "<cat-toy>"),
        ({"<cat-toy>": nn.Parameter(VALUES)}, "x.pt", "<cat-toy>"),
        ({"emb_params": VALUES}, "x.pt", "x"),
        (A1111, "x.pt", "easyneg"),
        ({"string_to_param": {"*": nn.Parameter(VALUES)}}, "x.pt", "x"),
        ({"string_to_param": {"thing": VALUES}}, "x.pt", "thing"),
        (VALUES, "x.pt", "x"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_layouts_of_others(tmp_path, content, name, trigger, old):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    found = read_embedding(path)
    assert found.trigger == found.concept == trigger
    assert torch.equal(found.vectors[0], VALUES)
    assert (found.family, found.vectors[0].requires_grad) == ("sd1", False)


def test_what_an_a1111_file_says_is_kept(tmp_path):
    torch.save(A1111, tmp_path / "x.pt")
    assert read_embedding(tmp_path / "x.pt").metadata == {
        "step": "500",
        "sd_checkpoint": "abc123",
        "sd_checkpoint_name": "model",
    }


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_an_sdxl_pair_in_the_order_of_the_encoders(tmp_path, name):
    pair = {"clip_g": numbers(2, 1280), "clip_l": numbers(2, 768)}
    (save_file if name.endswith("safetensors") else torch.save)(pair, tmp_path / name)
    found = read_embedding(tmp_path / name)
    assert [tuple(v.shape) for v in found.vectors] == [(2, 768), (2, 1280)]
    assert found.family == "sdxl"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_vector_without_a_row_axis_in_any_precision(tmp_path, dtype):
    vector = numbers(1, 768)[0].to(dtype)
    save_file({"emb_params": vector}, tmp_path / "x.safetensors")
    [found] = read_embedding(tmp_path / "x.safetensors").vectors
    assert (found.shape, found.dtype) == ((1, 768), torch.float32)
    assert torch.equal(found[0], vector.float())


def test_the_header_names_the_trigger_before_the_file_does(tmp_path):
    save_file({"<key>": VALUES}, tmp_path / "x.safetensors", {"modelspec.trigger_phrase": "said"})
    assert read_embedding(tmp_path / "x.safetensors").trigger == "said"


def test_the_bytes_decide_what_a_file_is_not_its_extension(tmp_path):
    save_file({"emb_params": VALUES}, tmp_path / "x.pt")
    torch.save({"emb_params": VALUES}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        assert torch.equal(read_embedding(tmp_path / name).vectors[0], VALUES)


# Refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download or copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not an embedding"),
        (b"<html><body>", "is a web page, not an embedding"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "is a picture that is damaged or cut short"),
        (b"hello", "neither safetensors nor a torch file"),
        ((400).to_bytes(8, "little") + b"{}", "cut short .its header says 400 bytes, 2 are there"),
        ((2).to_bytes(8, "little") + b"{]", "is damaged or cut short"),
        ((2).to_bytes(8, "little") + b"{}", "holds no embedding, found no tensors"),
        (b"PK\x03\x04 and then nothing", "is damaged or cut short"),
        (b"\x80\x02", "is damaged or cut short"),
        (b"\x80", "is damaged or cut short"),
    ],
)
def test_files_that_are_no_embedding(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(EmbeddingError, match=message) as caught:
        read_embedding(path)
    assert str(caught.value).startswith(str(path))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(EmbeddingError, match="no such file; give an embedding"):
        read_embedding(tmp_path / "none.safetensors")
    with pytest.raises(EmbeddingError, match="is a folder; give the embedding file in it"):
        read_embedding(tmp_path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_truncated_files(tmp_path, name, kept):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)({"emb_params": VALUES}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(EmbeddingError, match="is damaged or cut short"):
        read_embedding(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": VALUES, "b": VALUES[:2]}, r"has 2 tensors.*a \[4, 768\], b \[2, 768\]"),
        ({"emb_params": VALUES, "clip_l": VALUES + 1}, "which are not the same; expected one"),
        ({"emb_params": VALUES, "clip_l": VALUES[:2]}, "which are not the same; expected one"),
        ({f"k{i}": VALUES for i in range(9)}, "has 9 tensors.*and 4 more"),
        ({"clip_g": numbers(2, 1280)}, "has clip_g alone, half of an SDXL"),
        ({"clip_l": VALUES, "clip_g": VALUES[:2]}, "4 vectors in clip_l and 2 in clip_g"),
        (
            {"emb_params": torch.zeros(2, 768).long()},
            "holds no embedding, found emb_params of whole",
        ),
        ({"emb_params": torch.zeros(1, 2, 768)}, r"holds no embedding.*\[1, 2, 768\]"),
        ({"emb_params": torch.zeros(76, 768)}, "1 to 75 vectors"),
        ({"emb_params": torch.zeros(0, 768)}, "1 to 75 vectors"),
        ({"emb_params": VALUES / 0}, "4 of 4 vectors have values that are not finite"),
        (
            {"lora_unet_down_blocks_0_attn2_to_k.lora_up.weight": VALUES},
            "holds a LoRA, not an embedding.*go to --unet",
        ),
        ({"unet.up_blocks.0.to_q.lora_A.weight": VALUES}, "holds a LoRA"),
        ({"down_blocks.0.attentions.0.attn2.to_k.weight": VALUES}, "weights of a U-Net"),
        ({"model.diffusion_model.out.2.weight": VALUES, "first_stage_model.x": VALUES}, "U-Net"),
        ({"encoder.down_blocks.0.x": VALUES, "decoder.conv_in.weight": VALUES}, "of a VAE"),
        ({"text_model.final_layer_norm.weight": VALUES[0]}, "of a text encoder"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_tensors_that_are_no_embedding(tmp_path, content, message, name):
    content = {key: value.clone() for key, value in content.items()}
    (save_file if name.endswith("safetensors") else torch.save)(content, tmp_path / name)
    with pytest.raises(EmbeddingError, match=message):
        read_embedding(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([VALUES], "holds a list, not an embedding"),
        ({"name": "x"}, "holds no embedding, found no tensors"),
        ({"string_to_param": {}}, "holds no embedding, found no tensors"),
        ({"string_to_param": {"a": VALUES, "b": VALUES}}, "has 2 tensors"),
        ({"state_dict": {"model.diffusion_model.out.2.bias": VALUES[0]}}, "weights of a U-Net"),
        (
            {"string_to_param": nn.ParameterDict({"a": VALUES, "b": VALUES})},
            r"has 2 tensors that could be the embedding, found a \[4, 768\], b",
        ),
    ],
)
def test_torch_files_that_are_no_embedding(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError, match=message):
        read_embedding(tmp_path / "x.pt")


def test_a_real_unet_is_called_by_its_name(tmp_path, tiny_parts):
    state = {k: v.clone().contiguous() for k, v in tiny_parts.unet.state_dict().items()}
    save_file(state, tmp_path / "unet.safetensors")
    torch.save(state, tmp_path / "unet.pt")
    for name in ("unet.safetensors", "unet.pt"):
        with pytest.raises(EmbeddingError, match="holds the weights of a U-Net"):
            read_embedding(tmp_path / name)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
def test_code_in_a_pickle_is_not_run(tmp_path, kind):
    target = tmp_path / "was-run"
    content = {"string_to_param": {"*": VALUES}, "name": Malicious(target)}
    path = tmp_path / "x.pt"
    if kind == "bare":
        path.write_bytes(pickle.dumps(Malicious(target)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(EmbeddingError, match=r"run.*which was not done.*get a \.safetensors copy"):
        read_embedding(path)
    assert not target.exists()
    # The control: the object does what it threatens when it is unpickled carelessly.
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()


def test_the_code_that_was_not_run_is_named(tmp_path):
    torch.save({"a": Malicious(tmp_path / "was-run")}, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError, match=r"asks to run \w+\.mkdir when it is loaded"):
        read_embedding(tmp_path / "x.pt")


# Does it fit


def made_for(parts, count=2, **metadata):
    widths = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    vectors = tuple(numbers(count, width) for width in widths)
    metadata = {f"ine.{key}": value for key, value in metadata.items()}
    return new_embedding(vectors, "ine-neg", "fire", {**fingerprints(parts), **metadata})


def changed(module):
    from copy import deepcopy

    other = deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return other


def test_the_model_it_was_made_on_gets_no_notes(tiny_parts):
    assert check_fits(made_for(tiny_parts), tiny_parts) == []


def test_a_half_precision_copy_is_the_same_model(tiny_parts):
    from copy import deepcopy

    half = tiny_parts.with_text_encoders([deepcopy(e).half() for e in tiny_parts.text_encoders])
    half = half.with_unet(deepcopy(tiny_parts.unet).half(), tiny_parts.unet_name)
    assert check_fits(made_for(tiny_parts), half) == []


def test_a_file_that_says_nothing_gets_no_notes(tiny_parts):
    silent = replace(made_for(tiny_parts), metadata={})
    assert check_fits(silent, tiny_parts) == []


def test_another_unet_is_a_note(tiny_parts):
    given = made_for(tiny_parts, unet="esd.safetensors")
    [note] = check_fits(given, tiny_parts.with_unet(changed(tiny_parts.unet), "uce.safetensors"))
    assert "inverted against the U-Net 'esd.safetensors'" in note
    assert "used on 'uce.safetensors'" in note


def test_another_text_encoder_of_the_same_width_is_a_note(tiny_parts):
    given = made_for(tiny_parts, base="some/base")
    other = tiny_parts.with_text_encoders([changed(e) for e in tiny_parts.text_encoders])
    [note] = check_fits(given, other)
    assert f"made for some/base; the text encoder of {tiny_parts.name} has other weights" in note


@pytest.mark.parametrize("garbage", ["v1:abc", "v9:1", "v1:+1.0;v1:+1.0"])
def test_a_fingerprint_that_cannot_be_read_is_a_difference(tiny_parts, garbage):
    given = made_for(tiny_parts, unet_fingerprint=garbage)
    assert len(check_fits(given, tiny_parts)) == 1


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("some/base", r"made for some/base \(text encoder of width 768\).*--model some/base"),
        (None, r"made for a model of family sd1 \(text encoder of width 768\)"),
    ],
)
def test_another_width_is_refused_naming_both_models(tiny_parts, base, message):
    with pytest.raises(EmbeddingError, match=message) as caught:
        check_fits(new_embedding(VALUES, "ine-neg", "fire", {"ine.base": base}), tiny_parts)
    width = tiny_parts.text_encoders[0].get_input_embeddings().weight.shape[1]
    assert f"{tiny_parts.name} has text encoder of width {width}" in str(caught.value)


def test_another_number_of_encoders_is_refused(tiny_parts):
    pair = new_embedding((numbers(2, 768), numbers(2, 1280)), "ine-neg", "fire")
    with pytest.raises(EmbeddingError, match=r"family sdxl \(2 text encoders of width 768 \+ 1280"):
        check_fits(pair, tiny_parts)


def test_more_vectors_than_the_context_holds_are_refused(tiny_parts):
    room = tiny_parts.tokenizers[0].model_max_length - 2
    assert check_fits(made_for(tiny_parts, count=room), tiny_parts) == []
    with pytest.raises(EmbeddingError, match=f"has {room + 1} vectors.*has room for {room}"):
        check_fits(made_for(tiny_parts, count=room + 1), tiny_parts)


# Others read ours


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("trigger", ["ine-neg", "no_fire"])
def test_diffusers_loads_our_file_with_all_its_vectors(
    tmp_path, tiny_folder, tiny_parts, count, trigger
):
    from diffusers import StableDiffusionPipeline

    given = replace(made_for(tiny_parts, count), trigger=trigger)
    path = tmp_path / f"{trigger}.safetensors"
    write_embedding(given, path)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.load_textual_inversion(str(path), token=trigger)

    prompt = pipeline.maybe_convert_prompt(trigger, pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt, add_special_tokens=False).input_ids
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], given.vectors[0])

    theirs, _ = pipeline.encode_prompt(f"a {trigger}", "cpu", 1, False)
    ours = encode(tiny_parts, [f"a {trigger}"], {trigger: given.vectors}).states
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    other = encode(tiny_parts, [f"a {trigger}"], {trigger: numbers(count, 32, seed=5)}).states
    assert not torch.allclose(theirs, other, rtol=1e-4, atol=1e-5)


# The command


def invoke(*arguments):
    return CliRunner().invoke(group, [str(a) for a in arguments])


def test_show_prints_what_a_person_needs(tmp_path):
    path = tmp_path / "ine-neg.safetensors"
    facts = {"base": "mini", "method": "uce", "steps": 300, "recovery": "0.81", "seed": 7}
    given = new_embedding(
        torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
        "ine-neg",
        "fire",
        {f"ine.{k}": v for k, v in facts.items()},
    )
    write_embedding(given, path)
    result = invoke("show", path)
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[:12])
    assert lines | {k: str(v) for k, v in facts.items()} == lines
    assert (lines["concept"], lines["trigger"]) == ("fire", "ine-neg")
    assert (lines["vectors"], lines["family"]) == ("2 x 2", "width-2")
    assert "norms       5.000 2.000" in result.stdout
    assert "unet        not stated" in result.stdout
    assert result.stdout.endswith(f"\n\n{WARNING}\n")


def test_show_prints_json_with_the_whole_header(tmp_path):
    path = tmp_path / "ine-neg.safetensors"
    write_embedding(sample(count=2, seed=3), path)
    facts = json.loads(invoke("show", path, "--json").stdout)
    assert facts["vectors"] == [[2, 768]]
    assert facts["norms"][0] == pytest.approx(
        numbers(2, 768, seed=3).norm(dim=1).tolist(), abs=1e-5
    )
    assert facts["metadata"] == header_of(path)
    assert "PROMPT" in facts["warning"]


def test_show_does_not_let_a_header_drive_the_terminal(tmp_path):
    save_file({"emb_params": VALUES}, tmp_path / "x.safetensors", {"ine.base": "\x1b[2Jgone\nx"})
    output = invoke("show", tmp_path / "x.safetensors").stdout
    assert "\x1b" not in output
    assert "?[2Jgone?x" in output


def test_show_refuses_what_is_no_embedding(tmp_path, run_ine):
    result = run_ine("embedding", "show", tmp_path / "none.pt")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith(f"Error: {tmp_path / 'none.pt'}: no such file")


def test_show_says_what_a_strangers_file_does_not(tmp_path):
    save_file({"emb_params": VALUES}, tmp_path / "x.safetensors")
    printed = invoke("show", tmp_path / "x.safetensors").stdout
    assert "belongs in  not stated\n" in printed
    assert "The file does not say whether it belongs into the prompt" in printed
    assert WARNING not in printed
    write_embedding(sample(), tmp_path / "ine-neg.safetensors")
    assert (
        "belongs in  the negative prompt\n"
        in invoke("show", tmp_path / "ine-neg.safetensors").stdout
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_show_needs_no_torch_for_safetensors(tmp_path, dtype):
    """Which is most of the time that it would take."""
    path = tmp_path / "x.safetensors"
    save_file({"emb_params": VALUES.to(dtype)}, path)
    script = (
        "import sys\n"
        "from ine.cli.embedding import embedding\n"
        "embedding(['show', sys.argv[1], '--json'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'PIL'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, path], check=True, cwd=root, capture_output=True
    )
    wanted = VALUES.to(dtype).float().norm(dim=1).tolist()
    assert json.loads(done.stdout)["norms"][0] == pytest.approx(wanted, abs=1e-5)


def test_the_command_does_not_import_torch():
    script = "import sys, ine.cli.embedding; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=root).returncode == 0
