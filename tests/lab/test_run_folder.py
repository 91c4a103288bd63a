from dataclasses import replace

import pytest
from tests.lab.records import SPEC
from tests.lab.test_report import MANIFEST

from fisheropt_lab.errors import LabError
from fisheropt_lab.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(MANIFEST, resume=False)
    return folder


def test_the_spec_comes_back(folder):
    assert folder.spec() == SPEC


def test_the_same_comparison_is_resumed_whatever_the_command_was(folder):
    folder.start(MANIFEST | {"command": "another", "started": "later"}, resume=True)
    assert folder.spec() == SPEC


def test_a_folder_that_holds_a_run_is_not_overwritten(folder):
    with pytest.raises(LabError, match="already holds a run; add --resume"):
        folder.start(MANIFEST, resume=False)


def test_another_comparison_is_refused(folder):
    other = MANIFEST | {"spec": replace(SPEC, steps=41).to_json()}
    with pytest.raises(LabError, match=r"holds a different run \(steps was 40, now 41\)"):
        folder.start(other, resume=True)


def test_other_versions_are_refused(folder):
    environment = MANIFEST["environment"]
    other = MANIFEST | {"environment": environment | {"versions": environment["versions"] | {"torch": "2.14.0"}}}
    with pytest.raises(LabError, match=r"torch was 2\.13\.0, now 2\.14\.0"):
        folder.start(other, resume=True)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(LabError, match="holds no run"):
        RunFolder(tmp_path).start(MANIFEST, resume=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=r"cannot write to the folder .*: Not a directory"):
        RunFolder(tmp_path / "file" / "run").start(MANIFEST, resume=False)
