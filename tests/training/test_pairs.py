"""A training with pairs: full, by LoRA and in 4 bits; its checkpoint, the auto classes, a second stage."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor
from transformers.utils.import_utils import is_bitsandbytes_available

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.utils.errors import UserError

LORA = {"language_model": "lora", "lora_rank": 2, "lora_dropout": 0.1}
WORDS = (PAIR_QUESTION, *PAIR_ANSWERS)
FORMS = {"full": None, "lora": LORA, "4bit": {**LORA, "quantize": "4bit"}}
needs_bitsandbytes = pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")


def scores(model: MllmReIDModel) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 4 * 3 * 64 * 32).sin().view(4, 3, 64, 32)
    with torch.inference_mode():
        return model.score_pairs(model.read_images(pixels), torch.tensor([0, 1, 2]), torch.tensor([3, 0, 0]))


@pytest.mark.parametrize("form", ["full", "lora", pytest.param("4bit", marks=needs_bitsandbytes)])
def test_a_checkpoint_answers_as_the_trained_model(train, tmp_path, form):
    trained = train(
        "run", words=WORDS, adapters=FORMS[form], model={"pair_weight": 1.0}, max_steps=3, diagnostics_steps=0
    )
    model, processor = trained.trainer.model.eval(), trained.trainer.processing_class
    assert all("pair" in entry for entry in trained.trainer.state.log_history[:3])
    expected = scores(model)
    assert expected.std() > 0 and model.config.pair_question_ids == processor.pair_question_ids()
    loaded = AutoModel.from_pretrained(tmp_path / "run").eval()
    # The loaded backbone is not quantised.
    tolerance = {"rtol": 0, "atol": 0.02} if form == "4bit" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(scores(loaded), expected, **tolerance)
    assert loaded.config.pair_answer_ids == AutoProcessor.from_pretrained(tmp_path / "run").pair_answer_ids()


def test_a_second_stage_adds_pairs_to_a_checkpoint(train, tmp_path):
    first = train("first", words=WORDS, max_steps=2, model={"loss_lambda": 1.0}, diagnostics_steps=0).trainer.model
    assert first.config.pair_question_ids is None
    config = tmp_path / "first/config.json"
    config.write_text(config.read_text().replace('"pair_weight": 0.0', '"pair_weight": 1.0'))
    second = train("second", words=WORDS, start=tmp_path / "first", max_steps=2, diagnostics_steps=0).trainer.model
    assert second.config.pair_question_ids and torch.isfinite(scores(second.eval())).all()


def test_ways_in_which_pairs_cannot_be_trained(train):
    with pytest.raises(UserError, match="pair_weight: the tokenizer has no tokens for Yes and No; add these words"):
        train(model={"pair_weight": 1.0})
    with pytest.raises(UserError, match="pair_weight: pairs of one person need batches of P x K"):
        train(model={"pair_weight": 1.0, "loss_lambda": 0.0}, pairs_per_batch=4)
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UserError, match="use_reentrant keeps no gradient of what the pairs read"):
        train(model={"pair_weight": 1.0}, words=WORDS, **options)
