"""MllmReIDModel: a multimodal LLM with ReID heads, its language loss, and the embeddings for re-identification."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers import initialization as init

from .checkpoints import ReIDCheckpoints
from .configuration_mllmreid import MllmReIDConfig
from .crops import checked_pixels
from .heads import IDClassifier, MllmReIDOutput, ReIDFeatures, ReIDHead, mean_pool
from .language_branches import LabelLoss, LanguageBranches, read_rows
from .losses import mix_losses, reid_loss
from .pairs import recorder
from .tensors import at_least_float32, on_device_of

FEATURES = ("llm", "vision", "concat")


class MllmReIDModel(LanguageBranches, ReIDCheckpoints, PreTrainedModel):
    """A multimodal LLM with ReID heads on the LLM's image features (DirectReID) and on the visual encoder's features.

    The language loss trains the LLM to continue a text after an image or after the image's caption (Common
    Instruction). `from_mllm_pretrained` starts from a native model, `from_pretrained` loads a checkpoint of this one.
    Inputs may be on any device: the model moves them to the device of the module that takes them.

    Args:
        config ([`MllmReIDConfig`]):
            Configuration of the model. The weights are random.

    Source: MLLMReID, [arXiv 2401.13201](https://arxiv.org/abs/2401.13201).

    Example:

    ```python
    >>> import torch
    >>> from modeling_mllmreid import MllmReIDConfig, MllmReIDModel

    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> text = {"model_type": "llama", "vocab_size": 64, **sizes}
    >>> vision = {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, **sizes}
    >>> llava = {"text_config": text, "vision_config": vision, "image_token_index": 63}
    >>> config = MllmReIDConfig(mllm_config=llava, height=56, width=28, image_prefix_ids=[1, 5])
    >>> model = MllmReIDModel(config).eval()
    >>> with torch.inference_mode():
    ...     embeddings = model.encode_images(torch.zeros(3, 3, 56, 28))
    >>> embeddings.shape, embeddings.dtype
    (torch.Size([3, 16]), torch.float32)

    ```
    """

    config_class = MllmReIDConfig
    base_model_prefix = "mllm"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: MllmReIDConfig):
        super().__init__(config)
        self.mllm = AutoModelForImageTextToText.from_config(config.mllm_config)
        self.reid_head = nn.ModuleDict(
            {
                name: ReIDHead(
                    self._sizes[name],
                    config.num_identities,
                    config.bnneck,
                    name == "llm" and config.has_text_bottleneck,
                )
                for name in config.reid_heads
            }
        )
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the language model. A trained visual encoder may stay in float32."""
        weight: Tensor = self.mllm.lm_head.weight
        return weight.dtype

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, IDClassifier):
            init.normal_(module.weight, mean=0.0, std=module.std)

    @property
    def heads(self) -> nn.ModuleDict:
        """The ReID head of each feature that the ReID losses act on."""
        return self.reid_head

    def get_input_embeddings(self) -> nn.Module:
        """Returns the LLM's token embeddings."""
        embedding: nn.Module = self.mllm.get_input_embeddings()
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the LLM's token embeddings."""
        self.mllm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the LLM's output layer."""
        output_layer: nn.Module = self.mllm.get_output_embeddings()
        return output_layer

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def _test_feature(self, name: str, pooled: Tensor, *, captions: bool = False) -> Tensor:
        """Returns the L2-normalised feature, after the batch norm where the configuration asks for it."""
        if name in self.reid_head and self.config.feature_after_bn:
            pooled, _ = self.reid_head[name](pooled, captions=len(pooled) if captions else 0)
        return F.normalize(at_least_float32(pooled), dim=-1)

    def _test_features(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        features = {name: self._test_feature(name, values) for name, values in pooled.items()}
        if len(features) == 2:
            features["concat"] = torch.cat([features["llm"], features["vision"].to(features["llm"])], dim=-1) / 2**0.5
        return features

    def image_features(self, pixel_values: Tensor, names: tuple[str, ...] = ("llm", "vision")) -> dict[str, Tensor]:
        """Computes several test features in one pass.

        The output layer does not run, the sequence ends after the image tokens, and without "llm" the language model
        does not run at all.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Person crops from the processor; moved to the model's device and number format.
            names (`tuple[str, ...]`):
                Any of "llm", "vision" and "concat". "concat" is both others, concatenated and divided by sqrt(2);
                the result then holds all three.

        Returns:
            `dict[str, torch.Tensor]`: by name, features of shape (B, D), float32, L2-normalised.

        Raises:
            ValueError: for another name, and for pixels that no processor makes.
        """
        unknown = [name for name in names if name not in FEATURES]
        if unknown or not names:
            raise ValueError(f"features {', '.join(map(repr, names)) or 'none'}: give 'llm', 'vision' or 'concat'")
        names = ("llm", "vision") if "concat" in names else names
        pixel_values = checked_pixels(pixel_values, self.tower)
        if pixel_values.shape[0] == 0:
            sizes = {name: size for name, size in self._sizes.items() if name in names}
            sizes |= {"concat": sum(sizes.values())} if len(sizes) == 2 else {}
            return {name: torch.zeros(0, size, device=pixel_values.device) for name, size in sizes.items()}
        tower_output = self.run_tower(pixel_values)
        pooled = {}
        if "llm" in names:
            pooled["llm"] = self.pool_image(self.project_image(tower_output))
        if "vision" in names:
            pooled["vision"] = self.pool_vision(tower_output)
        return self._test_features(pooled)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Embeds person crops by the feature `config.test_feature`.

        Call it in eval mode, where the batch norm uses its running statistics.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Person crops from the processor.

        Returns:
            `torch.Tensor` of shape `(B, D)`: float32, L2-normalised.
        """
        name = self.config.test_feature
        return self.image_features(pixel_values, (name,))[name]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, caption_mask: Tensor) -> Tensor:
        """Embeds captions in the space of the "llm" feature.

        The embedding is useful for text-to-image search only if training had `reid_text` on. Without it captions and
        images are far apart, and the ranking is at chance.

        Args:
            input_ids, attention_mask, caption_mask (`torch.Tensor` of shape `(B, T)`):
                Output of `processor(text=[...])`.

        Returns:
            `torch.Tensor` of shape `(B, D)`: float32, L2-normalised; the mean over the caption's positions.
        """
        if input_ids.shape[0] == 0:
            device = on_device_of(self.get_input_embeddings(), input_ids).device
            return torch.zeros(0, self._sizes["llm"], device=device)
        return self._test_feature("llm", self.pool_text(input_ids, attention_mask, caption_mask), captions=True)

    # ---- training ------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        person_ids: Tensor | None = None,
        text_input_ids: Tensor | None = None,
        text_attention_mask: Tensor | None = None,
        text_labels: Tensor | None = None,
        text_caption_mask: Tensor | None = None,
        camera_ids: Tensor | None = None,
        language_rows: Tensor | None = None,
        return_reading: bool = False,
    ) -> MllmReIDOutput:
        """Computes features and losses of a batch, or embeddings if only pixels are given.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Person crops from the processor.
            input_ids, attention_mask, labels (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Image branch, right-padded. Labels are -100 except at the target. Labels give the language loss.
            person_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
                Labels 0 to n-1 of the ID classifier. They give the ReID loss.
            text_input_ids, text_attention_mask, text_labels (`torch.LongTensor` of shape `(B, T')`, *optional*):
                Text branch, with the caption in place of the image.
            text_caption_mask (`torch.BoolTensor` of shape `(B, T')`, *optional*):
                True at the caption's positions.
            camera_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
                Cameras. With them, pairs of one person are from two cameras where there are two.
            language_rows (`torch.BoolTensor` of shape `(B,)`, *optional*):
                True at the images that the language loss reads, the only ones that may have labels. Their texts then
                run apart from the features of the whole batch. All processes give it, or none.
            return_reading (`bool`, *optional*, defaults to `False`):
                Whether the output holds the crops' readings for pairs.

        Returns:
            [`MllmReIDOutput`]
        """
        if labels is None and person_ids is None and text_input_ids is None and not return_reading:
            return self._embedded(pixel_values)
        language = labels is not None and self.config.loss_lambda < 1
        reid = person_ids is not None and self.config.loss_lambda > 0
        rows = read_rows(language_rows) if language and language_rows is not None else None
        tower_output = self.run_tower(pixel_values)
        features: dict[str, Tensor] = {}
        branches: dict[str, LabelLoss] = {}
        pairs = person_ids is not None and self.config.pair_weight > 0
        reading = None
        if "llm" in self.config.reid_heads or language or pairs or return_reading:
            image = self.project_image(tower_output)
            record = recorder(self.language_model.layers) if pairs or return_reading else None
            if language and rows is None:
                features["llm"], branches["image"] = self._image_branch(
                    image, input_ids, attention_mask, labels, record=record
                )
                reading = None if record is None else self.reading_of(record, image)
            elif record is not None:
                features["llm"], reading = self.read_image(image)
            elif "llm" in self.config.reid_heads:
                features["llm"] = self.pool_image(image)
            if rows is not None:
                texts = (tensor[rows] for tensor in (input_ids, attention_mask, labels))
                _, branches["image"] = self._image_branch(image.at(rows), *texts)
        features["vision"] = self.pool_vision(tower_output)

        text_features = None
        if text_input_ids is not None and language and text_labels is not None:
            if rows is not None:
                texts = (tensor[rows] for tensor in (text_input_ids, text_attention_mask, text_labels))
                branches["text"] = self._text_branch(*texts)
            else:
                hidden, pooled_from = self.run_texts(text_input_ids, text_attention_mask, whole=True)
                branches["text"] = self._label_loss(hidden, text_labels)
                if self.config.reid_text:
                    text_features = mean_pool(pooled_from, text_caption_mask)
        if text_input_ids is not None and self.config.reid_text and text_features is None:
            text_features = self.pool_text(text_input_ids, text_attention_mask, text_caption_mask)
        sums, counts = self._sums_and_counts(branches)

        # A device map may place tower, language model and heads on three devices.
        features = {name: on_device_of(self.reid_head, values) for name, values in features.items()}
        text_features = None if text_features is None else on_device_of(self.reid_head, text_features)
        output = MllmReIDOutput(
            features=features,
            text_features=text_features,
            captioned=None if text_features is None else on_device_of(self.reid_head, text_caption_mask.any(dim=1)),
            language_loss_sums=sums or None,
            label_counts=counts or None,
            loss_parts={},
        )
        if reid:
            person_ids = on_device_of(self.reid_head, person_ids)
            output.reid_loss, output.id_logits = reid_loss(
                self.config, self.reid_head, features, text_features, person_ids, output.loss_parts, output.captioned
            )
        if pairs and reading is not None:
            output.pair_loss = self.pair_loss(reading, features["llm"], person_ids, camera_ids, output.loss_parts)
        output.reading = reading if return_reading else None
        language_loss = on_device_of(self.reid_head, self.language_loss(sums, counts)) if language else None
        output.loss_parts |= {f"lm_{name}": sums[name].detach() / counts[name] for name in sums if counts[name]}
        output.loss = mix_losses(language_loss, output.reid_loss, self.config.loss_lambda)
        if output.pair_loss is not None:
            output.loss = self.with_pair_loss(output.loss, output.pair_loss)
        return output

    def with_pair_loss(self, loss: Tensor | None, pair_loss: Tensor) -> Tensor:
        """Adds the weighted loss of pairs to the other losses, if there are any."""
        weighted: Tensor = self.config.pair_weight * pair_loss
        return weighted if loss is None else loss + weighted

    def _embedded(self, pixel_values: Tensor) -> MllmReIDOutput:
        """Returns embeddings and features, each of length B, since pipelines split their batches by the first axis."""
        tower_output = self.run_tower(pixel_values)
        pooled = {"vision": self.pool_vision(tower_output)}
        if "llm" in self.config.reid_heads or self.config.test_feature != "vision":
            pooled["llm"] = self.pool_image(self.project_image(tower_output))
        return MllmReIDOutput(
            image_embeds=self._test_features(pooled)[self.config.test_feature], features=ReIDFeatures(**pooled)
        )

    def image_language_loss(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> tuple[Tensor, int]:
        """Computes the language loss of the image branch alone; inputs as in `forward`.

        Returns:
            `tuple[torch.Tensor, int]`: the summed loss in nats, and the number of target tokens.
        """
        image = self.project_image(self.run_tower(pixel_values))
        _, loss = self._image_branch(image, input_ids, attention_mask, labels)
        return loss.loss_sum, loss.count

    def generate(self, input_ids: Tensor, pixel_values: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Generates text after a prompt, with an image if one is given.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`):
                The prompt, with image tokens if `pixel_values` is given.
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`, *optional*):
                Person crops from the processor.
            **kwargs:
                Passed on to the multimodal LLM's `generate`.

        Returns:
            `torch.LongTensor` of shape `(B, new tokens)`: the new ids alone.
        """
        input_ids = on_device_of(self.get_input_embeddings(), input_ids)
        inputs = {}
        if pixel_values is not None:
            image = self.project_image(self.run_tower(pixel_values))
            embeddings = self.embed_with_image(input_ids, image)  # checks that the ids fit the image
            # A tower in float32 may stand before a language model in bfloat16.
            inputs = self.backbone.generation_inputs(input_ids, embeddings, image.to(embeddings))
        device = input_ids.device
        kwargs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        written: Tensor = self.mllm.generate(input_ids=input_ids, **inputs, **kwargs)
        return written[:, input_ids.shape[1] :]


MllmReIDModel.register_for_auto_class("AutoModel")
