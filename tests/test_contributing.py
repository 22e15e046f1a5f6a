"""CONTRIBUTING.md, followed to the letter: a method that nothing foresaw, in one file outside the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILE, CALL = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def method_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stranger") / "squashed.py"
    path.write_text(FILE)
    return path


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_the_file_is_short() -> None:
    assert len(FILE.splitlines()) < 40


@pytest.mark.parametrize("kind", ["text", "images"])
def test_it_trains(kind: str, method_file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    names = {"text": ("text_model", "pairs_file"), "images": ("image_model", "image_pairs")}[kind]
    model, data = (request.getfixturevalue(n) for n in names)
    done = run(
        "-m", "prefopt", "train", method_file.name, "--model", model, "--data", data, "--output", tmp_path / "run",
        "method.limit=3", "train.max_steps=3", "train.per_device_train_batch_size=4", "train.learning_rate=1e-3",
        cwd=method_file.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "squashed" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_it_runs_without_a_model(method_file: Path) -> None:
    done = run("-c", CALL, cwd=method_file.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensor(")


def test_its_keys_are_checked_like_any_others(
    method_file: Path, tmp_path: Path, text_model: Path, pairs_file: Path
) -> None:
    done = run(
        "-m", "prefopt", "train", method_file, "-m", text_model, "-d", pairs_file, "-o", tmp_path / "run", "method.limt=3",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "did you mean 'limit'?" in done.stderr
    assert not (tmp_path / "run").exists()
