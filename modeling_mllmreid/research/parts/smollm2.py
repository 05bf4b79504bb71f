"""SmolLM2 out of a GGUF file: a folder that transformers loads at once."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_language_model(file: Path, folder: Path) -> None:
    """Writes a language model and its tokenizer. Transformers parses a GGUF file for half a minute at every load.

    The weights are float32, the exact values of the quantised ones. The chat template is the one of the file.

    Args:
        file (`Path`): The GGUF file.
        folder (`Path`): An existing folder.
    """
    # This progress bar would appear in log files too, unlike the others of transformers.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        options: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32}
        # A GGUF file is read whatever `use_safetensors` says; it rules out pickles all the same.
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, trust_remote_code=False, use_safetensors=True, **options
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    # The weights are plain now. With these two, the saved folder would be loaded as a quantised model.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
