"""Rounds of data that the policy makes while it trains: one run, whatever the cutting, the processes and the stops."""

from __future__ import annotations

import json

import pytest
import torch

from prefopt import PrefoptError
from prefopt.training import checkpoints
from prefopt.training.rounds import Made, Waiting, chosen, places
from tests.training.rounds_task import PROMPTS, Answers, trainer
from tests.training.small import weights


def told(t) -> list[tuple[float, float]]:
    return [(r["rollout/round"], r["rollout/sum"]) for r in t.state.log_history if "rollout/round" in r]


def losses(t) -> list[float]:
    return [r["loss"] for r in t.state.log_history if "loss" in r]


def test_a_run_of_rounds_learns_and_makes_each_round_from_the_weights_at_its_start(tmp_path):
    maker = Answers()
    n = 40
    t = trainer(tmp_path / "run", maker, rounds=n, learning_rate=3e-2)
    t.train()
    assert t.state.global_step == t.state.max_steps == n * PROMPTS // 2
    assert [number for number, _ in told(t)] == list(range(n))
    assert told(t)[-1][1] > told(t)[0][1] + 20  # the sum of token ids is what is preferred
    assert sorted(set(maker.made_pieces)) == [(number, i) for number in range(n) for i in range(4)]
    first = maker.piece(trainer(tmp_path / "other").model, 0, 1, tmp_path)
    again = checkpoints.load_file(tmp_path / "run" / "rounds" / "000" / "piece-001.safetensors")
    assert torch.equal(first["answers"], again["answers"])
    assert not torch.equal(first["answers"], checkpoints.load_file(
        tmp_path / "run" / "rounds" / "039" / "piece-001.safetensors")["answers"])  # fmt: skip


def test_accumulation_is_the_same_run(tmp_path):
    whole = trainer(tmp_path / "a", batch=4)
    cut = trainer(tmp_path / "b", batch=1, accumulate=4)
    for t in (whole, cut):
        t.train()
    assert len(losses(whole)) == 6
    assert losses(whole) == pytest.approx(losses(cut), rel=1e-4)
    torch.testing.assert_close(weights(whole.model), weights(cut.model), rtol=1e-3, atol=1e-5)


def test_passes_see_a_rounds_data_again_in_another_order(tmp_path):
    maker = Answers()
    t = trainer(tmp_path / "run", maker, rounds=2, passes=3)
    t.train()
    assert t.state.max_steps == 2 * 3 * PROMPTS // 2
    assert len(maker.made_pieces) == 8
    assert [n for n, _ in told(t)] == [0, 1]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(tmp_path, stop, passes):
    from prefopt.training.run import _StopAfter

    keys = {"rounds": 3, "passes": passes, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", **keys)
    whole.train()
    maker = Answers()
    cut = trainer(tmp_path / "cut", maker, **keys)
    cut.add_callback(_StopAfter(stop))
    cut.train()
    again = trainer(tmp_path / "cut", maker, **keys)
    place = checkpoints.latest(tmp_path / "cut")
    again.restore_method(place)
    again.train(resume_from_checkpoint=str(place))
    assert torch.equal(weights(whole.model), weights(again.model))
    assert losses(whole) == losses(again)
    assert told(whole) == told(again)
    assert len(maker.made_pieces) == len(set(maker.made_pieces))  # nothing is made twice


def test_half_a_round_is_gone_on_with(tmp_path):
    """A process that dies between two pieces has lost nothing."""
    whole = trainer(tmp_path / "whole")
    whole.train()

    class Dies(Answers):
        def piece(self, policy, number, piece, folder):
            if len(self.made_pieces) == 2:
                raise KeyboardInterrupt
            return super().piece(policy, number, piece, folder)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", Dies()).train()
    maker = Answers()
    again = trainer(tmp_path / "cut", maker)
    again.train()
    assert maker.made_pieces[:2] == [(0, 2), (0, 3)]
    assert torch.equal(weights(whole.model), weights(again.model))


def test_fewer_examples_make_smaller_steps_not_fewer(tmp_path):
    for keep in (0.5, 0.125):  # 4 pairs for 4 steps; one pair, seen in each of them
        t = trainer(tmp_path / str(keep), Answers(keep=keep), rounds=2)
        t.train()
        assert len(losses(t)) == 8


def test_a_round_without_an_example_is_an_error(tmp_path):
    with pytest.raises(PrefoptError, match="no pair"):
        trainer(tmp_path / "run", Answers(keep=0)).train()


def test_rounds_that_no_checkpoint_needs_are_removed(tmp_path):
    t = trainer(tmp_path / "run", rounds=4, save_strategy="steps", save_steps=3, save_total_limit=2)
    t.train()
    assert sorted(p.name for p in (tmp_path / "run" / "rounds").iterdir()) == ["002", "003"]  # step 9 is in round 2
    kept = trainer(tmp_path / "kept", rounds=4, save_strategy="steps", save_steps=3, keep=True)
    kept.train()
    assert len(list((tmp_path / "kept" / "rounds").iterdir())) == 4


def test_the_middle_of_a_round_that_is_gone_cannot_be_made_again(tmp_path):
    from prefopt.training.run import _StopAfter

    t = trainer(tmp_path / "run")
    t.add_callback(_StopAfter(2))
    t.train()
    (tmp_path / "run" / "rounds" / "000" / "piece-002.safetensors").unlink()
    again = trainer(tmp_path / "run")
    with pytest.raises(PrefoptError, match=r"piece-002.safetensors is gone"):
        again.train(resume_from_checkpoint=str(checkpoints.latest(tmp_path / "run")))


def test_people_are_waited_for_and_the_run_goes_on(tmp_path):
    class Human(Answers):
        def made(self, number, pieces, folder):
            if not (folder / "marks.csv").exists():
                raise Waiting(f"round {number} waits")
            return Made(*super().made(number, pieces, folder))

    whole = trainer(tmp_path / "whole", rounds=2)
    whole.train()
    for number in range(2):
        t = trainer(tmp_path / "run", Human(), rounds=2, keep=True)
        place = checkpoints.latest(tmp_path / "run")
        assert (place is None) == (number == 0)
        with pytest.raises(Waiting, match=f"round {number} waits"):
            t.train(resume_from_checkpoint=None if place is None else str(place))
        (tmp_path / "run" / "rounds" / f"{number:03d}" / "marks.csv").touch()
        t = trainer(tmp_path / "run", Human(), rounds=2, keep=True)
        try:
            t.train(resume_from_checkpoint=None if place is None else str(place))
        except Waiting:
            assert number == 0
    assert torch.equal(weights(whole.model), weights(t.model))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"given": {"max_steps": 3}}, r"train.max_steps has no effect: rollout.rounds"),
        ({"given": {"num_train_epochs": 2}}, r"train.num_train_epochs has no effect"),
        ({"batch": 3}, r"a round makes up to 8 examples, and an optimiser step takes 3"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path, keys, match):
    with pytest.raises(PrefoptError, match=match):
        trainer(tmp_path / "run", **keys)


def test_wholes_stay_together(tmp_path):
    from prefopt.training.rounds import Rounds, RoundSampler

    maker = Answers()
    maker.together = 4
    rounds = Rounds(maker, tmp_path, 1)
    rounds.updates = 2
    for step in RoundSampler(rounds, 4, 1, 0, 1, 0).steps(0):
        assert sorted(step.tolist()) in ([0, 1, 2, 3], [4, 5, 6, 7])
    with pytest.raises(PrefoptError, match="in wholes of 4"):
        trainer(tmp_path / "run", maker, batch=2)


def test_places_and_prompts_of_a_round():
    assert places(5, 2) == [range(2), range(2, 4), range(4, 5)]
    assert sorted(chosen(4, 4, 0, 0)) == [0, 1, 2, 3]
    assert sorted(chosen(3, 7, 0, 1))[:6] != [0] * 6
    assert max(map(chosen(3, 7, 0, 1).count, range(3))) == 3
    assert chosen(10, 10, 0, 0) != chosen(10, 10, 0, 1)


def test_two_processes_share_the_pieces_and_make_one_run(forks, tmp_path):
    def launch(name: str, processes: int, batch: int, accumulate: int) -> dict:
        arguments = (tmp_path / name, batch, accumulate)
        done = forks.run(call="tests.training.rounds_task:main", arguments=arguments, processes=processes)
        assert done.code == 0, done.stderr[-3000:]
        pieces = [json.loads(p.read_text()) for p in sorted((tmp_path / name).glob("pieces-*.json"))]
        logs = json.loads((tmp_path / name / "logs.json").read_text())
        return {"weights": torch.load(tmp_path / name / "weights.pt"), "pieces": pieces, "logs": logs}

    one, two = launch("one", 1, 4, 1), launch("two", 2, 1, 2)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=2e-6)
    assert sorted(two["pieces"][0] + two["pieces"][1]) == one["pieces"][0]
    assert [len(p) for p in two["pieces"]] == [6, 6]
    for a, b in zip(one["logs"], two["logs"], strict=True):
        assert a.keys() == b.keys()
        assert a.get("loss", a.get("rollout/sum")) == pytest.approx(b.get("loss", b.get("rollout/sum")), rel=1e-4)
