"""Requests to a gallery that is served, without a socket."""

from pathlib import Path

import pytest

testclient = pytest.importorskip("starlette.testclient")
OWN = "http://127.0.0.1:7860"
# The start of a file in a form.
START = b'--x\r\nContent-Disposition: form-data; name="photos"; filename="%s"\r\n\r\n'


def client_of(app, **options):
    """Returns a client of an application on this machine; a fault is an answer of status 500."""
    return testclient.TestClient(app, base_url=OWN, raise_server_exceptions=False, **options)


def upload(*paths):
    """Returns the photos of a form."""
    return [("photos", (Path(path).name, Path(path).read_bytes(), "image/png")) for path in paths]
