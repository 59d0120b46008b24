"""Prompts into tokens and states; learned vectors spliced in, the model left as it was."""

import copy
import logging
import random
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from ine.embeddings.embedding import new_embedding
from ine.errors import EmbeddingError, PromptError
from ine.guidance.negative import Negative
from ine.text.condition import Condition, join_conditions
from ine.text.encode import encode, negative_prompt_embeds
from ine.text.splicing import splice
from ine.text.tokens import tokenize

ROOM = 75
PIECES = (
    *"abzAZ019",
    *("dog", "Cat", "it's", "they'll", "fire", "fire-neg2", "xfire-neg"),
    *(" ", "  ", "\t", "\n", ",", ".", "(", "):1.2", "-", "_", "!?", "<", "|"),
    *("\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}", "\N{FIRE}"),
    *("\N{CJK UNIFIED IDEOGRAPH-706B}", "\N{LATIN SMALL LETTER LONG S}", "\N{KELVIN SIGN}"),
    *("\N{NO-BREAK SPACE}", "\N{ZERO WIDTH SPACE}", "<|endoftext|>"),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_parts):
    return tiny_parts.tokenizers[0]


@pytest.fixture
def vectors():
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def clip_ids(tokenizer, prompt):
    return tokenizer(
        prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length
    ).input_ids


def random_prompt(seed):
    draw = random.Random(seed)
    length = draw.choice((0, 1, 5, 20, 90))
    return "".join(draw.choices(PIECES, k=length))


@pytest.mark.parametrize("vectors", [None, {"fire-neg": 3}])
def test_ordinary_prompts_have_the_ids_of_clips_tokenizer(tokenizer, vectors):
    prompts = ["", "  ", "a dog", "x" * 74, "x" * 75, "x" * 76]
    prompts += [random_prompt(seed) for seed in range(150)]
    tokens = tokenize(tokenizer, prompts, vectors)
    assert tokens.places == ()
    assert tokens.ids.shape == (len(prompts), 77)
    for prompt, ids in zip(prompts, tokens.ids.tolist(), strict=True):
        assert ids == clip_ids(tokenizer, prompt), prompt


@pytest.mark.parametrize("word", ["fire-neg", "Fire-Neg", "FIRE-NEG"])
def test_a_trigger_expands_to_its_vectors(tokenizer, word):
    tokens = tokenize(tokenizer, [f"ox, {word} b"], {"fire-neg": 3})
    # The tiny tokenizer makes a token of every letter: start, "ox,", then the vectors.
    assert tokens.places == tuple((0, 4 + k, "fire-neg", k) for k in range(3))
    ids = tokens.ids[0].tolist()
    assert ids[:4] == clip_ids(tokenizer, "ox,")[:4]
    assert ids[7:] == clip_ids(tokenizer, "b")[1:-6]


@pytest.mark.parametrize(
    "text",
    ["fire-neg", "(fire-neg)", "fire-neg, dog", "dog,fire-neg.", "fire-neg:1.2", "'fire-neg'"],
)
def test_a_trigger_is_found_beside_punctuation(tokenizer, text):
    assert len(tokenize(tokenizer, [text], {"fire-neg": 2}).places) == 2


@pytest.mark.parametrize(
    "text",
    ["fire-negative", "xfire-neg", "fire-neg2", "fire-neg_1", "x-fire-neg", "fire-neg-x", "fire"],
)
def test_a_trigger_is_not_found_within_another_word(tokenizer, text):
    tokens = tokenize(tokenizer, [text], {"fire-neg": 2})
    assert tokens.places == ()
    assert tokens.ids[0].tolist() == clip_ids(tokenizer, text)


def test_triggers_may_repeat_mix_and_be_parts_of_each_other(tokenizer):
    counts = {"fire": 1, "fire-neg": 2, "snow": 3}
    prompts = ["fire-neg fire", "no", "snow, x SNOW"]
    places = tokenize(tokenizer, prompts, counts).places
    assert [p for p in places if p[0] == 0] == [
        (0, 1, "fire-neg", 0),
        (0, 2, "fire-neg", 1),
        (0, 3, "fire", 0),
    ]
    assert [p for p in places if p[0] == 1] == []
    assert [p[1:] for p in places if p[0] == 2] == [
        *((1 + k, "snow", k) for k in range(3)),
        *((6 + k, "snow", k) for k in range(3)),
    ]


def test_letters_that_only_unicode_takes_for_the_same_are_no_crash(tokenizer):
    text = "fi\N{LATIN SMALL LETTER LONG S}e-neg"
    places = tokenize(tokenizer, [text], {"fise-neg": 2}).places
    assert [p[2] for p in places] == ["fise-neg"] * 2


def test_a_prompt_that_is_cut_says_how_many_tokens_are_lost(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        tokenize(tokenizer, ["x" * ROOM])
        assert caplog.messages == []
        tokenize(tokenizer, ["x" * (ROOM + 7), "short", "y" * 200])
    assert len(caplog.messages) == 2
    assert "7 of 82 tokens lost" in caplog.messages[0]
    assert "125 of 200 tokens lost" in caplog.messages[1]


def test_lost_tokens_count_the_vectors_in_front(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, "ine"):
        tokens = tokenize(tokenizer, ["fire-neg " + "x" * ROOM], {"fire-neg": 3})
    assert len(tokens.places) == 3
    assert "3 of 78 tokens lost" in caplog.text


def test_vectors_that_would_be_cut_off_are_an_error(tokenizer):
    fits = tokenize(tokenizer, ["x" * (ROOM - 3) + " fire-neg"], {"fire-neg": 3})
    assert [p[1] for p in fits.places] == [73, 74, 75]
    with pytest.raises(PromptError) as caught:
        tokenize(tokenizer, ["fine", "x" * (ROOM - 2) + " Fire-Neg"], {"fire-neg": 3})
    message = str(caught.value)
    for part in ("76 tokens", "1 more than the 75", "fire-neg", "shorten the text"):
        assert part in message


def test_vectors_equal_to_rows_of_the_table_give_the_states_of_the_words(tiny_parts, tokenizer):
    """Splicing the token table's own rows is writing the words; both ways run the same sums."""
    table = tiny_parts.text_encoders[0].get_input_embeddings().weight
    ids = tokenizer("burning", add_special_tokens=False).input_ids
    given = {"fire-neg": table[ids]}
    prompts = ["a fire-neg dog", "FIRE-NEG", "a dog"]
    spliced = encode(tiny_parts, prompts, given)
    written = encode(tiny_parts, ["a burning dog", "burning", "a dog"])
    assert torch.equal(spliced.states, written.states)
    # Control: the order of the vectors matters.
    turned = encode(tiny_parts, prompts, {"fire-neg": table[ids].flip(0)})
    assert (turned.states - written.states).abs().amax(dim=(1, 2)).tolist()[:2] > [1e-3, 1e-3]
    assert torch.equal(turned.states[2], written.states[2])


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_untouched(module, before, states, parts):
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert not module.get_input_embeddings()._forward_hooks
    assert torch.equal(encode(parts, ["a dog"]).states, states)


def test_splicing_restores_the_model_bit_for_bit(tiny_parts, vectors):
    encoder = tiny_parts.text_encoders[0]
    before, states = snapshot(encoder), encode(tiny_parts, ["a dog"]).states
    with splice(encoder, [0, 0, 0], [1, 2, 3], vectors):
        inside = encode(tiny_parts, ["a dog"]).states
        assert (inside - states).abs().max() > 1e-2
    assert_untouched(encoder, before, states, tiny_parts)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_splicing_restores_the_model_after_an_exception(tiny_parts, vectors, error):
    encoder = tiny_parts.text_encoders[0]
    before, states = snapshot(encoder), encode(tiny_parts, ["a dog"]).states

    def fail():
        with splice(encoder, [0, 0, 0], [1, 2, 3], vectors):
            encode(tiny_parts, ["a dog"])
            raise error

    with pytest.raises(error):
        fail()
    assert_untouched(encoder, before, states, tiny_parts)


def test_an_error_inside_the_encoder_leaves_no_hook(tiny_parts):
    encoder = tiny_parts.text_encoders[0]
    before, states = snapshot(encoder), encode(tiny_parts, ["a dog"]).states
    with pytest.raises(RuntimeError, match="shape"):
        encode(tiny_parts, ["fire-neg"], {"fire-neg": torch.zeros(2, 31)})
    assert_untouched(encoder, before, states, tiny_parts)


def test_the_gradient_reaches_only_the_vectors(tiny_parts, vectors):
    vectors.requires_grad_(True)
    unused = torch.randn(2, 32, requires_grad=True)
    given = {"fire-neg": vectors, "snow-neg": unused}
    assert not encode(tiny_parts, ["a dog"], given).states.requires_grad
    encode(tiny_parts, ["a fire-neg dog"], given).states.square().sum().backward()
    assert vectors.grad.abs().amax(dim=1).min() > 0
    assert unused.grad is None
    modules = (*tiny_parts.text_encoders, tiny_parts.unet, tiny_parts.vae)
    assert all(p.grad is None for m in modules for p in m.parameters())


def test_no_gradient_reaches_the_row_whose_place_a_vector_takes(tiny_parts, tokenizer, vectors):
    encoder = copy.deepcopy(tiny_parts.text_encoders[0])
    table = encoder.get_input_embeddings().weight.requires_grad_(True)
    parts = tiny_parts.with_text_encoders([encoder])
    (ids,) = tokenize(tokenizer, ["fire-neg b"], {"fire-neg": 3}).ids.tolist()
    encode(parts, ["fire-neg b"], {"fire-neg": vectors}).states.square().sum().backward()
    assert table.grad[ids[0]].abs().max() > 0
    assert table.grad[ids[4]].abs().max() > 0
    for filler in ids[1:4]:
        assert table.grad[filler].abs().max() == 0


def test_a_prompt_is_the_same_alone_and_in_a_batch(tiny_parts, vectors):
    prompts = ["a fire-neg dog", "", "snow"]
    given = {"fire-neg": vectors}
    together = encode(tiny_parts, prompts, given)
    for row, prompt in enumerate(prompts):
        alone = encode(tiny_parts, [prompt], given)
        torch.testing.assert_close(together.rows([row]).states, alone.states, atol=1e-5, rtol=0)


def test_two_encoders_stand_side_by_side(tiny_parts, vectors):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    first = tiny_parts.text_encoders[0]
    config = CLIPTextConfig(**{**first.config.to_dict(), "hidden_size": 16, "projection_dim": 8})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        second = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    parts = replace(tiny_parts, tokenizers=tiny_parts.tokenizers * 2, text_encoders=(first, second))
    pair = (vectors, vectors[:, :16].clone())
    plain = encode(parts, ["a fire dog"])
    with_vectors = encode(parts, ["a fire-neg dog"], {"fire-neg": pair})
    assert with_vectors.states.shape == (1, 77, 48)
    assert with_vectors.pooled.shape == (1, 8)
    difference = (with_vectors.states - plain.states).abs()
    assert difference[..., :32].max() > 1e-2
    assert difference[..., 32:].max() > 1e-2


def test_negative_prompt_embeds_are_the_same_from_parts_and_from_a_pipeline(
    tiny_folder, tiny_parts, vectors
):
    embedding = new_embedding(vectors.requires_grad_(True), "fire-neg", "fire")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    for text in (None, "blurry, fire-neg"):
        ours = negative_prompt_embeds(tiny_parts, embedding, text)
        assert ours.shape == (1, 77, 32)
        assert not ours.requires_grad
        assert torch.equal(ours, negative_prompt_embeds(pipe, embedding, text))
    assert torch.equal(
        negative_prompt_embeds(tiny_parts, embedding),
        encode(tiny_parts, ["fire-neg"], {"fire-neg": embedding.vectors}).states,
    )


def test_conditions_stack_repeat_and_refuse_to_guess():
    one = Condition(states=torch.ones(1, 2, 3), pooled=torch.ones(1, 4))
    three = Condition(states=torch.arange(18.0).reshape(3, 2, 3), pooled=torch.zeros(3, 4))
    joined = join_conditions([one, three])
    assert len(joined) == 4
    assert torch.equal(joined.rows([1, 2, 3]).states, three.states)
    assert joined.pooled.shape == (4, 4)
    assert joined.time_ids is None
    assert len(one.repeat(5)) == 5
    assert three.repeat(3) is three
    with pytest.raises(ValueError, match="3 rows cannot be asked of 2"):
        three.repeat(2)


UI_FORMS = [
    *(
        "embedding:ine-neg",
        "embedding: ine-neg",
        "Embedding:INE-NEG",
        "embedding:ine-neg.safetensors",
    ),
    *("embedding:sub/ine-neg", "<ine-neg>", "<embed:ine-neg>", "<Ine-Neg>"),
]
"""What users of ComfyUI, InvokeAI, diffusers and SwarmUI type."""


@pytest.mark.parametrize("form", UI_FORMS)
@pytest.mark.parametrize("around", ["{}", "a dog, {}", "{}, a dog", "a dog,{},a cat", "({}:1.2)"])
def test_an_embedding_named_as_uis_do_is_the_embedding_alone(tokenizer, form, around):
    vectors = {"ine-neg": 3}
    weighted = around.startswith("(")
    found = tokenize(tokenizer, [around.format(form)], vectors, weighted)
    plain = tokenize(tokenizer, [around.format("ine-neg")], vectors, weighted)
    assert torch.equal(found.ids, plain.ids)
    assert found.places == plain.places
    assert len(found.places) == 3


@pytest.mark.parametrize(
    "text", ["embedding:ine-neg-2", "<ine-neg-2>", "xembedding:ine", "<lora:x:1>"]
)
def test_other_names_are_not_taken_for_an_embedding(tokenizer, text):
    assert tokenize(tokenizer, [text], {"ine-neg": 3}).places == ()


def test_an_embedding_that_is_not_given_is_named(tokenizer, caplog):
    tokenize(tokenizer, ["a dog, embedding:other, <3"], {"ine-neg": 3})
    assert "the embedding other is not given" in caplog.text
    caplog.clear()
    tokenize(
        tokenizer, ["embedding: a chart, embedding:ine-neg, the word embedding"], {"ine-neg": 3}
    )
    assert caplog.text == ""


def test_a_negative_that_names_a_missing_embedding_is_refused():
    with pytest.raises(EmbeddingError, match="the embedding 'fire-neg' is not given"):
        Negative("blurry, embedding:fire-neg")
    assert Negative("blurry, embedding: x").prompt() == "blurry, embedding: x"
