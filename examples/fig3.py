"""Fig. 3: how alike a model finds the patches of noise, of real images and of images made from the model alone."""

import torch

import psaq

MODEL, IMAGES = "micro_vit", 4

model = psaq.load_model(MODEL)
scenes = psaq.SceneDataset(IMAGES, seed=1, model=model)
curves = psaq.patch_similarity_density(
    model,
    {
        "noise": psaq.gaussian_images(model, IMAGES, seed=0),
        "real": torch.stack([scenes[index][0] for index in range(IMAGES)]),
        "generated": psaq.synthesize(model, psaq.SynthesisConfig(num_images=IMAGES)).images,
    },
)
curves.plot("fig3.png")
for source, verdict in curves.verdicts().items():
    print(f"{source}: {verdict}")
