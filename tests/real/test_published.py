"""The paper's figures, compared with the table kept beside the checkout."""

import csv
from pathlib import Path

import pytest

from psaq.tables.published import FULL_PRECISION, published_top1

TABLE = Path(__file__).parents[3] / "shared" / "reference" / "table1.csv"


@pytest.mark.real
@pytest.mark.skipif(not TABLE.exists(), reason=f"{TABLE} is not there")
def test_every_figure_is_the_papers():
    with TABLE.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    methods = {"standard": "Standard", "gaussian": "Gaussian", "psaq": "PSAQ"}
    assert len(rows) == 7 * 2 * 3
    for row in rows:
        assert published_top1(row["model"], row["precision"], methods[row["method"]]) == float(row["top1"])
        assert FULL_PRECISION[row["model"]] == float(row["fp_top1"])
