"""prefopt on the image benchmark's material, in a process of its own. Arguments: a JSON file."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import transformers

from benchmarks.image_material import ADAPTER, same_adapter
from benchmarks.measure import Clock, peak, report, reset_peak


def main(job: dict) -> None:
    from prefopt.config import make
    from prefopt.training import run
    from prefopt.training.tasks import pipeline

    config = make(
        {
            "method": {"name": "diffusion-dpo", "beta": job["beta"], "half_factor": 1.0},  # as diffusers' script has it
            "model": {"path": job["model"], "adapter": ADAPTER},
            "data": {"path": job["data"]},
            "denoising": {"caption_dropout": 0.0, **job.get("denoising", {})},
            "output": job["folder"] + "/prefopt",
            "train": {
                "per_device_train_batch_size": job["batch"], "max_steps": job["steps"], "save_strategy": "no",
                "logging_steps": 1, "learning_rate": job["rate"], "lr_scheduler_type": "constant", "warmup_steps": 0,
                "weight_decay": 1e-2, "disable_tqdm": True, "seed": 0, **job.get("train", {}),
            },
        }
    )  # fmt: skip
    start: list[int] = []
    load, adapt = pipeline.load_image_model, pipeline.make_trainable

    def loaded(*args, **kwargs):
        model = load(*args, **kwargs)
        start.append(reset_peak())
        return model

    def adapted(*args, **kwargs):
        net = adapt(*args, **kwargs)
        same_adapter(net)
        return net

    class Training(Clock):
        """The peak of training alone, beside that of the whole process."""

        def on_train_begin(self, *args, **kwargs):
            self.before = peak()
            reset_peak()
            super().on_train_begin(*args, **kwargs)

        def on_train_end(self, *_, **__):
            self.during = peak()

    pipeline.load_image_model, pipeline.make_trainable = loaded, adapted
    clock = Training()
    began = time.perf_counter()
    outcome = run.train(config, callbacks=[clock])
    rows = [json.loads(x) for x in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    found = {"seconds": clock.seconds, "processor": clock.processor, "prepare": clock.ends[0] - began, "losses": losses}
    found |= {"memory": clock.during - start[0], "preparing": clock.before - start[0]}
    report(Path(job["answer"]), **found)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    main(json.loads(Path(sys.argv[1]).read_text()))
