"""Detectors: pictures in, raw scores out, behind one protocol.

Shape letters: B pictures, H W pixels, F features, K labels.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from ine.errors import MissingDependency, ModelError, RecipeError, did_you_mean
from ine.models.parts import MINI_FOLDER, find_model

CLIP_L = "openai/clip-vit-large-patch14"


class Detector(Protocol):
    """Looks at pictures; rules are applied later."""

    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score in [0, 1]} per picture of (B, H, W, 3) uint8 RGB."""


def to_pixels(pictures, size, mean, std):
    """Return pictures as a CLIP-like input, (B, 3, size, size) float32."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if x.shape[-2:] != (size, size):
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
        from transformers import CLIPModel, CLIPTokenizer

        folder = Path(folder)
        self.model = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.objects, self.pairs = dict(objects or {}), dict(pairs or {})
        vision = self.model.config.vision_config
        self.size = vision.image_size
        settings = folder / "preprocessor_config.json"
        given = json.loads(settings.read_text()) if settings.is_file() else {}
        self.mean = given.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
        self.std = given.get("image_std", [0.26862954, 0.26130258, 0.27577711])
        self.tokenizer = tokenizer
        texts = [*self.objects.values(), *(t for pair in self.pairs.values() for t in pair)]
        self.words = self.text_features(texts) if texts else None

    @torch.no_grad()
    def text_features(self, texts):
        """Return unit features of texts, (K, F)."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).input_ids
        return _unit(self.model.get_text_features(input_ids=ids))

    @torch.no_grad()
    def features(self, pictures):
        """Return unit features of pictures, (B, F) float32."""
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


class ResNetJudge:
    """The bundled world's second judge, of another architecture, seed and training scenes.

    It only scores what is reported: the first judge filters concept pictures and chooses
    vectors, so it may not mark its own work.
    """

    batch = 64

    def __init__(self, folder):
        """Load a ResNetForImageClassification folder."""
        from transformers import ResNetForImageClassification

        self.model = ResNetForImageClassification.from_pretrained(folder).float().eval()
        self.model.requires_grad_(False)
        labels = self.model.config.id2label
        self.labels = [labels[i] for i in range(len(labels))]
        self.attributes = json.loads((folder / "labels.json").read_text())["attributes"]

    @torch.no_grad()
    def __call__(self, pictures):
        """Return {label: score}: softmax over objects, sigmoid per attribute."""
        found = []
        count = len(self.labels) - len(self.attributes)
        for i in range(0, len(pictures), self.batch):
            x = to_pixels(pictures[i : i + self.batch], 64, [0.5] * 3, [0.5] * 3)
            logits = self.model(x).logits
            scores = torch.cat([logits[:, :count].softmax(1), logits[:, count:].sigmoid()], 1)
            found += [dict(zip(self.labels, row, strict=True)) for row in scores.tolist()]
        return found


class NudeNet:
    """NudeNet 3's detector; raw output is {label: largest score of its boxes}.

    The published rules feed file paths, which OpenCV reads as BGR. An RGB array scores several
    points higher on the same picture, so channels are flipped here unless told otherwise.
    """

    def __init__(self, channels="bgr"):
        """Load the detector; `channels` is "bgr" (as peers) or "rgb"."""
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise _no_nudenet(error) from error
        self.detector = NudeDetector()
        self.channels = channels

    def __call__(self, pictures):
        """Return {label: score} per picture; labels that were not found are absent."""
        found = []
        for picture in pictures:
            array = np.ascontiguousarray(picture[..., ::-1] if self.channels == "bgr" else picture)
            scores = {}
            for hit in self.detector.detect(array):
                scores[hit["class"]] = max(scores.get(hit["class"], 0.0), float(hit["score"]))
            found.append(scores)
        return found


def _no_nudenet(error):
    return MissingDependency(
        f"detector 'nudenet' is not installed or cannot be imported ({error}); run: pip install "
        "nudenet (AGPL-3.0). It is the detector of this recipe's rule; the base model is another "
        "matter"
    )


def mini_judge(folder=MINI_FOLDER / "judge"):
    """Return the bundled world's first judge."""
    labels = json.loads((folder / "labels.json").read_text())
    return ClipJudge(folder, labels["objects"], labels["pairs"])


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


def find_clip(name=CLIP_L, fetch=True):
    """Return the local folder of a detector's CLIP model.

    Raises:
        MissingDependency: It is not on this machine, and could not or may not be fetched.
    """
    try:
        folder = find_model(name, index="config.json", fetch=fetch)
    except ModelError as error:
        raise _no_clip(name, type(error.__cause__ or error).__name__) from error
    if not any((folder / w).is_file() for w in ("model.safetensors", "pytorch_model.bin")):
        raise _no_clip(name, f"no model.safetensors in {folder}")
    return folder


def _no_clip(name, reason):
    files = "--include '*.json' --include '*.txt' --include model.safetensors"
    return MissingDependency(
        f"detector 'clip-violence' needs the CLIP model {name}, which is not on this machine "
        f"({reason}). Get it once with network access: `hf download {name} {files}` (1.7 GB). "
        "It is the detector of the recipe's rule, not the base model, so --model does not help; "
        "another one is chosen with --set pictures.rule=RULE"
    )


def _check_nudenet():
    # None stands there for a module that may not be imported; a spec is not always kept.
    found = sys.modules["nudenet"] if "nudenet" in sys.modules else find_spec("nudenet")
    if found is None:
        raise _no_nudenet("no module named 'nudenet'")


CHECKS = {"nudenet": _check_nudenet, "clip-violence": lambda: find_clip(fetch=False)}
"""Name -> function that raises where a detector that does not ship with ine is not there."""


def check_detector(name):
    """Raise if a detector is not on this machine; nothing is loaded or fetched.

    Raises:
        MissingDependency: Its package or its weights are not here; it says how to get them.
    """
    if name in CHECKS:
        CHECKS[name]()


DETECTORS = {
    "mini-judge": mini_judge,
    "mini-judge2": lambda: ResNetJudge(MINI_FOLDER / "judge2"),
    "nudenet": NudeNet,
    "clip-violence": clip_violence,
}
"""Name -> function that loads the detector."""


def load_detector(name):
    """Return a detector of the table by name."""
    if name not in DETECTORS:
        hint = did_you_mean(name, DETECTORS)
        raise RecipeError(f"detector {name!r} is unknown{hint}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name]()
