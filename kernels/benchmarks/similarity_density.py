"""The patch-similarity density beside its peers: accuracy, time, memory, and its share of a model's own time.

    python kernels/benchmarks/similarity_density.py                         # everything; CSV and plot in results/
    python kernels/benchmarks/similarity_density.py --only beside_model --weights deit_tiny.safetensors

Four tables, each a CSV:
- formulations: ways to compute the density, their error against a float64 direct sum, and the time of forward +
  backward for 8 images of one DeiT block (N = 196, D = 64, h = 0.01);
- resources: registers, spills and shared memory of their Triton kernels on sm_90 (and their time on a GPU);
- shapes: the operation on all blocks of a model beside the eager formulation and torch.compile of a product-based one;
- beside_model: the operation's forward + backward, and its memory, beside the model's own.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from formulations import FORMULATIONS  # type: ignore[import-not-found]
from jaxtyping import Float
from measuring import (  # type: ignore[import-not-found]
    RESULTS,
    Run,
    device_name,
    milliseconds,
    peak_megabytes,
    slug,
    versions,
    write_csv,
)
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from psaq_kernels import density_entropy, similarity_density, similarity_range
from psaq_kernels.eager import eager_similarity_density

BANDWIDTH = 0.01
PEER_POINTS = 10  # the grid of the authors' code, between the least and the greatest similarity
KEPT_PER_CHANNEL, KEPT_PER_POINT = 2, 3  # floats that the eager formulation keeps of a similarity for its backward

# windows, patches, channels of each block, heads averaged; and of a DeiT-B whose heads are not
MODELS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "deit": ((1, 196, 64),) * 12,  # T, S and B alike
    "swin_tiny": ((64, 49, 32),) * 2 + ((16, 49, 32),) * 2 + ((4, 49, 32),) * 6 + ((1, 49, 32),) * 2,
    "deit_base, 768 channels": ((1, 196, 768),) * 12,
}

Features = Float[Tensor, "images windows patches channels"]
Loss = Callable[[Sequence[Features]], Tensor]


def full_grid(device: torch.device) -> Float[Tensor, "grid"]:
    """All of [-1, 1] and the kernel's tails, two points to a bandwidth."""
    return torch.linspace(-1.05, 1.05, math.ceil(2.1 * 2 / BANDWIDTH), device=device)


def make_layers(model: str, images: int, device: torch.device) -> list[Features]:
    """Two groups of patches per image: similarities are bimodal, as a real image's."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for windows, patches, channels in MODELS[model]:
        centres = torch.randn(images, windows, 2, channels, generator=generator)
        which = torch.randint(2, (patches,), generator=generator)
        noise = 0.5 * torch.randn(images, windows, patches, channels, generator=generator)
        layers.append((centres[:, :, which] + noise).to(device).requires_grad_())
    return layers


# Losses: the negative entropy of all layers, by every contender -------------------------------------------------------


def ours(layers: Sequence[Features]) -> Tensor:
    grid = full_grid(layers[0].device)
    return -density_entropy(similarity_density(layers, grid, BANDWIDTH), grid).sum()


def eager_few(layers: Sequence[Features]) -> Tensor:
    """Broadcast cosines and a tensor of (images, 10, N²), a layer at a time."""
    total = layers[0].new_zeros(())
    for layer in layers:
        lowest, highest = similarity_range(layer)
        grid = torch.linspace(float(lowest), float(highest), PEER_POINTS, device=layer.device)
        total = total - density_entropy(eager_similarity_density(layer, grid, BANDWIDTH), grid).sum()
    return total


def eager_full(layers: Sequence[Features]) -> Tensor:
    """The same at all grid points."""
    grid = full_grid(layers[0].device)
    densities = torch.stack([eager_similarity_density(layer, grid, BANDWIDTH) for layer in layers])
    return -density_entropy(densities, grid).sum()


def product(layers: Sequence[Features]) -> Tensor:
    """Cosines by a matrix product, one grid point at a time: what torch.compile can fuse."""
    grid = full_grid(layers[0].device)
    total = layers[0].new_zeros(())
    for layer in layers:
        unit = F.normalize(layer, dim=-1)
        samples = (unit @ unit.mT).flatten(1)
        z = (grid[None, :, None] - samples[:, None, :]) / BANDWIDTH
        density = torch.exp(-0.5 * z * z).mean(-1) / (BANDWIDTH * math.sqrt(2 * math.pi))
        total = total - density_entropy(density, grid).sum()
    return total


def forward_only(loss: Loss, layers: Sequence[Features]) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return loss(layers)

    return run


def with_backward(loss: Loss, layers: Sequence[Features]) -> Run:
    return lambda: torch.autograd.grad(loss(layers), list(layers))


CONTENDERS: dict[str, Loss] = {"this operation": ours, "eager, 10 points": eager_few, "eager, full grid": eager_full}


def prepare(contender: str, model: str, images: int, small: bool) -> Run:
    """For a process that measures memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return with_backward(CONTENDERS[contender], make_layers(model, 1 if small else images, device))


# Formulations ---------------------------------------------------------------------------------------------------------


def exact_density(features: Features, grid: Float[Tensor, "grid"], h: float) -> Float[Tensor, "images grid"]:
    unit = F.normalize(features, dim=-1, eps=0)
    samples = (unit @ unit.mT).flatten(1)
    points = [torch.exp(-0.5 * ((x - samples) / h) ** 2).mean(1) for x in grid]
    return torch.stack(points, 1) / (h * math.sqrt(2 * math.pi))


def formulation_features() -> dict[str, Features]:
    generator = torch.Generator().manual_seed(0)
    shared, noise = torch.randn(2, 1, 1, 64, generator=generator), torch.randn(2, 1, 196, 64, generator=generator)
    (clustered,) = make_layers("deit", 2, torch.device("cpu"))[:1]
    return {
        "random": noise,
        "clustered": clustered.detach(),
        "noise-like": shared + 0.3 * noise,
        "near-identical": shared + 0.02 * noise,
    }


def formulations(repeats: int) -> Iterator[dict[str, object]]:
    """Accuracy per kind of features and bandwidth, and CPU time, of every formulation."""
    cases = [(name, kind, h) for h in (0.01, 0.05) for kind in formulation_features() for name in FORMULATIONS]
    times = {name: _formulation_time(name, repeats) for name in tqdm(FORMULATIONS, desc="formulations, time")}
    for name, kind, h in tqdm(cases, desc="formulations, error"):
        errors = _errors(name, formulation_features()[kind], h)
        yield {"formulation": name, "features": kind, "bandwidth": h, **errors, "cpu_ms_h0.01": round(times[name], 2)}


def _errors(name: str, features: Features, h: float) -> dict[str, str]:
    grid = torch.linspace(-1 - 6 * h, 1 + 6 * h, math.ceil(4.4 / h))
    found, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    density, direct = FORMULATIONS[name](found, grid, h), exact_density(exact, grid.double(), h)
    entropy, exact_entropy = density_entropy(density, grid), density_entropy(direct, grid.double())
    (gradient,), (right,) = torch.autograd.grad(entropy.sum(), found), torch.autograd.grad(exact_entropy.sum(), exact)
    return {
        "density_error": f"{((density - direct).abs().amax(1) / direct.amax(1)).amax():.1e}",
        "entropy_error": f"{(entropy - exact_entropy).abs().amax():.1e}",
        "gradient_error": f"{(gradient - right).norm() / right.norm():.1e}",
    }


def _formulation_time(name: str, repeats: int) -> float:
    layers, grid = make_layers("deit", 8, torch.device("cpu"))[:1], full_grid(torch.device("cpu"))

    def loss(layers: Sequence[Features]) -> Tensor:
        return density_entropy(FORMULATIONS[name](layers[0], grid, BANDWIDTH), grid).sum()

    return milliseconds(with_backward(loss, layers), torch.device("cpu"), repeats)[0]


def resources(device: torch.device) -> Iterator[dict[str, object]]:
    """Registers, spills and shared memory on sm_90 of one launch of each formulation, and its time on a GPU."""
    from formulations_triton import KERNELS, compile_request, launcher  # type: ignore[import-not-found]

    from psaq_kernels.aot import compile_ahead
    from psaq_kernels.density_configs import density_problem
    from psaq_kernels.density_layout import LayerShape
    from psaq_kernels.density_tunables import TUNABLES
    from psaq_kernels.devices import TARGETS

    problem = density_problem([LayerShape(32, 1, 196, 64)], "float32")
    default = {kernel: kernel.default(problem, TARGETS["sm_90"]) for kernel in TUNABLES}
    requests = {f"cells: {kernel.name}": kernel.compile_request(problem, default[kernel]) for kernel in TUNABLES}
    runs = {}
    if device.type == "cuda":
        unit = F.normalize(torch.randn(32, 196, 64, device=device), dim=-1)
        runs = {name: launcher(name, unit)[0] for name in KERNELS}
        for kernel in TUNABLES:
            launch = kernel.prepare(problem, device)
            runs[f"cells: {kernel.name}"] = lambda launch=launch, config=default[kernel]: launch(config)
    for name, request in (requests | {name: compile_request(name) for name in KERNELS}).items():
        used = asdict(compile_ahead(request, "sm_90"))
        yield {"kernel": name, **used, "gpu_ms": milliseconds(runs[name], device, 1)[0] if name in runs else ""}


# Shapes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """The device's measured rates, and the least time they allow the operation."""

    bytes_per_second: float
    flops_per_second: float

    @staticmethod
    def measured(device: torch.device, repeats: int) -> "Bound":
        source = torch.empty(2**28 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
        target, square = torch.empty_like(source), torch.ones(2048, 2048, device=device)
        copy = milliseconds(lambda: target.copy_(source), device, repeats)[0]
        multiply = milliseconds(lambda: square @ square, device, repeats)[0]
        return Bound(2e3 * source.numel() / copy, 2e3 * 2048**3 / multiply)

    def milliseconds(self, layers: Sequence[Features], backward: bool) -> float:
        """Features moved once (thrice with a gradient); half of Γ formed (and all of it again, and a product)."""
        moved = sum(layer.numel() * layer.itemsize for layer in layers) * (3 if backward else 1)
        flops = sum(2 * layer.numel() * layer.shape[2] for layer in layers) * (2.5 if backward else 0.5)
        return 1e3 * max(moved / self.bytes_per_second, flops / self.flops_per_second)


def eager_gigabytes(contender: str, model: str, images: int) -> float:
    """What a contender keeps of all layers for its backward; nothing for one that forms no tensor of the kind."""
    points = {"eager, 10 points": PEER_POINTS, "eager, full grid": len(full_grid(torch.device("cpu")))}.get(contender)
    if points is None:
        return 0
    kept = (w * n * n * (KEPT_PER_CHANNEL * d + KEPT_PER_POINT * points) for w, n, d in MODELS[model])
    return 4e-9 * images * sum(kept)


def shapes(options: Any, device: torch.device) -> Iterator[dict[str, object]]:
    """The operation and its peers on all blocks of a model."""
    bound = Bound.measured(device, options.repeats)
    losses = dict(CONTENDERS)
    if device.type == "cuda" or options.compiled:
        losses["compiled product, full grid"] = torch.compile(product)
    cases = [
        (model, count, name)
        for model in options.models
        for count in options.images
        for name in losses
        if eager_gigabytes(name, model, count) <= options.most_gigabytes
    ]
    for model, count, name in tqdm(cases, desc="shapes"):
        layers = make_layers(model, count, device)
        for backward in (False, True):
            run = (with_backward if backward else forward_only)(losses[name], layers)
            median, p20, p80 = milliseconds(run, device, options.repeats if name == "this operation" else 1)
            measured = backward and name in CONTENDERS
            memory = round(peak_megabytes(prepare, name, model, count), 1) if measured else ""
            yield {
                "model": model,
                "images": count,
                "contender": name,
                "pass": "forward + backward" if backward else "forward",
                "median_ms": round(median, 4),
                "p20_ms": round(p20, 4),
                "p80_ms": round(p80, 4),
                "of_bound": round(bound.milliseconds(layers, backward) / median, 4),
                "peak_mb": memory,
            }


def plot_shapes(path: Path, rows: Sequence[Mapping[str, Any]], device: str) -> None:
    """Time of forward + backward over the number of images."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("Agg")
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = pyplot.subplots(1, len(models), figsize=(4 * len(models), 3.5), layout="constrained", squeeze=False)
    for model, axis in zip(models, axes[0], strict=True):
        chosen = [row for row in rows if row["model"] == model and row["pass"] == "forward + backward"]
        for contender in dict.fromkeys(row["contender"] for row in chosen):
            points = [(row["images"], row["median_ms"]) for row in chosen if row["contender"] == contender]
            axis.loglog(*zip(*points, strict=True), "o-", label=contender)
        counts = sorted({row["images"] for row in chosen})
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xticks([], minor=True)
        axis.set(title=model, xlabel="images", ylabel="forward + backward / ms")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(device)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# Beside the model -----------------------------------------------------------------------------------------------------


def beside_model(options: Any, device: torch.device) -> Iterator[dict[str, object]]:
    """The operation on the features of all blocks, and the model's own forward + backward, in turns."""
    name = options.timm_model or ("deit_base_patch16_224" if device.type == "cuda" else "deit_tiny_patch16_224")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, images = _timm_model(name, options.weights, device, dtype), options.beside_images
    pixels = torch.randn(images, 3, 224, 224, device=device, dtype=dtype, requires_grad=True)
    layers = [layer.detach().requires_grad_() for layer in _block_features(model, pixels)]
    runs = {
        "model forward + backward": lambda: torch.autograd.grad(model(pixels).logsumexp(1).sum(), pixels),
        "this operation": with_backward(ours, layers),
    }
    if device.type == "cuda" or options.slow:
        runs["eager, 10 points"] = with_backward(eager_few, layers)
    times = {what: milliseconds(run, device, options.repeats)[0] for what, run in runs.items()}
    for what, time in times.items():
        share = time / times["model forward + backward"]
        memory = round(peak_megabytes(_prepare_beside, what, name, options.weights, images), 1) if options.slow else ""
        row = {"model": name, "images": images, "what": what, "median_ms": round(time, 3), "of_model": round(share, 4)}
        yield {**row, "peak_mb": memory}


def _prepare_beside(what: str, name: str, weights: Path | None, images: int, small: bool) -> Run:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _timm_model(name, weights, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    pixels = torch.randn(1 if small else images, 3, 224, 224, device=device, dtype=next(model.parameters()).dtype)
    if what.startswith("model"):
        pixels.requires_grad_()
        return lambda: torch.autograd.grad(model(pixels).logsumexp(1).sum(), pixels)
    layers = [layer.detach().requires_grad_() for layer in _block_features(model, pixels)]
    return with_backward(CONTENDERS[what], layers)


def _timm_model(name: str, weights: Path | None, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(name)
    if weights:
        model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False).to(device, dtype)


def _block_features(model: Any, pixels: Tensor) -> list[Features]:
    """The input of every block's output projection, heads averaged, class token dropped."""
    features: list[Features] = []

    def record(attention: Any, attended: Float[Tensor, "images tokens dim"]) -> None:
        split = attended.unflatten(-1, (attention.num_heads, -1)).mean(2)
        features.append(split[:, None, model.num_prefix_tokens :])

    hooks = [
        block.attn.proj.register_forward_pre_hook(lambda _, inputs, attn=block.attn: record(attn, inputs[0]))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return features


# Running --------------------------------------------------------------------------------------------------------------


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu = torch.cuda.is_available()
    tables = ["formulations", "resources", "shapes", "beside_model"]
    parser.add_argument("--only", nargs="+", choices=tables, default=tables)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[: 3 if has_gpu else 2])
    parser.add_argument("--images", nargs="+", type=int, default=[8, 32, 128] if has_gpu else [8])
    parser.add_argument("--most-gigabytes", type=float, default=60 if has_gpu else 4, help="leave greedier peers out")
    parser.add_argument("--beside-images", type=int, default=32 if has_gpu else 8)
    parser.add_argument("--timm-model", help="for beside_model; default DeiT-B on a GPU, DeiT-T on a CPU")
    parser.add_argument("--weights", type=Path, help="its weights, a safetensors file; random without")
    parser.add_argument("--compiled", action="store_true", help="torch.compile's version on a CPU, too")
    parser.add_argument("--fast", dest="slow", action="store_false", help="no eager peer and no memory beside_model")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    os.environ.pop("TRITON_INTERPRET", None)  # compiling ahead of time needs the compiler
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = {"device": device_name(device), **versions()}
    tables: dict[str, Callable[[], Iterator[dict[str, object]]]] = {
        "formulations": lambda: formulations(options.repeats),
        "resources": lambda: resources(device),
        "shapes": lambda: shapes(options, device),
        "beside_model": lambda: beside_model(options, device),
    }
    for table in options.only:
        rows = list(tables[table]())
        path = options.out / f"similarity_density-{table}-{slug(common['device'])}.csv"
        write_csv(path, rows, common)
        print(f"\n{path}", *("  ".join(f"{key}={value}" for key, value in row.items()) for row in rows), sep="\n")
        if table == "shapes":
            plot_shapes(path.with_suffix(".png"), rows, common["device"])


if __name__ == "__main__":
    main()
