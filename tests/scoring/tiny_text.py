"""Tiny text models of every family, made-up examples, and the plain computation that scoring is compared with."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 97
LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}

FAMILIES: dict[str, dict] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biased": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen2 window": MIXED | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "qwen3 window": MIXED | {"use_sliding_window": True, "max_window_layers": 1},
    "mistral": {"sliding_window": None},
    "mistral window": {"sliding_window": 4},
    "mistral wide window": {"sliding_window": 64},
    "gemma": {},
    "gemma2": MIXED | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0},
    "gemma2 uncapped": MIXED
    | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text": MIXED | {"query_pre_attn_scalar": 8},
    "gemma3_text capped": MIXED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "phi3": {"sliding_window": None},
    "phi3 window": {"sliding_window": 4},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "mixtral window": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "qwen3_moe": EXPERTS | {"use_sliding_window": False},
    "granite": {
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "cohere": {"logit_scale": 0.3},
    "smollm3": {},
    "smollm3 window": MIXED | {"use_sliding_window": True, "no_rope_layers": [1, 0, 1]},
    "stablelm": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {"num_attention_heads": 4},
    "gpt_neox sequential": {"num_attention_heads": 4, "use_parallel_residual": False},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt projected": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
}
PLAIN: dict[str, dict] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"alibi": True},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "mamba": {"state_size": 4, "expand": 2},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
}


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **more: object) -> nn.Module:
    """A tiny model in training mode, no dropout, weights large enough that every mask and scale shows."""
    torch.manual_seed(seed)
    settings = LLAMA_LIKE | FAMILIES.get(name, PLAIN.get(name, {})) | more
    if name in PLAIN:
        settings.pop("head_dim")
    config = AutoConfig.for_model(name.split()[0], **settings)
    for rate in ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout"):
        if hasattr(config, rate):
            setattr(config, rate, 0.0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.3 if p.dim() > 1 else 0.1) + (1.0 if p.dim() == 1 else 0.0))
    return model.to(dtype).train()


def example(prompt: int, *lengths: int, gold: int = 0, seed: int = 0, **more: object) -> SimpleNamespace:
    """An encoded example with random ids: a prompt and its responses of these lengths."""
    g = torch.Generator().manual_seed(1000 * seed + prompt)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=g).tolist()

    responses = [ids(n) for n in lengths]
    fields = {
        "prompt_ids": ids(prompt),
        "response_ids": responses,
        "response_mask": [[1] * len(r) for r in responses],
        "pairs": [[0, 1]] if len(responses) > 1 else [],
        "notes": {},
        "gold_ids": ids(gold) if gold else None,
        "gold_mask": [1] * gold if gold else None,
        "file": "made-up",
        "row": seed,
    }
    return SimpleNamespace(**(fields | more))


def examples() -> list[SimpleNamespace]:
    """Prompts longer and shorter than the windows, one token alone, lists of one to three responses."""
    return [example(9, 5, 8), example(1, 3, 2, seed=1), example(14, 1, 12, 6, seed=2), example(4, 7, seed=3)]


def plain_logps(model: nn.Module, examples: list[SimpleNamespace]) -> list[Tensor]:
    """Each response alone behind its prompt, unpadded, all logits: what every layout must reproduce."""
    found = []
    for e in examples:
        for response in e.response_ids:
            found.append(sequence_logps(model, e.prompt_ids, response))
    return found


def sequence_logps(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
    logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
