"""Two processes (gloo) make the same step as one, with an uneven last batch, for stateless and batch-coupled methods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def launch(output: Path, name: str, processes: int, batch: int, accumulate: int = 1) -> dict:
    run = [sys.executable, "-m"]
    if processes > 1:
        run += ["torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0", "--standalone", "-m"]
    run += ["tests.training.two_processes", str(output), name, "13", str(batch), str(accumulate)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = json.loads((output / "logs.json").read_text())
    return {"weights": torch.load(output / "weights.pt"), **logs}


@pytest.mark.parametrize("name", ["dpo", "kto", "cpo", "lcpo", "triple-tpo"])
def test_two_processes_are_one(name: str, tmp_path: Path) -> None:
    one = launch(tmp_path / "one", name, 1, 4)
    two = launch(tmp_path / "two", name, 2, 1, accumulate=2)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=2e-6)
    assert len(one["train"]) == len(two["train"]) == 8  # 13 examples in steps of 4, twice
    for a, b in zip(one["train"], two["train"], strict=True):
        for key in ("loss", "grad_norm", "rewards/chosen", "eta"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key
    for key, value in one["eval"].items():
        if not key.endswith(("runtime", "per_second")):
            assert value == pytest.approx(two["eval"][key], rel=1e-3, abs=1e-5), key
