"""The one trainer: exact accumulation, exact resume, honest metrics, checks at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prefopt import PrefoptError
from prefopt.training import checkpoints
from tests.training.small import model, trainer, weights

METHODS = ["dpo", "kto", "orpo", "simpo", "sft", "triple-tpo", "beta-dpo", "aot"]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_depend_on_how_it_is_cut(name: str, tmp_path: Path) -> None:
    """16 x 1, 4 x 4 and 1 x 16, with an uneven last step, end in the same weights."""
    ends = []
    for batch in (16, 4, 1):
        t = trainer(tmp_path / f"b{batch}", name, n=20, batch=batch, accumulate=16 // batch, optim="sgd")
        t.train()
        ends.append(weights(t.model))
    assert not torch.equal(ends[0], weights(model()))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-4, atol=2e-6)


def test_the_loss_logged_is_that_of_the_whole_step(tmp_path: Path) -> None:
    logs = []
    for batch in (8, 2):
        t = trainer(tmp_path / f"b{batch}", n=16, batch=batch, accumulate=8 // batch)
        t.train()
        logs.append([row for row in t.state.log_history if "loss" in row])
    for a, b in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "lengths/rejected"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key
    assert logs[0][0]["loss"] == pytest.approx(0.6931472, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", name, save_strategy="steps", save_steps=1, num_train_epochs=2)
    whole.train()
    folder = tmp_path / "whole" / "checkpoint-7"
    assert checkpoints.latest(tmp_path / "whole") == tmp_path / "whole" / "checkpoint-12"
    again = trainer(tmp_path / "again", name, num_train_epochs=2)
    again.restore_method(folder)
    again.train(resume_from_checkpoint=str(folder))
    assert torch.equal(weights(whole.model), weights(again.model))
    losses = [[r["loss"] for r in t.state.log_history if "loss" in r] for t in (whole, again)]
    assert losses[0] == losses[1]


def test_a_half_written_checkpoint_is_not_there(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.mark_whole(tmp_path / "checkpoint-2")
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_keeps_as_many_checkpoints_as_asked(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_evaluation_counts_every_example_once(tmp_path: Path) -> None:
    found = []
    for batch in (7, 3, 1):
        t = trainer(tmp_path / str(batch), held_out=7, per_device_eval_batch_size=batch)
        t.train()
        found.append(t.evaluate())
    for key in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_logps/rejected"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4) == pytest.approx(found[2][key], rel=1e-4), key


def test_writes_metrics_as_lines(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "grad_norm", "learning_rate", "rewards/chosen", "tokens_per_second"} <= rows[0].keys()


def test_a_reference_that_is_not_the_start_stops_the_run(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    with torch.no_grad():
        t.model.lm_head.weight.mul_(1.5)
    with pytest.raises(PrefoptError, match="before the first step policy and reference differ"):
        t.train()


def test_a_policy_that_does_not_move_stops_the_run(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.args.max_grad_norm = 1e-30
    t.args.learning_rate = 1e-30
    with pytest.raises(PrefoptError, match="still equals its reference"):
        t.train()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    t = trainer(tmp_path, "simpo")
    with torch.no_grad():
        t.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(PrefoptError, match="no longer finite"):
        t.train()


def test_bf16_autocast_trains_close_to_float32(tmp_path: Path) -> None:
    ends = {}
    for name, given in (("float32", {}), ("bf16", {"bf16": True, "use_cpu": True})):
        t = trainer(tmp_path / name, optim="sgd", learning_rate=1e-1, **given)
        t.train()
        ends[name] = weights(t.model) - weights(model())
        losses = [r["loss"] for r in t.state.log_history if "loss" in r]
        assert losses[0] == pytest.approx(0.6931, abs=5e-3)
    assert ends["bf16"].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(ends["bf16"], ends["float32"], dim=0)
    assert cosine > 0.98, cosine


def test_an_adapter_trains_alone_and_its_absence_is_the_reference(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from prefopt.scoring.reference import AdapterOffReference
    from prefopt.scoring.text import TextScorer

    policy = get_peft_model(model(), LoraConfig(r=4, target_modules="all-linear"))
    t = trainer(tmp_path, policy=policy)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    t.scorer = t.task.scorer = TextScorer(t.needs, AdapterOffReference(policy), notes=["pairs"])
    t.train()
    changed = {k for k, v in policy.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all("lora_" in k for k in changed)


def test_checkpointed_activations_change_nothing(tmp_path: Path) -> None:
    ends = []
    for on in (False, True):
        t = trainer(tmp_path / str(on), optim="sgd", gradient_checkpointing=on)
        t.train()
        ends.append(weights(t.model))
    torch.testing.assert_close(ends[0], ends[1])


def test_a_state_is_read_before_the_step_and_advanced_once_after_it(tmp_path: Path) -> None:
    """However the step is cut, and across a resume."""
    from prefopt.methods import load_file

    path = tmp_path / "ema.py"
    path.write_text(
        "import torch\n"
        "from prefopt import Update, Loss, method, compare\n"
        "from prefopt.objectives.words import bradley_terry\n"
        "@method('ema-toy')\n"
        "def ema_toy(r, *, beta: float = 0.1) -> Loss:\n"
        "    w, l = r.pairs()\n"
        "    mean = r.state('mean', lambda: torch.zeros(1))\n"
        "    m = beta * (w.log_ratio.sum() - l.log_ratio.sum())\n"
        "    step = lambda old, total, n: 0.5 * old + 0.5 * total / n + 1\n"
        "    n = torch.full((1,), float(len(m)))\n"
        "    return Loss(preference=compare(m - mean, bradley_terry), metrics={'mean': mean},\n"
        "                updates={'mean': Update(m.detach().sum()[None], n, step)})\n"
    )
    load_file(path)
    seen, ends = [], []
    for batch in (8, 2):
        t = trainer(tmp_path / str(batch), "ema-toy", n=16, batch=batch, accumulate=8 // batch, optim="sgd",
                    save_strategy="steps", save_steps=1)  # fmt: skip
        t.train()
        seen.append([r["mean"] for r in t.state.log_history if "mean" in r])
        ends.append(t.method_states.values["mean"])
    assert seen[0][0] == 0.0
    assert seen[0][1] == pytest.approx(1.0, abs=1e-4)
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    again = trainer(tmp_path / "again", "ema-toy", n=16, batch=8, optim="sgd")
    again.restore_method(tmp_path / "8" / "checkpoint-1")
    again.train(resume_from_checkpoint=str(tmp_path / "8" / "checkpoint-1"))
    assert torch.equal(again.method_states.values["mean"], ends[0])
