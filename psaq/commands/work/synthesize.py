"""What ``psaq synthesize`` does."""

from pathlib import Path

from torch import Tensor, nn

from psaq.commands.synthesize import Synthesize
from psaq.distributed import is_first, say, together
from psaq.figures.densities import draw_densities
from psaq.figures.samples import draw_run
from psaq.images.batches import gaussian_images
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.models.place import device_of
from psaq.reports import write_report
from psaq.reports.report import REPORT_FILE
from psaq.runs import RunFolder
from psaq.synthesis.folder import HISTORY, synthesize_into


def run(options: Synthesize) -> None:
    folder = options.out or Path("runs") / f"synthesize-{options.model.label}-seed{options.synthesis.seed}"
    with together():
        model = options.model.load()
        config, seed = {"model": options.model, "synthesis": options.synthesis}, options.synthesis.seed
        run = RunFolder(folder, "synthesize", config, seed, device=device_of(model))
        finished = bool(run.record["results"]) and (folder / REPORT_FILE).exists()
    if finished:
        say(f"{len(load_images(folder))} images are already in {folder}; name another folder to make them anew")
        return
    with run.timed("synthesis"):
        images = synthesize_into(folder, model, options.synthesis, progress=True)
    with together():
        if is_first():
            _finish(options, run, images, model)


def _finish(options: Synthesize, run: RunFolder, images: SyntheticImages, model: nn.Module) -> None:
    with run.timed("figures"):
        draw_run(images, model, run.path)
        draw_densities(compared(images, model), model, run.path)
    run.finish(final_losses(images))
    write_report(run.path)
    print(f"{len(images)} images in {run.path} (images.safetensors, images/*.png, {HISTORY}, run.json)")


def compared(images: SyntheticImages, model: nn.Module, count: int = 8) -> dict[str, Tensor]:
    """What the run's Fig. 3 compares: as many images of noise and of the synthesis."""
    generated = images.images[:count]
    return {"noise": gaussian_images(model, len(generated)), "generated": generated}


def final_losses(images: SyntheticImages) -> dict[str, float]:
    """Each loss at the last step, averaged over batches."""
    return {name: float(values[:, -1].mean()) for name, values in images.history.items()}
