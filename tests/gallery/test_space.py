"""A Space with the page of a gallery: its files, its start, refusals, the upload."""

import base64
import configparser
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cli_process import CliProcess
from hub_server import TOKEN, HubServer, Repo

from modeling_mllmreid.commands import page
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.serving import space
from modeling_mllmreid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
ADDRESS = "s3://bucket/people"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def get(url, process, headers=None, method="GET"):
    """Returns the answer of a server that starts."""
    for _ in range(300):
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}, method=method)).read()
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert process.poll() is None
            time.sleep(0.1)
    raise AssertionError("no answer")


@pytest.mark.slow
def test_it_starts_from_its_folder_alone(tmp_path):
    pytest.importorskip("moto", reason="the S3 server needs moto")
    folder, endpoint, port = tmp_path / "space", f"http://127.0.0.1:{free_port()}", free_port()
    page.main(["--space", "owner/people", "--gallery", ADDRESS, "--output", str(folder)])
    bucket = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", endpoint.rpartition(":")[2]], stderr=subprocess.DEVNULL
    )
    server = None
    try:
        get(f"{endpoint}/bucket", bucket, method="PUT")
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "hidden", "region": "us-east-1"}
        options = {"endpoint": endpoint, "allow_http": "true", **keys}
        Gallery.create(ADDRESS, "pedestrians-small", options=options)
        own = {"PYTHONPATH": "", "GRADIO_SERVER_PORT": str(port), space.OPTIONS: json.dumps(options)}
        environment = {**os.environ, **own, space.USER: "ida"}
        command = [sys.executable, "app.py"]
        server = subprocess.Popen(command, cwd=folder, env={**environment, space.PASSWORD: "long enough"})
        url = f"http://127.0.0.1:{port}"
        assert json.loads(get(f"{url}/health", server)) == {"status": "ok"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url, server)
        user = {"Authorization": f"Basic {base64.b64encode(b'ida:long enough').decode()}"}
        assert b"Person gallery" in get(url, server, user)
    finally:
        for process in filter(None, (server, bucket)):
            process.kill()
            process.wait()


def test_it_does_not_start_without_a_password(monkeypatch, capsys):
    monkeypatch.setenv(space.USER, "ida")
    monkeypatch.delenv(space.PASSWORD, raising=False)
    with pytest.raises(SystemExit, match="2"):
        space.launch(ADDRESS)
    assert "error: MLLMREID_USER is given without MLLMREID_PASSWORD: give both" in capsys.readouterr().err


def test_requirements_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [setup["options.extras_require"][name] for name in ("gallery", "onnx", "page")]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).split("\n")
    assert set(space.REQUIRED) == {re.split("[<>=]", line)[0] for line in lines if line}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--gallery", "runs/gallery"], "is a folder, and a Space keeps the history"),
        (["--gallery", "s3://key:word@bucket/one"], "^gallery: the address may hold a key"),
        (["--gallery", ADDRESS, "--storage_options", '{"key": "word"}'], "^storage_options: a Space keeps the history"),
        (["--gallery", ADDRESS, "--space", "people"], "^space people: is no name of a Space: give owner/name$"),
    ],
)
def test_mistakes(tmp_path, argv, message):
    with pytest.raises(UserError, match=message):
        page.main(["--space", "owner/people", "--output", str(tmp_path / "space"), *argv])
    assert not (tmp_path / "space").exists()


def test_an_upload_is_private_and_a_public_space_is_refused(tmp_path):
    with HubServer() as hub:
        hub.repos["spaces", "tester/open"] = Repo(f"{hub.url}/spaces/tester/open", private=False)
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        with CliProcess(environment, tmp_path) as process:

            def push(name):
                argv = ["--space", name, "--gallery", ADDRESS, "--output", str(tmp_path / name), "--push", "true"]
                code, _, err = process("cli", "page", *argv, token=TOKEN)
                return code, err

            code, err = push("tester/people")
            assert code == 0, err
            assert hub.repos["spaces", "tester/people"].private
            files = hub.files("spaces", "tester/people")
            assert {"README.md", "app.py", "requirements.txt", "modeling_mllmreid/__init__.py"} <= set(files)
            code, err = push("tester/open")
        assert code == 2 and "this Space exists and is public" in err
        assert not hub.files("spaces", "tester/open") and not (tmp_path / "tester/open").exists()
