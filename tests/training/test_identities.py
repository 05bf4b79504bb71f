"""An ID classifier is kept only for the people that it was trained on."""

import json

import pytest
import torch
from datasets import DatasetDict

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

# A learning rate of 0, so a run ends with its initial weights.
STILL = {"max_steps": 1, "learning_rate": 0.0}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """The same number of other people, with the same ids, file names and data set."""
    folder = tmp_path_factory.mktemp("strangers") / "people"
    write_pedestrians(folder, train_identities=12, test_identities=4, images_per_camera=2, cameras=3, seed=7)
    return load_reid_dataset("market1501", data_dir=folder, captions_file=str(folder / "reid_raw.json"))


@pytest.fixture
def first(train, tmp_path):
    """A checkpoint trained on eight people of the world."""
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

    same, printed = kept("same")
    assert same and "new ID classifier" not in printed
    turned = DatasetDict({**world, "train": world["train"].select(range(len(world["train"]))[::-1])})
    assert kept("turned", dataset=turned)[0]
    for output, settings in {
        "strangers": {"dataset": strangers},
        "another draw of as many": {"seed": 3},
    }.items():
        same, printed = kept(output, **settings)
        assert (
            not same
            and "new ID classifier: the 8 people of the checkpoint are others than those of the data" in printed
        )
    # Older checkpoints do not record the people of their classifier.
    config = json.loads((first / "config.json").read_text())
    assert len(config.pop("identities_digest")) == 64
    (first / "config.json").write_text(json.dumps(config))
    same, printed = kept("old")
    assert not same and "new ID classifier: the checkpoint does not record the people of its classifier" in printed


def test_a_run_of_other_people_is_not_resumed(train, first, strangers, tmp_path):
    for asked in (str(first / "checkpoint-1"), "true"):
        with pytest.raises(UserError, match=r"checkpoint-\d: its ID classifier .* other people: give it as model"):
            train("first", max_steps=3, dataset=strangers, resume_from_checkpoint=asked)


def test_the_digest_is_saved_with_the_classifier(train, first, tmp_path):
    model = MllmReIDModel.from_pretrained(first)
    digest = model.config.identities_digest
    with model.without_classifier():
        model.save_pretrained(tmp_path / "published")
    assert digest not in (tmp_path / "published/config.json").read_text()
    assert model.config.identities_digest == digest
    model.set_num_identities(0)
    assert model.config.identities_digest is None
