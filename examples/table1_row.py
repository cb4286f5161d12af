"""A row of Table 1: one quantiser, calibrated on real images, on noise and on images made from the model alone.

With ImageNet at hand: MODEL = "deit_tiny", and psaq.imagenet(FOLDER, model=model) for the scenes.
"""

import torch

import psaq

MODEL, IMAGES, VALIDATION = "micro_vit", 4, 60  # the paper calibrates on 32 images

model = psaq.load_model(MODEL)
real = psaq.SceneDataset(IMAGES, seed=2, model=model)
calibration = {
    "Standard": torch.stack([real[index][0] for index in range(IMAGES)]),
    "Gaussian": psaq.gaussian_images(model, IMAGES, seed=0),
    "PSAQ": psaq.synthesize(model, psaq.SynthesisConfig(num_images=IMAGES)).images,
}
validation = psaq.SceneDataset(VALIDATION, seed=1, model=model)
print(f"FP        {psaq.evaluate(model, validation)}")
for name, images in calibration.items():
    qmodel = psaq.quantize(model, images, psaq.Recipe.paper(weights=4, activations=8))
    print(f"{name:<9} {psaq.evaluate(qmodel, validation, model)}")
