"""The `data` section of a run's configuration."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pairing = Literal["best_worst", "best_rest", "adjacent", "all", "triple"]
Used = Literal["weight", "margin", "label_probability"]


class DataConfig(BaseModel):
    """Where the data is, how it is read, and what becomes of it. Every key changes something; others are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    path: str | list[str] = Field(description="file, folder, `datasets` folder or hub name; several are read in turn")
    eval_path: str | list[str] | None = Field(None, description="held-out data, read like `path`")
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the prompts of `path` that is held out; no prompt is on both sides"
    )
    split: str = Field("train", description="split of a `datasets` folder or hub data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    layout: str = Field("auto", description="what the columns mean; `auto` recognises every known layout")
    columns: dict[str, str] = Field(
        default_factory=dict, description="canonical column name -> the file's column name, e.g. {prompt: question}"
    )
    pairing: Pairing | None = Field(
        None,
        description="how ranked lists of more than two responses become pairs; `triple`: the best is gold, the "
        "second chosen, the last rejected",
    )
    chosen_rank: Annotated[int, Field(ge=2)] = Field(2, description="of the chosen response of a `triple`")
    objective: str | None = Field(
        None, description="which of several `scores` orders the responses: its name, or `mean`"
    )
    soft_labels: Literal["probability", "logistic"] | None = Field(
        None,
        description="label_probability of pairs made from scores: `probability` takes each score as the probability of "
        "beating one common opponent, `logistic` is sigmoid(score difference)",
    )
    list_labels: Literal["range", "minmax", "rank"] = Field(
        "range",
        description="how scores become a list's labels in [0, 1]: by `score_range`, by the list's least and largest, or "
        "evenly by rank",
    )
    score_range: tuple[float, float] = Field((-100.0, 100.0), description="of the scores of lists")
    best_first: Literal["sort", "error"] = Field(
        "sort", description="what becomes of a list whose first response is not the best"
    )
    step_marker: str | None = Field(
        None, description="regular expression: a step of a response begins where it matches, in data without `steps`"
    )
    stop_words: str | None = Field(
        None, description="text file of words that are no key content; None: the library's English ones"
    )
    swap_preferences: bool = Field(
        False,
        description="preferences turned round: pairs exchanged, labels inverted, scores negated (Diffusion-NPO's negative "
        "network of guidance)",
    )
    users: str | None = Field(
        None,
        description="folder of users' embeddings, made by `prefopt data build users`, for methods that read who chose",
    )
    use: list[Used] = Field(default_factory=list, description="annotations that the method applies where it can")
    strings: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="string prompts as a user's turn of the chat template, or as they are; `auto` takes the "
        "template where the tokenizer has one, unless the text holds its special tokens already",
    )
    chat_template: str | None = Field(
        None, description="None: the tokenizer's own; `plain`: a Human/Assistant transcript; else a Jinja text or file"
    )
    system: str | None = Field(None, description="system message for conversations that have none")
    thinking: Literal["keep", "mask", "strip"] = Field(
        "keep", description="thinking blocks of answers: scored, kept as context without being scored, or removed"
    )
    max_length: Annotated[int, Field(ge=2)] | None = Field(1024, description="tokens of prompt and longest response")
    max_prompt_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens that truncation leaves of a prompt at least; by default half of max_length"
    )
    truncation: Literal["keep_end", "keep_start", "drop"] = Field(
        "keep_end", description="which part of an overlong prompt stays; `drop` drops such rows instead"
    )
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="share of rows that may be dropped because they teach nothing, before the run stops"
    )
    top: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="images: of all images of the data only so many with the highest score are kept, each to be imitated",
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="read only the first rows")
    seed: int = Field(0, description="decides which prompts `eval_fraction` holds out")

    @model_validator(mode="after")
    def _keys_agree(self) -> DataConfig:
        if self.eval_path is not None and self.eval_fraction:
            raise ValueError("eval_path and eval_fraction exclude each other: keep one")
        if self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}), "
                "or no room is left for a response"
            )
        low, high = self.score_range
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"score_range ({low:g}, {high:g}) must be two numbers, the smaller one first")
        if self.list_labels != "range" and "score_range" in self.model_fields_set:
            raise ValueError(f"score_range has no effect with list_labels: {self.list_labels}; leave it out")
        if self.step_marker is not None:
            try:
                re.compile(self.step_marker)
            except re.error as error:
                raise ValueError(f"step_marker {self.step_marker!r} is no regular expression: {error}") from None
        if self.chosen_rank != 2 and self.pairing != "triple":
            raise ValueError("chosen_rank has no effect without pairing: triple; leave it out")
        if self.system is not None and self.strings == "plain":
            raise ValueError("system has no effect with strings: plain; leave one of them out")
        return self

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def eval_paths(self) -> list[str]:
        return [self.eval_path] if isinstance(self.eval_path, str) else list(self.eval_path or [])
