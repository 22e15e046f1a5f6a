"""A reference that follows the policy (TR-DPO): the rule by hand, adapters, resume, processes, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from prefopt import PrefoptError
from prefopt.config import make
from prefopt.scoring.moving import Moving
from prefopt.scoring.reference import FrozenReference
from prefopt.training.run import train
from prefopt.training.tasks.text import text_task
from tests.forks import Forks
from tests.small_models import save_text_model
from tests.training.small import model

KEYS: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2, "max_steps": 5, "disable_tqdm": True,
                        "per_device_train_batch_size": 4, "optim": "sgd"}  # fmt: skip


def plain(weights: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in weights.named_parameters()}


def shake(policy: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * 0.1)


@pytest.mark.parametrize(("alpha", "every"), [(0.6, 1), (1.0, 3), (0.25, 2)])
def test_the_rule(alpha: float, every: int) -> None:
    """ref <- a theta + (1 - a) ref after every tau-th step, computed weight by weight in plain Python."""
    policy = model()
    follow = Moving(FrozenReference.copy_of(policy).model, alpha, every).check(policy)
    want = plain(policy)
    for step in range(1, 7):
        shake(policy, step)
        follow.after(step, policy)
        if step % every == 0:
            want = {k: alpha * p.detach() + (1 - alpha) * want[k] for k, p in policy.named_parameters()}
        for name, value in follow.reference.named_parameters():
            torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in follow.reference.parameters())


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_of_an_adapter_the_merged_weights_are_mixed(alpha: float) -> None:
    policy = get_peft_model(model(), LoraConfig(r=4, target_modules="all-linear"))
    reference = FrozenReference.copy_of(policy, merged=True)
    follow = Moving(reference.model, alpha, 1).check(policy)
    assert not hasattr(reference.model, "peft_config")
    want = plain(reference.model)
    for step in (1, 2):
        shake(policy, step)
        follow.after(step, policy)
        merged = plain(copy.deepcopy(policy).merge_and_unload())
        want = {k: alpha * merged[k] + (1 - alpha) * want[k] for k in want}
    got = plain(reference.model)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)
    moved = [k for k in want if not torch.equal(got[k], plain(policy.get_base_model()).get(k, torch.zeros(0)))]
    assert moved
    assert follow.state(policy).keys() == {k for k in want if "proj" in k}  # and nothing else is kept in checkpoints


def test_what_cannot_follow_is_refused() -> None:
    other = model()
    other.lm_head = nn.Linear(16, 61, bias=False)
    with pytest.raises(PrefoptError, match="no weight 'lm_head"):
        Moving(other, 0.5, 1).check(model())
    half = model().bfloat16()
    with pytest.raises(PrefoptError, match="mixup_alpha = 0.5: .*bfloat16"):
        Moving(copy.deepcopy(half), 0.5, 1).check(half)
    Moving(copy.deepcopy(half), 1.0, 1).check(half)
    dora = get_peft_model(model(), LoraConfig(r=4, target_modules="all-linear", use_dora=True))
    with pytest.raises(PrefoptError, match="use_dora"):
        Moving(model(), 1.0, 1).check(dora)


# ---- whole runs


def content(text_model: Path, pairs: Path, out: Path, **sections: Any) -> Any:
    given = {"method": "dpo", "model": str(text_model), "data": str(pairs), "output": str(out), "train": KEYS}
    return make(given | sections)


def losses(run: Path) -> list[float]:
    import json

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r]


def test_a_copy_at_every_step_begins_every_step_at_log_2(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    train(content(text_model, pairs_file, tmp_path / "run", reference={"mixup_alpha": 1.0}))
    assert losses(tmp_path / "run") == pytest.approx([0.6931472] * 5, abs=1e-5)


def test_hard_updates_move_the_reference_when_they_say(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    found = {}
    for name, section in {"fixed": {"kind": "frozen"}, "hard": {"sync_steps": 3}, "soft": {"mixup_alpha": 0.5}}.items():
        train(content(text_model, pairs_file, tmp_path / name, reference=section))
        found[name] = losses(tmp_path / name)
    assert found["hard"][:3] == found["fixed"][:3]
    assert found["hard"][3] == pytest.approx(0.6931472, abs=1e-5)  # just copied
    assert abs(found["fixed"][3] - 0.6931472) > 1e-4
    assert found["soft"][0] == found["fixed"][0]
    assert abs(found["soft"][2] - 0.6931472) < abs(found["fixed"][2] - 0.6931472)  # (the first step warms up)


@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize(
    "section", [{"mixup_alpha": 0.4}, {"sync_steps": 2}, {"mixup_alpha": 0.7, "sync_steps": 2}], ids=str
)
def test_resumes_bit_for_bit(
    section: dict[str, Any], kind: str, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"reference": section}
    if kind == "adapter":
        sections["model"] = {"path": str(text_model), "adapter": {"r": 4}}
    for name, stops in (("whole", []), ("stopped", [3, 1])):
        config = content(text_model, pairs_file, tmp_path / name, **sections)
        for stop in stops:
            assert train(config, stop_after=stop).status == "interrupted"
        assert train(config).status == "finished"
    file = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    one, two = (load_file(tmp_path / name / file) for name in ("whole", "stopped"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    last = tmp_path / "whole" / "checkpoint-4"
    assert (last / "reference.safetensors").exists()


def test_every_kind_of_method_with_a_reference_may_have_a_moving_one(
    text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    for name in ("kto", "ipo"):
        ends = []
        for i, section in enumerate(({"kind": "frozen"}, {"mixup_alpha": 0.5})):
            out = tmp_path / f"{name}-{i}"
            train(content(text_model, pairs_file, out, method=name, reference=section))
            ends.append(load_file(out / "model.safetensors")["lm_head.weight"])
        assert not torch.equal(*ends)


def test_images_too(image_model: Path, image_pairs: Path, tmp_path: Path) -> None:
    keys = {k: v for k, v in KEYS.items() if k != "max_steps"} | {"max_steps": 3, "per_device_train_batch_size": 2}
    found = {}
    for name, section in {"copied": {"mixup_alpha": 1.0}, "fixed": {"kind": "frozen"}}.items():
        config = content(image_model, image_pairs, tmp_path / name, reference=section, train=keys,
                         method={"name": "dpo", "beta": 20.0}, model={"path": str(image_model), "adapter": {"r": 4}})  # fmt: skip
        train(config)
        found[name] = losses(tmp_path / name)
    assert found["copied"] == pytest.approx([0.6931472] * 3, abs=1e-3)  # merged weights round otherwise
    assert abs(found["fixed"][-1] - 0.6931472) > 2e-3


def test_two_processes_are_one(forks: Forks, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        keys = ["reference.mixup_alpha=0.5", "train.max_steps=4", "train.learning_rate=1e-2", "train.optim=sgd",
                f"train.per_device_train_batch_size={4 // processes}"]  # fmt: skip
        given = ["train", "dpo", "-m", text_model, "-d", pairs_file, "-o", tmp_path / name, *keys]
        done = forks.run(*given, processes=processes)
        assert done.code == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "store", "mixup_alpha": 0.5}, "reference.kind = store cannot move, as reference.mixup_alpha wants"),
        ({"kind": "adapter_off", "sync_steps": 5}, "adapter_off cannot move, as reference.sync_steps wants"),
        ({"mixup_alpha": 0.0}, "reference.mixup_alpha = 0.0"),
        ({"mixup_alpha": 1.5}, "reference.mixup_alpha = 1.5"),
        ({"sync_steps": 0}, "reference.sync_steps = 0"),
    ],
    ids=str,
)
def test_refusals(section: dict[str, Any], words: str, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PrefoptError, match=words):
        train(content(text_model, pairs_file, tmp_path / "run", reference=section))
    assert not (tmp_path / "run").exists()


def test_another_architecture_cannot_follow(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    other = save_text_model(tmp_path / "other", hidden_size=48)
    config = content(text_model, pairs_file, tmp_path / "run", reference={"path": str(other), "sync_steps": 5})
    from prefopt import get_method

    with pytest.raises(PrefoptError, match="of the policy's architecture"):
        text_task(config, get_method("dpo"))
    with pytest.raises(PrefoptError, match="reference.sync_steps has no effect: simpo uses no reference model"):
        train(content(text_model, pairs_file, tmp_path / "run", method="simpo", reference={"sync_steps": 5}))
