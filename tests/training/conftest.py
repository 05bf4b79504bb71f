"""A small rendered world on disk, and real trainings on it."""

import pytest
from tiny_training import tiny_processor_and_llava, train_tiny, world_of

from modeling_mllmreid.synthetic.flat.write import write_pedestrians


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Twelve training and four test people, three cameras, with captions: flat ones, which are learned in few steps."""
    folder = tmp_path_factory.mktemp("world") / "people"
    write_pedestrians(folder, train_identities=12, test_identities=4, images_per_camera=2, cameras=3)
    return folder


@pytest.fixture(scope="session")
def world(people):
    return world_of(people)


@pytest.fixture(scope="session")
def parts():
    return tiny_processor_and_llava()


@pytest.fixture
def train(world, tmp_path):
    """train(output=..., batch={...}, model={...}, adapters={...}, **training arguments): see `train_tiny`."""

    def run(output="run", *, dataset=None, **arguments):
        return train_tiny(tmp_path, world if dataset is None else dataset, output, **arguments)

    return run
