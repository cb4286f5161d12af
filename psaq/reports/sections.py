"""From what a run recorded to what its page shows. What was not recorded is not shown."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from psaq.errors import PsaqError
from psaq.files import read_json
from psaq.reports.pictures import TITLES, Picture, drawn, found
from psaq_plots import accuracy_figure, layer_errors_figure, losses_figure, rounds_figure

HISTORY = "history.csv"
DENSITY = "density.json"
SOURCES = {"Standard": "real", "Gaussian": "noise", "PSAQ": "generated"}
"""Table 1's words for where calibration images come from, and the colours' names for them."""
WORDS = ("model", "recipe", "precision", "method")
"""The columns that are no numbers."""
MODEL_WIDE = {"fp_top1": "full precision {}%", "n": "{} images"}
"""What is said once for a model where all its rows have the same."""
ASKED = (
    "precision",
    "precisions",
    "bits",
    "recipe",
    "recipes",
    "methods",
    "images",
    "num_images",
    "scenes",
    "quantized",
)
"""The options that tell one run of a command from another at a glance."""
ROUNDS = "rounds.csv"
ROUND_FIGURES = {
    "image_sqnr": "SQNR, images kept aside (dB)",
    "disagreement": "disagreement on these",
    "agreement": "agreement on these (%)",
    "student_loss": "student's loss",
    "image_loss": "new images' loss",
    "entropy": "new images' entropy (nats)",
}
"""Columns of an evolution's table → what they are called."""
SHOWN_ELSEWHERE = ("table", "sizes", "layer_sqnr", "summary")
COLUMNS = {
    "model": "model",
    "recipe": "recipe",
    "precision": "precision",
    "method": "calibrated on",
    "fp_top1": "FP top-1",
    "top1": "top-1",
    "top5": "top-5",
    "agreement": "agreement",
    "logit_sqnr": "logit SQNR",
    "paper_top1": "published top-1",
    "n": "images",
}
UNITS = {"n": "", "logit_sqnr": "dB", **dict.fromkeys(("fp_top1", "top1", "top5", "agreement", "paper_top1"), "%")}


@dataclass(frozen=True)
class RowGroup:
    """One model's rows: text under the table's headings. ``note`` is what holds for all of them."""

    name: str
    note: str
    rows: list[list[str]]
    best: list[bool]
    """Whether a row has the highest accuracy of its precision and recipe."""


@dataclass(frozen=True)
class Table:
    """Rows by model under headings. ``numeric`` tells which columns are numbers."""

    headings: list[str]
    numeric: list[bool]
    groups: list[RowGroup]


@dataclass(frozen=True)
class Size:
    """What a model takes on disk, as text and as a share of the largest in percent."""

    name: str
    text: str
    share: float


def run_facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What was asked: what ran, of which model, from which seed, where, for how long."""
    timings = record.get("timings") or {}
    config = record.get("config") or {}
    facts = {
        "command": f"psaq {record['command']}",
        "model": _model_name(config),
        **dict(_flat({name: config[name] for name in ASKED if config.get(name) is not None})),
        "seed": record.get("seed"),
        "device": record.get("device"),
        "time": duration(timings["total"]) if "total" in timings else "not finished",
    }
    return {name.replace("_", " "): str(value) for name, value in facts.items() if value is not None}


def result_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The run's accuracies by model, with their deviation over seeds and the published ones where they are known."""
    models: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        models.setdefault(str(row.get("model", "")), []).append(row)
    said_once = [name for name in MODEL_WIDE if all(_constant(name, group) for group in models.values())]
    names = [
        name for name in COLUMNS if name not in ("model", *said_once) and any(row.get(name) is not None for row in rows)
    ]
    return Table(
        headings=[_heading(name) for name in names],
        numeric=[name not in WORDS for name in names],
        groups=[
            RowGroup(
                name=model,
                note=", ".join(MODEL_WIDE[name].format(_cell(name, group[0])) for name in said_once),
                rows=[[_cell(name, row) for name in names] for row in group],
                best=_best(group),
            )
            for model, group in models.items()
        ],
    )


def accuracy_picture(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """The same table as dots."""
    places = list(dict.fromkeys(_place(row) for row in rows))
    cells = {(_place(row), _source(row)): row for row in rows}
    sources = list(dict.fromkeys(_source(row) for row in rows))

    def column(source: str, name: str) -> list[float]:
        return [_number(cells.get((place, source), {}).get(name)) for place in places]

    full_precision = [next(_number(cells[key].get("fp_top1")) for key in cells if key[0] == place) for place in places]
    published = {source: column(source, "paper_top1") for source in sources}

    def draw(style: str) -> Figure:
        return accuracy_figure(
            {source: column(source, "top1") for source in sources},
            places,
            full_precision,
            {source: values for source, values in published.items() if np.isfinite(values).any()},
            style,
        )

    return drawn(
        "Accuracy",
        "One row per model and precision, one dot per source of the calibration images: the nearer a dot to the bar, "
        "which is full precision, the less was lost.",
        draw,
        shows="The table's accuracies as dots, beside full precision as a bar.",
    )


def places(folder: Path) -> dict[str, Path]:
    """The run's folder, nameless, and those of its parts by name."""
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and part.name != "images")
    return {"": folder, **{part.name: part for part in parts}}


def losses_pictures(folder: Path) -> Iterator[Picture]:
    """The losses over the steps, of each synthesis that the run kept them of."""
    for name, place in places(folder).items():
        if (place / HISTORY).exists():
            history = read_history(place / HISTORY)
            yield drawn(
                "Losses",
                "Over the steps of the synthesis, thick their mean over batches: the entropy rises, the losses fall, "
                "and where they are level more steps change little.",
                partial(losses_figure, history),
                shows="One curve per loss over the steps of the synthesis.",
                part=name,
            )


def rounds_pictures(folder: Path) -> Iterator[Picture]:
    """What became of an evolution, where the run was one. Raises PsaqError where its table is damaged."""
    file = folder / ROUNDS
    if not file.exists():
        return
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        columns = {title: _column(rows, name) for name, title in ROUND_FIGURES.items()}
        figures = {title: values for title, values in columns.items() if np.isfinite(values).any()}
        best = int(np.nanargmax(columns[ROUND_FIGURES["image_sqnr"]]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PsaqError(f"{file}: is damaged ({error}); remove it, or run again") from error
    yield drawn(
        "What every round came to",
        "Round 0 is the recipe's own result; the dotted line marks the round that was kept, of the most signal.",
        lambda style: rounds_figure(figures, best, style),
        shows="Panels over the rounds: signal to noise, disagreement, agreement, losses and entropy.",
    )


def _column(rows: Sequence[Mapping[str, str]], name: str) -> Float[np.ndarray, "rows"]:
    """A column of numbers; NaN where a row has none."""
    return np.array([float(row[name] or "nan") for row in rows])


def read_history(file: Path) -> dict[str, Float[ndarray, "batches steps"]]:
    """Loss name → values. Raises PsaqError where the file is damaged."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream))
        values = np.array(rows, dtype=float)
        batches = len(np.unique(values[:, header.index("batch")]))
        names = [name for name in header if name not in ("batch", "step")]
        return {name: values[:, header.index(name)].reshape(batches, -1) for name in names}
    except (OSError, ValueError, IndexError) as error:
        raise PsaqError(f"{file}: is damaged ({error}); remove it, or run again") from error


def layer_errors_picture(sqnr: Mapping[str, Mapping[str, float | None]]) -> Picture:
    """SQNR by layer: name → {"weights": dB, "activations": dB}."""
    kinds = list(dict.fromkeys(kind for layer in sqnr.values() for kind in layer))
    values = {kind: np.array([_number(layer.get(kind)) for layer in sqnr.values()]) for kind in kinds}
    return drawn(
        "Quantisation error by layer",
        f"How far each layer's {' and '.join(kinds)} stand above their quantisation noise: further right is better, "
        "10 dB are a tenth of the noise. Weights that the recipe rounded are on their levels, and not shown.",
        lambda style: layer_errors_figure(values, list(sqnr), style),
        shows=f"One row per layer, a dot for its {' and one for its '.join(kinds)}.",
    )


def model_sizes(sizes: Mapping[str, float]) -> list[Size]:
    """Bytes by name, the largest first."""
    largest = max(sizes.values(), default=1) or 1
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return [Size(name.replace("_", " "), _bytes(size), 100 * size / largest) for name, size in ordered]


def found_pictures(folder: Path) -> list[Picture]:
    """The run's own pictures, its parts' after its own."""
    return [
        found(file, name) for name, place in places(folder).items() for file in sorted(place.glob("*.png"), key=_order)
    ]


def density_verdicts(folder: Path) -> dict[str, dict[str, str]]:
    """What the density curves say: part of the run → source → verdict, where the run kept their numbers."""
    return {name: _verdicts(place / DENSITY) for name, place in places(folder).items() if (place / DENSITY).exists()}


def other_results(results: Mapping[str, Any]) -> dict[str, str]:
    """All that the page does not show as a table, sizes or a picture; a group's numbers as group.number."""
    return dict(_flat({name: value for name, value in results.items() if name not in SHOWN_ELSEWHERE}))


def flat_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Every option with its value; those of a group as group.option."""
    return dict(_flat(config))


def duration(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _verdicts(file: Path) -> dict[str, str]:
    try:
        return {source: numbers["verdict"] for source, numbers in read_json(file)["sources"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise PsaqError(f"{file}: lacks {error}; remove it, or draw the densities anew") from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{prefix}{name}", "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _model_name(config: Mapping[str, Any]) -> Any:
    model = config.get("model")
    return model.get("model") if isinstance(model, Mapping) else model


def _order(file: Path) -> tuple[int, str]:
    known = list(TITLES)
    return (known.index(file.stem) if file.stem in known else len(known), file.stem)


def _place(row: Mapping[str, Any]) -> str:
    """What a row's figures are of, whatever the calibration."""
    return " ".join(str(row[name]) for name in ("model", "precision", "recipe") if name in row)


def _constant(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all rows have the same number."""
    return len({row.get(name) for row in rows}) == 1 and rows[0].get(name) is not None


def _best(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each row has the highest accuracy of its place, where others of the place have less."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(_place(row), []).append(_number(row.get("top1")))
    return [_number(row.get("top1")) == max(found[_place(row)]) > min(found[_place(row)]) for row in rows]


def _source(row: Mapping[str, Any]) -> str:
    return SOURCES.get(row["method"], row["method"])


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    deviation = row.get(f"{name}_std")
    return text if deviation is None else f"{text} ± {deviation:.2f}"


def _heading(name: str) -> str:
    unit = UNITS.get(name)
    return f"{COLUMNS[name]} ({unit})" if unit else COLUMNS[name]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _bytes(size: float) -> str:
    power = min(len(str(int(size))) - 1, 14) // 3
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
