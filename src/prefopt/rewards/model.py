"""A reward model: a sequence classifier with one label, as `transformers` and `prefopt train bt-reward` save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from prefopt.errors import PrefoptError
from prefopt.rollout.text import Prompt, encode_prompt


class RewardModel:
    """Scores responses in batches of similar length. Prompts are strings or chat messages."""

    def __init__(self, folder: Path, *, batch_size: int = 16, progress: bool = True):
        """Loads the model and tokenizer of `folder`; PrefoptError if it is not a classifier with one label."""
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        try:
            labels = AutoConfig.from_pretrained(folder).num_labels
            if labels != 1:
                raise PrefoptError(
                    f"{folder} has {labels} labels; a reward model has one (num_labels: 1 in config.json)"
                )
            model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            if isinstance(error, PrefoptError):
                raise
            raise PrefoptError(f"{folder} cannot be loaded as a reward model: {error}") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise PrefoptError(
                f"{folder} holds no trained reward head (missing: {missing}); its scores would be random"
            )
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.progress = batch_size, progress

    @torch.no_grad()
    def __call__(self, prompts: list[Prompt], responses: list[Any]) -> list[float]:
        rows = [self._ids(p, r) for p, r in zip(prompts, responses, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        bar = tqdm(total=len(rows), desc="reward model", unit="answer", delay=1, disable=not self.progress)
        pad = self.model.config.pad_token_id
        if pad is None:
            # the classifier finds the last real token by its pad token: without one, rows go through one at a time
            pad, size = 0, 1
        else:
            size = self.batch_size
        with bar:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                width = max(len(rows[i]) for i in part)
                ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in part], device=self.model.device)
                mask = torch.tensor(
                    [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in part], device=self.model.device
                )
                logits = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
                for i, value in zip(part, logits.tolist(), strict=True):
                    scores[i] = value
                bar.update(len(part))
        return scores

    def _ids(self, prompt: Prompt, response: Any) -> list[int]:
        if isinstance(prompt, str):
            answer = response if isinstance(response, str) else response[0]["content"]
            ids = encode_prompt(self.tokenizer, prompt) + self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            return [*ids, self.tokenizer.eos_token_id]
        answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        return list(self.tokenizer.apply_chat_template(prompt + answer, tokenize=True, return_dict=True)["input_ids"])
