"""What ``psaq quantize`` does."""

from collections.abc import Mapping

from torch import nn

from psaq.commands.quantize import MODEL_FILE, Quantize
from psaq.models.place import device_of
from psaq.quantization.budget import check_budget, fit_budget, parse_budget
from psaq.quantization.checkpoint import save
from psaq.quantization.layer_errors import layer_sqnr
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq_kernels.packing import NIBBLE_BITS


def run(options: Quantize) -> None:
    budget = None if options.budget is None else parse_budget(options.budget)
    # The parts that low bits need: where more are picked they cost time, where they are missing accuracy.
    recipe = options.chosen_recipe(None if budget is None else NIBBLE_BITS)
    folder = options.folder("quantize")
    model = options.model.load()
    options.check(model, recipe)
    if budget is not None:
        check_budget(model, recipe, budget)
    run = RunFolder(folder, "quantize", options.config(), options.seed, device=device_of(model))
    with run.timed("images"):
        images = options.calibration_images(model, folder)
    if budget is not None:
        with run.timed("budget"):
            recipe = fit_budget(model, images, recipe, budget, progress=True)
        print(_picked(recipe))
    with run.timed("quantisation"):
        qmodel = quantize(model, images, recipe, progress=True)
    save(qmodel, folder / MODEL_FILE)
    sizes = {"float32": fp32_bytes(model), "quantised": (folder / MODEL_FILE).stat().st_size}
    run.finish(
        {
            "sizes": sizes,
            "layer_sqnr": layer_sqnr(qmodel, images),
            "overrides": recipe.overrides,
            "left_out": left_out(qmodel),
        }
    )
    write_report(folder)
    for part, reason in left_out(qmodel).items():
        print(f"without {part}: {reason}")
    print(f"{folder / MODEL_FILE}: {recipe}, {_megabytes(sizes)}")


def _picked(recipe: Recipe) -> str:
    """What a budget came to, in one line."""
    by_bits: dict[str, list[str]] = {}
    for layer, bits, _ in recipe.overrides:
        by_bits.setdefault("float" if bits is None else f"{bits} bits", []).append(layer)
    others = [f"{bits} for {', '.join(layers)}" for bits, layers in sorted(by_bits.items())]
    return "; ".join([f"weights: {recipe.weights} bits", *others])


def fp32_bytes(model: nn.Module) -> int:
    """What the model's tensors take in float32."""
    return 4 * sum(tensor.numel() for tensor in model.state_dict().values())


def _megabytes(sizes: Mapping[str, int]) -> str:
    part = sizes["float32"] / sizes["quantised"]
    return f"{sizes['quantised'] / 1e6:.2f} MB, 1/{part:.1f} of float32's {sizes['float32'] / 1e6:.2f} MB"
