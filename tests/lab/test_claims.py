"""The page of claims, from results made by hand."""

import json

import pytest
from tests.lab.records import SPEC, results
from tests.lab.test_report import MANIFEST

from fisheropt_lab.claims import CLAIMS, verdict_page
from fisheropt_lab.errors import LabError
from fisheropt_lab.files import write_json
from fisheropt_lab.outcome import load_outcome
from fisheropt_lab.report import write_reports
from fisheropt_lab.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "compare-text")
    run.start(MANIFEST, resume=False)
    for result in results().values():
        run.store.add(result)
    write_json(run.timing, {"step_times": {}, "finished": "then"})
    write_reports(load_outcome(run), run)
    old = tmp_path / "from-before"
    old.mkdir()
    (old / "results.json").write_text(json.dumps({"spec": {"lrs": {}}, "summary": []}))
    return tmp_path


def test_every_claim_is_there_with_a_number_or_with_what_would_give_one(folder):
    page = verdict_page(folder)
    for claim in CLAIMS:
        assert f"## {claim.title}\n" in page
    language, factored, *_ = page.split("\n## ")[1:]
    assert "**Tuned, against AdamW: better: FAdam. Drop-in, against AdamW: no difference seen: FAdam.**" in language
    assert "| FAdam | -0.3200 [-0.4239, -0.2161] | -0.0000 [-0.1242, +0.1242] |" in language
    assert "SGD" not in language, "the claim is about FAdam"
    assert "**Not measured** by" in factored
    assert "`fisheropt ablate epsilon --task text|speech|image|digits` would speak to it." in page
    assert "from-before" not in page, "results of another protocol are left out"
    assert "| compare-text | `fisheropt compare text --optimizers adamw,fadam,sgd` | then |" in page


def test_few_seeds_support_no_claim(folder):
    path = folder / "compare-text" / "results.json"
    value = json.loads(path.read_text())
    value["spec"]["seeds"] = [1, 2, 3]
    path.write_text(json.dumps(value))
    assert "**3 seeds support no claim.**" in verdict_page(folder)
    assert SPEC.seeds == (1, 2, 3, 4, 5)


def test_no_results(tmp_path):
    with pytest.raises(LabError, match="no results of a study below"):
        verdict_page(tmp_path)
