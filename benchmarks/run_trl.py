"""TRL's DPOTrainer on the benchmark's material, in a process of its own. Arguments: a JSON file."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import SequentialSampler

from benchmarks.measure import Clock, peak, report, reset_peak


def main(job: dict) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        """Takes the pairs in the order in which they are given, so that both tools see equal batches."""

        def _get_train_sampler(self, *_, **__):
            return SequentialSampler(self.train_dataset)

    rows = [json.loads(x) for x in Path(job["data"]).read_text().splitlines()]
    order = np.random.default_rng((0, 0)).permutation(len(rows))  # prefopt's order with seed 0
    config = DPOConfig(
        output_dir=job["folder"] + "/trl", per_device_train_batch_size=job["batch"], max_length=512,
        max_steps=job["steps"], report_to=[], save_strategy="no", logging_steps=1, bf16=job["bf16"], beta=0.1,
        learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0, disable_tqdm=True, seed=0,
        precompute_ref_log_probs=job["precomputed"], gradient_checkpointing=job["checkpointing"],
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).to(config.device)
    start = reset_peak()
    clock = Clock()
    began = time.perf_counter()
    trainer = InOrder(
        model=model, args=config, train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]), callbacks=[clock],
    )  # fmt: skip
    prepared = time.perf_counter() - began
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    report(Path(job["answer"]), seconds=clock.seconds, prepare=prepared, memory=peak() - start, losses=losses)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    main(json.loads(Path(sys.argv[1]).read_text()))
