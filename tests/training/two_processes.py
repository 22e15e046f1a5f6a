"""Run by test_processes under torch.distributed.run: trains the small task and writes rank 0's weights and logs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from tests.training.small import trainer, weights

if __name__ == "__main__":
    torch.set_num_threads(1)
    output, name, n, batch, accumulate = sys.argv[1:6]
    t = trainer(
        Path(output),
        name,
        n=int(n),
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
    sys.stdout.flush()
    os._exit(0)  # all is written; an interpreter that shuts down is now and then aborted by one of gloo's threads
