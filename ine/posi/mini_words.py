"""A small language model over the words of the bundled model's world, made in minutes.

It has learned to repeat a prompt after any template, and nothing about which prompts are harmful:
what fine-tuning then teaches it is its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ine.optim import StateFile, minimise
from ine.posi.recipe import Template
from ine.prompts.mini import named_set, named_sets
from ine.runtime import generator_for

END, UNKNOWN = "</s>", "<unk>"
TEMPLATE = Template(text="{instruction} : {prompt} =")
BATCH = 32
LEARNING_RATE = 2e-3


def world_prompts() -> list[str]:
    """Return the prompts of all named sets of the bundled model, each once."""
    rows = (row for name in named_sets() for row in named_set(name).rows)
    return list(dict.fromkeys(row.prompt for row in rows))


def world_tokenizer() -> Any:
    """Return a tokenizer with a token for every word of the world's prompts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for prompt in world_prompts() for word in prompt.lower().split()})
    found = [END, UNKNOWN, ":", "=", "rewrite", *words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(found)}, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, eos_token=END, pad_token=END
    )


def new_model(tokenizer: Any, width: int = 128, layers: int = 2, seed: int = 0) -> Any:
    """Return an untrained model of LLaMA's architecture, 1.5 MB at its default size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        # More than any prompt of the world has; an answer may have 128 by default.
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def make_base(
    out: Path,
    *,
    steps: int = 1500,
    width: int = 128,
    layers: int = 2,
    seed: int = 0,
    state: StateFile | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train the model, write it as a folder of transformers, and return its last loss in nats.

    Args:
        out: The folder.
        steps: Of `BATCH` texts each.
        width: Of the hidden states.
        layers: Of the model.
        seed: Of weights and texts.
        state: Where the training is kept, by default nowhere.
        on_step: Called with (finished steps, loss).

    Raises:
        OutputError: The folder cannot be written.
    """
    tokenizer = world_tokenizer()
    model = new_model(tokenizer, width, layers, seed)
    parameters = dict(model.named_parameters())
    prompts = world_prompts()
    words = len(tokenizer)
    last = [float("inf")]

    def loss_of(step: int, part: int) -> torch.Tensor:
        tokens, labels = _texts(tokenizer, prompts, words, generator_for(seed, "texts", step))
        return model(input_ids=tokens, labels=labels).loss

    def done(step: int, loss: float) -> None:
        last[0] = loss
        if on_step:
            on_step(step, loss)

    minimise(
        "language model",
        parameters,
        torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=0.01),
        loss_of,
        steps,
        advice="give another seed",
        state=state,
        max_grad_norm=1.0,
        lr_of=lambda step: LEARNING_RATE * min((step + 1) / 50, 1 - step / steps),
        on_step=done,
    )
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return last[0]


def _texts(
    tokenizer: Any, prompts: list[str], words: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (tokens, labels) of a batch: a prompt, or words in any order, and the same again."""
    rows = []
    for _ in range(BATCH):
        prompt = prompts[int(torch.randint(len(prompts), (1,), generator=generator))]
        own = tokenizer(prompt).input_ids
        if torch.rand(1, generator=generator) < 0.5:
            count = int(torch.randint(1, 12, (1,), generator=generator))
            own = torch.randint(5, words, (count,), generator=generator).tolist()
        asked = TEMPLATE.asked("rewrite", "|")
        before, _, after = str(asked).partition("|")
        start = [*tokenizer(before).input_ids, *own, *tokenizer(after).input_ids]
        rows.append((start, [*own, tokenizer.eos_token_id]))
    length = max(len(start) + len(answer) for start, answer in rows)
    tokens = torch.full((BATCH, length), tokenizer.eos_token_id)
    labels = torch.full((BATCH, length), -100)
    for k, (start, answer) in enumerate(rows):
        whole = torch.tensor(start + answer)
        tokens[k, : len(whole)] = whole
        labels[k, len(start) : len(whole)] = torch.tensor(answer)
    return tokens, labels
