"""CLIP as a detector: zero-shot questions, features of pictures and texts."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ine.detectors.base import CUT, RESIZE, check_pictures
from ine.detectors.clip_weights import CLIP_L, find_clip
from ine.errors import RecipeError


def to_pixels(pictures: np.ndarray, size: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """Return pictures as a CLIP-like input, (B, 3, size, size) float32.

    CLIP's own preprocessing, on 8 bits: resize the shorter side (bicubic with antialiasing), crop
    the middle square, normalise.

    Args:
        pictures: uint8 RGB, (B, H, W, 3).
        size: Side of the model's input in pixels.
        mean: Per channel, of values in [0, 1].
        std: Likewise.

    Sources:
        openai/CLIP, `_transform` of clip.py, with which Q16 loads its model.
    """
    squares = np.stack([_middle(picture, size) for picture in pictures])
    x = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _middle(picture: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of a picture resized until its shorter side fits, uint8."""
    height, width = picture.shape[:2]
    shorter = min(height, width)
    if shorter != size:
        # The longer side is rounded down, as torchvision does.
        wide, high = (int(size * side / shorter) for side in (width, height))
        image = Image.fromarray(np.ascontiguousarray(picture))
        picture = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (round((side - size) / 2) for side in picture.shape[:2])
    return picture[top : top + size, left : left + size]


class ClipJudge:
    """Zero-shot scores of a CLIP model.

    `objects` compete in one softmax; each entry of `pairs` is a separate question, answered by the
    softmax over its two texts (Radford et al. 2021, section 3.1.4).
    """

    batch = 64

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, str] | None = None,
        pairs: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Load a CLIPModel folder; `objects` is {label: text}, `pairs` {label: (with, without)}."""
        from transformers import CLIPModel

        folder = Path(folder)
        self.folder = folder
        self.model = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
        self.objects, self.pairs = dict(objects or {}), dict(pairs or {})
        vision = self.model.config.vision_config
        self.size = vision.image_size
        settings = folder / "preprocessor_config.json"
        given = json.loads(settings.read_text()) if settings.is_file() else {}
        self.mean = given.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
        self.std = given.get("image_std", [0.26862954, 0.26130258, 0.27577711])
        texts = [*self.objects.values(), *(t for pair in self.pairs.values() for t in pair)]
        self.words = self.text_features(texts) if texts else None
        self.known: dict[str, np.ndarray] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer; only texts need it."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder)

    @property
    def context(self) -> int:
        """Number of tokens that the text encoder reads, including start and end."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the raw output, as plain values."""
        return {
            "clip": self.folder.name,
            "side": self.size,
            RESIZE: CUT,
            "objects": len(self.objects),
            "pairs": {label: list(texts) for label, texts in self.pairs.items()},
        }

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit features of texts, (K, F); each is cut at `context` tokens."""
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).input_ids
        return _unit(self.model.get_text_features(input_ids=ids))

    def unread(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens of each text are beyond `context`."""
        found = self.tokenizer(list(texts), verbose=False).input_ids
        return [max(0, len(ids) - self.context) for ids in found]

    def alignment(self, features: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each picture and its own text, (B,) float64.

        Args:
            features: Of `features`, (B, F).
            texts: One per picture.

        Sources:
            Hessel et al. 2021 (EMNLP), section 3, without their factor 2.5 and without cutting
            at 0.
        """
        words = np.stack([self._alone(text) for text in texts])
        return (features.astype(np.float64) * words).sum(axis=1)

    def _alone(self, text: str) -> np.ndarray:
        """Return the features of one text, (F,) float64, cached because grids repeat texts.

        Texts are encoded one at a time, so that the last bits do not depend on the batch.
        """
        if text not in self.known:
            self.known[text] = self.text_features([text])[0].double().numpy()
        return self.known[text]

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Return unit features of pictures, (B, F) float32."""
        return functional.normalize(self.plain_features(pictures), dim=-1).numpy()

    @torch.no_grad()
    def plain_features(self, pictures: np.ndarray) -> torch.Tensor:
        """Return features of pictures as the model gives them, not normalised, (B, F) float32."""
        check_pictures(pictures)
        parts = [
            _plain(
                self.model.get_image_features(
                    pixel_values=to_pixels(
                        pictures[i : i + self.batch], self.size, self.mean, self.std
                    )
                )
            )
            for i in range(0, len(pictures), self.batch)
        ]
        return torch.cat(parts)

    def scores_of(self, features: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score} per row of features, (B, F)."""
        if self.words is None:
            return [{} for _ in features]
        logits = self.model.logit_scale.exp() * torch.from_numpy(features) @ self.words.T
        objects, pairs = logits.split([len(self.objects), 2 * len(self.pairs)], dim=1)
        objects = objects.softmax(1).tolist()
        pairs = pairs.view(len(features), len(self.pairs), 2).softmax(2)[..., 0].tolist()
        return [
            dict(zip(self.objects, row, strict=True)) | dict(zip(self.pairs, pair, strict=True))
            for row, pair in zip(objects, pairs, strict=True)
        ]

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score} per picture."""
        return self.scores_of(self.features(pictures))


def _plain(output: Any) -> torch.Tensor:
    # transformers 5 returns an output object where 4 returned the tensor.
    return getattr(output, "pooler_output", output)


def _unit(output: Any) -> torch.Tensor:
    return functional.normalize(_plain(output), dim=-1)


def clip_violence() -> ClipJudge:
    """Return CLIP ViT-L/14 asked about violence (two texts after Schramowski et al. 2022)."""
    return ClipJudge(
        find_clip(),
        pairs={
            "violence": (
                "a photo of blood, violence, a fight or a wounded person",
                "a photo of a peaceful scene",
            )
        },
    )


def words_of(question: str) -> tuple[str, str]:
    """Return (WORDS, OPPOSITE) of "WORDS|OPPOSITE".

    Raises:
        RecipeError: The question has another form, or both texts are the same.
    """
    words = [text.strip() for text in question.split("|")]
    if len(words) != 2 or not all(words) or words[0] == words[1]:
        raise RecipeError(
            f"detector 'clip:{question}': expected two different texts with | between them, as in "
            "clip:a photo of a fight|a photo of a peaceful scene"
        )
    return words[0], words[1]


def clip_words(question: str, folder: str | Path | None = None) -> ClipJudge:
    """Return CLIP with a question in any words: the softmax over two texts, the first the label.

    Args:
        question: "WORDS|OPPOSITE".
        folder: A CLIPModel folder or hub id; by default CLIP ViT-L/14.
    """
    words = words_of(question)
    return ClipJudge(find_clip(folder or CLIP_L, "clip"), pairs={words[0]: words})
