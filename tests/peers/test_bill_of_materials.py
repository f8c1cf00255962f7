"""`segpack report --format cyclonedx` against the schema of CycloneDX 1.6, as the OWASP's own Python package has it."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from conftest import segpack


@pytest.fixture
def bill(raw, tmp_path):
    segpack("report", raw.folder, "--format", "cyclonedx", "-o", tmp_path / "bom.json")
    return (tmp_path / "bom.json").read_text()


def test_a_bill_of_materials_fits_the_schema(bill):
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None


def test_the_validator_finds_what_is_wrong(bill):
    wrong = json.loads(bill)
    wrong["metadata"]["component"]["type"] = "machine-learning"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(wrong)) is not None
