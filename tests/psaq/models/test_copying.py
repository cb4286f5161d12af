"""Copies of models that have put tensors aside."""

import timm
import torch

from psaq.models.copying import copied
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


def test_a_model_that_keeps_what_it_computed_with_gradients_is_copied():
    model = timm.create_model("levit_128s", pretrained=False).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    kept = model.stages[0].blocks[0].attn.attention_bias_cache
    assert any(not tensor.is_leaf for tensor in kept.values())
    other = copied(model)
    with torch.no_grad():
        torch.testing.assert_close(other(images), logits.detach(), rtol=0, atol=0)
        other.stages[0].blocks[0].attn.attention_biases.fill_(7)
        torch.testing.assert_close(model(images), logits.detach(), rtol=0, atol=0)
    quantize(model, images, Recipe.paper(8, 8))
