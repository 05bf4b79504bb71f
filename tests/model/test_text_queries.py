"""Embeddings of captions: their losses, and their batch norm."""

import copy
import json

import torch

from modeling_mllmreid.model import MllmReIDModel


def test_text_queries_and_their_losses(make_model, make_batch, tiny_processor):
    model = make_model(reid_text=True)
    output = model(**make_batch())
    assert "contrastive_text" in output.loss_parts and output.id_logits["llm"].shape == (16, 4)
    model.eval()
    inputs = tiny_processor(text=["a man with a red shirt .", "a bag ."])
    both = model.encode_text(**inputs)
    alone = model.encode_text(**tiny_processor(text="a bag ."))
    assert both.shape == (2, 32) and torch.allclose(both[1], alone[0], atol=1e-5)


def test_captions_have_a_batch_norm_of_their_own(make_model, make_batch, tiny_processor, tmp_path):
    inputs, pixels = tiny_processor(text=["a man with a red shirt .", "a bag ."]), make_batch()["pixel_values"]

    def embeddings(model):
        return model.encode_text(**inputs), model.encode_images(pixels)

    def moved(model, name):
        changed = copy.deepcopy(model)
        torch.nn.init.normal_(getattr(changed.reid_head["llm"], name).running_mean)
        return [not torch.equal(*sides) for sides in zip(embeddings(changed), embeddings(model), strict=True)]

    model = make_model(reid_text=True).eval()
    assert moved(model, "text_bottleneck") == [True, False] and moved(model, "bottleneck") == [False, True]
    shared = make_model(reid_text=True, text_loss="triplet").eval()
    assert moved(shared, "bottleneck") == [True, True]

    # A checkpoint from before the field had one for both.
    shared.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["text_loss"], fields["text_temperature"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = MllmReIDModel.from_pretrained(tmp_path).eval()
    assert loaded.config.text_loss == "triplet"
    for ours, theirs in zip(embeddings(loaded), embeddings(shared), strict=True):
        assert torch.equal(ours, theirs)
