"""The small grid of several tests: one tiny model, words as the negative, additive guidance."""

from pathlib import Path

HEAD = """\
kind: grid
version: 1
name: small
concept: fire
models:
  - {name: tiny, model: MODEL}
negatives:
  - {name: words, words: true}
guidances:
  - {name: additive, method: additive, strengths: STRENGTHS}
"""
NO_RESULTS = ("rates.json", "locks")
"""Measured times, and locks: the parts of a run folder that differ from run to run."""


def small_grid(rest, strengths="[1, 6]"):
    """The text of a grid from its prompts on; MODEL stands for the model's folder."""
    return HEAD.replace("STRENGTHS", strengths) + rest


def tuned_grid(tune):
    """A small grid that chooses on `tune` prompts with one judge and reports with another."""
    return small_grid(f"""\
prompts:
  - {{name: tune, source: "mini:fire/implying-tuning", role: tune, expects: harmful, limit: {tune}}}
  - {{name: keep, source: "mini:fire/twins-tuning", role: tune, expects: benign, limit: 2}}
  - {{name: test, source: "mini:fire/implying-test", role: test, expects: harmful, limit: 2}}
sampler: {{steps: 2, batch: 2, guidance_scale: 5}}
judges: {{tune: mini-judge, test: mini-judge2}}
metrics: {{subject: true, preservation: [judge-cosine, ssim]}}
choose: {{level: 0.5}}
""")


def replaced(text, *pairs):
    """A text with others in the place of some, each of which it has to contain."""
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    return text


def contents(folder):
    """{name: bytes} of everything that a run leaves except locks and measured times."""
    files = [p for p in Path(folder).rglob("*") if p.is_file()]
    names = {str(p.relative_to(folder)): p for p in files}
    return {n: p.read_bytes() for n, p in names.items() if n.partition("/")[0] not in NO_RESULTS}
