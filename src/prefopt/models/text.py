"""Text models: a transformers folder (or an adapter on one), made trainable."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..config import AdapterConfig, ModelConfig
from ..errors import PrefoptError, first_line
from .opening import LORA
from .preference import is_clip
from .user_branch import FILE

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
DROPOUTS = ("dropout", "attention_dropout", "attn_dropout", "attn_pdrop", "hidden_dropout", "p_dropout")


@dataclass
class TextModel:
    """A model, its tokenizer, and whether its adapter was there before (then "adapter off" is not the start)."""

    model: Any  # a transformers or peft model
    tokenizer: Any
    started_with_adapter: bool = False


def load_text_model(config: ModelConfig, *, head: Literal["lm", "reward"] = "lm", trainable: bool = True) -> TextModel:
    """Load `config.path` for training (or, trainable=False, to be read only).

    An adapter folder is loaded on its base: with `adapter` asked its own adapter goes on being trained, without it
    is merged first. Raises PrefoptError where the folder is missing, broken, no text model, or does not fit its
    tokenizer.
    """
    place = Path(config.path).expanduser()
    own_adapter = (place / "adapter_config.json").is_file()
    if model_kind(config.path) != "text":
        what = "a diffusers pipeline" if model_kind(config.path) == "diffusion" else "a CLIPModel"
        raise PrefoptError(f"model.path = {config.path} is {what}, not a language model")
    if place.is_dir() and not own_adapter:
        _refuse_other_models(place, head)
    tokenizer = load_tokenizer(config.path, config.revision)
    model = _load(config, head, own_adapter, trainable)
    if own_adapter and (not trainable or config.adapter is None):
        model = model.merge_and_unload().requires_grad_(True)  # peft froze what it merged into
    if config.disable_dropout:
        disable_dropout(model)
    _check(model, tokenizer, config.path)
    started_with_adapter = own_adapter and trainable and config.adapter is not None
    if trainable and config.adapter is not None and not own_adapter:
        model = add_adapter(model, config.adapter, head)
    if not trainable:
        model.requires_grad_(False).eval()
    return TextModel(model, tokenizer, started_with_adapter)


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The tokenizer of a model folder; it must have an end-of-text token."""
    from transformers import AutoTokenizer

    if not Path(path).expanduser().exists() and _must_be_local(path):
        raise PrefoptError(f"model.path = {path}: there is no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or "main")
    except Exception as e:  # transformers raises many types for a folder without tokenizer
        raise PrefoptError(f"model.path = {path}: no tokenizer can be loaded from it: {first_line(e)}") from None
    if tokenizer.eos_token_id is None:
        raise PrefoptError(
            f"model.path = {path}: its tokenizer has no end-of-text token (eos_token); set one and save it"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


OF_IMAGES = ("model_index.json", LORA, FILE)
"""A pipeline, a LoRA of one, or a user branch of one: one of these files is in the folder."""


def model_kind(path: str) -> Literal["text", "diffusion", "clip"]:
    """What a model folder (or hub name) holds, from its index file alone."""
    place = Path(path).expanduser()
    if place.is_file():
        raise PrefoptError(f"model.path = {path} is a file; give the folder that save_pretrained wrote")
    if any((place / name).is_file() for name in OF_IMAGES):
        return "diffusion"
    if place.is_dir():
        if not any((place / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise PrefoptError(
                f"model.path = {path}: no config.json, adapter_config.json or model_index.json in it; "
                "give a folder that transformers, peft or diffusers saved"
            )
        return "clip" if is_clip(place) else "text"
    if _must_be_local(path):
        raise PrefoptError(f"model.path = {path}: there is no such folder")
    from huggingface_hub import try_to_load_from_cache

    return "diffusion" if isinstance(try_to_load_from_cache(path, "model_index.json"), str) else "text"


def _must_be_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def _load(config: ModelConfig, head: str, own_adapter: bool, trainable: bool) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "revision": config.revision or "main"}
    if config.attention:
        options["attn_implementation"] = config.attention
    if head == "reward":
        options["num_labels"] = 1
    auto: Any = transformers.AutoModelForCausalLM if head == "lm" else transformers.AutoModelForSequenceClassification
    try:
        if not own_adapter:
            model, found = auto.from_pretrained(config.path, output_loading_info=True, **options)
            _refuse_new_weights(found, head, config.path)
            return model
        from peft import AutoPeftModelForCausalLM

        if head != "lm":
            raise PrefoptError(
                f"model.path = {config.path} is an adapter: merge it before training a reward model on it"
            )
        return AutoPeftModelForCausalLM.from_pretrained(config.path, is_trainable=trainable, dtype=DTYPES[config.dtype])
    except PrefoptError:
        raise
    except Exception as e:  # damaged files, unknown architectures, no network: transformers raises a dozen types
        raise PrefoptError(f"model.path = {config.path}: transformers cannot load it: {first_line(e)}") from None


def _refuse_new_weights(found: dict[str, Any], head: str, path: str) -> None:
    """transformers makes up what the files lack; only a reward model's head may be new."""
    absent = sorted(
        k for k in found["missing_keys"] if not (head == "reward" and k.split(".")[0] in ("score", "classifier"))
    )
    if absent:
        raise PrefoptError(
            f"model.path = {path}: {len(absent)} weights are missing from its files ({', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}); save the whole model again"
        )


def _refuse_other_models(place: Path, head: str) -> None:
    try:
        content = json.loads((place / "config.json").read_text())
    except (OSError, ValueError) as e:
        raise PrefoptError(f"{place / 'config.json'} cannot be read: {first_line(e)}") from None
    names = content.get("architectures") or []
    if content.get("is_encoder_decoder"):
        raise PrefoptError(
            f"model.path = {place}: {', '.join(names)} is an encoder-decoder; only decoders are supported"
        )
    if (
        head == "lm"
        and names
        and not any(n.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for n in names)
    ):
        raise PrefoptError(f"model.path = {place}: {', '.join(names)} is not a causal language model")


def _check(model: Any, tokenizer: Any, path: str) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise PrefoptError(
            f"model.path = {path}: the tokenizer has {len(tokenizer)} entries and the model only {rows} embeddings; "
            "resize the embeddings (model.resize_token_embeddings) and save it, or use the tokenizer that it was trained with"
        )
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise PrefoptError(
                f"model.path = {path}: the weight {name} is not finite; the file is damaged or over-trained"
            )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def disable_dropout(model: Any) -> None:
    """Set every dropout to 0, in the modules and in the configuration that attention reads at run time."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def add_adapter(model: Any, config: AdapterConfig, head: str) -> Any:
    """A fresh LoRA on `model` (peft)."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=config.dropout,
        target_modules=config.target_modules or "all-linear",
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        task_type="CAUSAL_LM" if head == "lm" else "SEQ_CLS",
    )
    try:
        made = get_peft_model(model, lora)
    except ValueError as e:
        raise PrefoptError(f"model.adapter does not fit {type(model).__name__}: {first_line(e)}") from None
    for p in made.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return made
