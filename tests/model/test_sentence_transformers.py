"""sentence-transformers loads a checkpoint of every form by its modules.json, without this package."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from travelling_code import FORMS, IMAGES, write
from without_package import run_without_package

from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor, MllmReIDVisionModel
from modeling_mllmreid.model.pipeline_mllmreid import modules_entry

pytestmark = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="needs sentence-transformers")

CAPTIONS = ["a man with a red shirt .", "a man ."]
MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers_mllmreid.PersonEmbedder"}]

# One process for all of it: the import of sentence-transformers takes seconds.
ELSEWHERE = """
import sys
from pathlib import Path
import torch
from PIL import Image
import sentence_transformers
from sentence_transformers import SentenceTransformer

ends, names = {}, sys.argv[1:]

def load(form, **options):
    return SentenceTransformer(form, trust_remote_code=True, local_files_only=True, **options)

def error(kind, run):
    try:
        run()
    except kind as refused:
        return str(refused)

for form in ("full", "thin", "vision"):
    model = load(form)
    inputs = {
        "names": names,
        "paths": [Path(name) for name in names],
        "images": [Image.open(name) for name in names],
        "dicts": [{"image": name} for name in names],
    }
    ends[form] = {kind: torch.from_numpy(model.encode(images)) for kind, images in inputs.items()}
    ends[form]["one"] = torch.from_numpy(model.encode(names[0]))
    ends[form]["similarity"] = model.similarity(ends[form]["names"], ends[form]["names"])
    ends[form]["size"], ends[form]["modalities"] = model.get_embedding_dimension(), model.modalities
    ends[form]["empty"] = len(model.encode([]))
    ends[form]["text"] = error(ValueError, lambda: model.encode(["a man ."]))
    ends[form]["prompt"] = error(ValueError, lambda: model.encode(names, prompt="find: "))
    model.save(f"again/{form}")
    ends[form]["again"] = torch.from_numpy(load(f"again/{form}").encode(names))
    ends[form]["pickle"] = error(ValueError, lambda: model.save("pickle", safe_serialization=False))

full = load("full", config_kwargs={"test_feature": "vision"}, model_kwargs={"dtype": "bfloat16"})
ends["options"] = (full.get_embedding_dimension(), str(full[0].model.dtype), full.encode(names).dtype.name)
ends["backend"] = error(ValueError, lambda: load("vision", backend="onnx"))
ends["trust"] = error(ValueError, lambda: SentenceTransformer("vision", local_files_only=True))

texts = load("texts")
ends["texts"] = {
    "modalities": texts.modalities,
    "captions": torch.from_numpy(texts.encode(["a man with a red shirt .", "a man ."])),
    "prompt": torch.from_numpy(texts.encode(["with a red shirt ."], prompt="a man ")),
    "dicts": torch.from_numpy(texts.encode([{"text": "a man ."}])),
    "images": torch.from_numpy(texts.encode(names)),
    "absent": error(FileNotFoundError, lambda: texts.encode(["absent.png"])),
    "mixed": error(ValueError, lambda: texts.encode([Path(names[0]), "a man ."])),
}
sentence_transformers.__version__ = "5.4.1"
# In a folder of another name, as Python keeps the module of the first.
ends["old"] = error(ImportError, lambda: load("vision_again"))
torch.save(ends, "ends.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint of each form, one with another name, and one that was trained for texts."""
    root = tmp_path_factory.mktemp("forms")
    write(root)
    shutil.copytree(root / "vision", root / "vision_again")
    model = MllmReIDModel.from_pretrained(root / "full", reid_text=True, test_feature="llm")
    model.save_pretrained(root / "texts")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "full" / name, root / "texts")
    return root


@pytest.fixture(scope="module")
def ends(folder):
    """What the process without this package found."""
    run_without_package(ELSEWHERE, *IMAGES, folder=folder)
    return torch.load(folder / "ends.pt")


@pytest.mark.parametrize("form", FORMS)
def test_images_without_the_package(folder, ends, form):
    expected, found = torch.load(folder / "expected.pt")[form], ends[form]
    for kind in ("names", "paths", "images", "dicts", "again"):
        torch.testing.assert_close(found[kind], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["one"], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["similarity"], expected @ expected.T, rtol=0, atol=1e-5)
    assert (found["size"], found["modalities"], found["empty"]) == (expected.shape[1], ["image"], 0)
    assert found["text"] == (
        "Modality 'text' is not supported by this SentenceTransformer model. Supported modalities: image."
    )
    assert found["prompt"] == "prompt 'find: ': images have none: leave it out"
    assert found["pickle"] == "safe_serialization is off: weights are saved as safetensors only: leave it out"
    assert (folder / "again" / form / "sentence_transformers_mllmreid.py").is_file()


def test_texts_without_the_package(folder, ends):
    model, processor = (kind.from_pretrained(folder / "texts") for kind in (MllmReIDModel, MllmReIDProcessor))
    with torch.inference_mode():
        captions = model.eval().encode_text(**processor(text=CAPTIONS))
        images = model.encode_images(processor(images=[folder / name for name in IMAGES])["pixel_values"])
    found = ends["texts"]
    assert found["modalities"] == ["text", "image"]
    for name, expected in (
        ("captions", captions),
        ("prompt", captions[:1]),
        ("dicts", captions[1:]),
        ("images", images),
    ):
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5)
    assert "image 0" in found["absent"] and "absent.png" in found["absent"]
    assert found["mixed"] == "a batch has images and texts: encode the ones, then the others"


def test_options_and_refusals_without_the_package(ends):
    assert ends["options"] == (32, "torch.bfloat16", "float32")
    assert ends["backend"] == "backend onnx: this model runs in torch alone: leave it out"
    assert "trust_remote_code=True" in ends["trust"]
    assert ends["old"] == ("sentence-transformers 6 or newer is needed: pip install --upgrade sentence-transformers")


def test_with_the_package(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder / "vision"), trust_remote_code=True, local_files_only=True)
    assert type(model[0].model) is MllmReIDVisionModel
    images = [Image.open(folder / name) for name in IMAGES]
    expected = torch.load(folder / "expected.pt")["vision"]
    torch.testing.assert_close(torch.from_numpy(model.encode(images)), expected, rtol=0, atol=1e-5)


def test_every_form_has_the_modules(folder):
    for form in (*FORMS, "texts"):
        assert json.loads((folder / form / "modules.json").read_text()) == MODULES == json.loads(modules_entry())
