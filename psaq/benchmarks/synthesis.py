"""A synthesis step beside the model's own forward and backward, and beside the paper's loss as usually written."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.benchmarks.timing import Run
from psaq.errors import PsaqError
from psaq.images.batches import Images, gaussian_images
from psaq.losses import eager_entropy
from psaq.models.answers import Answering
from psaq.models.features import PatchFeatureRecorder
from psaq.models.place import device_of
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.loop import Synthesis, frozen

MODEL = "model forward + backward"
STEP = "synthesis step"
EAGER = "synthesis step, eager loss"


def peak_memory(load: Callable[[], nn.Module], name: str, count: int) -> float:
    """Bytes that a variant's first run adds to the peak, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_in_this_process, (load, name, count))


def _peak_in_this_process(load: Callable[[], nn.Module], name: str, count: int) -> float:
    model = load()
    device = device_of(model)
    variant(name, model, 1)()  # libraries and kernels load now, not in the measured run
    run = variant(name, model, count)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = _reset_peak()
    run()
    return _status("VmHWM") - before


def _reset_peak() -> int:
    """Forget the process's peak so far (loading the libraries is part of it). Returns what it holds now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise PsaqError(f"peak memory cannot be measured on this system ({error}); take --no-memory") from error
    return _status("VmRSS")


def _status(name: str) -> int:
    """A figure of this process in bytes, as Linux keeps it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise PsaqError(f"peak memory cannot be measured on this system (no {name}); take --no-memory")


def variant(name: str, model: nn.Module, count: int) -> Run:
    """One run of what is timed under a name."""
    if name == MODEL:
        return _model_alone(model, count)
    return _eager_step(model, count) if name == EAGER else _synthesis_step(model, count)


def _model_alone(model: nn.Module, count: int) -> Run:
    device = device_of(model)
    images = gaussian_images(model, count).to(device).requires_grad_()
    answering = Answering(model)

    def run() -> object:
        with frozen(model):
            return torch.autograd.grad(_loss(answering, images), images)

    return run


def _loss(answering: Answering, images: Images) -> Float[Tensor, ""]:
    """Something to go back from: the class loss, or, where there are no classes, the size of what is answered."""
    answers = answering(images)
    if not answering.has_classes:
        return answers.square().mean()
    return nn.functional.cross_entropy(answers, torch.zeros(len(images), dtype=torch.long, device=images.device))


def _synthesis_step(model: nn.Module, count: int) -> Run:
    config = SynthesisConfig(num_images=count, batch_size=count, steps=1000, film_frames=0, precision="float32")
    synthesis = Synthesis(model, config)
    batch = synthesis.start(0, count)

    recorder = PatchFeatureRecorder(model, config.heads)

    def run() -> object:
        with frozen(model), recorder.attached():
            synthesis.advance(recorder, batch, 0)
        return batch.history

    return run


def _eager_step(model: nn.Module, count: int) -> Run:
    device = device_of(model)
    images = gaussian_images(model, count).to(device).requires_grad_()
    optimiser = torch.optim.Adam([images], lr=0.2, betas=(0.5, 0.9))
    answering, recorder = Answering(model), PatchFeatureRecorder(model, "mean")

    def run() -> object:
        with frozen(model), recorder.attached():
            loss = _loss(answering, images)
            for layer in recorder.features:
                loss = loss - eager_entropy(layer)
            (images.grad,) = torch.autograd.grad(loss, images)
        optimiser.step()
        return loss

    return run
