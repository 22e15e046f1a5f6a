"""A reward model: a sequence classifier with one label, as `transformers` and `prefopt train bt-reward` save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.data.example import Example
from prefopt.errors import PrefoptError
from prefopt.rollout.numbers import token_numbers
from prefopt.rollout.text import Prompt


class RewardModel:
    """Scores answers, encoded and read at their last token as in training. Prompts are strings or chat messages."""

    takes_messages = True

    def __init__(self, folder: Path, *, progress: bool = True):
        """Loads the model and tokenizer of `folder`; PrefoptError if it is not a classifier with one label."""
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        try:
            if (folder / "adapter_config.json").is_file():
                self._made(_merged(folder), AutoTokenizer.from_pretrained(folder), progress)
                return
            labels = AutoConfig.from_pretrained(folder).num_labels
            if labels != 1:
                raise PrefoptError(f"{folder} has {labels} labels; a reward model has one (num_labels: 1)")
            model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except PrefoptError:
            raise
        except (OSError, ValueError) as error:
            raise PrefoptError(f"{folder} cannot be loaded as a reward model: {error}") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise PrefoptError(f"{folder} holds no trained reward head (missing: {missing}); scores would be random")
        self._made(model, tokenizer, progress)

    def _made(self, model: Any, tokenizer: Any, progress: bool) -> None:
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = Encoder(tokenizer, DataConfig(path="prompts", max_length=None))
        self.progress = progress

    def __call__(self, prompts: list[Prompt], responses: list[Any]) -> list[float]:
        examples = [
            self.encoder(Example(p.prompt if isinstance(p, Example) else p, (r,)))
            for p, r in zip(prompts, responses, strict=True)
        ]
        found = token_numbers(self.model, examples, ["reward"], progress=self.progress, description="reward model")
        return [float(numbers["reward"][0][0]) for numbers in found]


def _merged(folder: Path) -> torch.nn.Module:
    """A reward model that was trained as an adapter with its head, on the base that it names."""
    from peft import AutoPeftModelForSequenceClassification, PeftConfig

    if "score" not in (PeftConfig.from_pretrained(str(folder)).modules_to_save or ()):
        raise PrefoptError(f"{folder} is an adapter without a trained reward head (score); scores would be random")
    model: Any = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    return model.merge_and_unload()
