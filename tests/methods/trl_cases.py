"""TRL's loss functions called on a stand-in for their trainer, with a "model" that answers tables of numbers."""

from __future__ import annotations

import collections
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefopt import Responses, Scores

pytest.importorskip("trl", reason="TRL is in the extra `bench`: pip install 'prefopt[bench]'")
pytest.importorskip("trl.trainer.dpo_trainer")

from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

PAIRS, LENGTH, VOCABULARY = 5, 9, 11


def stand_in(**given: Any) -> types.SimpleNamespace:
    """A trainer's attributes, no more."""
    same = lambda x: x
    model = nn.Identity()
    model.is_gradient_checkpointing = False
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    usual = {
        "model": model,
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "_metrics": {"train": collections.defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "precompute_ref_logps": False,
        "args": types.SimpleNamespace(
            gradient_checkpointing_kwargs=None, center_rewards_coefficient=None, discopop_tau=0.05
        ),
    }
    return types.SimpleNamespace(**(usual | given))


class Table(nn.Module):
    """A "model" whose per-token log-probs are given: `answers` maps an id() of input_ids to [B, L - 1]."""

    def __init__(self, answers: dict[int, Tensor]):
        super().__init__()
        self.answers = answers

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        logps = self.answers[id(input_ids)]
        logps = torch.where(logps.isnan(), 0.0, logps)  # as TRL's fused head answers where the label is -100
        return types.SimpleNamespace(
            log_probs=logps,
            entropy=torch.zeros_like(logps),
            log_sum_sq_probs=collision(logps),
            mean_logits=torch.zeros_like(logps),
            is_top1=torch.zeros_like(logps, dtype=torch.bool),
        )


def collision(logps: Tensor) -> Tensor:
    """In place of log sum_v p(v)^2: any numbers will do."""
    return 0.7 * logps.detach() - 0.2


def tokens(seed: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids [rows, L], completion mask [rows, L] (prompt and padding 0), attention mask."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=g)
    start = torch.randint(1, 4, (rows, 1), generator=g)
    end = start + torch.randint(1, LENGTH - 3, (rows, 1), generator=g)
    t = torch.arange(LENGTH)
    return ids, ((t >= start) & (t < end)).long(), (t < end).long()


def logps(seed: int, mask: Tensor, grad: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """[rows, L - 1] log-probs, NaN outside the completion."""
    g = torch.Generator().manual_seed(seed)
    x = -3 * torch.rand(mask.shape[0], LENGTH - 1, generator=g, dtype=torch.float64)
    return torch.where(mask[:, 1:] == 1, x, torch.nan).to(dtype).requires_grad_(grad)


def agree(mine: Tensor, theirs: Tensor, leaf: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=rtol, atol=rtol)
    got, want = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (mine, theirs))
    torch.testing.assert_close(got, want, rtol=rtol * 10, atol=rtol)


def dpo_case(
    seed: int, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[Tensor, Tensor, Responses, types.SimpleNamespace]:
    ids, completion, attention = tokens(seed, 2 * PAIRS)
    policy, reference = logps(seed + 1, completion, True, dtype), logps(seed + 2, completion, False, dtype)
    usual = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "loss_weights": [1.0], "use_weighting": False}
    me = stand_in(ref_model=Table({id(ids): reference}), **(usual | settings))
    inputs = {"input_ids": ids, "completion_mask": completion, "attention_mask": attention}
    theirs = DPOTrainer._compute_loss(me, Table({id(ids): policy}), inputs, False)
    beside = {"mask": completion[:, 1:], "pairs": "halves", "log_collision_logps": collision(policy)}
    return theirs, policy, Responses.of(policy_logps=policy, reference_logps=reference, **beside), me


def kto_case(seed: int, label: Tensor, **settings: Any) -> tuple[Tensor, Tensor, Responses, types.SimpleNamespace]:
    rows = len(label)
    ids, completion, attention = tokens(seed, rows)
    kl_ids, kl_completion, kl_attention = tokens(seed + 10, rows)
    policy, reference = logps(seed + 1, completion, grad=True), logps(seed + 2, completion)
    kl_policy, kl_reference = logps(seed + 3, kl_completion, grad=True), logps(seed + 4, kl_completion)
    usual = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    models = Table({id(ids): reference, id(kl_ids): kl_reference})
    calculates = settings["loss_type"] != "apo_zero_unpaired"
    me = stand_in(calculate_KL=calculates, ref_model=models, **(usual | settings))
    me._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, me)
    inputs = {
        "input_ids": ids,
        "completion_mask": completion,
        "attention_mask": attention,
        "KL_input_ids": kl_ids,
        "KL_completion_mask": kl_completion,
        "KL_attention_mask": kl_attention,
        "label": label,
    }
    theirs = KTOTrainer._compute_loss(me, Table({id(ids): policy, id(kl_ids): kl_policy}), inputs, False)
    mismatched = Responses.of(policy_logps=kl_policy, reference_logps=kl_reference, mask=kl_completion[:, 1:])
    r = Responses.of(policy, reference, completion[:, 1:], label=label, extras={"mismatched": mismatched})
    return theirs, policy, r, me


def concatenated(seed: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Any]:
    """Logits of a "model" (leaf), ids, labels, and TRL's batch of chosen and rejected."""
    ids, completion, attention = tokens(seed, 2 * PAIRS)
    labels = torch.where(completion == 1, ids, -100)
    batch = {}
    for side, rows in (("chosen", slice(0, PAIRS)), ("rejected", slice(PAIRS, None))):
        batch |= {
            f"{side}_input_ids": ids[rows],
            f"{side}_attention_mask": attention[rows],
            f"{side}_labels": labels[rows],
        }
    g = torch.Generator().manual_seed(seed + 1)
    logits = 3 * torch.randn(2 * PAIRS, LENGTH, VOCABULARY, generator=g, dtype=torch.float64)
    logits.requires_grad_()
    model = lambda *_, **__: types.SimpleNamespace(logits=logits)
    return logits, ids, attention, batch, model


def scored(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """[rows, L - 1] log-probs of the next token; junk outside the mask, to be ignored."""
    x = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    return torch.where(mask[:, 1:] == 1, x, torch.nan)


def cpo_like(trainer: type, seed: int, **settings: Any) -> tuple[Tensor, Tensor, Responses]:
    logits, ids, attention, batch, model = concatenated(seed)
    me = stand_in(is_encoder_decoder=False, pad_token_id=0, padding_value=0, **settings)
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer, name):
            setattr(me, name, types.MethodType(getattr(trainer, name), me))
    me.concatenated_inputs, me.get_batch_logps = trainer.concatenated_inputs, trainer.get_batch_logps
    theirs, _ = trainer.get_batch_loss_metrics(me, model, batch)
    completion = (torch.cat([batch["chosen_labels"], batch["rejected_labels"]]) != -100).long()
    prompt = (attention - completion)[:PAIRS]
    # a prompt of one token has nothing to predict: built directly, `Responses.of` would refuse it as an empty response
    values = Scores(scored(logits[:PAIRS], ids[:PAIRS], prompt), prompt[:, 1:].double())
    prompt_rows = Responses(scores={"policy": values})
    r = Responses.of(
        policy_logps=scored(logits, ids, completion),
        mask=completion[:, 1:],
        pairs="halves",
        extras={"prompt": prompt_rows},
    )
    return theirs, logits, r
