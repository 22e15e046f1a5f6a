"""Two processes (gloo) make the same step as one, with an uneven last batch, for stateless and batch-coupled methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.forks import Forks


def launch(forks: Forks, output: Path, name: str, processes: int, batch: int, accumulate: int = 1) -> dict:
    arguments = (output, name, batch, accumulate)
    done = forks.run(call="tests.training.two_processes:main", arguments=arguments, processes=processes)
    assert done.code == 0, done.stderr[-3000:]
    logs = json.loads((output / "logs.json").read_text())
    return {"weights": torch.load(output / "weights.pt"), **logs}


@pytest.mark.parametrize("name", ["dpo", "kto", "cpo", "lcpo", "triple-tpo"])
def test_two_processes_are_one(name: str, forks: Forks, tmp_path: Path) -> None:
    one = launch(forks, tmp_path / "one", name, 1, 4)
    two = launch(forks, tmp_path / "two", name, 2, 1, accumulate=2)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=2e-6)
    assert len(one["train"]) == len(two["train"]) == 8  # 13 examples in steps of 4, twice
    for a, b in zip(one["train"], two["train"], strict=True):
        for key in ("loss", "grad_norm", "rewards/chosen", "eta"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key
    for key, value in one["eval"].items():
        if not key.endswith(("runtime", "per_second")):
            assert value == pytest.approx(two["eval"][key], rel=1e-3, abs=1e-5), key
