"""TRL's names of losses (trainers DPO, KTO, CPO and ORPO of TRL 1.16), and what they are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Same:
    """TRL's settings and the method with the settings that give the same numbers, value and gradient.

    Keys that have one name and meaning in both (beta, label_smoothing with TRL's default, ...) are left out of both.
    """

    trainer: str
    theirs: Mapping[str, Any]
    method: str
    mine: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


TRL = (
    Same("DPO", {"loss_type": "sigmoid"}, "dpo"),
    Same("DPO", {"loss_type": "hinge"}, "dpo", {"loss_type": "hinge"}),
    Same("DPO", {"loss_type": "ipo"}, "ipo"),
    Same("DPO", {"loss_type": "exo_pair", "label_smoothing": 1e-3}, "exo", {}, "TRL's default 0 is infinite there"),
    Same("DPO", {"loss_type": "nca_pair"}, "nca"),
    Same(
        "DPO",
        {"loss_type": "robust", "label_smoothing": 0.1},
        "dpo",
        {"loss_type": "robust", "label_smoothing": 0.1},
    ),
    Same("DPO", {"loss_type": "bco_pair"}, "bco", {"shift": False}),
    Same("DPO", {"loss_type": "sppo_hard"}, "sppo"),
    Same("DPO", {"loss_type": "aot"}, "aot", {}, "sorted over the whole step, not the micro-batch"),
    Same("DPO", {"loss_type": "aot_unpaired"}, "aot", {"paired": False}, "sorted over the whole step"),
    Same("DPO", {"loss_type": "apo_zero"}, "apo-zero"),
    Same("DPO", {"loss_type": "apo_down"}, "apo-down"),
    Same("DPO", {"loss_type": "discopop"}, "discopop", {}, "discopop_tau alike"),
    Same("DPO", {"loss_type": "sft"}, "sft"),
    Same("DPO", {"loss_type": "sigmoid_norm"}, "ln-dpo"),
    Same(
        "DPO",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        "mpo",
        {},
        "w_p, w_q, w_g; any three methods as preference, quality, generation",
    ),
    Same("DPO", {"ld_alpha": 0.5}, "ld-dpo", {"ld_alpha": 0.5, "reference": "both"}),
    Same("DPO", {"f_divergence_type": "forward_kl"}, "f-dpo", {"divergence": "forward_kl"}),
    Same("DPO", {"f_divergence_type": "js_divergence"}, "f-dpo", {"divergence": "jsd"}),
    Same(
        "DPO",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        "f-dpo",
        {"divergence": "alpha_divergence", "alpha": 0.7},
        "alpha is 1 - TRL's coefficient",
    ),
    Same("DPO", {"use_weighting": True}, "wpo", {}, "base is any pairwise method"),
    Same("KTO", {"loss_type": "kto"}, "kto", {}, "z0 over the whole step"),
    Same("KTO", {"loss_type": "apo_zero_unpaired"}, "apo-zero-unpaired"),
    Same("CPO", {"loss_type": "sigmoid"}, "cpo"),
    Same("CPO", {"loss_type": "hinge"}, "cpo", {"loss_type": "hinge"}),
    Same("CPO", {"loss_type": "ipo"}, "cpo", {"loss_type": "ipo"}),
    Same(
        "CPO",
        {"loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.5},
        "simpo",
        {"beta": 2.0, "gamma_beta_ratio": 0.5, "sft_weight": 0.5},
        "gamma_beta_ratio = simpo_gamma / beta; sft_weight = cpo_alpha",
    ),
    Same(
        "CPO",
        {"loss_type": "alphapo", "alpha": 0.25, "simpo_gamma": 0.25},
        "alphapo",
        {"beta": 2.5, "alpha": 0.25, "gamma_beta_ratio": 0.1},
        "gamma_beta_ratio = simpo_gamma / beta",
    ),
    Same("ORPO", {}, "orpo"),
)
