import base64
import io
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from tests.lab.records import SPEC, STEP_TIMES, results

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
    """A finished run with hand-made trainings."""
    folder = RunFolder(tmp_path)
    folder.start(MANIFEST, resume=False)
    for result in results().values():
        folder.store.add(result)
    folder.store.describe("frozen", {"target": 2.0})
    times = {name: asdict(time) for name, time in STEP_TIMES.items()}
    write_json(folder.timing, {"step_times": times, "first_step_seconds": {}, "finished": "then"})
    write_reports(load_outcome(folder), folder)
    return folder


def test_markdown_table(folder):
    lines = folder.table.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    columns = dict(zip(cells[0], zip(*cells[2:], strict=True), strict=True))
    bits = 1 / math.log(2)
    assert columns == {
        "Optimizer": ("AdamW", "FAdam", "SGD"),
        "lr": ("0.2", "0.4 *", "2"),
        "Knobs": ("defaults",) * 3,
        "Works at lr": ("0.1 to 0.2", "0.2 to 0.4", "1 to 2"),
        "Test, tuned (nats/byte)": ("2.1000 ± 0.0707", "1.7800 ± 0.1304", "diverged"),
        "Test, tuned (bits/byte)": (
            f"{2.1 * bits:.4f} ± {0.070711 * bits:.4f}",
            f"{1.78 * bits:.4f} ± 0.1881",
            "diverged",
        ),
        "To AdamW, tuned (test loss, nats/byte, 95 %)": ("-", "-0.3200 [-0.4239, -0.2161]", "diverged 1/5"),
        "To AdamW, drop-in (test loss, nats/byte, 95 %)": ("-", "-0.0000 [-0.1242, +0.1242]", "-"),
        "Steps to target": ("30", "30 (4/5)", "not reached"),
        "At equal time (nats/byte)": ("2.0300", "2.0867", "-"),
        "Step time (optimizer ms)": ("2.00", "3.00", "1.00"),
        "Step time (training ms)": ("50.0", "60.0", "49.0"),
        "State (B/param)": ("8.00", "8.00", "4.00"),
    }
    assert "\\* the best learning rate is at the edge of the grid" in lines[-1]
    assert lines[-1].endswith("SGD: 1 of 3 tuning trials diverged; SGD, tuned: 1 of 5 seeds diverged.")


def test_results_json_has_the_table_and_what_it_is_made_of(folder):
    found = json.loads(folder.results.read_text(encoding="utf-8"))
    fadam = found["summary"][1]["tuned"]
    assert fadam["test"]["nats/byte"].pop("per_seed") == [1.7, 1.7, 2.0, 1.8, 1.7]
    assert fadam["test"]["nats/byte"] == pytest.approx({"mean": 1.78, "std": 0.1304, "min": 1.7, "max": 2.0}, abs=1e-4)
    assert fadam["difference"]["interval_95"] == pytest.approx([-0.4239, -0.2161], abs=1e-4)
    assert fadam["difference"]["seen"] is True
    assert fadam["steps_to_target"] == {"median": 30, "per_seed": [30, 30, 30, 30, None]}
    assert found["summary"][2]["drop_in"] is None
    assert found["spec"] == json.loads(json.dumps(SPEC.to_json()))
    assert found["environment"] == MANIFEST["environment"]
    assert found["command"] == MANIFEST["command"]
    assert found["frozen"] == {"target": 2.0}
    assert [trial["validation"] for trial in found["trials"]] == [r.record.validation_loss for r in results().values()]
    assert found["verdict"] == [str(finding) for finding in load_outcome(folder).verdict]


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
        "1.7800 ± 0.1304",
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
    assert "1.7800 ± 0.1304" in text
    for row in ("AdamW", "FAdam", "SGD"):
        assert CONTENDERS[row.lower()].label in text
