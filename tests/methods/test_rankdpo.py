"""RankDPO against the card's equation in plain loops, its identities, ragged lists and ties; lists of images in training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prefopt import Responses, get_method
from prefopt.config import make
from prefopt.data.votes import votes
from prefopt.errors import PrefoptError
from prefopt.training.run import make_method, train
from prefopt.training.tasks.denoising import diffusion_task

D = torch.float64
SIZES = [4, 2, 3, 1]
ELEMENTS = 12.0


def errors(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed squared errors of policy and reference [R], phi with ties [R], group [R]."""
    g = torch.Generator().manual_seed(seed)
    n = sum(SIZES)
    policy = 10 * torch.rand(n, generator=g, dtype=D)
    reference = policy + 0.02 * torch.randn(n, generator=g, dtype=D)
    phi = torch.tensor([0.9, 0.25, 0.25, 0.0, 0.3, 0.8, 0.5, 0.5, 0.5, 1.0], dtype=D)
    group = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    return policy.requires_grad_(), reference, phi, group


def by_hand(policy: Tensor, reference: Tensor, phi: Tensor, beta: float, **how: str) -> Tensor:
    """One list, one pair at a time: the card's words."""
    total: Any = torch.zeros((), dtype=D)
    start = 0
    for k in SIZES:
        rows = list(range(start, start + k))
        start += k
        share = ELEMENTS if how.get("reduction", "mean") == "mean" else 1.0
        s = {i: (policy[i] - reference[i]) / share for i in rows}
        by_policy = how.get("rank_source") == "policy"
        key = {i: -float(s[i].detach()) if by_policy else float(phi[i]) for i in rows}
        order = sorted(rows, key=lambda i: (-key[i], i))
        tau = {i: 1 + order.index(i) for i in rows}
        identity = how.get("gain") == "identity"
        gains = {i: float(phi[i]) if identity else 2 ** float(phi[i]) - 1 for i in rows}
        for i in rows:
            for j in rows:
                if phi[i] > phi[j]:
                    delta = abs(gains[i] - gains[j]) * abs(1 / math.log(1 + tau[i]) - 1 / math.log(1 + tau[j]))
                    u = -beta * (s[i] - s[j])
                    total = total + delta * torch.log(1 + torch.exp(-u))
    return total / len(SIZES)


HOW: list[dict[str, str]] = [
    {},
    {"reduction": "sum"},
    {"rank_source": "policy"},
    {"gain": "identity"},
    {"gain": "identity", "rank_source": "policy", "reduction": "sum"},
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_value_and_gradient_are_the_cards(how: dict[str, str], seed: int) -> None:
    policy, reference, phi, group = errors(seed)
    beta = 20.0 if how.get("reduction") == "sum" else 200.0
    wanted = by_hand(policy, reference, phi, beta, **how)
    mask = torch.full((len(phi), 1), ELEMENTS, dtype=D)
    batch = Responses.of(policy_errors=policy, reference_errors=reference, mask=mask, phi=phi, group=group)
    found = get_method("rankdpo", beta=beta, **how)(batch).scalar
    one, two = (torch.autograd.grad(x, policy, retain_graph=True)[0] for x in (wanted, found))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.allclose(one, two, atol=1e-12)
    assert one[9] == 0  # alone in its list
    assert one[6:9].tolist() == [0, 0, 0]  # a list of ties, a zero in the mean over lists


def test_a_pair_of_the_card() -> None:
    """dL/ds_i = Delta beta sigmoid(beta (s_i - s_j)) and its negative."""
    s = torch.tensor([0.3, -0.1], dtype=D).requires_grad_()
    of: dict[str, Any] = {
        "reference_errors": torch.zeros(2, dtype=D),
        "phi": torch.tensor([1.0, 0.0]),
        "group": torch.tensor([0, 0]),
    }
    loss = get_method("rankdpo", beta=2.0)(Responses.of(policy_errors=s, **of)).scalar
    delta = 1 * abs(1 / math.log(2) - 1 / math.log(3))
    (gradient,) = torch.autograd.grad(loss, s)
    wanted = delta * 2 / (1 + math.exp(-2 * 0.4))
    assert gradient.tolist() == pytest.approx([wanted, -wanted], rel=1e-12)


def test_two_items_are_weighted_diffusion_dpo() -> None:
    """k = 2, fixed gain: Diffusion-DPO (its beta twice ours) times a constant."""
    g = torch.Generator().manual_seed(0)
    policy, reference = (torch.rand(8, generator=g, dtype=D) for _ in range(2))
    group = torch.arange(4).repeat(2)
    pairs = torch.stack([torch.arange(4), torch.arange(4) + 4], 1)
    of: dict[str, Any] = {"policy_errors": policy, "reference_errors": reference, "group": group, "pairs": pairs}
    phi = torch.cat([torch.ones(4), torch.zeros(4)]).double()
    ranked = get_method("rankdpo", beta=3.0)(Responses.of(**of, phi=phi)).scalar
    plain = get_method("diffusion-dpo", beta=6.0)(Responses.of(**of)).scalar
    assert ranked.item() == pytest.approx(plain.item() * abs(1 / math.log(2) - 1 / math.log(3)), rel=1e-12)


def test_accuracy_counts_untied_pairs_only() -> None:
    policy, reference, phi, group = errors(0)
    batch = Responses.of(policy_errors=policy, reference_errors=reference, phi=phi, group=group)
    found = get_method("rankdpo")(batch).metrics["pair_accuracy"]
    s = (policy - reference).tolist()
    pairs = [(i, j) for i in range(10) for j in range(10) if group[i] == group[j] and phi[i] > phi[j]]
    assert float(found.mean()) == pytest.approx(np.mean([s[i] < s[j] for i, j in pairs]))  # type: ignore[union-attr]


def test_votes_are_syn_pics() -> None:
    scores = [[1.0, 20.0, 3.0], [1.0, 30.0, 2.0], [0.0, 10.0, 5.0]]  # image -> model
    # model 0: images 0 and 1 tie, both beat 2; model 1: 1 > 0 > 2; model 2: 2 > 0 > 1
    assert votes(scores) == pytest.approx([(1 + 1 + 1) / 6, (1 + 2 + 0) / 6, (0 + 0 + 2) / 6])
    assert votes([[1.0], [1.0]]) == [0.0, 0.0]


# ---- in training


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Six prompts with four, three or two pictures each, scored by three models; the fifth all alike."""
    g = np.random.default_rng(0)
    rows = []
    for i in range(6):
        names = [f"{i}-{n}.png" for n in range(4 - i % 3)]
        for name in names:
            Image.fromarray(g.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
        scores = [[float(g.normal()) * unit for unit in (1, 100, 0.01)] for _ in names]
        rows.append({"prompt": "a red circle", "responses": names, "reward_scores": scores})
    rows[4]["reward_scores"] = [[1.0, 2.0, 3.0]] * 3
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "lists.jsonl"


def config(model: Path, lists: Path, output: Path, /, **sections: Any) -> Any:
    few = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "logging_steps": 1}
    base: dict[str, Any] = {"method": {"name": "rankdpo"}, "model": {"path": str(model)}, "output": str(output)}
    base |= {"data": {"path": str(lists), "max_dropped": 0.5}, "train": few | {"use_cpu": True, "save_strategy": "no"}}
    return make({k: v | sections.get(k, {}) if isinstance(v, dict) else v for k, v in base.items()})


def test_lists_with_reward_scores_train(image_model: Path, lists: Path, tmp_path: Path) -> None:
    cfg = config(image_model, lists, tmp_path / "run")
    task = diffusion_task(cfg, make_method(cfg))
    assert len(task.train) == 5  # the list of ties is dropped, and counted
    rows = [json.loads(line) for line in lists.read_text().splitlines()]
    assert task.train[0].notes == {"phi": votes(rows[0]["reward_scores"])}
    assert [d["count"] for d in task.record["data"]["dropped"].values()] == [1]
    assert train(cfg).status == "finished"
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({"pair_accuracy", "list_weight"} <= row.keys() for row in logged if "loss" in row)


@pytest.mark.parametrize("noise", ["own", "shared"])
def test_noise_is_drawn_for_each_image_or_for_the_list(
    image_model: Path, lists: Path, tmp_path: Path, noise: str
) -> None:
    from prefopt.scoring.base import Draw

    how = {} if noise == "own" else {"noise": noise}
    cfg = config(image_model, lists, tmp_path / "run", method=how)
    task = diffusion_task(cfg, make_method(cfg))
    batch: Any = task.scorer.collate([Draw(task.train[0]), Draw(task.train[1])])
    assert len(batch.noise) == (7 if noise == "own" else 2)
    assert len(batch.t) == 2  # one time for a list


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"responses": ["0-0.png"], "reward_scores": [[1.0]]}, "list of 1"),
        ({"phi": [0.5, 1.2, 0.1, 0.0]}, "between 0 and 1"),
        ({"phi": [0.5, float("nan"), 0.1, 0.0]}, "phi"),
        ({"phi": [0.5, 0.1]}, "2 entries for 4"),
        ({"reward_scores": None}, "'phi'"),
        ({"reward_scores": [[1.0], [], [2.0], [3.0]]}, "empty list"),
        ({"reward_scores": [[1.0], [float("nan")], [2.0], [3.0]]}, "finite number"),
        ({"reward_scores": [[1.0], [1.0, 2.0], [2.0], [3.0]]}, "numbers for different responses"),
    ],
    ids=str,
)
def test_bad_lists_stop_the_run(
    change: dict[str, Any], words: str, image_model: Path, lists: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in lists.read_text().splitlines()]
    rows[0] |= change
    lists.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(PrefoptError, match=words):
        train(config(image_model, lists, tmp_path / "run"))


def test_lists_without_any_preference_stop_the_run(image_model: Path, lists: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"phi": None} for line in lists.read_text().splitlines()]
    rows = [r | {"reward_scores": [[1.0]] * len(r["responses"])} for r in rows]
    lists.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(PrefoptError, match="6 of 6 rows teach nothing"):
        train(config(image_model, lists, tmp_path / "run", data={"max_dropped": 1.0}))
    with pytest.raises(PrefoptError, match=r"rankdpo\.beta"):
        get_method("rankdpo", beta=0.0)
