"""Verification: a report that is true or false, and exceptions with all findings."""

import subprocess
import sys

import pytest

import segpack
from conftest import CHECKPOINT


def test_a_sound_pack_is_verified(place):
    report = segpack.Pack(place).verify(against=CHECKPOINT)
    assert report and report.ok and report.findings == []
    assert report.document["checked"]["tensors"] == 414
    assert report.raise_for_findings() is report


def test_a_damaged_pack_is_a_report_that_is_false(damaged):
    place, tensor = damaged
    report = segpack.verify(place)
    assert not report and not report.ok
    assert tensor.name in {finding.get("tensor") for finding in report.findings}
    with pytest.raises(segpack.DamagedError, match="problem") as caught:
        report.raise_for_findings()
    assert list(caught.value.findings) == report.findings
    assert segpack.verify(place, mode="quick").ok  # which reads no weights, as its name says


def test_wrong_arguments_are_usage_errors(raw):
    for wrong in ({"mode": "some"}, {"jobs": 0}, {"manifest_sha256": "1"}):
        with pytest.raises(segpack.UsageError) as caught:
            segpack.verify(raw, **wrong)
        assert caught.value.exit_status == 2


def test_importing_the_package_imports_neither_numpy_nor_torch():
    code = "import sys, segpack; segpack.__version__; print({'numpy', 'torch', 'ml_dtypes'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_package_has_the_version_of_the_command():
    done = subprocess.run([sys.executable, "-m", "segpack", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["segpack", segpack.__version__]
    assert set(segpack.__all__) <= set(dir(segpack))
    with pytest.raises(AttributeError):
        segpack.nothing  # noqa: B018
