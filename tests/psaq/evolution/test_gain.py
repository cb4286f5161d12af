"""What evolving is for: at 4 bits it comes closer to the model than the recipe alone, on scenes that it never saw."""

from dataclasses import replace

import pytest
from repeats import also

import psaq
from psaq.evolution.loop import START
from psaq.images.held_out import held_out_scenes

SHORT = psaq.EvolutionConfig(rounds=1, num_images=16, image_steps=15, kept_aside=16, steps=60)
SCENES = 200
"""So many tell a gain of 0.1 dB."""


@pytest.mark.parametrize("name", ["micro_vit", *also("micro_swin")])
def test_evolved_at_four_bits_it_answers_scenes_better_than_by_the_recipe_alone(name, tmp_path):
    model = psaq.load_model(name)
    scenes = held_out_scenes(name, SCENES, model)
    gains = []
    for seed in (0, 1):
        config = replace(SHORT, seed=seed)
        qmodel, _ = psaq.evolve(model, psaq.Recipe.accurate(4, 4), config, folder=tmp_path / str(seed))
        alone = psaq.load(tmp_path / str(seed) / f"{START}.safetensors", model)
        by = [psaq.evaluate(student, scenes, model).logit_sqnr for student in (alone, qmodel)]
        gains.append(by[1] - by[0])
    # 0.8 and 0.5 dB of micro_vit, 0.2 and 0.6 of micro_swin where this was written.
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 0.25
