"""What PPO needs of a language model: log-probabilities, values, a reference to stay near.

Shape letters: B answers, T tokens of an answer, N tokens of prompt and answer, V vocabulary.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ine.training.answers import Answers, evaluating, positions

Reference = Callable[[Answers], torch.Tensor]
"""Answers to the log-probabilities of their tokens, (B, T)."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A causal language model with a head that estimates what an answer will still earn."""

    model: Any
    """Of transformers, or with a LoRA of peft; what requires gradients is trained."""

    tokenizer: Any
    head: torch.nn.Linear
    """From the last hidden state to one number."""

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return {name: what is trained}, the head's with "value_head." before their names."""
        body = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        head = {f"value_head.{n}": p for n, p in self.head.named_parameters()}
        return {**body, **head}

    def read(self, answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (log-probabilities of the answers' tokens, values before them), (B, T) both.

        Dropout is off, so that an unchanged policy has a ratio of exactly 1.
        """
        with evaluating(self.model):
            done = _run(self.model, answers, output_hidden_states=True)
        before = slice(answers.start - 1, -1)
        values = self.head(done.hidden_states[-1][:, before].float())[..., 0]
        return _chosen(done.logits[:, before], answers), values


def policy_of(model: Any, tokenizer: Any) -> Policy:
    """Return a policy whose value head starts at 0, on the model's device."""
    width = model.get_input_embeddings().embedding_dim
    head = torch.nn.Linear(width, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return Policy(model=model, tokenizer=tokenizer, head=head.to(model.device))


def reference_of(model: Any) -> Reference:
    """Return the log-probabilities of a model as it is now.

    A model with a LoRA is its own reference, with the LoRA switched off, so a LoRA that was trained
    before belongs merged into the base; any other model is copied.
    """
    adapter = hasattr(model, "disable_adapter")
    kept = model if adapter else copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def read(answers: Answers) -> torch.Tensor:
        with evaluating(kept):
            if adapter:
                with kept.disable_adapter():
                    logits = _run(kept, answers).logits
            else:
                logits = _run(kept, answers).logits
        return _chosen(logits[:, answers.start - 1 : -1], answers)

    return read


def rows_of(answers: Answers, rows: torch.Tensor) -> Answers:
    """Return some of the answers, in the order of `rows`; their padding stays."""
    places = rows.tolist()
    return Answers(
        tokens=answers.tokens[rows],
        mask=answers.mask[rows],
        start=answers.start,
        texts=tuple(answers.texts[i] for i in places),
        ended=tuple(answers.ended[i] for i in places),
    )


def _run(model: Any, answers: Answers, **more: Any) -> Any:
    return model(
        input_ids=answers.tokens.to(model.device),
        attention_mask=answers.mask.to(model.device),
        position_ids=positions(answers.mask).to(model.device),
        use_cache=False,
        **more,
    )


def _chosen(logits: torch.Tensor, answers: Answers) -> torch.Tensor:
    """Return the log-probability of each answer token, of logits (B, T, V); 0 at padding."""
    tokens = answers.answer_tokens.to(logits.device)[..., None]
    found = logits.float().log_softmax(-1).gather(-1, tokens)[..., 0]
    return found * answers.answer_mask.to(logits.device)
