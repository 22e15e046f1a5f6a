"""Bad model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.bad import Place, Table

bad = Table()


def copy(p: Place, name: str = "model", of: str = "text_model") -> Path:
    return Path(shutil.copytree(p.fixture(of), p.tmp / name))


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (content | values).items() if v is not None}))


@bad("nowhere", "no such folder")
def missing(p: Place) -> list[str]:
    return p.train(model="./nowhere")


@bad("model.path = someone/model", "couldn't connect")
def hub_name_offline_model(p: Place) -> list[str]:
    return p.train(model="someone/model")


@bad("model.bin", "is a file", "folder")
def a_file(p: Place) -> list[str]:
    return p.train(model=p.file("model.bin", "weights"))


@bad("model.path", "no config.json")
def no_config(p: Place) -> list[str]:
    folder = copy(p)
    (folder / "config.json").unlink()
    return p.train(model=folder)


@bad("config.json", "cannot be read")
def damaged_config(p: Place) -> list[str]:
    folder = copy(p)
    (folder / "config.json").write_text('{"model_type": "lla')
    return p.train(model=folder)


@bad("model.path", "cannot load", "no-such-model")
def unknown_architecture(p: Place) -> list[str]:
    folder = copy(p)
    change(folder / "config.json", model_type="no-such-model")
    return p.train(model=folder)


@bad("model.path", "no tokenizer")
def no_tokenizer(p: Place) -> list[str]:
    folder = copy(p)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return p.train(model=folder)


@bad("model.path", "end-of-text", "eos_token")
def tokenizer_without_end(p: Place) -> list[str]:
    folder = copy(p)
    change(folder / "tokenizer_config.json", eos_token=None)
    return p.train(model=folder)


@bad("tokenizer has", "embeddings", "resize")
def tokenizer_too_large(p: Place) -> list[str]:
    from transformers import AutoTokenizer

    folder = copy(p)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens([f"<extra{i}>" for i in range(9)])
    words.save_pretrained(folder)
    return p.train(model=folder)


@bad("model.path", "cannot load")
def truncated_weights(p: Place) -> list[str]:
    path = copy(p) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2000])
    return p.train(model=path.parent)


@bad("model.path", "cannot load", "model.safetensors")
def no_weights(p: Place) -> list[str]:
    folder = copy(p)
    (folder / "model.safetensors").unlink()
    return p.train(model=folder)


def spoil(folder: Path, change: object) -> Path:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@bad("model.path", "lm_head", "not finite")
def weights_nan(p: Place) -> list[str]:
    return p.train(model=spoil(copy(p), lambda t: t["lm_head.weight"][3].fill_(float("nan"))))


@bad("model.path", "layers.1", "missing")
def weights_missing(p: Place) -> list[str]:
    return p.train(model=spoil(copy(p), lambda t: t.pop("model.layers.1.mlp.up_proj.weight")))


@bad("model.path", "encoder-decoder")
def encoder_decoder(p: Place) -> list[str]:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = copy(p)
    small = T5Config(vocab_size=320, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(small).save_pretrained(folder)
    return p.train(model=folder)


@bad("model.path", "not a causal language model")
def encoder(p: Place) -> list[str]:
    from transformers import BertConfig, BertForSequenceClassification

    folder = copy(p)
    small = BertConfig(vocab_size=320, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForSequenceClassification(small).save_pretrained(folder)
    return p.train(model=folder)


@bad("model.adapter", "no_such_layer")
def adapter_that_fits_nothing(p: Place) -> list[str]:
    return p.train("model.adapter.target_modules=[no_such_layer]")


@bad("model.path", "adapter")
def adapter_of_a_base_that_is_gone(p: Place) -> list[str]:
    p.file("adapter/adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "./gone", "r": 4}')
    for path in p.model.glob("tokenizer*"):
        shutil.copy(path, p.tmp / "adapter")
    return p.train(model=p.tmp / "adapter")


@bad("reference.path", "tokenizer")
def reference_with_another_tokenizer(p: Place) -> list[str]:
    from transformers import AutoTokenizer

    folder = copy(p, "other")
    words = json.loads((folder / "tokenizer.json").read_text())
    merged = words["model"]["vocab"]
    a, b = list(merged)[-2:]
    merged[a], merged[b] = merged[b], merged[a]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert AutoTokenizer.from_pretrained(folder)
    return p.train(f"reference.path={folder}")


@bad("reference.path", "nowhere")
def reference_missing(p: Place) -> list[str]:
    return p.train("reference.path=./nowhere")


@bad("without its adapter", "no adapter", "reference.kind = store")
def adapter_off_without_adapter(p: Place) -> list[str]:
    return p.train("reference.kind=adapter_off")


@bad("pipeline", "diffusers cannot load")
def damaged_pipeline(p: Place) -> list[str]:
    folder = copy(p, "pipeline", "image_model")
    path = next((folder / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    return p.train(model=folder, data=p.fixture("image_pairs"))


@bad("pipeline", "unet")
def pipeline_without_a_part(p: Place) -> list[str]:
    folder = copy(p, "pipeline", "image_model")
    shutil.rmtree(folder / "unet")
    return p.train(model=folder, data=p.fixture("image_pairs"))


@bad("model_index.json")
def pipeline_with_damaged_index(p: Place) -> list[str]:
    folder = copy(p, "pipeline", "image_model")
    (folder / "model_index.json").write_text("{")
    return p.train(model=folder, data=p.fixture("image_pairs"))


@bad("resolution 31", "multiple of 4")
def resolution_that_does_not_divide(p: Place) -> list[str]:
    return p.train("denoising.resolution=31", model=p.fixture("image_model"), data=p.fixture("image_pairs"))


@bad("bt-reward", "diffusion", "reward head")
def text_method_on_images(p: Place) -> list[str]:
    return p.train(method="bt-reward", model=p.fixture("image_model"), data=p.fixture("image_pairs"))


@bad("data.max_length", "images")
def text_key_on_images(p: Place) -> list[str]:
    return p.train("data.max_length=64", model=p.fixture("image_model"), data=p.fixture("image_pairs"))


@bad("online-dpo", "pipeline")
def online_on_images(p: Place) -> list[str]:
    return p.train(
        "rollout.reward=a:b", method="online-dpo", model=p.fixture("image_model"), data=p.fixture("image_pairs")
    )
