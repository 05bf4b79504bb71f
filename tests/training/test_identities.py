"""An ID classifier goes on only for the people that its rows stand for."""

import json

import pytest
import torch
from datasets import DatasetDict

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

# Nothing moves: what a run ends with is what it began with.
STILL = {"max_steps": 1, "learning_rate": 0.0}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """As many other people, under the same numbers, file names and set."""
    folder = tmp_path_factory.mktemp("strangers") / "people"
    write_pedestrians(folder, train_identities=12, test_identities=4, images_per_camera=2, cameras=3, seed=7)
    return load_reid_dataset("market1501", data_dir=folder, captions_file=str(folder / "reid_raw.json"))


@pytest.fixture
def first(train, tmp_path):
    """A checkpoint trained on eight of the world's people."""
    train("first", max_steps=2, save_strategy="steps", save_steps=1)
    return tmp_path / "first"


def classifier(model):
    return model.reid_head["llm"].classifier.weight


def test_the_classifier_is_kept_for_the_same_people_alone(train, first, world, strangers, capsys):
    trained = classifier(MllmReIDModel.from_pretrained(first)).clone()

    def kept(output, **settings):
        capsys.readouterr()
        model = train(output, start=first, **STILL, **settings).trainer.model
        assert classifier(model).shape == trained.shape
        return torch.equal(classifier(model), trained), capsys.readouterr().out

    same, said = kept("same")
    assert same and "anew" not in said
    turned = DatasetDict({**world, "train": world["train"].select(range(len(world["train"]))[::-1])})
    assert kept("turned", dataset=turned)[0]
    for output, settings in {
        "strangers": {"dataset": strangers},
        "another draw of as many": {"seed": 3},
    }.items():
        same, said = kept(output, **settings)
        assert (
            not same and "new ID classifier: the 8 people of the checkpoint are others than those of the data" in said
        )
    # Written before checkpoints said whom their rows stand for.
    config = json.loads((first / "config.json").read_text())
    assert len(config.pop("identities_digest")) == 64
    (first / "config.json").write_text(json.dumps(config))
    same, said = kept("old")
    assert not same and "new ID classifier: the checkpoint does not record the people of its classifier" in said


def test_a_run_of_other_people_is_not_resumed(train, first, strangers, tmp_path):
    for asked in (str(first / "checkpoint-1"), "true"):
        with pytest.raises(UserError, match=r"checkpoint-\d: its ID classifier .* other people: give it as model"):
            train("first", max_steps=3, dataset=strangers, resume_from_checkpoint=asked)


def test_the_digest_goes_where_the_classifier_goes(train, first, tmp_path):
    model = MllmReIDModel.from_pretrained(first)
    digest = model.config.identities_digest
    with model.without_classifier():
        model.save_pretrained(tmp_path / "published")
    assert digest not in (tmp_path / "published/config.json").read_text()
    assert model.config.identities_digest == digest
    model.set_num_identities(0)
    assert model.config.identities_digest is None
