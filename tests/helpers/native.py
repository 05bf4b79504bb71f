"""Writes a tiny LLaVA to disk as a native checkpoint, for `--model` of the commands."""

from pathlib import Path

from transformers import LlavaForConditionalGeneration

from modeling_mllmreid.model import MllmReIDProcessor
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.people.captions import sample_descriptions


def write_native(
    folder: Path, *, height: int = 64, width: int = 32, hidden_size: int = 32, layers: int = 1
) -> tuple[MllmReIDProcessor, LlavaForConditionalGeneration]:
    """Writes a random LLaVA that knows the rendered captions' words; returns it with its processor."""
    texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
    processor = build_processor(texts, height=height, width=width, patch_size=16)
    llava = build_tiny_llava(processor, hidden_size=hidden_size, tower_layers=layers, lm_layers=layers, seed=0)
    for part in (processor.tokenizer, processor.image_processor, llava):
        part.save_pretrained(folder)
    return processor, llava
