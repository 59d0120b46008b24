"""Names that options offer, so that `--help` need not import torch.

Each repeats the names of a table that imports torch; tests/test_cli_help.py compares them.
"""

PRESETS = ("weak", "weak-diffusers", "medium", "strong", "max")
"""Of sld in `ine.guidance.table.METHODS`."""

OBSERVED = ("as-described", "as-released", "static")
"""Of vl-dnp there."""

STEER = ("words", "embedding", "both")
"""Of `ine.guidance.away.Steer`."""

ON_UNKNOWN = ("hold", "steer", "abort")
"""Of `ine.observers.unknown.OnUnknown`."""

SCHEDULERS = ("ddim", "dpm++", "euler", "pndm", "lcm", "euler-a")
"""Of `ine.sampling.SCHEDULERS`."""

TARGETS = ("universal", "a1111-pt", "diffusers", "sdxl")
"""Of `ine.embeddings.export.TARGETS`."""

ERASERS = ("uce", "esd", "duo")
"""Of `ine.unlearning.run.SETTINGS`."""

VARIANTS = ("sequence", "paper", "last-token")
"""Of `ine.unlearning.uce.UceSettings.variant`."""

GROUPS = ("x", "x-strict", "u", "all")
"""Of `ine.unlearning.esd.GROUPS`."""

ATTACKS = ("text", "ring-a-bell", "denoising", "embedding")
"""Of `ine.attacks.attacker.METHODS`."""

PROPOSALS = ("gradient", "genetic")
"""Of `ine.attacks.proposals.PROPOSALS`."""

REFINE_PROTOCOLS = ("ine", "as-described", "as-released")
"""Of `ine.refining.settings.PRESETS`."""
