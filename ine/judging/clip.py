"""CLIP as a judge: zero-shot questions, image features, where its weights are."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ine.errors import MissingDependency, ModelError, RecipeError
from ine.judging.detection import check_pictures
from ine.models.parts import find_model

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_B = "openai/clip-vit-base-patch16"
SIZES = {CLIP_L: "1.7 GB", CLIP_B: "0.6 GB"}


def to_pixels(pictures, size, mean, std):
    """Return pictures as a CLIP-like input, (B, 3, size, size) float32.

    The middle square is resized (bicubic with antialiasing) and normalised. CLIP's own
    preprocessing resizes 8-bit values, which are rounded; the difference is below one of 255
    steps but at hard edges.

    Args:
        pictures: uint8 RGB, (B, H, W, 3).
        size: Side of the model's input in pixels.
        mean: Per channel, of values in [0, 1].
        std: Likewise.
    """
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = x[..., top : top + side, left : left + side]
    if side != size:
        x = functional.interpolate(
            x, (size, size), mode="bicubic", antialias=True, align_corners=False
        )
    shape = (1, 3, 1, 1)
    return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


class ClipJudge:
    """Zero-shot scores of a CLIP model.

    `objects` compete in one softmax; each entry of `pairs` is a question of its own, answered by
    the softmax over its two texts (Radford et al. 2021, section 3.1.4).
    """

    batch = 64

    def __init__(self, folder, objects=None, pairs=None):
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
        self.known = {}

    @cached_property
    def tokenizer(self):
        """The folder's tokenizer, which only words need."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder)

    @property
    def context(self):
        """Tokens that the text half reads, its begin and end among them."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def settings(self):
        """What decides the raw output, as plain values."""
        return {
            "clip": self.folder.name,
            "side": self.size,
            "objects": len(self.objects),
            "pairs": {label: list(texts) for label, texts in self.pairs.items()},
        }

    @torch.no_grad()
    def text_features(self, texts):
        """Return unit features of texts, (K, F); what is beyond `context` is not read."""
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).input_ids
        return _unit(self.model.get_text_features(input_ids=ids))

    def unread(self, texts):
        """Return how many tokens of each text are beyond `context`, a list."""
        found = self.tokenizer(list(texts), verbose=False).input_ids
        return [max(0, len(ids) - self.context) for ids in found]

    def alignment(self, features, texts):
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

    def _alone(self, text):
        """Return the features of one text, (F,) float64; kept, since grids ask many times.

        Each is computed by itself, so that its last bits do not depend on what else is asked.
        """
        if text not in self.known:
            self.known[text] = self.text_features([text])[0].double().numpy()
        return self.known[text]

    @torch.no_grad()
    def features(self, pictures):
        """Return unit features of pictures, (B, F) float32."""
        check_pictures(pictures)
        parts = [
            _unit(
                self.model.get_image_features(
                    pixel_values=to_pixels(
                        pictures[i : i + self.batch], self.size, self.mean, self.std
                    )
                )
            )
            for i in range(0, len(pictures), self.batch)
        ]
        return torch.cat(parts).numpy()

    def scores_of(self, features):
        """Return {label: score} per row of features, (B, F)."""
        logits = self.model.logit_scale.exp() * torch.from_numpy(features) @ self.words.T
        objects, pairs = logits.split([len(self.objects), 2 * len(self.pairs)], dim=1)
        objects = objects.softmax(1).tolist()
        pairs = pairs.view(len(features), len(self.pairs), 2).softmax(2)[..., 0].tolist()
        return [
            dict(zip(self.objects, row, strict=True)) | dict(zip(self.pairs, pair, strict=True))
            for row, pair in zip(objects, pairs, strict=True)
        ]

    def __call__(self, pictures):
        """Return {label: score} per picture."""
        return self.scores_of(self.features(pictures))


def _unit(output):
    # transformers 5 returns an output object where 4 returned the tensor.
    return functional.normalize(getattr(output, "pooler_output", output), dim=-1)


def clip_violence():
    """Return CLIP ViT-L/14 asked about violence (after Schramowski et al. 2022's two texts)."""
    return ClipJudge(
        find_clip(),
        pairs={
            "violence": (
                "a photo of blood, violence, a fight or a wounded person",
                "a photo of a peaceful scene",
            )
        },
    )


def words_of(question):
    """Return (WORDS, OPPOSITE) of "WORDS|OPPOSITE".

    Raises:
        RecipeError: There are not two texts, or they are the same.
    """
    words = [text.strip() for text in question.split("|")]
    if len(words) != 2 or not all(words) or words[0] == words[1]:
        raise RecipeError(
            f"detector 'clip:{question}': expected two different texts with | between them, as in "
            "clip:a photo of a fight|a photo of a peaceful scene"
        )
    return tuple(words)


def clip_words(question, folder=None):
    """Return CLIP asked for any words: the softmax over two texts, under the first as the label.

    Args:
        question: "WORDS|OPPOSITE".
        folder: A CLIPModel folder or hub id; by default CLIP ViT-L/14.
    """
    words = words_of(question)
    return ClipJudge(find_clip(folder or CLIP_L, "clip"), pairs={words[0]: words})


def check_both_halves(folder):
    """Raise unless a folder's CLIP model has a text half and its tokenizer; nothing is loaded.

    Raises:
        ModelError: It has the picture half alone, or no tokenizer.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds = config.get("architectures") or ["CLIPModel"]
        whole = config.get("model_type") == "clip" and "CLIPModel" in kinds
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder}: config.json cannot be read ({error})") from error
    if not whole:
        raise ModelError(f"{folder}: is no CLIPModel with a picture and a text half")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"{folder}: has no tokenizer (tokenizer.json, or vocab.json), for prompts")


def find_clip(name=CLIP_L, detector="clip-violence", fetch=True):
    """Return the local folder of a detector's CLIP model.

    Raises:
        MissingDependency: It is not on this machine, and could not or may not be fetched.
    """
    try:
        folder = find_model(name, index="config.json", fetch=fetch)
    except ModelError as error:
        raise _no_clip(name, detector, type(error.__cause__ or error).__name__) from error
    if not any((folder / w).is_file() for w in ("model.safetensors", "pytorch_model.bin")):
        raise _no_clip(name, detector, f"no model.safetensors in {folder}")
    return folder


def _no_clip(name, detector, reason):
    files = "--include '*.json' --include '*.txt' --include model.safetensors"
    size = f" ({SIZES[name]}, MIT)" if name in SIZES else ""
    return MissingDependency(
        f"detector {detector!r} needs the CLIP model {name}, which is not on this machine "
        f"({reason}). Get it once with network access: `hf download {name} {files}`{size}. "
        "It judges pictures and is not the base model, so --model does not help; another rule or "
        "detector is named in a grid's rules and metrics, elsewhere with --set pictures.rule=RULE"
    )
