"""`export --to native`: the LLaVA inside a checkpoint, for plain transformers."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from modeling_mllmreid.commands import export
from modeling_mllmreid.data.licences import licence_of
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError


@torch.no_grad()
def test_a_lora_is_merged_and_stock_transformers_runs_the_result(disk, tmp_path):
    arguments = ModelArguments(str(disk.native))
    adapters = AdapterArguments(language_model="lora", tower="lora", lora_dropout=0.0)
    fields = {"height": 64, "width": 32}
    model, processor = load_model(arguments, fields, adapters)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "multi_modal_projector" in name:
            weight.normal_(std=0.1)
    model.config.trained_on, model.config.base_licence = ["market1501"], "mit"
    model.save_pretrained(tmp_path / "thin")
    processor.save_pretrained(tmp_path / "thin")
    export.main(["--model", str(tmp_path / "thin"), "--to", "native", "--output", str(tmp_path / "native")])

    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "native").eval()
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(llava(input_ids=ids).logits, model.mllm.eval()(input_ids=ids).logits, atol=1e-4, rtol=0)
    again = MllmReIDModel.from_mllm_pretrained(tmp_path / "native", **fields).eval()
    pixels = torch.rand(2, 3, 64, 32)
    states = [m.run_tower(pixels).state(-1) for m in (again, model)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)
    stock = AutoProcessor.from_pretrained(tmp_path / "native")
    inputs = stock(images=Image.new("RGB", (40, 90)), text="<image> coat", return_tensors="pt")
    assert llava(**inputs).logits.isfinite().all() and tuple(inputs["pixel_values"].shape[2:]) == (64, 64)

    # The licence and the data of the training stay with it.
    assert licence_of(tmp_path / "native") == "mit"
    assert load_model(ModelArguments(str(tmp_path / "native")), fields)[0].config.trained_on == ["market1501"]


def test_a_vision_form_has_no_llava(disk, tmp_path):
    export.main(["--model", str(disk.ours), "--to", "vision", "--output", str(tmp_path / "vision")])
    with pytest.raises(UserError, match="to native: a vision form has no language model: give the checkpoint it was"):
        export.main(["--model", str(tmp_path / "vision"), "--to", "native", "--output", str(tmp_path / "native")])
    for flags, message in ((["--onnx", "true"], "onnx: is only written"), (["--backbone", "a/b"], "backbone: is only")):
        with pytest.raises(UserError, match=message):
            export.main(["--model", str(disk.ours), "--to", "native", "--output", str(tmp_path / "native"), *flags])
    assert not (tmp_path / "native").exists()
