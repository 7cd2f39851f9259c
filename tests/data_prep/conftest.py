"""What the tests of data_prep share."""

import pytest


@pytest.fixture
def write(tmp_path, request):
    """Writes bytes or text to a file and returns its path; its usual name is FILE of the test's module."""

    def write(data, name=""):
        path = tmp_path / (name or request.module.FILE)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write
