"""Networks beside the policy, each in turns of its own: who moves when, clipping, rates, cuts of a step, processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from prefopt import PrefoptError
from prefopt.training.turns import Turns, refuse_shared
from tests.forks import Forks
from tests.training.small_turns import METHOD, trainer, weights


def test_whose_turn_a_step_is() -> None:
    turns = Turns({"a": 2, "b": 1})
    assert turns.round == 4
    assert [turns.at(step) for step in range(9)] == ["a", "a", "b", "", "a", "a", "b", "", "a"]
    assert [Turns({}).at(step) for step in range(3)] == ["", "", ""]


class Watch(transformers.TrainerCallback):
    """Weights and optimiser state after every step."""

    def __init__(self, t: Any):
        self.t, self.weights, self.steps = t, [weights(t)], []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.weights.append(weights(self.t))
        per_group = [
            [float(s["step"]) for p in g["params"] if (s := self.t.optimizer.state.get(p))] for g in self.groups()
        ]
        self.steps.append([max(x, default=0.0) for x in per_group])

    def groups(self) -> list[Any]:
        inner = self.t.optimizer
        return getattr(inner, "optimizer", inner).param_groups


def watched(tmp_path: Path, **given: Any) -> tuple[Any, Watch]:
    t = trainer(tmp_path / "run", **given)
    watch = Watch(t)
    t.add_callback(watch)
    t.train()
    return t, watch


def test_only_the_network_whose_turn_it_is_moves(tmp_path: Path) -> None:
    """Neither momentum nor weight decay touches the other, and its own count of steps stands still."""
    _, watch = watched(tmp_path, weight_decay=0.1)
    for step, (before, after) in enumerate(zip(watch.weights, watch.weights[1:], strict=False)):
        turn = ["assistant", "assistant", ""][step % 3]
        other = {"assistant": "", "": "assistant"}[turn]
        assert torch.equal(before[other], after[other]), step
        assert step == 13 or not torch.equal(before[turn], after[turn]), step  # the rate of the last step is near 0
    assert watch.steps[-1][-1] == 10  # of 14 steps: 5 rounds but the last generator's
    assert max(watch.steps[-1][:-1]) == 4


def test_groups_have_rates_and_betas_of_their_own(tmp_path: Path) -> None:
    t, watch = watched(
        tmp_path, hyper={"assistant_betas": [0.0, 0.5]}, lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.9
    )
    *own, other = watch.groups()
    assert other["lr"] == pytest.approx(3e-2)
    assert other["betas"] == (0.0, 0.5)
    assert other["weight_decay"] == 0.1
    assert {g["lr"] for g in own} == {1e-2}
    assert {g["betas"] for g in own} == {(0.9, 0.9)}
    assert t.state.global_step == t.state.max_steps == 14


def test_each_turn_is_clipped_by_itself(tmp_path: Path) -> None:
    """Plain gradient steps of a clipped gradient are as long as rate times limit, whosever turn it is."""
    limit = 1e-3
    t, watch = watched(tmp_path, optim="sgd", max_grad_norm=limit, lr_scheduler_type="constant")
    for step, (before, after) in enumerate(zip(watch.weights, watch.weights[1:], strict=False)):
        turn, rate = [("assistant", 3e-2), ("assistant", 3e-2), ("", 1e-2)][step % 3]
        assert (after[turn] - before[turn]).norm().item() == pytest.approx(rate * limit, rel=1e-2), step
    norms = [row["grad_norm"] for row in t.state.log_history if "grad_norm" in row]
    assert len(norms) == 14
    assert min(norms) > limit


def test_terms_are_logged_by_themselves(tmp_path: Path) -> None:
    t, _ = watched(tmp_path, logging_steps=3)
    rows = [r for r in t.state.log_history if "loss" in r and r["step"] > 1]
    assert {"loss/assistant", "loss/regulariser", "loss/reward", "assistant/error", "reward", "log_y"} <= rows[0].keys()
    found = t.evaluate()
    assert {"eval_reward", "eval_log_y"} <= found.keys()  # held-out prompts: the policy's own turn
    assert "eval_assistant/error" not in found


def launch(forks: Forks, output: Path, processes: int, batch: int, accumulate: int) -> dict[str, Any]:
    arguments = (output, batch, accumulate)
    done = forks.run(call="tests.training.small_turns:main", arguments=arguments, processes=processes)
    assert done.code == 0, done.stderr[-3000:]
    return {"weights": torch.load(output / "weights.pt"), **json.loads((output / "logs.json").read_text())}


def test_a_step_is_the_same_however_it_is_cut(forks: Forks, tmp_path: Path) -> None:
    """4 examples at once, one after the other, and on two processes; with an uneven last step."""
    whole = launch(forks, tmp_path / "whole", 1, 4, 1)
    for name, how in {"cut": (1, 1, 4), "two": (2, 1, 2)}.items():
        other = launch(forks, tmp_path / name, *how)
        torch.testing.assert_close(other["weights"], whole["weights"], rtol=1e-4, atol=2e-6)
        assert len(other["train"]) == len(whole["train"]) == 14
        for a, b in zip(whole["train"], other["train"], strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"tokens_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=1e-5), key
        for key in ("eval_loss", "eval_reward", "eval_log_y"):
            assert whole["eval"][key] == pytest.approx(other["eval"][key], rel=1e-3)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_run_goes_on_in_any_turn(step: int, tmp_path: Path) -> None:
    """Bit for bit, both networks and the logs, from a checkpoint in the middle of a round or at its end."""
    keys: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 7, "max_grad_norm": 0.5}
    whole = trainer(tmp_path / "run", **keys)
    whole.train()
    again = trainer(tmp_path / "run", **keys)
    place = tmp_path / "run" / f"checkpoint-{step}"
    again.restore_method(place)
    again.train(resume_from_checkpoint=str(place))
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = [
        [(r["step"], r["loss"], r["grad_norm"]) for r in t.state.log_history if "loss" in r] for t in (whole, again)
    ]
    assert rows[0] == rows[1]


def test_shared_weights_are_refused() -> None:
    one = nn.Linear(2, 2)
    both = nn.Sequential(one, nn.Linear(2, 1))
    with pytest.raises(PrefoptError, match="'assistant' and the policy share weights"):
        refuse_shared({"assistant": one}, both)
    with pytest.raises(PrefoptError, match="'b' and a share weights"):
        refuse_shared({"a": nn.Sequential(one), "b": one}, nn.Linear(1, 1))
    refuse_shared({"assistant": nn.Linear(2, 2)}, both)


def test_the_method_says_who_has_turns() -> None:
    from prefopt import get_method

    m = get_method("diff-instruct-star", **METHOD)
    assert list(m.turns()) == ["assistant", ""]
    assert m.needs()["turns:assistant"] == {"steps": 2, "rate": 3.0}
    assert Turns.of(m.needs()).round == 3
    assert list(get_method("dpo").turns()) == [""]
