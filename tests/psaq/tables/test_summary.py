"""Means and deviations of a table, counted by hand."""

import csv

import pytest

from psaq.tables.cells import Cell, Result
from psaq.tables.summary import markdown, mean_rows, write_cells
from psaq.tasks.classification import Report


def result(model, method, seed, top1, recipe="paper"):
    return Result(Cell(model, recipe, "W4A8", method, seed), Report(top1, 90.0, 600, top1 + 1, 4.0), 81.5, "")


RESULTS = [
    result("deit_tiny", "Standard", 0, 76.0),
    *(result("deit_tiny", "PSAQ", seed, top1) for seed, top1 in enumerate((75.0, 77.0, 79.0))),
    result("micro_vit", "PSAQ", 0, 94.0),
]


def test_means_and_the_samples_deviation():
    standard, psaq, micro = mean_rows(RESULTS)
    assert (psaq["top1"], psaq["top1_std"], psaq["agreement"], psaq["seeds"]) == (77.0, 2.0, 78.0, 3)
    assert (psaq["fp_top1"], psaq["n"], psaq["paper_top1"]) == (81.5, 600, 65.57)
    assert (standard["top1"], standard["top1_std"], standard["paper_top1"]) == (76.0, None, 65.20)
    assert micro["paper_top1"] is None


def test_the_table_has_the_papers_figures_in_brackets():
    lines = markdown(mean_rows([*RESULTS, result("deit_tiny", "Standard", 0, 80.0, "accurate")])).splitlines()
    assert lines[0] == "**paper recipe, W4A8**"
    assert lines[2].split() == ["|", "model", "|", "FP", "|", "Standard", "|", "PSAQ", "|"]
    assert lines[4].split("|")[1:-1] == [
        " deit_tiny ",
        " 81.50 [72.21] ",
        " 76.00 [65.20] ",
        " 77.00 ± 2.00 [65.57] ",
    ]
    assert [cell.strip() for cell in lines[5].split("|")[1:-1]] == ["micro_vit", "81.50", "", "94.00"]
    assert "**accurate recipe, W4A8**" in lines
    assert len({len(line) for line in lines[2:6]}) == 1, "the columns are aligned"


def test_the_csv_has_a_line_per_cell(tmp_path):
    write_cells(tmp_path / "table.csv", RESULTS)
    with (tmp_path / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["seed"], float(row["top1"])) for row in rows[:3]] == [
        ("Standard", "0", 76.0),
        ("PSAQ", "0", 75.0),
        ("PSAQ", "1", 77.0),
    ]
    assert [row["paper_top1"] for row in rows[3:]] == ["65.57", ""]


@pytest.mark.parametrize("column", ["model", "recipe", "precision", "method", "seed", "fp_top1", "n", "logit_sqnr"])
def test_the_csv_says_all_that_was_measured(tmp_path, column):
    write_cells(tmp_path / "table.csv", RESULTS)
    assert column in (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
