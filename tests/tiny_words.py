"""A tiny real causal language model over a dozen words."""

WORDS = ("a", "cat", "dog", "fire", "rain", "left", "right", "in", "the", "safe")


def word_tokenizer(words=WORDS, end=True):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("</s>", "<unk>", *words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    more = {"eos_token": "</s>", "pad_token": "</s>"} if end else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **more)


def word_model(tokenizer=None, seed=0, context=32, dropout=0.0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(tokenizer) if tokenizer else len(WORDS) + 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=context,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=0,
                attention_dropout=dropout,
            )
        ).eval()
