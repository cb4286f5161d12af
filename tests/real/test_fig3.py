"""Fig. 3 on a real DeiT-Tiny and real images: what the paper says of its curves, and the committed numbers."""

import json
from pathlib import Path

import pytest

import psaq
from psaq.images.pictures import load_pictures

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "deit_tiny_patch16_224.safetensors"
PICTURES = DATA / "imagenet" / "train"
COMMITTED = ROOT / "psaq" / "experiments" / "results" / "fig3_deit_tiny.json"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} is not here"),
    pytest.mark.skipif(not PICTURES.exists(), reason=f"{PICTURES} is not here"),
]


@pytest.fixture(scope="module")
def numbers():
    model = psaq.load_model("deit_tiny", WEIGHTS)
    sources = {"noise": psaq.gaussian_images(model, 32), "real": load_pictures(PICTURES, model, 32)}
    return psaq.patch_similarity_density(model, sources, grid_points=209).numbers()


def test_noise_is_one_narrow_spike_in_every_layer(numbers):
    for layer in numbers["noise"]:
        assert len(layer.modes) == 1, layer.layer
        assert layer.bimodal == 0, layer.layer
    assert sorted(layer.width for layer in numbers["noise"])[6] < 0.3


def test_real_images_are_bimodal_or_broad_in_every_layer(numbers):
    for noise, real in zip(numbers["noise"], numbers["real"], strict=True):
        assert len(real.modes) > 1 or real.width > 1.8 * noise.width, real.layer
        assert real.entropy > noise.entropy + 0.4, real.layer
    assert sum(layer.bimodal for layer in numbers["real"]) / 12 > 0.25


def test_numbers_are_the_committed_ones(numbers):
    committed = json.loads(COMMITTED.read_text())["sources"]
    for source, layers in numbers.items():
        for layer, expected in zip(layers, committed[source]["layers"], strict=True):
            assert layer.entropy == pytest.approx(expected["entropy"], abs=0.01)
            assert layer.width == pytest.approx(expected["width"], abs=0.01)
            assert len(layer.modes) == len(expected["modes"])


def test_a_short_synthesis_leaves_noise_for_real_images():
    model = psaq.load_model("deit_tiny", WEIGHTS)
    images = psaq.synthesize(model, psaq.SynthesisConfig(num_images=4, steps=40, film_frames=0), progress=False)
    sources = {
        "noise": psaq.gaussian_images(model, 4),
        "real": load_pictures(PICTURES, model, 4),
        "generated": images,
    }
    found = psaq.patch_similarity_density(model, sources, grid_points=209).numbers()
    mean = {
        source: sum(layer.to_real for layer in found[source]) / len(found[source]) for source in ("noise", "generated")
    }
    assert mean["generated"] < mean["noise"]
    assert sum(layer.entropy for layer in found["generated"]) > sum(layer.entropy for layer in found["noise"])
