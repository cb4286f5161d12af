"""Quantise a model of your own: psaq reads its structure from one run and is told what it cannot see."""

import torch
from torch import Tensor, nn

import psaq


class Own(nn.Module):
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, kernel_size=8, stride=8)
        self.attend = nn.MultiheadAttention(32, num_heads=4, batch_first=True)
        self.head = nn.Linear(32, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        attended, _ = self.attend(patches, patches, patches)
        return self.head((patches + attended).mean(1))


torch.manual_seed(0)
model = psaq.describe(Own(), image_size=64, mean=0.5, std=0.5)
images = psaq.synthesize(model, psaq.SynthesisConfig(num_images=4, steps=5))
recipe = psaq.Recipe.accurate(8, 8, overrides=[("head", None, None)])  # the head stays in float
qmodel = psaq.quantize(model, images, recipe)
print("left out:", psaq.left_out(qmodel))  # what of the recipe the model's structure has no place for, and why

psaq.save(qmodel, "own-w8a8.safetensors")
qmodel = psaq.load("own-w8a8.safetensors", model=Own())  # of an own class psaq needs the architecture
print(psaq.evaluate(qmodel, psaq.SceneDataset(50, seed=1, model=model), model))
