"""Every loss that TRL 1.16 knows by a name, against TRL's own computation: value and gradient."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from prefopt import get_method
from prefopt.trl_names import TRL, Same

pytest.importorskip("trl", reason="TRL is in the extra `bench`: pip install 'prefopt[bench]'")
pytest.importorskip("trl.trainer.dpo_trainer")

from trl.experimental.cpo.cpo_config import CPOConfig
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl_cases import agree, cpo_like, dpo_case, kto_case

BETA = 0.3
IDS = [f"{s.trainer}-{'-'.join(str(v) for v in s.theirs.values()) or s.method}" for s in TRL]


def dpo(row: Same, seed: int) -> tuple[Any, Any, Any]:
    given = dict(row.theirs)
    losses = given.pop("loss_type", "sigmoid")
    listed = [losses] if isinstance(losses, str) else losses
    weights = given.pop("loss_weights", [1.0] * len(listed))
    settings = {"label_smoothing": 0.0, "beta": BETA} | given
    dtype = torch.float32 if "f_alpha_divergence_coef" in given else torch.float64  # TRL has no float64 there
    return dpo_case(seed, dtype, loss_types=listed, loss_weights=weights, **settings)[:3]


def kto(row: Same, seed: int) -> tuple[Any, Any, Any]:
    label = torch.tensor([True, False, False, True, False, False])
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    return kto_case(seed, label, beta=BETA, **weights, **row.theirs)[:3]


def cpo(row: Same, seed: int) -> tuple[Any, Any, Any]:
    made = CPOConfig(output_dir="nowhere", report_to="none", use_cpu=True, **row.theirs)  # alphapo sets other keys
    names = ("alpha", "loss_type", "label_smoothing", "cpo_alpha", "simpo_gamma")
    return cpo_like(CPOTrainer, seed, beta=row.mine.get("beta", BETA), **{k: getattr(made, k) for k in names})


def orpo(row: Same, seed: int) -> tuple[Any, Any, Any]:
    return cpo_like(ORPOTrainer, seed, beta=BETA)


@pytest.mark.parametrize("row", TRL, ids=IDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_table_is_true(row, seed):
    theirs, leaf, r = {"DPO": dpo, "KTO": kto, "CPO": cpo, "ORPO": orpo}[row.trainer](row, seed)
    hyper = dict(row.mine)
    if row.method == "mpo":
        hyper |= {"preference": {"beta": BETA}, "quality": {"name": "bco", "shift": False, "beta": BETA}}
    elif row.method == "wpo":
        hyper = {"base": {"beta": BETA}}
    elif row.method != "sft":
        hyper = {"beta": BETA} | hyper
    if row.trainer == "KTO":
        hyper |= {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    rough = row.trainer == "ORPO" or {"f_alpha_divergence_coef", "label_smoothing"} & set(row.theirs)  # TRL's float32
    agree(get_method(row.method, **hyper)(r).scalar, theirs, leaf, rtol=2e-6 if rough else 1e-12)


def named_by(*sources: str) -> set[str]:
    return {x for text in sources for x in re.findall(r"[\"'`]([a-z][a-z_]+)[\"'`]", text)}


def test_no_loss_name_of_trl_is_left_out():
    """The lists that TRL's trainers print when they refuse a name, and those that its configurations document."""
    import inspect

    refused = re.search(r"Should be one of \[(.*?)\]\"\s*\)", inspect.getsource(DPOTrainer._compute_loss), re.S)
    assert refused
    known = {x for s in TRL if s.trainer == "DPO" for x in [s.theirs.get("loss_type", "sigmoid")] if isinstance(x, str)}
    assert named_by(refused.group(1)) == known
    for config, trainer in ((KTOConfig, "KTO"), (CPOConfig, "CPO")):
        documented = re.search(r"loss_type \(`str`.*?\n\n        [a-z]", config.__doc__, re.S)
        assert documented
        mine = {s.theirs["loss_type"] for s in TRL if s.trainer == trainer}
        assert mine <= named_by(documented.group(0))
        assert {x for x in named_by(documented.group(0)) if x in VALUES[trainer]} == mine
    divergences = named_by(re.search(r"f_divergence_type.*?\(default\)(.*?)\. Only", DPOConfig.__doc__, re.S).group(1))
    assert divergences == {s.theirs.get("f_divergence_type") for s in TRL} - {None}


VALUES = {"KTO": {"kto", "apo_zero_unpaired"}, "CPO": {"sigmoid", "hinge", "ipo", "simpo", "alphapo"}}
