import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from tests.lab.records import REPEATS, SEARCH, SPEC, STEP_TIMES, TEST_LOSSES

from fisheropt_lab.files import write_json
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.outcome import load_outcome
from fisheropt_lab.report import write_reports
from fisheropt_lab.report.table import terminal_table
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.summary import NearDamping

MANIFEST = {
    "spec": SPEC.to_json(),
    "task_protocol": ["A sentence with <angle brackets> & an ampersand."],
    "environment": {
        "versions": {"python": "3.11.7", "torch": "2.13.0", "fisheropt": "0.1.0", "numpy": "2.4.6"},
        "hardware": {"cpu": "A CPU", "cores": 2, "threads": 2, "device": "cpu", "system": "A System"},
        "git_commit": "0123abc",
    },
    "command": "fisheropt compare text --optimizers adamw,fadam,sgd",
    "started": "2026-01-02T03:04:05+00:00",
}


@pytest.fixture
def folder(tmp_path):
    """A finished run with hand-made trials, and a trial left over that does not belong to its spec."""
    folder = RunFolder(tmp_path)
    folder.start(MANIFEST, resume=False)
    for record in SEARCH + REPEATS:
        write_json(folder.trial(record.trial), record.to_json())
        if record.trial.id in TEST_LOSSES:
            write_json(folder.test(record.trial), {"test_loss": TEST_LOSSES[record.trial.id]})
    step_times = {
        name: {
            "optimizer_ms": time.optimizer_ms,
            "optimizer_ms_quartiles": list(time.optimizer_ms_quartiles),
            "training_ms": time.training_ms,
            "rounds": time.rounds,
        }
        for name, time in STEP_TIMES.items()
    }
    timing = {"step_times": step_times, "first_step_seconds": dict.fromkeys(STEP_TIMES, 0.5), "finished": "then"}
    write_json(folder.timing, timing)
    write_reports(load_outcome(folder), folder)
    return folder


def test_markdown_table(folder):
    lines = folder.table.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == [
        "Optimizer",
        "Best lr",
        "Validation (nats/byte)",
        "Validation (bits/byte)",
        "Test (nats/byte)",
        "Test (bits/byte)",
        "Steps to AdamW's best",
        "Step time (optimizer ms)",
        "Step time (training ms)",
        "State (B/param)",
    ]
    bits = 1 / math.log(2)
    test, spread = f"{1.8 * bits:.4f}", f"{0.1 * bits:.4f}"
    assert cells[2][:3] == ["AdamW", "0.2", "2.1000 ± 0.1000"]
    assert cells[3][:2] == ["FAdam", "0.4 *"]
    assert cells[3][4:] == ["1.8000 ± 0.1000", f"{test} ± {spread}", "30 (2/3)", "3.00", "55.0", "8.00"]
    assert cells[4] == ["SGD", "2", *["diverged"] * 4, "not reached", "1.00", "49.0", "4.00"]
    assert "\\* the best learning rate is at the edge of the grid; SGD: 2 of 5 trials diverged." in lines[-1]


def test_results_json_has_the_table_and_all_it_is_made_of(folder):
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    fadam = results["summary"][1]
    assert fadam["test"]["nats/byte"].pop("per_seed") == [1.7, 1.8, 1.9]
    assert fadam["test"]["nats/byte"] == pytest.approx({"mean": 1.8, "std": 0.1, "min": 1.7, "max": 1.9})
    assert fadam["test"]["bits/byte"]["mean"] == pytest.approx(1.8 / math.log(2))
    assert fadam["steps_to_baseline"] == {"median": 30, "per_seed": [20, 30, None]}
    assert results["spec"] == json.loads(json.dumps(SPEC.to_json()))
    assert results["environment"] == MANIFEST["environment"]
    assert results["command"] == MANIFEST["command"]
    assert results["test_losses"] == TEST_LOSSES
    assert [trial["train_loss"] for trial in results["trials"]] == [r.train_loss for r in SEARCH + REPEATS]
    assert results["verdict"] == [str(finding) for finding in load_outcome(folder).verdict]


def test_reports_are_a_function_of_the_files(folder):
    paths = (folder.results, folder.table, folder.curves, folder.report)
    before = [path.read_bytes() for path in paths]
    write_reports(load_outcome(folder), folder)
    assert [path.read_bytes() for path in paths] == before


class Page(HTMLParser):
    """Collects text, cells and everything the page would load."""

    def __init__(self):
        super().__init__()
        self.text, self.sources = "", []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_and_loads_nothing(folder):
    html = folder.report.read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    (picture,) = page.sources
    kind, _, data = picture.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == folder.curves.read_bytes()
    assert not re.search(r"@import|url\(", html)
    for text in (
        *map(str, load_outcome(folder).verdict),
        MANIFEST["command"],
        "A CPU",
        "torch 2.13.0",
        "1.8000 ± 0.1000",
    ):
        assert text in page.text
    assert "<angle brackets> & an ampersand" in page.text  # escaped in the source


def test_the_terminal_table_with_adafisher_fits_eighty_columns(folder):
    outcome = load_outcome(folder)
    labels = ("AdaFisher", "AdaFisherW", "SGD control")
    near = NearDamping(of_weights=0.1234, median_layer=0.5)
    rows = [replace(row, label=label, near_damping=near) for row, label in zip(outcome.rows, labels, strict=True)]
    stream = io.StringIO()
    Console(width=80, file=stream).print(terminal_table(replace(outcome, rows=rows)))
    text = stream.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("12.3") == 3
    assert text.count("4.00") == 1  # bytes per parameter, in the last column


def test_the_terminal_table_fits_eighty_columns(folder):
    stream = io.StringIO()
    Console(width=80, file=stream).print(terminal_table(load_outcome(folder)))
    text = stream.getvalue()
    assert "…" not in text
    assert "1.8000 ± 0.1000" in text
    for row in ("AdamW", "FAdam", "SGD"):
        assert CONTENDERS[row.lower()].label in text
