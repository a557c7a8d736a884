"""The run that the reports of this room's tests are made of."""

import pytest
from reported_run import make_run


@pytest.fixture
def run(tmp_path):
    """A run of three steps and two judged images."""
    folder = tmp_path / "tiny"
    make_run(folder)
    return folder
