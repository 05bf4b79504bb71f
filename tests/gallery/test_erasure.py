"""The search for traces finds what is there, wherever it is."""

import io
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_mllmreid.gallery.erasure import find_traces


def traces(patterns, *contents):
    return find_traces(set(patterns), [(f"file {n}", lambda c=c: io.BytesIO(c)) for n, c in enumerate(contents)])


# The health check fails on a busy machine.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5, unique=True),
    st.lists(st.binary(max_size=30), min_size=1, max_size=6),
    st.data(),
)
def test_every_occurrence_is_found_at_any_address(patterns, between, data):
    content = b"".join(part + data.draw(st.sampled_from([b"", *patterns])) for part in between)
    expected = sum(content.startswith(pattern, place) for pattern in patterns for place in range(len(content)))
    assert traces(patterns, content).count == expected
    part = data.draw(st.integers(1, 64))
    with patch("modeling_mllmreid.gallery.erasure.CHUNK_BYTES", part):
        assert traces(patterns, content).count == expected


def test_the_file_and_the_sizes_are_reported():
    feature = np.random.default_rng(0).normal(size=64).astype("f4").tobytes()
    result = traces([feature, b"camera/a.jpg"], b"x" * 1001 + feature, b"camera/b.jpg", b"ccamera/a.jpgg")
    assert (result.count, result.files, result.patterns) == (2, ["file 0", "file 2"], 2)
    assert result.searched_bytes == 1001 + 256 + 12 + 14


def test_repeated_words_overlap():
    zeros = bytes(32)
    assert traces([zeros], b"\1" * 60 + zeros + b"\1" * 60).count == 1
    assert traces([zeros], bytes(40)).count == 9
