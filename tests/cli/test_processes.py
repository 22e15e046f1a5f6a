"""One command under torchrun: two processes are one run, with one folder, one message and the weights of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
KEYS = ["train.max_steps=3", "train.learning_rate=1e-3", "train.optim=sgd"]


def start(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "prefopt", "train", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_two_processes_are_one_run(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    given = ["dpo", "-m", text_model, "-d", pairs_file, *KEYS]
    one = start(1, *given, "-o", tmp_path / "one", "train.per_device_train_batch_size=4")
    two = start(2, *given, "-o", tmp_path / "two", "train.per_device_train_batch_size=2")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert two.stdout.count("finished") == 1
    a, b = (load_file(tmp_path / x / "model.safetensors") for x in ("one", "two"))
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=2e-6)


def test_a_refusal_is_said_once(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    done = start(2, "dpo", "-m", text_model, "-d", pairs_file, "-o", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("holds other files") == 1
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]
