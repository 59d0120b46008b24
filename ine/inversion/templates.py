"""Captions of concept pictures with the trigger in them, from a recipe's templates."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ine.errors import RecipeError
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe, InversionSettings, fill


def captions_for(
    spec: InversionSettings,
    nouns: Sequence[str],
    trigger: str,
    plural: Sequence[str],
    generator: torch.Generator,
) -> list[str]:
    """Return one caption per picture with the trigger in it, templates drawn at random."""
    found = []
    for noun in nouns:
        named = bool(noun) and bool(spec.named_templates)
        templates = spec.named_templates if named else spec.templates
        choice = int(torch.randint(len(templates), (1,), generator=generator))
        template = templates[choice].replace("{noun}", "{}")
        # The trigger goes in last: article rules must see the noun, not the trigger.
        text = fill(template.replace("{v}", "\0"), noun, plural)
        found.append(" ".join(text.replace("\0", trigger).split()))
    return found


def check_room(parts: DiffusionParts, recipe: ConceptRecipe, trigger: str) -> None:
    """Raise `RecipeError` if the recipe's captions with their vectors do not fit the context."""
    spec = recipe.inversion
    texts = set(spec.templates)
    texts |= {
        fill(template.replace("{noun}", "{}"), noun, recipe.plural)
        for template in spec.named_templates
        for noun in recipe.pictures.nouns
    }
    for tokenizer in parts.tokenizers:
        room = tokenizer.model_max_length - 2
        words = {text: _length(tokenizer, text) for text in sorted(texts)}
        text = max(words, key=lambda text: words[text])
        if spec.vectors + words[text] > room:
            raise RecipeError(
                f"inversion.vectors: {spec.vectors} do not fit; the context of {parts.name} has "
                f"room for {room} tokens, and the caption {text.replace('{v}', trigger)!r} takes "
                f"{words[text]} besides; expected at most {max(0, room - words[text])}, set "
                "inversion.vectors to fewer or shorten the inversion's templates"
            )


def _length(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the number of tokens of a caption without its vectors."""
    pieces = [piece for piece in text.split("{v}") if piece.strip()]
    return sum(len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces)
