"""psaq's formats for the campaign: how a small file of each is made, read, and rewritten to say what cannot be."""

import json
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from psaq.digests import PARTS, WHOLE
from psaq.errors import PsaqError
from psaq.evolution import state as evolution
from psaq.files import read_json, read_safetensors, save_tensors, write_record
from psaq.images import synthetic
from psaq.models.zoo import build_model, data_config, named_source
from psaq.quantization import checkpoint
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe
from psaq.runs import RUN_FILE, RunFolder, check_files, read_run
from psaq.synthesis import state
from psaq_kernels import tuning
from psaq_kernels.tunable import Config

IDENTITY = {"config": {"steps": 3}, "model": "0123abcd", "batch": 0}
IMPOSSIBLE = (math.nan, math.inf, -math.inf, 0.0, -1.0)


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        make: writes one into a folder and returns its path.
        read: all that psaq makes of it.
        misstate: rewrites it, where that can be, with something that cannot be meant and a digest that fits.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    misstate: Callable[[Path, random.Random], None] | None


def _quantised(folder: Path) -> Path:
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = build_model(named_source("vit_tiny_patch16_224.augreg_in21k_ft_in1k", options))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    checkpoint.save(quantize(model, images, Recipe.accurate(3, 8)), folder / "model.safetensors")
    return folder / "model.safetensors"


def _read_quantised(path: Path) -> Any:
    model = checkpoint.load(path)
    return model.state_dict(), model.psaq_recipe, left_out(model), data_config(model), str(model)


def _images(folder: Path) -> Path:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    history, film = {"loss": torch.tensor([[3.0, 2.0]])}, torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    about = {"config": {"pixel_range": "sound"}, "seed": 3}
    numbers = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return synthetic.SyntheticImages(pixels * 2, torch.tensor([1, 2]), *numbers, history, film, about).save(folder)


def _read_images(path: Path) -> Any:
    found = synthetic.load_images(path)
    return found.images, found.labels, found.mean, found.std, found.history, found.film, found.provenance


def _state(folder: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    pixels, mean, square = (torch.rand(*shape, 3, 8, 8, generator=draw) for shape in ((2,), (1, 2), (1, 2)))
    film = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    batch = state.BatchState(pixels, torch.tensor([0, 2]), mean, square, torch.rand(3, 4, generator=draw), film, step=2)
    batch.save(folder / "batch0000.safetensors", IDENTITY)
    return folder / "batch0000.safetensors"


STUDENT = {"head.weight": torch.full((2, 3), 0.5), "head.weight_quantizer.scale": torch.full((2,), 0.1)}


def _evolution(folder: Path) -> Path:
    rounds = [evolution.Round(0, 12.0, 0.5, 90.0), evolution.Round(1, math.inf, 0.25, None, -3.0, 2.0, 0.125, 5.0)]
    pool = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    strip = [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
    evolution.State(pool, STUDENT, STUDENT, strip, rounds, planned=3).save(folder / "evolution.safetensors", IDENTITY)
    return folder / "evolution.safetensors"


def _run(folder: Path) -> Path:
    run = RunFolder(folder, "table1", {"models": ["micro_vit"], "steps": 25, "crop": 0.875}, seed=0)
    (folder / "table.csv").write_text("model,top1,n\nmicro_vit,81.5,600\nmicro_swin,79.25,600\n", encoding="utf-8")
    run.finish({"table": [{"model": "micro_vit", "top1": 81.5}], "sqnr": math.inf})
    return folder / RUN_FILE


def _table(folder: Path) -> Path:
    return _run(folder).with_name("table.csv")


def _read_table(path: Path) -> Any:
    check_files(path.parent, read_run(path.parent))
    return path.read_bytes()


def _tuned(folder: Path) -> Path:
    config = Config({"BLOCK_M": 64, "PRECISION": "ieee"}, 4, 2)
    names = {"operation": "density", "source": "0123abcd", "triton": "3.6.0", "device": "A GPU", "capability": "sm_90"}
    entries = [
        tuning.Entry(bucket=f"n≤{size}", config=config, default_us=9.5, best_us=5.25, **names) for size in (8, 16)
    ]
    tuning.merge_into_table(folder / "a-gpu.json", entries)
    return folder / "a-gpu.json"


def _read_tuned(path: Path) -> Any:
    """What a table's reader documents: no entry and a warning where it refuses one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entries = tuning.read_table(path)
    if any("not a tuning table" in str(warning.message) for warning in caught):
        raise PsaqError("refused")
    return [str(entry) for entry in entries]


def _misstate_tensors(path: Path, draw: random.Random) -> None:
    """A range or another number that cannot be, NaN wherever one cannot be told from others; half without digest."""
    tensors, metadata = read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = draw.choice(sorted(name for name, tensor in tensors.items() if tensor.is_floating_point()))
    positive = name.rpartition(".")[2] in ("scale", "top", "levels_per_octave", "negative_step", "std")
    flat = tensors[name].view(-1)
    flat[draw.randrange(len(flat))] = draw.choice(IMPOSSIBLE if positive else IMPOSSIBLE[:3])
    if draw.random() < 0.5:
        plain = {name: value for name, value in metadata.items() if name not in (WHOLE, PARTS)}
        save_file(tensors, path, plain)
    else:
        save_tensors(path, tensors, metadata["psaq"], json.loads(metadata["header"]))


def _misstate_run(path: Path, draw: random.Random) -> None:
    """A part that is missing, unknown or of another kind."""
    content = {name: value for name, value in read_json(path).items() if name != WHOLE}
    name = draw.choice(sorted(content.keys() - {"files"}))  # which records from before digests do not name
    match draw.randrange(4):
        case 0:
            del content[name]
        case 1:
            content[f"{name}s"] = content[name]
        case 2:
            content[name] = draw.choice([[1], True, 0.5])
        case 3:
            content["timings"] = {"total": draw.choice([math.inf, "1", None])}
    write_record(path, content)


def _misstate_tuned(path: Path, draw: random.Random) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    entry = draw.choice(content["entries"])
    wrong = draw.choice([math.nan, "4", -1, True, 4.5, None, 1 << 30])
    place = draw.choice(["num_warps", "num_stages", "BLOCK_M", "best_us", "default_us"])
    if place.endswith("_us"):
        entry[place] = draw.choice([math.nan, math.inf, 0, -1.5, "9", True])
    elif place == "BLOCK_M":
        entry["config"]["constants"][place] = draw.choice([math.nan, -1, True, 4.5, None, 1 << 30])
    else:
        entry["config"][place] = wrong
    content["sha256"] = tuning._digest(content["entries"])
    path.write_text(json.dumps(content), encoding="utf-8")


def _read_state(path: Path) -> Any:
    return vars(state.load_batch(path, IDENTITY, torch.device("cpu")))


FORMATS = (
    Format("quantised model", _quantised, _read_quantised, _misstate_tensors),
    Format("images", _images, _read_images, _misstate_tensors),
    Format("synthesis state", _state, _read_state, _misstate_tensors),
    Format(
        "evolution state",
        _evolution,
        lambda path: vars(evolution.load_state(path, IDENTITY, STUDENT)),
        _misstate_tensors,
    ),
    Format("tuning table", _tuned, _read_tuned, _misstate_tuned),
    Format("run.json", _run, lambda path: read_run(path.parent), _misstate_run),
    Format("table.csv", _table, _read_table, None),
)
