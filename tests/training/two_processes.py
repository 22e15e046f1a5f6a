"""What each of several processes does in test_processes: trains the small task; rank 0 writes weights and logs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from tests.training.small import trainer, weights


def main(output: str, name: str, batch: str, accumulate: str) -> None:
    """13 examples, two passes."""
    t = trainer(
        Path(output),
        name,
        n=13,
        batch=int(batch),
        accumulate=int(accumulate),
        held_out=5,
        optim="sgd",
        per_device_eval_batch_size=2,
        use_cpu=True,
        num_train_epochs=2,
        **({"ddp_backend": "gloo"} if "RANK" in os.environ else {}),
    )
    t.train()
    found = t.evaluate()
    if t.args.process_index == 0:
        torch.save(weights(t.model), Path(output) / "weights.pt")
        rows = [r for r in t.state.log_history if "loss" in r]
        (Path(output) / "logs.json").write_text(json.dumps({"train": rows, "eval": found}))
