"""Loads checkpoints of every form with their own code only, without this package.

python tests/helpers/travelling_code.py write FOLDER       # with the package
python -I tests/helpers/travelling_code.py read FOLDER     # in any environment
"""

import sys
from pathlib import Path

FORMS = ("full", "thin", "vision")
IMAGES = ("0.png", "1.png")
CAPTION = "a man with a red shirt ."


def write(folder: Path) -> None:
    """Writes a tiny model in each form, two images, and the embeddings that they must get."""
    import torch
    from PIL import Image

    from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel, MllmReIDVisionProcessor
    from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
    from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training

    processor = build_processor([CAPTION], height=64, width=32, patch_size=16)
    llava = build_tiny_llava(processor, hidden_size=32, tower_layers=3, lm_layers=2, seed=0)
    llava.save_pretrained(folder / "native")
    Image.linear_gradient("L").resize((30, 60)).save(folder / IMAGES[0])
    Image.radial_gradient("L").resize((40, 90)).save(folder / IMAGES[1])
    pixels = processor(images=[folder / name for name in IMAGES])["pixel_values"]

    fields = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids, "test_feature": "concat"}
    thin = MllmReIDModel.from_mllm_pretrained(folder / "native", **fields)
    lora = AdapterArguments(language_model="lora", tower="lora", lora_rank=4)
    prepare_training(thin, lora, backbone=str(folder / "native"), revision=None, dtype=torch.float32)
    with torch.no_grad():
        for parameter in thin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    full = MllmReIDModel.from_mllm(llava, **fields)
    vision = MllmReIDVisionModel.from_reid_model(full)
    expected = {}
    for form, model in zip(FORMS, (full, thin, vision), strict=True):
        model.save_pretrained(folder / form)
        of_form = MllmReIDVisionProcessor(processor.image_processor) if form == "vision" else processor
        of_form.save_pretrained(folder / form)
        with torch.inference_mode():
            expected[form] = model.eval().encode_images(pixels)
    torch.save(expected, folder / "expected.pt")


def read(folder: Path) -> dict[str, str]:
    """Loads each form in each way; returns "same", "different", or the name and message of an exception."""
    sys.modules["modeling_mllmreid"] = None
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

    expected = torch.load(folder / "expected.pt")
    images = [str(folder / name) for name in IMAGES]

    def embedded(path: Path) -> torch.Tensor:
        model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        with torch.inference_mode():
            return model.encode_images(processor(images=images)["pixel_values"])

    def by_pipeline(path: Path) -> torch.Tensor:
        found = pipeline("person-reid", model=str(path), trust_remote_code=True)(images)
        return torch.stack([torch.from_numpy(row) for row in found])

    def texts(path: Path) -> torch.Tensor:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        if path.name != "vision":
            assert processor(text=CAPTION)["caption_mask"].any()
        return expected[path.name]

    def config(path: Path) -> torch.Tensor:
        assert AutoConfig.from_pretrained(path, trust_remote_code=True).height == 64
        return expected[path.name]

    ends = {}
    for form in FORMS:
        for road in (embedded, by_pipeline, texts, config):
            try:
                same = (road(folder / form) - expected[form]).abs().max() <= 1e-6
                ends[f"{form}, {road.__name__}"] = "same" if same else "different"
            except Exception as error:
                ends[f"{form}, {road.__name__}"] = f"{type(error).__name__}: {error}"
    return ends


def main() -> int:
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write(folder)
        return 0
    ends = read(folder)
    for road, end in ends.items():
        print(f"{road}: {end}")
    said = set(ends.values())
    fits = said == {"same"} or len(said) == 1 and said.pop().startswith("ImportError: MLLMReID needs transformers>=")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
