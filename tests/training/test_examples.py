"""The examples in the docstrings of the public names of training run."""

import doctest

import pytest

from modeling_mllmreid.training import arguments, batches, run, trainer


@pytest.mark.parametrize("file", (arguments, batches, run, trainer), ids=lambda file: file.__name__.rpartition(".")[2])
def test_the_example_gives_what_it_shows(file):
    results = doctest.testmod(file)
    assert results.attempted and not results.failed
