"""The cells of a table of results: one measurement each, one file each, whole or absent."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from psaq.errors import PsaqError
from psaq.files import read_record, write_record
from psaq.quantization.recipes import RECIPES, Recipe, parse_precision
from psaq.settings import as_json, difference
from psaq.tasks.classification import Report


@dataclass(frozen=True)
class Cell:
    """One measurement: which model, quantised how, calibrated on what."""

    model: str
    recipe: str
    precision: str
    method: str
    seed: int

    @property
    def quantiser(self) -> Recipe:
        """What the recipe's name stands for."""
        return RECIPES[self.recipe](*parse_precision(self.precision))

    def __str__(self) -> str:
        return f"{self.model} {self.recipe} {self.precision} {self.method} seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A cell and what came out of it."""

    cell: Cell
    report: Report
    fp_top1: float
    """Of the full-precision model on the same images, in percent."""
    weights: str
    """The digest of the full-precision model's weights."""


class CellStore:
    """A folder of finished cells. One that is being measured leaves no trace in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self._file(cell).exists()

    def write(self, result: Result) -> None:
        """Keep a finished cell, whole or not at all."""
        content = {
            "cell": asdict(result.cell),
            "report": result.report.as_dict(),
            "fp_top1": result.fp_top1,
            "weights": result.weights,
            "quantiser": as_json(result.cell.quantiser),
        }
        write_record(self._file(result.cell), content)

    def read(self, cell: Cell) -> Result:
        """A finished cell. Raises PsaqError where its file is damaged, another cell's, or of a time when the recipe of
        that name was another."""
        file = self._file(cell)
        content = read_record(file)
        try:
            result = Result(
                Cell(**content["cell"]), Report(**content["report"]), content["fp_top1"], content["weights"]
            )
            quantiser = dict(content["quantiser"])
        except (KeyError, TypeError) as error:
            raise PsaqError(f"{file}: is damaged ({error}); remove it to measure the cell again") from error
        if result.cell != cell:
            raise PsaqError(f"{file}: holds {result.cell}; remove it to measure {cell} again")
        if other := difference(quantiser, cell.quantiser):
            raise PsaqError(
                f"{file}: was measured with another {cell.recipe} recipe ({other}); "
                "name another folder with --out, or remove it to measure the cell again"
            )
        return result

    def check_weights(self, cells: Iterable[Cell], weights: str) -> None:
        """Raises PsaqError where one of the finished ``cells`` was measured on other weights than ``weights``."""
        for cell in cells:
            if self.read(cell).weights != weights:
                raise PsaqError(
                    f"{self._file(cell)}: was measured on other weights of {cell.model}; name another folder "
                    "with --out, or give the weights of before"
                )

    def _file(self, cell: Cell) -> Path:
        name = f"{cell.model}-{cell.recipe}-{cell.precision}-{cell.method}-seed{cell.seed}.json"
        return self.folder / name
