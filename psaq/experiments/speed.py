"""A whole model on a GPU: deployed beside bfloat16, and synthesis beside the authors' formulation run eagerly.

Cases for ``kernels/benchmarks/on_gpu.py``: what a measurement is called, and a function that makes it. Weights are
random, since no time depends on them.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq import Recipe, SynthesisConfig, capture, deploy, gaussian_images, load_model, quantize, synthesize
from psaq.losses import eager_entropy
from psaq.models.features import record_patch_features
from psaq_kernels.compiling import compile_before_use

Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]
Run = Callable[[], object]

MODEL = "deit_base_patch16_224"
PRECISIONS = {"W8A8": 8, "W4A8": 4}
FLOAT = "bfloat16"
CALIBRATION_IMAGES = 8
WAYS = ("eager", "graph", "compiled", "compiled, graph")
ROUNDS = 20  # of a measurement, after one that warms up
PAPER_STEPS = 1000  # of the authors' schedule


@dataclass(frozen=True)
class Setup:
    """A real model on a GPU, or a toy one on a CPU where the measurements are rehearsed."""

    rehearse: bool

    @functools.cached_property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def batches(self) -> tuple[int, ...]:
        """The most telling first."""
        return (1,) if self.rehearse else (32, 1, 8, 128)

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("W4A8",) if self.rehearse else tuple(PRECISIONS)

    @property
    def compiler(self) -> str:
        """Of torch.compile; to rehearse, it only traces."""
        return "eager" if self.rehearse else "inductor"

    @property
    def images(self) -> int:
        return 2 if self.rehearse else 32

    def noise(self, count: int) -> Float[Tensor, "images 3 height width"]:
        """Of the size that the model takes."""
        return gaussian_images(self._example, count).to(self.device)

    @functools.cached_property
    def _example(self) -> nn.Module:
        return self.model()

    def model(self) -> nn.Module:
        if self.rehearse:
            return load_model("micro_vit")
        torch.manual_seed(0)
        return timm.create_model(MODEL).eval().requires_grad_(False).to(self.device)


# Inference ------------------------------------------------------------------------------------------------------------


def inference_cases(rehearse: bool, configuration: str) -> Iterator[Case]:
    """What runs at once first, of all batches; then what torch.compile has to compile."""
    setup = Setup(rehearse)
    variants = functools.cache(functools.partial(_variant, setup))
    common = {"configuration": configuration, "model": "micro_vit" if rehearse else MODEL}
    names = setup.precisions if configuration == "tuned" else (FLOAT, *setup.precisions)
    for ways in (WAYS[:2], WAYS[2:]):
        for count in setup.batches:
            for name in names:
                for way in ways:
                    case = common | {"images": count, "variant": name, "way": way}
                    yield case, functools.partial(_inference, setup, variants, name, way, count)


def _variant(setup: Setup, name: str) -> nn.Module:
    model = setup.model()
    if name == FLOAT:
        return model.bfloat16()
    recipe = Recipe.paper(weights=PRECISIONS[name], activations=8, scope="linear")
    return deploy(quantize(model, setup.noise(CALIBRATION_IMAGES), recipe), torch.bfloat16)


@torch.no_grad()
def _inference(setup: Setup, variants: Callable[[str], nn.Module], name: str, way: str, count: int) -> Row:
    model = variants(name)
    images = setup.noise(count)
    images = images.bfloat16() if name == FLOAT else images
    if way.startswith("compiled"):
        torch.compiler.reset()
        model = torch.compile(model, backend=setup.compiler)  # type: ignore[assignment]
    if way.endswith("graph"):
        model = capture(model, images)
    else:
        compile_before_use(lambda: model(images))
    seconds = median_seconds(lambda: model(images))
    return {"ms": round(1e3 * seconds, 4), "images_per_second": round(count / seconds, 1)}


def median_seconds(run: Run, rounds: int = ROUNDS) -> float:
    """Of a run that is waited for, as a user waits for it."""
    run()
    return statistics.median(_seconds(run) for _ in range(rounds))


def _seconds(run: Run) -> float:
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Synthesis ------------------------------------------------------------------------------------------------------------


def synthesis_cases(rehearse: bool, configuration: str) -> Iterator[Case]:
    setup = Setup(rehearse)
    common = {"configuration": configuration, "model": "micro_vit" if rehearse else MODEL, "images": setup.images}
    yield common | {"what": "32 images, default schedule"}, lambda: _synthesis(setup)
    yield common | {"what": "synthesis step"}, lambda: _step(setup)
    if configuration == "default":
        yield common | {"what": "model forward + backward, float32"}, lambda: _model_alone(setup)
        yield common | {"what": "step of the authors' formulation, eager"}, lambda: _eager(setup)


def _synthesis(setup: Setup) -> Row:
    """The second of two whole syntheses: in the first, kernels are compiled."""
    model, steps = setup.model(), 2 if setup.rehearse else SynthesisConfig().steps
    run = functools.partial(_synthesize, setup, model, steps)
    first = _seconds(run)
    return {"seconds": round(_seconds(run), 3), "first_seconds": round(first, 3), "steps": steps}


def _synthesize(setup: Setup, model: nn.Module, steps: int) -> None:
    synthesize(model, SynthesisConfig(num_images=setup.images, batch_size=setup.images, steps=steps, film_frames=0))


def _step(setup: Setup) -> Row:
    """What further steps cost: what happens once is in neither."""
    model, few, many = setup.model(), 2, 4 if setup.rehearse else 22
    short, long = (functools.partial(_synthesize, setup, model, steps) for steps in (few, many))
    short()
    step = (_seconds(long) - _seconds(short)) / (many - few)
    return {"ms": round(1e3 * step, 3), "seconds": round(step * PAPER_STEPS, 1), "steps": PAPER_STEPS}


def _model_alone(setup: Setup) -> Row:
    model, images, labels = _pixels(setup)

    def run() -> object:
        return torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), images)

    return {"ms": round(1e3 * median_seconds(run, rounds=3), 3)}


def _eager(setup: Setup) -> Row:
    """The paper's equations, literally, and one step of Adam; how long its whole schedule takes is reckoned."""
    model, images, labels = _pixels(setup)
    optimiser = torch.optim.Adam([images], lr=0.2, betas=(0.5, 0.9))

    def run() -> None:
        with record_patch_features(model) as recorder:
            loss = nn.functional.cross_entropy(model(images), labels)
            for layer in recorder.features:
                loss = loss - eager_entropy(layer)
            (images.grad,) = torch.autograd.grad(loss, images)
        optimiser.step()

    seconds = median_seconds(run, rounds=3)
    return {"ms": round(1e3 * seconds, 3), "seconds": round(seconds * PAPER_STEPS, 1), "steps": PAPER_STEPS}


def _pixels(setup: Setup) -> tuple[nn.Module, Float[Tensor, "images 3 height width"], Tensor]:
    model = setup.model()
    images = setup.noise(setup.images).requires_grad_()
    return model, images, torch.zeros(setup.images, dtype=torch.long, device=setup.device)


# Where the time goes --------------------------------------------------------------------------------------------------


def profile_cases(rehearse: bool) -> Iterator[Case]:
    """Tables of the profiler, in the log; the most expensive kernel of each as the finding."""
    setup = Setup(rehearse)
    for name in setup.precisions:
        yield {"what": f"profile of the deployed model, {name}"}, functools.partial(_profile_inference, setup, name)
    yield {"what": "profile of a synthesis"}, lambda: _profile(functools.partial(_synthesize, setup, setup.model(), 3))


@torch.no_grad()
def _profile_inference(setup: Setup, name: str) -> Row:
    model, images = _variant(setup, name), setup.noise(setup.images)
    return _profile(lambda: model(images))


def _profile(run: Run) -> Row:
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        _wait()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    averages = profiler.key_averages()
    print(averages.table(sort_by=order, row_limit=30, max_name_column_width=70))
    times = {each.key: float(getattr(each, order.replace("cuda", "device"))) for each in averages}
    most = max(times, key=lambda key: times[key])
    return {"most_time": most[:80], "part": round(times[most] / sum(times.values()), 4)}
