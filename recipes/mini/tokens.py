"""Stage `tokenizer`: a small BPE vocabulary in CLIP's format; any text encodes.

The vocabulary that the package ships is kept as long as each word of the world is one token of it.
A new one has the same tokens under other ids every time, because the trainer breaks ties at random,
and a text encoder reads other words with it.

Merges are learned from the words of the world, enough of them that each word is one token;
everything else falls back to bytes. `<|endoftext|>` has the highest id: transformers pools
there only if `eos_token_id` is not 2, and by arg-max otherwise.
"""

import json
import re
import shutil

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ine.models.parts import MINI_FOLDER

CONTEXT_LENGTH = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def run(world, work):
    """Write `work`/tokenizer: the one that the package ships, or a new one for new words."""
    shipped = MINI_FOLDER / "tokenizer"
    if shipped.exists() and covers(CLIPTokenizer.from_pretrained(shipped), world):
        shutil.copytree(shipped, work / "tokenizer", dirs_exist_ok=True)
    else:
        build(world, work / "tokenizer")


def words_of(world):
    """Return the words of the world, sorted."""
    return sorted(set(re.findall(r"[a-z]+", " ".join(world.words()))))


def covers(tokenizer, world):
    """Return whether each word of the world is one token of a vocabulary."""
    vocabulary = tokenizer.get_vocab()
    return all(f"{word}</w>" in vocabulary for word in words_of(world))


def build(world, folder):
    """Write the tokenizer to `folder` and return it."""
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator([" ".join(words_of(world))], trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = symbols + [s + "</w>" for s in symbols]
    vocab += [a + b for a, b in merges if a + b not in set(vocab)]
    vocab += [BOS, EOS]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocab))},
        merges=merges,
        model_max_length=CONTEXT_LENGTH,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
