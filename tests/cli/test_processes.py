"""One command on two processes is one run, with one folder, one message and the weights of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forks import Forks

ROOT = Path(__file__).parents[2]
KEYS = ["train.max_steps=3", "train.learning_rate=1e-3", "train.optim=sgd"]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "prefopt"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    argv = [*command, *map(str, arguments)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_torchrun(forks: Forks, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    follow = ["diagnostics.every=2", "diagnostics.pairs=5", "diagnostics.max_new_tokens=4"]
    given = [
        "train",
        "lcpo",
        "-m",
        text_model,
        "-d",
        pairs_file,
        *KEYS,
        *follow,
    ]  # with state, and a file about every pair
    one = forks.run(*given, "-o", tmp_path / "one", "train.per_device_train_batch_size=4")
    two = torchrun(*given, "-o", tmp_path / "two", "train.per_device_train_batch_size=2")
    assert one.code == two.returncode == 0, one.stderr + two.stderr
    assert two.stdout.count("finished") == 1
    a, b = (load_file(tmp_path / x / "model.safetensors") for x in ("one", "two"))
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=2e-6)
    seen = [followed(tmp_path / x) for x in ("one", "two")]
    assert [row["step"] for row in seen[0]] == [0, 2, 3]
    for row, other in zip(*seen, strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-4)
    pairs = [[json.loads(line) for line in (tmp_path / x / "examples.jsonl").open()] for x in ("one", "two")]
    assert len(pairs[0]) == 12  # three steps of four
    for row, other in zip(*pairs, strict=True):
        assert (other.pop("file"), other.pop("row")) == (row.pop("file"), row.pop("row"))
        assert other == pytest.approx(row, rel=1e-3, abs=1e-4)


def followed(run: Path) -> list[dict[str, float]]:
    """The rows of the three properties. A ratio of two changes near zero is mostly rounding."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "properties/chosen" in row]
    return [{k: v for k, v in row.items() if k != "properties/drop_ratio"} for row in found]


def test_a_refusal_is_said_once(forks: Forks, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    done = forks.run("train", "dpo", "-m", text_model, "-d", pairs_file, "-o", tmp_path / "run", processes=2)
    assert done.code == 2
    assert done.stderr.count("holds other files") == 1
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("recipe", "keys", "made"),
    [
        ("sdpo", ["method.chunks=2", "method.kl_prompts=0"], 2),
        ("tgdpo-from-pairs", ["method.first_train.max_steps=2"], 2),  # the second reads the first's log-probabilities
    ],
)
def test_a_recipe_on_two_processes(
    recipe: str, keys: list[str], made: int, forks: Forks, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    given = ["train", recipe, "-m", text_model, "-d", pairs_file, *KEYS, *keys]
    one = forks.run(*given, "-o", tmp_path / "one", "train.per_device_train_batch_size=4")
    two = forks.run(*given, "-o", tmp_path / "two", "train.per_device_train_batch_size=2", processes=2)
    assert one.code == two.code == 0, one.stderr + two.stderr
    assert two.stdout.count("finished") == 1
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("model.safetensors"))
    assert len(files) >= made
    for file in files:
        a, b = (load_file(tmp_path / x / file) for x in ("one", "two"))
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=2e-6)
