"""Users read from a vision-language model's hidden states, on a tiny model in the real format."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.small_models import tokenizer

from prefopt.errors import PrefoptError
from prefopt.models.user_encoders import Shot, VisionLanguageEncoder, user_encoder

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = tmp_path_factory.mktemp("llava")
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=24, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>")
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def shots(seed=0, n=2, first=True):
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2 * n)]
    return [Shot(f"a thing {i}", pictures[2 * i], pictures[2 * i + 1], first) for i in range(n)]


def test_the_middle_layers_last_states_depend_on_the_choices(llava):
    encode = VisionLanguageEncoder(str(llava), tokens=5)
    assert encode.layer == 2
    one = encode(shots())
    assert one.shape == (5, 24) and one.dtype == torch.float32
    assert torch.equal(one, encode(shots()))
    assert not torch.allclose(one, encode(shots(1)))
    turned = [Shot(s.prompt, s.rejected, s.chosen, s.first) for s in shots()]
    assert not torch.allclose(one, encode(turned))
    # what is shown is one thing, what was preferred another: turned round and shown the other way, only the words differ
    assert not torch.allclose(one, encode([s._replace(first=False) for s in turned]))
    assert not torch.allclose(one, VisionLanguageEncoder(str(llava), layer=3, tokens=5)(shots()))


def test_the_record_makes_it_again(llava):
    encode = user_encoder(str(llava), 1, 3)
    again = user_encoder(**encode.record())
    assert torch.equal(encode(shots()), again(shots()))


def test_what_cannot_be_is_refused(llava, tmp_path):
    with pytest.raises(PrefoptError, match=r"layer 9; there are hidden states 0 \.\. 4"):
        user_encoder(str(llava), 9)
    with pytest.raises(PrefoptError, match="tokens = 0"):
        VisionLanguageEncoder(str(llava), tokens=0)
    with pytest.raises(PrefoptError, match="5000 tokens are asked"):
        VisionLanguageEncoder(str(llava), tokens=5000)(shots())
    with pytest.raises(PrefoptError, match="no image-text-to-text model"):
        user_encoder(str(tmp_path))
    with pytest.raises(PrefoptError, match="a new user has none"):
        user_encoder("one-hot")
