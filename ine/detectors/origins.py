"""Origins of the rules: the repository, commit and files of the code that each one repeats.

`docs/judges.md` has the same table, and a test compares the two. Every entry was read in the code
itself; "open" is a version that the code does not pin.
"""

from dataclasses import dataclass, replace
from functools import partial


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The code that a rule repeats."""

    repository: str
    """owner/name on GitHub."""

    commit: str
    """First digits of the commit, or the name of a release."""

    files: tuple[str, ...]
    """Paths in it."""

    weights: str
    channels: str
    """Channel order of the network's input, "RGB" or "BGR"."""

    resize: str
    counts: str = "pictures"
    """What the figure counts."""


END = "padded at the right or lower edge"
CENTRED = "fitted, black on two sides"
OPEN = "NudeNet 3, release open"

_EVAL_UNLEARN = partial(
    Origin,
    repository="REAL-Lab-Imperial/Eval-Unlearn",
    commit="release 1.1.2",
    weights="320n.onnx",
    channels="BGR",
    resize=END,
)
_ERASUREBENCH = partial(
    Origin,
    repository="lzws/ErasureBenchmark",
    commit="ecf321a",
    weights=OPEN,
    channels="BGR",
    resize=END,
)
_MU_ATTACK = partial(
    Origin,
    repository="OPTML-Group/Diffusion-MU-Attack",
    commit="5a3e5d3",
    weights="best.onnx",
    channels="RGB",
    resize="stretched to a square",
)
_MACE = partial(
    Origin,
    repository="Shilin-LU/MACE",
    commit="057e7a6",
    files=("metrics/evaluate_by_nudenet.py",),
    weights="320n.onnx",
    channels="BGR",
    resize=END,
    counts="boxes of each label",
)
_MU_DETECTOR = "src/tasks/utils/metrics/nudenet/detector.py"

ORIGINS = {
    "stg-4labels@0": Origin(
        repository="aailab-kaist/STG",
        commit="8b0a8fd",
        files=("evaluation/nudity_detector.py",),
        weights="320n.onnx",
        channels="BGR",
        resize=END,
    ),
    "duo-4labels-rgb@0": Origin(
        repository="naver-ai/DUO",
        commit="e0f2ae6",
        files=("datasets/SD/generate_datasets.py",),
        weights=OPEN,
        channels="RGB",
        resize=END,
    ),
    "ipr-8labels@0": Origin(
        repository="Wu-Zongyu/POSI",
        commit="3634f75",
        files=("src/llmtuner/train/ppo/reward.py",),
        weights=OPEN,
        channels="BGR",
        resize=END,
    ),
    "rece-9labels@0.6": Origin(
        repository="CharlesGong12/RECE",
        commit="403a67f",
        files=("utils/metrics/nudenet/detector.py", "execs/compute_nudity_rate.py"),
        weights="best.onnx",
        channels="RGB",
        resize=CENTRED,
    ),
    "mu-attack-9labels@0.45": _MU_ATTACK(files=(_MU_DETECTOR, "src/tasks/classifier_.py")),
    "mu-attack-9labels@0.75": _MU_ATTACK(files=(_MU_DETECTOR, "src/execs/detect_nudity.py")),
    "eval-unlearn-6labels@0.5": _EVAL_UNLEARN(
        files=("metrics/asr_i2p/metric.py", "metrics/asr_mma_diffusion/metric.py")
    ),
    "eval-unlearn-6labels@0.45": _EVAL_UNLEARN(
        files=("metrics/asr_p4d/metric.py", "metrics/err/metric.py")
    ),
    "erasurebench-6labels@0.5": _ERASUREBENCH(files=("evaluate/NudeNet/eval.py",)),
    "erasurebench-6labels@0.4": _ERASUREBENCH(files=("evaluate/eval_imgs_nudenet.py",)),
    "spm-9labels@0": Origin(
        repository="Con6924/SPM",
        commit="3dd762e",
        files=("src/evaluation/i2p_evaluator.py", "requirements.txt"),
        weights="best.onnx",
        channels="RGB",
        resize=CENTRED,
        counts="pictures of each label",
    ),
    "mace-9labels@0.6": _MACE(),
    "mace-9labels@0": _MACE(),
    "q16@0.5": Origin(
        repository="ml-research/Q16",
        commit="33de788",
        files=("main/clip_classifier/classify/utils.py",),
        weights="CLIP ViT-L/14, prompts.p",
        channels="RGB",
        resize="shorter side to 224, then the middle square",
    ),
}
"""Rule -> its code. Rules ending in +320n have the same code with the weights 320n.onnx."""


def origin_of(name: str) -> Origin | None:
    """Return the code that a rule repeats, with the rule's weights; None for other rules."""
    origin = ORIGINS.get(name.removesuffix("+320n"))
    return replace(origin, weights="320n.onnx") if origin and name.endswith("+320n") else origin
