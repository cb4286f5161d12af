"""The density beside the eager formulation and beside the model's own forward and backward."""

import functools
from collections.abc import Callable, Iterator

import similarity_density as benchmark  # type: ignore[import-not-found]
import torch
from check_cases import make_features  # type: ignore[import-not-found]
from findings import Case, Row  # type: ignore[import-not-found]
from settings import Settings, times  # type: ignore[import-not-found]

from psaq_kernels.compiling import compile_before_use

MODEL = "model forward + backward"


def cases(rehearse: bool, configuration: str) -> Iterator[Case]:
    settings = Settings(rehearse)
    common = {"configuration": configuration, "images": settings.images}
    for model, blocks in settings.blocks.items():
        layers = functools.cache(functools.partial(make_features, blocks, settings, torch.float32))
        for name, loss in contenders(configuration).items():
            for backward in (True, False):
                case = common | {"model": model, "what": name, "pass": "both" if backward else "forward"}
                yield case, functools.partial(_time, loss, layers, backward, settings)
    if configuration == "default":
        yield common | {"model": "DeiT-B", "what": MODEL, "pass": "both"}, lambda: _model_alone(settings)


def contenders(configuration: str) -> dict[str, benchmark.Loss]:
    """The peers depend on no table."""
    if configuration == "tuned":
        return {"this operation": benchmark.ours}
    return {"this operation": benchmark.ours, "eager, 10 points": benchmark.eager_few}


def _time(loss: benchmark.Loss, layers: Callable[[], list[torch.Tensor]], backward: bool, settings: Settings) -> Row:
    run = (benchmark.with_backward if backward else benchmark.forward_only)(loss, layers())
    compile_before_use(run)
    found: Row = times(run, settings.device)
    if settings.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        found["peak_mb"] = round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    return found


def _model_alone(settings: Settings) -> Row:
    name, dtype = ("deit_tiny", torch.float32) if settings.rehearse else ("deit_base", torch.bfloat16)
    model = benchmark._timm_model(f"{name}_patch16_224", None, settings.device, dtype)
    pixels = torch.randn(settings.images, 3, 224, 224, device=settings.device, dtype=dtype, requires_grad=True)
    return dict(times(lambda: torch.autograd.grad(model(pixels).logsumexp(1).sum(), pixels), settings.device))
