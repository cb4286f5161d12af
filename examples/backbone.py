"""Quantise a backbone without classes: no class loss, and features compared instead of answers."""

import timm
import torch

import psaq

torch.manual_seed(0)  # in place of trained weights
backbone = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0).eval()
config = psaq.SynthesisConfig(num_images=4, steps=5)
images = psaq.synthesize(backbone, config)  # without classes there is no class loss
qmodel = psaq.quantize(backbone, images, psaq.Recipe.accurate(weights=4, activations=8))

pictures = psaq.gaussian_images(backbone, 8, seed=1)  # any images: nothing need be known of them
print(psaq.evaluate(qmodel, pictures, backbone))

fast = psaq.deploy(qmodel)  # multiplies integers where the processor or the GPU can
with torch.no_grad():
    print("features:", tuple(fast(pictures).shape))
