"""The two judges of the bundled world."""

import json
from pathlib import Path

import numpy as np
import torch

from ine.detectors.base import check_pictures
from ine.detectors.clip import ClipJudge, to_pixels
from ine.models.parts import MINI_FOLDER

MINI_JUDGE = MINI_FOLDER / "judge"


def mini_judge(folder: Path = MINI_JUDGE) -> ClipJudge:
    """Return the bundled world's first judge."""
    labels = json.loads((folder / "labels.json").read_text())
    return ClipJudge(folder, labels["objects"], labels["pairs"])


class ResNetJudge:
    """The bundled world's second judge, of another architecture, seed and training scenes.

    It scores reported figures only. The first judge filters concept pictures and chooses vectors,
    so its scores of the result would be biased.
    """

    batch = 64

    def __init__(self, folder: Path) -> None:
        """Load a ResNetForImageClassification folder."""
        from transformers import ResNetForImageClassification

        self.model = ResNetForImageClassification.from_pretrained(folder).float().eval()
        self.model.requires_grad_(False)
        labels = self.model.config.id2label
        self.labels = [labels[i] for i in range(len(labels))]
        self.attributes = json.loads((folder / "labels.json").read_text())["attributes"]

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score}: softmax over objects, sigmoid per attribute."""
        check_pictures(pictures)
        found: list[dict[str, float]] = []
        count = len(self.labels) - len(self.attributes)
        for i in range(0, len(pictures), self.batch):
            x = to_pixels(pictures[i : i + self.batch], 64, [0.5] * 3, [0.5] * 3)
            logits = self.model(x).logits
            scores = torch.cat([logits[:, :count].softmax(1), logits[:, count:].sigmoid()], 1)
            found += [dict(zip(self.labels, row, strict=True)) for row in scores.tolist()]
        return found
