"""The examples in the docstrings of the public classes of the model run."""

import doctest

import pytest

from modeling_mllmreid.model import (
    configuration_mllmreid,
    heads,
    modeling_mllmreid,
    processing_mllmreid,
    vision_mllmreid,
)

FILES = (configuration_mllmreid, heads, modeling_mllmreid, processing_mllmreid, vision_mllmreid)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__.rpartition(".")[2])
def test_the_example_gives_what_it_shows(file):
    results = doctest.testmod(file)
    assert results.attempted and not results.failed
