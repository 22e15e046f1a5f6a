"""What diffusers' Diffusion-DPO example for Stable Diffusion does in a step, call for call, in a process of its own:
both images encoded by the VAE, the caption by the text encoder, the policy with its LoRA, the reference without."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.image_material import ADAPTER, SIDE, TARGETS, draws, same_adapter
from benchmarks.measure import Clock, peak, report, reset_peak


class Pairs(torch.utils.data.Dataset):
    """Decoded and normalised pictures of both sides on top of each other, and token ids."""

    def __init__(self, path: str, tokenizer: Any) -> None:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        order = np.random.default_rng((0, 0)).permutation(len(rows))  # prefopt's order with seed 0
        self.rows, self.tokenizer = [(int(i), rows[i]) for i in order], tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index, row = self.rows[place]
        ids = self.tokenizer(
            row["prompt"], truncation=True, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        pixels = torch.cat([self._pixels(row[side]) for side in ("chosen", "rejected")])
        return {"index": index, "pixels": pixels, "ids": ids[0]}

    def _pixels(self, path: str) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def main(job: dict) -> None:
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from peft import LoraConfig

    began = time.perf_counter()
    pipe: Any = StableDiffusionPipeline.from_pretrained(job["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae, text_encoder, unet = (m.requires_grad_(False).to(device) for m in (pipe.vae, pipe.text_encoder, pipe.unet))
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    unet.add_adapter(LoraConfig(r=ADAPTER["r"], lora_alpha=ADAPTER["alpha"], target_modules=TARGETS))
    same_adapter(unet)
    start = reset_peak()
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["rate"], weight_decay=1e-2)
    loader = torch.utils.data.DataLoader(Pairs(job["data"], pipe.tokenizer), batch_size=job["batch"])
    unet.train()
    clock, losses = Clock(), []
    clock.on_train_begin()
    prepared = clock.ends[0] - began
    for step, batch in enumerate(loader):
        if step == job["steps"]:
            break
        pixels = torch.cat(batch["pixels"].to(device).chunk(2, dim=1))  # winners, then losers
        drawn = [draws(int(i), (4, SIDE // 8, SIDE // 8)) for i in batch["index"]]
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        own = torch.cat([torch.stack([d[2][side] for d in drawn]) for side in (0, 1)]).to(device)
        latents = (posterior.mean + posterior.std * own) * vae.config.scaling_factor
        noise = torch.cat([d[1] for d in drawn]).repeat(2, 1, 1, 1).to(device)
        times = torch.stack([d[0] for d in drawn]).repeat(2).to(device)
        noisy = scheduler.add_noise(latents, noise, times)
        with torch.no_grad():
            text = text_encoder(batch["ids"].to(device))[0].repeat(2, 1, 1)
        prediction = unet(noisy, times, text).sample
        errors = F.mse_loss(prediction.float(), noise, reduction="none").mean((1, 2, 3))
        w, l = errors.chunk(2)
        unet.disable_adapters()
        with torch.no_grad():
            reference = unet(noisy, times, text).sample
            ref_w, ref_l = F.mse_loss(reference.float(), noise, reduction="none").mean((1, 2, 3)).chunk(2)
        unet.enable_adapters()
        loss = -F.logsigmoid(-job["beta"] * ((w - l) - (ref_w - ref_l))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        clock.on_step_end()
    found = {"seconds": clock.seconds, "processor": clock.processor, "losses": losses}
    report(Path(job["answer"]), **found, prepare=prepared, memory=peak() - start)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    main(json.loads(Path(sys.argv[1]).read_text()))
