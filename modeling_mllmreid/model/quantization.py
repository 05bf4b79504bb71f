"""4-bit and 8-bit weights of the language model alone, by bitsandbytes: what is skipped, and a check of it."""

from torch import nn

# The towers see pixels, projector and heads are trained, and the output layer decides between words: all stay exact.
# Each is matched from the start of a module's full name or as its end, so that it holds inside our model and alone.
NOT_QUANTIZED = [".*vision_tower", ".*multi_modal_projector", ".*lm_head", "reid_head"]


def quantized_class(module: nn.Module) -> str | None:
    """ "Linear4bit" or "Linear8bitLt" for a layer of bitsandbytes, else None; peft's wrappers have the same names."""
    kind = type(module)
    known = kind.__module__.startswith("bitsandbytes.") and kind.__name__ in ("Linear4bit", "Linear8bitLt")
    return kind.__name__ if known else None


def quantized_as(model: nn.Module) -> str | None:
    """ "4bit" or "8bit" for a model whose language model is held so, else None."""
    kinds = {quantized_class(module) for module in model.modules()}
    return "4bit" if "Linear4bit" in kinds else "8bit" if "Linear8bitLt" in kinds else None


def for_language_model(quantization_config):
    """The given `BitsAndBytesConfig` (or its dict), limited to the language model where it names no exceptions itself.

    Raises ImportError where bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if isinstance(quantization_config, dict):
        quantization_config = BitsAndBytesConfig(**quantization_config)
    if not isinstance(quantization_config, BitsAndBytesConfig):
        return quantization_config
    if not is_bitsandbytes_available():
        raise ImportError("4-bit and 8-bit weights need bitsandbytes: pip install bitsandbytes, or leave them out")
    if quantization_config.llm_int8_skip_modules is None:
        quantization_config.llm_int8_skip_modules = list(NOT_QUANTIZED)
    return quantization_config


def check_quantized(model: nn.Module) -> None:
    """Makes sure that the language model's linear layers are quantised and nothing else is.

    Also turns off bitsandbytes' repacking of 4-bit weights on processors with AVX512-BF16: after one forward pass
    without gradients it gives wrong gradients later, without an error. Raises ValueError naming a module.
    """
    names = {name for name, module in model.named_modules() if quantized_class(module)}
    outside = sorted(name for name in names if "language_model." not in name)
    missed = [
        name
        for name, module in model.named_modules()
        if "language_model." in name and type(module) is nn.Linear and ".lora_" not in name
    ]
    if outside or missed or not names:
        wrong = f"{outside[0]} is quantised" if outside else f"{(missed or ['the language model'])[0]} is not quantised"
        raise ValueError(f"{wrong}: leave llm_int8_skip_modules out, or give {NOT_QUANTIZED}")
    for module in model.modules():
        if quantized_class(module) == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
