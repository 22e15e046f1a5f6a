"""Other names: those of papers and of TRL that mean a method with some settings, and those that mean several things.

A registered name always wins. Otherwise a name that several papers share is refused with its candidates, and an alias
gives the method with its settings as defaults (which may still be changed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import PrefoptError

ALIASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cdpo": ("dpo", {"label_smoothing": 0.1}),
    "conservative-dpo": ("dpo", {"label_smoothing": 0.1}),
    "robust-dpo": ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    "slic-norm": ("dpo", {"loss_type": "hinge"}),
    "flex-dpo": ("3d-properties", {}),
    "sft-dpo": ("3d-properties", {"beta_rejected": 0.1, "sft_gamma": 0.05}),
    "tdpo1": ("tdpo", {"variant": "tdpo1"}),
    "tdpo2": ("tdpo", {}),
    "dpo-rk": ("rao-kupper", {}),
    "dpo-d": ("davidson", {}),
    "dpo-pl": ("plackett-luce", {}),
    "lipo-lambda": ("lipo", {}),
    "eto": ("dpo", {}),
    "tpo-l": ("triple-tpo", {"loss_type": "tpo-l"}),
}

SHARED: Mapping[str, Mapping[str, str]] = {
    "apo": {
        "apo": "accelerated (momentum)",
        "apo-zero": "anchored, the chosen is better than the model",
        "apo-down": "anchored, the model is better than the chosen",
    },
    "grpo": {"grpo-robust": "group robust, worst case over groups of annotators", "mo-grpo": "group relative (RL)"},
    "spo": {
        "self-spo": "self-supervised, preference degree",
        "sparsepo": "sparse token masks",
        "spo-step": "step-aware, images",
    },
    "tpo": {"tree-tpo": "tree", "triple-tpo": "triple"},
    "cpo": {"cpo": "contrastive", "controllable cpo": "not here", "chain of preference optimization": "not here"},
    "d2po": {"d2po": "temporal decay of tokens", "discriminator-guided d2po": "not here"},
    "gdpo": {"gdpo-geometric": "geometric averaging, soft labels", "group-distributional gdpo": "not here"},
    "mpo": {"mpo": "mixed (DPO, BCO and SFT together)", "maximum a posteriori mpo": "not here"},
    "rdpo": {"r-dpo": "regularised by length", "robust-dpo": "robust to flipped labels (dpo with loss_type robust)"},
    "epo": {"e-dpo": "distilled from rewards", "exo": "exact, reverse KL"},
    "npo": {"npo": "negative, unlearning", "self-npo": "negative model for guidance, images"},
    "ldpo": {"ld-dpo": "length desensitised", "ln-dpo": "length normalised"},
}


def lookup(name: str) -> tuple[str, Mapping[str, Any]] | None:
    """(registered name, settings) of an alias; None if it is none. PrefoptError if several methods share the name."""
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key in SHARED:
        candidates = "; ".join(f"{slug}: {what}" for slug, what in SHARED[key].items())
        raise PrefoptError(f"'{name}' is the name of several methods: say which ({candidates})")
    return ALIASES.get(key) or ((key, {}) if key != name else None)
