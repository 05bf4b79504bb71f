"""A gallery in an S3 bucket, on a server of this machine: two writers, searches, erasure."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import bucket_writer
import numpy as np
import pytest

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.indexing import build_index
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.serving.server import build_app
from modeling_mllmreid.serving.service import GalleryService
from modeling_mllmreid.utils.errors import UserError

pytest.importorskip("moto", reason="the S3 server needs moto")
testclient = pytest.importorskip("starlette.testclient")


@contextmanager
def bucket_server():
    """Options of a bucket on a server of this machine, and the process of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region": "us-east-1"}
        yield {"endpoint": endpoint, "allow_http": "true", **keys}, server
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def options():
    with bucket_server() as (options, _):
        yield options


@pytest.mark.slow
def test_a_bucket_that_cannot_be_reached_any_more(encoder, tmp_path):
    place = "s3://bucket/served"
    with bucket_server() as (options, server):
        gallery = Gallery.create(place, type(encoder)(numbers=bucket_writer.NUMBERS), options=options)
        gallery.add_features(bucket_writer.feature(1)[None], [bucket_writer.row(1)])
        client = testclient.TestClient(build_app(GalleryService(gallery, Audit(tmp_path / "audit"))))
        search = {"id": bucket_writer.row(1)["id"]}
        assert client.post("/api/search", data=search).json()["hits"] == []
        server.kill()
        server.wait()
        answer = client.post("/api/search", data=search)
    message = f"gallery {place}: cannot be reached: check the network and the address, or try again later"
    assert (answer.status_code, answer.json()) == (503, {"error": message})


def test_two_writers_searches_and_an_erasure(options, encoder):
    place = "s3://bucket/galleries/one"
    assert not Gallery.is_at(place, options)
    gallery = Gallery.create(place, type(encoder)(numbers=bucket_writer.NUMBERS), options=options)
    command = [sys.executable, bucket_writer.__file__, place, json.dumps(options)]
    writers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(2)]
    assert [writer.communicate()[0] for writer in writers] == ["60\n", "60\n"]
    numbers = [*range(60), *range(1000, 1060)]
    numbers.sort(key=lambda number: bucket_writer.row(number)["id"])
    features = np.stack([bucket_writer.feature(number) for number in numbers])
    query = bucket_writer.feature(5)
    ranking = rank_gallery(query[None], features, 10)
    found = gallery.search(query, 10, threshold=None)
    assert [hit.file_name for hit in found.hits] == [
        bucket_writer.row(numbers[place])["file_name"] for place in ranking.indices[0]
    ]
    np.testing.assert_array_equal([hit.distance for hit in found.hits], ranking.distances[0])
    assert gallery.info()["rows"] == 120 and gallery.info()["bytes"] > features.nbytes

    more = range(2000, 2140)
    gallery.add_features(np.stack([bucket_writer.feature(n) for n in more]), [bucket_writer.row(n) for n in more])
    assert build_index(gallery).recall >= 0.95
    gone = [number for number in [*numbers, *more] if number % 7 == 5]
    erased = gallery.delete(Where(cameras=[5]))
    assert (erased.rows, erased.traces.count) == (len(gone), 0) and erased.traces.searched_bytes > 200 * 128
    content = b"".join(file().read() for _, file in gallery.store.files())
    assert not any(bucket_writer.feature(number).tobytes() in content for number in gone)
    assert bucket_writer.feature(0).tobytes() in content
    assert not {hit.crop.camera_id for hit in Gallery(place, options=options).find()} & {5}


def test_mistakes(options, encoder):
    with pytest.raises(UserError, match="gallery s3://bucket/none: is no gallery: create one with gallery add"):
        Gallery("s3://bucket/none", options=options)
    with pytest.raises(UserError, match="^gallery s3://missing/none: .*: check the place, or restore a copy$"):
        Gallery.create("s3://missing/none", encoder, options=options)
