"""Annotators: as many as the data names, reported by name; what a method says of each pair ends in a file with row numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import PrefoptError
from prefopt.config import make
from prefopt.data.config import DataConfig
from prefopt.data.prepare import prepare_text
from prefopt.training.run import train
from prefopt.training.sampler import Visit
from tests.small_models import save_text_model, write_pairs


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("model"))


def rows(path: Path, annotators: list[object], n: int = 12, **more: object) -> Path:
    """Pairs whose annotators come round in turn; None: the row has no such field."""
    write_pairs(path, n, **more)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(found):
        if (who := annotators[i % len(annotators)]) is not None:
            row["annotator"] = who
    path.write_text("".join(json.dumps(r) + "\n" for r in found))
    return path


def run(model: Path, path: Path, output: Path, method: dict | None = None, stop: int | None = None, **more: object):
    content = {
        "method": {"name": "lcpo", **(method or {})},
        "model": str(model),
        "data": {"path": str(path), **(more.pop("data", {}))},
        "output": str(output),
        "train": {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 1,
                  "disable_tqdm": True, **more},
    }  # fmt: skip
    return train(make(content), stop_after=stop)


def exported(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]


def test_each_annotator_has_a_reliability_in_log_record_and_file(model, tmp_path):
    data = rows(tmp_path / "d.jsonl", ["bob", 7, "alice"])
    outcome = run(model, data, tmp_path / "run")
    eta = outcome.record["learnt"]["eta"]
    assert list(eta) == ["7", "alice", "bob"]
    assert outcome.record["method"]["annotators"] == 3
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"]["annotators"] is None
    last = [r for line in (tmp_path / "run" / "metrics.jsonl").open() if "loss" in (r := json.loads(line))][-1]
    assert {k: last[f"eta/{k}"] for k in eta} == pytest.approx(eta, abs=1e-3)  # before the last update
    found = exported(tmp_path / "run")
    assert [r["row"] for r in found] == list(range(1, 13))
    assert {r["file"] for r in found} == {str(data)}
    assert outcome.record["exported"] == {
        "file": "examples.jsonl", "rows": 12, "numbers": ["eta", "induced_logit", "weight"]
    }  # fmt: skip
    for r, who in zip(found, ["bob", "7", "alice"] * 4, strict=True):
        assert r["eta"] == pytest.approx(eta[who], abs=1e-6)
        assert 0 < r["weight"] < 1


def test_the_numbers_are_those_of_the_finished_policy(model, tmp_path):
    """s of the saved weights, scored by plain transformers."""
    data = rows(tmp_path / "d.jsonl", [None])
    run(model, data, tmp_path / "run", max_steps=3)
    found = exported(tmp_path / "run")
    assert len(found) == 12
    assert found[0]["induced_logit"] != 0
    words = AutoTokenizer.from_pretrained(model)
    pairs = prepare_text(DataConfig(path=str(data)), words, needs={"pairs"}, cache=tmp_path / "c").train
    totals = {}
    for path in (tmp_path / "run", model):
        plain = AutoModelForCausalLM.from_pretrained(path).double()
        for side, ids in enumerate(pairs[0].response_ids):
            whole = torch.tensor([[*pairs[0].prompt_ids, *ids]])
            with torch.no_grad():
                each = torch.log_softmax(plain(whole).logits[0, :-1], -1).gather(-1, whole[0, 1:, None])[:, 0]
            totals[path, side] = each[-len(ids) :].sum().item()
    h = [totals[tmp_path / "run", side] - totals[model, side] for side in (0, 1)]
    assert pairs[0].row == found[0]["row"]
    assert found[0]["induced_logit"] == pytest.approx(0.1 * (h[0] - h[1]), abs=1e-4)


def test_a_resumed_run_ends_with_the_same_reliabilities_and_weights(model, tmp_path):
    data = rows(tmp_path / "d.jsonl", ["a", "b"])
    whole = run(model, data, tmp_path / "whole")
    assert run(model, data, tmp_path / "cut", stop=2).status == "interrupted"
    assert not (tmp_path / "cut" / "examples.jsonl").exists()
    again = run(model, data, tmp_path / "cut")
    assert again.record["learnt"] == whole.record["learnt"]
    assert exported(tmp_path / "cut") == exported(tmp_path / "whole")


def test_one_annotator_for_all_needs_no_column_and_ignores_it(model, tmp_path):
    data = rows(tmp_path / "d.jsonl", ["a", None])
    outcome = run(model, data, tmp_path / "run", {"annotators": 1}, max_steps=1)
    assert len(outcome.record["learnt"]["eta"]) == 1


@pytest.mark.parametrize(
    ("annotators", "method", "says"),
    [
        (["a", None], {}, "'annotator' stands in 6 rows only"),
        (["a", "b", "c"], {"annotators": 2}, r"room for 2 names in 'annotator', the data has 3 \(a, b, c\)"),
        (["a", {"id": 3}], {}, "'annotator' is .*expected a name or a number"),
        (["a", ["b", "c"]], {}, "'annotator' has 2 entries"),
        (["a", 0.5, float("nan")], {}, "expected a name or a number"),
    ],
)
def test_columns_that_cannot_be_read_as_names_are_refused_before_training(model, tmp_path, annotators, method, says):
    data = rows(tmp_path / "d.jsonl", annotators)
    with pytest.raises(PrefoptError, match=says):
        run(model, data, tmp_path / "run", method)
    assert not (tmp_path / "run").exists()


def test_a_name_of_held_out_data_only_is_refused_from_a_file_and_told_of_a_share(model, tmp_path, caplog):
    data = rows(tmp_path / "d.jsonl", ["a", "b"])
    held_out = rows(tmp_path / "e.jsonl", ["b", "zoe"], 4)
    with pytest.raises(PrefoptError, match=r"1 name\(s\) of 'annotator' \(zoe\) occur in held-out data only"):
        run(model, data, tmp_path / "run", data={"eval_path": str(held_out)})
    everyone = rows(tmp_path / "f.jsonl", [f"p{i}" for i in range(12)])
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        outcome = run(model, everyone, tmp_path / "share", data={"eval_fraction": 0.4}, max_steps=2)
    assert "occur in held-out data only" in caplog.text
    unknown = outcome.record["data"]["names_held_out_only"]["annotator"]
    assert unknown
    assert all(outcome.record["learnt"]["eta"][name] == 0.9 for name in unknown)


def test_a_visit_is_every_example_once_on_some_process():
    import numpy as np

    costs, wanted = np.arange(1, 31), np.array([3, 4, 9, 11, 20, 21, 29])
    for world in (1, 2, 3):
        parts = [list(Visit(costs, wanted, 4, rank, world)) for rank in range(world)]
        assert all(len(p) == len(Visit(costs, wanted, 4)) for p in parts)
        slots = [s for p in parts for batch in p for s in batch if not s.filler]
        assert sorted(s.index for s in slots) == wanted.tolist()
