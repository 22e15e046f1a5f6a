"""prefopt on the benchmark's material, in a process of its own. Arguments: a JSON file."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import transformers

from benchmarks.measure import Clock, peak, report, reset_peak


def main(job: dict) -> None:
    from prefopt.config import make
    from prefopt.training import run
    from prefopt.training.tasks import text

    config = make(
        {
            "method": job.get("method", "dpo"),
            "model": job["model"],
            "data": {"path": job["data"], "max_length": 512, "strings": "plain"},
            "output": job["folder"] + "/prefopt",
            "train": {
                "per_device_train_batch_size": job["batch"], "max_steps": job["steps"], "save_strategy": "no",
                "logging_steps": 1, "learning_rate": 1e-5, "lr_scheduler_type": "constant", "warmup_steps": 0,
                "disable_tqdm": True, "bf16": job["bf16"], "seed": 0, **job.get("train", {}),
            },
        }
    )  # fmt: skip
    start: list[int] = []
    load = text.load_text_model

    def loaded(*args, **kwargs):
        model = load(*args, **kwargs)
        start.append(reset_peak())
        return model

    text.load_text_model = loaded
    clock = Clock()
    began = time.perf_counter()
    outcome = run.train(config, callbacks=[clock])
    rows = [json.loads(x) for x in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    prepared = clock.ends[0] - began
    found = {"seconds": clock.seconds, "prepare": prepared, "memory": peak() - start[0], "whole": peak()}
    report(Path(job["answer"]), **found, losses=losses)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    main(json.loads(Path(sys.argv[1]).read_text()))
