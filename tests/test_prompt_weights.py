"""Prompts as UI users type them: weights, escapes, clip skip; on fine-tunes and with LoRAs."""

import copy

import pytest
import torch

from ine.embeddings.embedding import new_embedding
from ine.errors import IneError
from ine.files import shipped
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts
from ine.guidance.safree import safree_against
from ine.models.loading import load_parts
from ine.sampling import SamplerSettings, run_unet, sample_latents
from ine.text.encode import PLAIN_TEXT, TextOptions, encode, negative_prompt_embeds
from ine.text.syntax import Piece, is_weighted, plain_text, read_weights
from ine.text.tokens import tokenize

TYPED = TextOptions(weights=True)
PLAIN = ("", "  ", "a dog", "a dog, on fire", "a: b", "1.2", "it's 5:30", "x" * 90, "a\nb\tc")


def cosine(first, second):
    """The cosine of two directions per picture."""
    first, second = first.flatten(1).float(), second.flatten(1).float()
    return torch.nn.functional.cosine_similarity(first, second, dim=1, eps=1e-12)


def pieces(prompt):
    return [(p.text.strip(), round(p.weight, 6)) for p in read_weights(prompt)]


@pytest.mark.parametrize("prompt", PLAIN)
def test_a_prompt_without_marks_is_itself(prompt):
    assert read_weights(prompt) == ((Piece(prompt),) if prompt else ())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(a dog)", [("a dog", 1.1)]),
        ("(a dog:1.3)", [("a dog", 1.3)]),
        ("(a dog : 1.3 )", [("a dog", 1.3)]),
        ("(a:.5) (b:2) (c:0) (d:-1)", [("a", 0.5), ("b", 2), ("c", 0), ("d", -1)]),
        ("[a dog]", [("a dog", round(1 / 1.1, 6))]),
        ("((a)) [[b]] [(c)]", [("a", 1.21), ("b", round(1 / 1.21, 6)), ("c", 1.0)]),
        ("(a (b:1.5) c:2)", [("a", 2), ("b", 3), ("c", 2)]),
        ("blurry, (fire-neg:1.2), bad", [("blurry,", 1), ("fire-neg", 1.2), (", bad", 1)]),
        (r"a \(dog\), \[b\]", [("a (dog), [b]", 1)]),
        (r"(\(a\):1.2)", [("(a)", 1.2)]),
        (r"a\\(b)", [("a\\", 1), ("b", 1.1)]),
        (r"a\b", [(r"a\b", 1)]),
        # What no bracket makes a weight is text.
        ("a:1.2)", [("a:1.2)", 1)]),
        ("a) b]", [("a) b]", 1)]),
        ("[a:1.2]", [("a:1.2", round(1 / 1.1, 6))]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(1:2)", [("1", 2)]),
        # Never closed: to the end.
        ("a (b c", [("a", 1), ("b c", 1.1)]),
        ("()", []),
    ],
)
def test_brackets_numbers_and_escapes(prompt, expected):
    assert [p for p in pieces(prompt) if p[0]] == expected


def test_words_without_their_marks():
    assert plain_text("a (big:1.2) [dog], (x)y") == "a big dog , x y"
    assert plain_text(r"a \(big\) dog") == "a (big) dog"
    assert is_weighted("a (dog)")
    assert not is_weighted(r"a \(dog\)")
    assert not is_weighted("a (dog:1) (cat:1.0)")


# --- tokens and states, tiny model ---------------------------------------------------------------


@pytest.fixture(scope="module")
def given():
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    return {"fire-neg": vectors}


def test_tokens_get_the_weights_of_their_words(tiny_parts):
    # The tiny tokenizer makes a token of every letter.
    prompt = "ab (fire-neg:1.2) [c]"
    tokens = tokenize(tiny_parts.tokenizers[0], [prompt, "d"], {"fire-neg": 3}, weighted=True)
    assert [p[1] for p in tokens.places] == [3, 4, 5]
    expected = [1, 1, 1, 1.2, 1.2, 1.2, 1 / 1.1, *[1] * 70]
    torch.testing.assert_close(tokens.weights, torch.tensor([expected, [1.0] * 77]))
    bare = tokenize(tiny_parts.tokenizers[0], ["ab fire-neg c", "d"], {"fire-neg": 3})
    assert torch.equal(tokens.ids, bare.ids)
    assert bare.weights is None


def test_what_is_cut_off_takes_its_weights_along(tiny_parts):
    tokens = tokenize(tiny_parts.tokenizers[0], ["x" * 70 + "(" + "y" * 20 + ":2)"], weighted=True)
    assert tokens.weights.shape == (1, 77)
    assert tokens.weights[0].tolist() == [1.0] * 71 + [2.0] * 5 + [1.0]


def test_brackets_are_letters_unless_asked(tiny_parts, given):
    prompt = "a (fire-neg:1.2)"
    literal = encode(tiny_parts, [prompt], given)
    assert torch.equal(literal.states, encode(tiny_parts, [prompt], given, PLAIN_TEXT).states)
    typed = encode(tiny_parts, [prompt], given, TYPED)
    assert not torch.equal(literal.states, typed.states)
    escaped = encode(tiny_parts, [r"a \(fire-neg:1.2\)"], given, TYPED)
    assert torch.equal(escaped.states, literal.states)


def test_prompts_without_weights_stay_bit_identical(tiny_parts, given):
    prompts = [*PLAIN, "a fire-neg dog"]
    before = encode(tiny_parts, prompts, given).states
    assert torch.equal(encode(tiny_parts, prompts, given, TYPED).states, before)
    one = encode(tiny_parts, ["a (fire-neg:1.0) dog"], given, TYPED).states
    assert torch.equal(one, encode(tiny_parts, ["a fire-neg dog"], given).states)


def test_a_neighbours_weights_change_nothing(tiny_parts, given):
    prompts = ["a dog", "fire-neg"]
    alone = encode(tiny_parts, [*prompts, "a fire-neg cat"], given, TYPED).states
    beside = encode(tiny_parts, [*prompts, "a (fire-neg:1.5) cat"], given, TYPED).states
    assert torch.equal(alone[:2], beside[:2])
    assert not torch.equal(alone[2], beside[2])


@pytest.mark.parametrize("weight", [-0.5, 0, 0.7, 1.2, 3])
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_a_weight_stretches_what_sets_a_token_apart_from_the_empty_prompt(
    tiny_parts, given, weight, clip_skip
):
    read = TextOptions(weights=True, clip_skip=clip_skip)
    empty = encode(tiny_parts, [""], reading=read).states[0]
    plain = encode(tiny_parts, ["b fire-neg c"], given, read).states[0]
    found = encode(tiny_parts, [f"b (fire-neg:{weight}) c"], given, read).states[0]
    places = [2, 3, 4]
    torch.testing.assert_close(
        found[places], empty[places] + weight * (plain[places] - empty[places])
    )
    others = [i for i in range(77) if i not in places]
    # Also with weight 0: what later tokens have heard of the trigger stays.
    assert torch.equal(found[others], plain[others])


def test_weighted_states_let_gradients_into_the_vectors(tiny_parts, given):
    vectors = given["fire-neg"].clone().requires_grad_(True)
    states = encode(tiny_parts, ["(fire-neg:1.2)"], {"fire-neg": vectors}, TYPED).states
    states.square().sum().backward()
    assert vectors.grad.abs().amax(dim=1).min() > 0


def test_clip_skip_is_the_layer_before_with_the_final_norm(tiny_parts, given):
    encoder = tiny_parts.text_encoders[0]
    ids = tokenize(tiny_parts.tokenizers[0], ["a dog"]).ids
    hidden = encoder(ids, output_hidden_states=True).hidden_states
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    assert torch.equal(encode(tiny_parts, ["a dog"]).states, norm(hidden[2]))
    skipped = encode(tiny_parts, ["a dog"], reading=TextOptions(clip_skip=2)).states
    assert torch.equal(skipped, norm(hidden[1]))
    with_vectors = encode(tiny_parts, ["fire-neg"], given, TextOptions(clip_skip=2)).states
    without = encode(tiny_parts, ["aaa"], given, TextOptions(clip_skip=2)).states
    assert not torch.equal(with_vectors, without)
    with pytest.raises(IneError, match=r"has 2 layers; give 1 .* to 2"):
        encode(tiny_parts, ["a dog"], reading=TextOptions(clip_skip=3))


def test_guidance_knows_how_to_read(tiny_parts):
    """The typed weight reaches the negative of a run, and only where it is asked for."""
    literal = SamplerSettings(steps=2, guidance_scale=5.0)
    typed = SamplerSettings(steps=2, guidance_scale=5.0, reading=TYPED)

    def run(text, settings):
        guidance = ClassifierFree(Negative(text))
        return sample_latents(tiny_parts, ["b"], [0], guidance, settings)[0]

    assert torch.equal(run("x", typed), run("x", literal))
    assert torch.equal(run("(x:1)", typed), run("x", literal))
    assert not torch.equal(run("(x:1.5)", typed), run("x", typed))
    assert not torch.equal(run("(x:1)", literal), run("x", literal))


def test_cache_keys_of_ordinary_runs_are_those_of_earlier_versions():
    assert repr(SamplerSettings(steps=20)) == (
        "SamplerSettings(scheduler='ddim', steps=20, guidance_scale=7.5, batch=4)"
    )
    assert "clip_skip=2" in repr(SamplerSettings(reading=TextOptions(clip_skip=2)))


def test_safree_refuses_weights_and_clip_skip_but_reads_escapes(tiny_parts):
    guidance = safree_against(Negative("fire"))

    def begin(text, reading):
        prompts = Prompts(parts=tiny_parts, texts=(text,), scale=7.5, reading=reading)
        with guidance.begin(prompts) as session:
            return session

    with pytest.raises(IneError, match="has weights"):
        begin("a (dog)", TYPED)
    with pytest.raises(IneError, match="clip skip is 2"):
        begin("a dog", TextOptions(clip_skip=2))
    escaped = begin(r"a \(dog\)", TYPED)
    literal = begin("a (dog)", PLAIN_TEXT)
    assert torch.equal(escaped.rewritten.states, literal.rewritten.states)


# --- a shipped embedding on mini ----------------------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def fire():
    # Vectors of words: what an inversion learns lies further out, and weights turn it more.
    parts = load_parts("mini")
    table = parts.text_encoders[0].get_input_embeddings().weight
    tokens = parts.tokenizers[0]("burning flaming blazing ablaze").input_ids[1:-1]
    return new_embedding(table[tokens], "fire-neg", "fire")


def tuned(parts):
    """A slightly fine-tuned copy of the base: every matrix of it 3 % off."""
    draw = torch.Generator().manual_seed(3)
    modules = [copy.deepcopy(m) for m in (parts.unet, *parts.text_encoders)]
    for module in modules:
        for weight in module.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=draw)
                weight.data += 0.03 * noise * weight.norm() / noise.norm()
    return parts.with_unet(modules[0], "fine-tune").with_text_encoders(modules[1:])


def with_lora(parts):
    """The base with a LoRA of rank 4 on its cross-attention."""
    draw = torch.Generator().manual_seed(4)
    unet = copy.deepcopy(parts.unet)
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k", "attn2.to_v")):
            rows, columns = module.weight.shape
            up, down = (torch.randn(s, generator=draw) for s in ((rows, 4), (4, columns)))
            change = up @ down
            module.weight.data += 0.15 * change * module.weight.norm() / change.norm()
    return parts.with_unet(unet, "lora")


@pytest.fixture(scope="module")
def noise(mini):
    return torch.randn((6, *mini.latent_shape), generator=torch.Generator().manual_seed(0))


def direction(parts, noise, text, embedding, reading=TYPED, t=700):
    """What a negative changes in the noise prediction, (6, C, H, W)."""
    with torch.no_grad():
        vectors = {embedding.trigger: embedding.vectors}
        states = encode(parts, [text], vectors, reading)
        empty = encode(parts, [""], reading=reading)
        asked = [run_unet(parts.unet, noise, torch.tensor(t), c.repeat(6)) for c in (states, empty)]
    return asked[0] - asked[1]


def test_weight_one_is_the_word_and_more_moves_further_the_same_way(mini, noise, fire):
    one = direction(mini, noise, "blurry, fire-neg, a dog", fire, PLAIN_TEXT)
    assert torch.equal(direction(mini, noise, "blurry, (fire-neg:1.0), a dog", fire), one)
    more = direction(mini, noise, "blurry, (fire-neg:1.2), a dog", fire)
    assert not torch.equal(more, one)
    assert cosine(more, one).min() > 0.9


def test_weight_zero_takes_the_tokens_own_states_and_leaves_the_echo(mini, noise, fire):
    one = direction(mini, noise, "a fire-neg dog", fire)
    none = direction(mini, noise, "a (fire-neg:0) dog", fire)
    without = direction(mini, noise, "a dog", fire)
    # Weight 0 removes the token's own states, so the prediction moves; later tokens have seen the
    # vectors, so it does not become that of the same words without them. How far either goes
    # depends on the vectors.
    assert (none - one).norm() > 0.02 * one.norm()
    assert (none - without).norm() > 0.02 * one.norm()


@pytest.mark.parametrize("variant", [lambda parts: parts, tuned, with_lora])
@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("weight", [0.8, 1.2, 1.5])
def test_it_still_acts_the_same_way(mini, noise, fire, variant, clip_skip, weight):
    """Between other words, weighted, on the layer before the last, on relatives of the base.

    Compared is what the trigger adds to the same words, beside weight 1 on the same model and
    beside the trigger on the base as it was found.
    """
    parts = variant(mini)
    read = TextOptions(weights=True, clip_skip=clip_skip)

    def added(text, model=parts, reading=read):
        words = direction(model, noise, "blurry, a dog", fire, reading)
        return direction(model, noise, text, fire, reading) - words

    weighted = added(f"blurry, (fire-neg:{weight}), a dog")
    assert cosine(weighted, added("blurry, fire-neg, a dog")).min() > 0.8
    base = added("blurry, fire-neg, a dog", mini, TYPED)
    assert cosine(weighted, base).mean() > 0.8


def test_another_trigger_moves_another_way(mini, noise, fire):
    """Positive control of the comparison above."""
    from ine.studies.controls import random_like

    words = direction(mini, noise, "blurry, a dog", fire)
    real = direction(mini, noise, "blurry, (fire-neg:1.2), a dog", fire) - words
    chance = direction(mini, noise, "blurry, (fire-neg:1.2), a dog", random_like(fire)) - words
    assert cosine(real, chance).mean() < 0.4


def test_a_diffusers_user_types_weights_too(mini, fire):
    typed = negative_prompt_embeds(mini, fire, "blurry, (fire-neg:1.3)", TYPED)
    vectors = {fire.trigger: fire.vectors}
    assert torch.equal(typed, encode(mini, ["blurry, (fire-neg:1.3)"], vectors, TYPED).states)


# --- the command --------------------------------------------------------------------------------


def test_generate_understands_weights_and_clip_skip(run_ine, tmp_path):
    import json

    import numpy as np

    from ine.pictures import read_picture

    file = shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors"

    def make(name, prompt, negative, *more):
        out = tmp_path / name
        result = run_ine(
            *("-q", "generate", "--prompt", prompt, "--negative-prompt", negative),
            *("--negative-embedding", file, "--steps", 2, "--batch", 1, "--out", out, *more),
        )
        assert result.exit_code == 0, result.output
        row = json.loads((out / "index.jsonl").read_text())
        return read_picture(out / row["file"], 64), row["settings"]

    plain, settings = make("plain", "a dog", "fire-neg")
    assert not {"clip_skip", "prompt_weights"} & set(settings)
    one, settings = make("one", "a (dog:1.0)", "fire-neg")
    assert settings["prompt_weights"] is True
    assert np.array_equal(one, plain)
    for name, arguments in {
        "prompt": ("a (dog:1.5)", "fire-neg"),
        "negative": ("a dog", "(fire-neg:1.5)"),
        "skip": ("a dog", "fire-neg", "--clip-skip", 2),
    }.items():
        other, settings = make(name, *arguments)
        assert not np.array_equal(other, plain), name
    assert settings["clip_skip"] == 2


def test_generate_says_how_many_layers_there_are(run_ine, tmp_path):
    result = run_ine("generate", "--prompt", "a dog", "--clip-skip", 9, "--out", tmp_path / "x")
    assert result.exit_code == 1
    assert "clip skip 9: the text encoder has 3 layers" in result.stderr
