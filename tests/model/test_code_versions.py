"""Two checkpoints with different code, in folders of one name, in one process: each runs its own."""

import torch
from without_package import run_without_package

from modeling_mllmreid.model import MllmReIDVisionModel, MllmReIDVisionProcessor

# Without the package: the code is the checkpoints' own.
CLEAN_PROCESS = """
import sys
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
out, *folders = sys.argv[1:]
image = Image.linear_gradient("L").resize((30, 60))
embeddings = []
for folder in folders:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        embeddings.append(model.encode_images(processor(images=image)["pixel_values"]))
torch.save(embeddings, out)
"""


POOLING = ("heads.py", "return hidden_states.mean(dim=1)", "return -hidden_states.mean(dim=1)")
# (form, what is changed in its code, by what that multiplies the embedding)
VERSIONS = [
    ("full", None, 1),
    ("full", ("modeling_mllmreid.py", "/ 2**0.5", "/ (2 * 2**0.5)"), 0.5),
    ("full", POOLING, -1),
    ("full", ("processing_mllmreid.py", 'inputs["pixel_values"] = ', 'inputs["pixel_values"] = 0 * '), None),
    ("full", None, 1),
    ("vision", None, 1),
    ("vision", POOLING, -1),
]


def test_each_checkpoint_runs_its_own_code(make_model, tiny_processor, tmp_path):
    # Without a batch norm's shift, a change of sign in pooling is one in the embedding.
    model, folders = make_model(test_feature="concat", feature_after_bn=False).eval(), []
    for number, (form, change, _) in enumerate(VERSIONS):
        folder = tmp_path / str(number) / "model"
        if form == "full":
            model.save_pretrained(folder)
            tiny_processor.save_pretrained(folder)
        else:
            MllmReIDVisionModel.from_reid_model(model).save_pretrained(folder)
            MllmReIDVisionProcessor(tiny_processor.image_processor).save_pretrained(folder)
        if change is not None:
            file, old, new = change
            code = (folder / file).read_text()
            assert code.count(old) == 1
            (folder / file).write_text(code.replace(old, new))
        folders.append(str(folder))
    run_without_package(CLEAN_PROCESS, tmp_path / "embeddings.pt", *folders, folder=tmp_path)
    embeddings = torch.load(tmp_path / "embeddings.pt")
    for (form, _, factor), embedding in zip(VERSIONS, embeddings, strict=True):
        plain = embeddings[0] if form == "full" else embeddings[5]
        if factor is None:
            assert (embedding - plain).abs().max() > 0.01
        else:
            torch.testing.assert_close(embedding, factor * plain)
