"""``report.html``: what the run recorded and nothing else, in one file that a browser shows without complaint."""

import csv
import html
import json
import math
import re

import numpy as np
import pytest
from browser import CHROMIUM, Page
from plot_examples import GRID, density_curves, pictures

from psaq.errors import PsaqError
from psaq.reports import write_report
from psaq.reports.sections import duration, model_sizes, read_history
from psaq_plots import density_figure, samples_figure, save_figure

LAYERS = {f"blocks.{index}.mlp.fc1": {"weights": 20.0 + index, "activations": 30.0 - index} for index in range(4)}
ROW = {"model": "deit_tiny", "precision": "W8A8", "fp_top1": 81.5, "agreement": 94.0, "logit_sqnr": 11.5, "n": 600}
RECORD = {
    "command": "table1",
    "config": {"model": {"model": "deit_tiny", "weights": None}, "bits": [4, 8], "rate": 0.25},
    "seed": 7,
    "versions": {"psaq": "0.1.0", "torch": "2.14.1"},
    "device": "A <Processor> & Co, 2 threads",
    "timings": {"synthesis": 83.2, "total": 3725.0},
    "results": {
        "table": [
            {**ROW, "method": "Standard", "top1": 81.17, "paper_top1": 71.27},
            {**ROW, "method": "Gaussian", "top1": 6.17, "paper_top1": 10.55},
            {**ROW, "method": "PSAQ", "top1": 82.0, "paper_top1": 71.56},
        ],
        "sizes": {"full_precision": 22_870_000, "W4A8": 3_200_000},
        "layer_sqnr": LAYERS,
        "entropy": -4.5,
    },
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_record(folder, RECORD)
    with (folder / "history.csv").open("w", newline="") as stream:
        rows = [[batch, step, 1 / (step + 1), step] for batch in range(2) for step in range(30)]
        csv.writer(stream).writerows([["batch", "step", "entropy", "class_loss"], *rows])
    save_figure(samples_figure(pictures(4)), folder / "samples.png")
    (folder / "micro_vit" / "images").mkdir(parents=True)
    save_figure(density_figure(GRID, density_curves(2), ["block 1", "block 2"]), folder / "micro_vit" / "density.png")
    (folder / "images").mkdir()
    (folder / "images" / "0000_class1.png").write_bytes(b"not to be shown")
    (folder / "micro_vit" / "history.csv").write_text("batch,step,total\n0,0,1.5\n")
    (folder / "density.json").write_text(json.dumps({"sources": {"noise": {"verdict": "unimodal in all 2 layers"}}}))
    return folder


def write_record(folder, record):
    (folder / "run.json").write_text(json.dumps(record))


def text_of(path):
    """What a reader sees: the page without its styles, tags and pictures."""
    page = re.sub(r"<style>.*?</style>", " ", path.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_page_tells_what_ran_and_what_came_of_it(run):
    text = text_of(write_report(run))
    for expected in (
        "psaq table1",
        "A <Processor> & Co, 2 threads",
        "seed 7",
        "1 h 2 min",
        "deit_tiny W8A8 PSAQ 81.50% 82.00% 94.00% 11.50 dB 71.56% 600",
        "full precision 22.9 MB",
        "W4A8 3.2 MB",
        "noise unimodal in all 2 layers",
        "bits 4, 8",
        "rate 0.25",
        "torch 2.14.1",
        "entropy -4.5",
        "synthesis 1 min 23 s",
    ):
        assert expected in text, expected


def test_pictures_are_the_runs_and_those_drawn_from_its_numbers(run):
    titles = re.findall(r'<img [^>]*alt="([^"]*)"', write_report(run).read_text())
    assert titles == [
        "Accuracy",
        "Synthesised images",
        "Patch-similarity density: micro_vit",
        "Losses",
        "Losses: micro_vit",
        "Quantisation error by layer",
    ]


def test_page_is_one_file_that_names_no_address(run):
    page = write_report(run).read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in page
    assert "http://" not in re.sub(r"base64,[^\"]*", "", page)
    assert "https://" not in re.sub(r"base64,[^\"]*", "", page)


def test_a_run_that_only_started_has_its_page(tmp_path):
    empty: dict[str, dict] = {part: {} for part in ("config", "versions", "timings", "results")}
    write_record(tmp_path, {**RECORD, **empty, "command": "synthesize"})
    text = text_of(write_report(tmp_path))
    assert "not finished" in text
    for absent in ("Accuracy", "Size", "Losses", "Results", "Versions"):
        assert absent not in text


def test_rows_without_published_numbers_have_no_such_column(run):
    rows = [{**row, "paper_top1": None} for row in RECORD["results"]["table"]]
    write_record(run, {**RECORD, "results": {"table": rows}})
    text = text_of(write_report(run))
    assert "published" not in text
    assert "PSAQ 81.50% 82.00%" in text


def test_means_over_seeds_show_their_deviation_and_recipes_stay_apart(run):
    row = {**ROW, "method": "PSAQ", "top1": 82.0}
    rows = [{**row, "recipe": "paper", "top1_std": 0.25}, {**row, "recipe": "accurate", "top1_std": None}]
    write_record(run, {**RECORD, "results": {"table": rows}})
    text = text_of(write_report(run))
    assert "deit_tiny paper W8A8 PSAQ 81.50% 82.00 ± 0.25% 94.00%" in text
    assert "deit_tiny accurate W8A8 PSAQ 81.50% 82.00% 94.00%" in text


def test_same_run_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json: is damaged"),
        ("run.json", "[]", "no names in it"),
        ("run.json", None, "holds no run.json"),
        ("run.json", json.dumps({**RECORD, "speed": 1}), "run.json: is no run's record .speed"),
        ("run.json", json.dumps({**RECORD, "timings": {"total": -math.inf}}), "timings is unknown, missing or wrong"),
        ("run.json", json.dumps({**RECORD, "files": {"history.csv": "0" * 64}}), "history.csv: is not as the run"),
        ("history.csv", "batch,step,entropy\n0,0,much\n", "history.csv: is damaged"),
        ("history.csv", "entropy\n1\n", "history.csv: is damaged"),
        ("density.json", '{"sources": {"noise": {}}}', "density.json: lacks 'verdict'"),
    ],
)
def test_a_damaged_file_is_named_and_no_page_is_written(run, name, content, message):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(PsaqError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_history_is_read_by_batch(run):
    history = read_history(run / "history.csv")
    assert set(history) == {"entropy", "class_loss"}
    np.testing.assert_array_equal(history["class_loss"], [range(30)] * 2)


@pytest.mark.parametrize(("seconds", "text"), [(59.9, "59.9 s"), (60, "1 min 0 s"), (7322, "2 h 2 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_sizes_are_shares_of_the_largest():
    sizes = model_sizes({"small": 250, "W4_A8": 3_250_000, "large": 5_000_000_000})
    assert [(size.name, size.text) for size in sizes] == [("large", "5 GB"), ("W4 A8", "3.25 MB"), ("small", "250 B")]
    assert [size.share for size in sizes] == pytest.approx([100, 0.065, 5e-6])


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture
def page(tmp_path):
    with Page(tmp_path / "profile") as page:
        yield page


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_every_picture_without_complaint(run, page, width, dark):
    file = write_report(run)
    page.open(file, width, dark)
    shown = page.ask("Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(shown) == 6
    assert all(complete and natural > 100 and client > 100 for complete, natural, client in shown)
    assert page.ask("document.documentElement.scrollWidth") <= width, "the page is wider than its window"
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [file.resolve().as_uri()]
    drawn_for = page.ask("document.images[0].currentSrc == document.images[0].src")
    assert drawn_for is not dark, "figures have a dark version for dark screens"
    background = page.ask("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(13, 15, 18)" if dark else "rgb(246, 247, 248)")


@needs_chromium
def test_browser_would_complain_of_a_missing_picture_and_a_script(tmp_path, page):
    file = tmp_path / "broken.html"
    file.write_text('<img src="nowhere.png"><script>nothing()</script>')
    page.open(file)
    assert page.ask("document.images[0].naturalWidth") == 0
    assert any("nothing" in complaint for complaint in page.complaints)
    assert any("nowhere.png" in url for url in page.requests)
