"""What ``psaq evolve`` does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from psaq.commands.evolve import Evolve
from psaq.commands.quantize import MODEL_FILE
from psaq.commands.work.calibration import images_in
from psaq.commands.work.quantize import fp32_bytes
from psaq.evolution import evolve
from psaq.evolution.loop import check_compiled
from psaq.evolution.state import LENGTH
from psaq.figures.densities import draw_densities
from psaq.figures.samples import plot_strip
from psaq.files import write_csv
from psaq.images.synthetic import SyntheticImages
from psaq.models.features import example_image
from psaq.models.place import device_of
from psaq.quantization.checkpoint import save
from psaq.quantization.model.conversion import converted
from psaq.quantization.pipeline import check_overrides, left_out
from psaq.reports import write_report
from psaq.runs import RunFolder

ROUNDS, STRIP = "rounds.csv", "strip.png"
_COMPARED = 8  # images of the first and of the last round


def run(options: Evolve) -> None:
    recipe, folder = options.chosen_recipe(), options.folder("evolve")
    model = options.model.load()
    check_compiled(model, options.evolution)
    check_overrides(converted(model, example_image(model))[0], recipe)
    given = None if options.images is None else images_in(options.images, model, options.evolution.pool, spread=True)
    may_differ = [f"evolution.{name}" for name in LENGTH]
    seed, device = options.evolution.seed, device_of(model)
    run = RunFolder(folder, "evolve", options.config(), seed, besides=may_differ, device=device)
    with run.timed("evolution"):
        qmodel, images = evolve(model, recipe, options.evolution, images=given, folder=folder, progress=True)
    save(qmodel, folder / MODEL_FILE)
    images.save(folder)
    rounds: list[dict[str, Any]] = images.provenance["rounds"]
    write_csv(folder / ROUNDS, list(rounds[0]), rounds)
    with run.timed("figures"):
        _draw(images, model, folder)
    best = images.provenance["best_round"]
    run.finish(
        {
            "best_round": best,
            "start": _verdict(rounds[0]),
            "best": _verdict(rounds[best]),
            "passes": images.provenance["passes"],
            "sizes": {"float32": fp32_bytes(model), "quantised": (folder / MODEL_FILE).stat().st_size},
            "left_out": left_out(qmodel),
        }
    )
    write_report(folder)
    print(f"{folder / MODEL_FILE}: {recipe}, round {best} of {len(rounds) - 1}\n{_gain(rounds, best)}")


def _draw(images: SyntheticImages, model: nn.Module, folder: Path) -> None:
    if images.film is None:
        return
    plot_strip(images.film, folder / STRIP)
    ages = {"first": images.images[:_COMPARED], "last": images.images[-_COMPARED:]}
    draw_densities({f"{age} images": replace(images, images=part) for age, part in ages.items()}, model, folder)


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("image_sqnr", "disagreement", "agreement")}


def _gain(rounds: list[dict[str, Any]], best: int) -> str:
    """What the rounds came to, in one line."""
    before, after = rounds[0], rounds[best]
    agreement = (
        "" if before["agreement"] is None else (f", agreement {before['agreement']:.1f}% -> {after['agreement']:.1f}%")
    )
    sqnr = f"{before['image_sqnr']:.2f} -> {after['image_sqnr']:.2f} dB"
    return f"on images kept aside, by the recipe alone -> evolved: {sqnr}{agreement}"
