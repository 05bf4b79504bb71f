"""MllmReIDModel: a LLaVA with DirectReID heads, its language loss, and the embeddings that ReID ranks by."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers import initialization as init

from .checkpoints import ReIDCheckpoints
from .configuration_mllmreid import MllmReIDConfig
from .crops import checked_pixels
from .heads import IDClassifier, MllmReIDOutput, ReIDFeatures, ReIDHead, mean_pool
from .losses import distillation_sum, language_loss_sum, mix_losses, reid_loss
from .tensors import at_least_float32, in_format_of, on_device_of

# From so many texts on, the shorter half runs without the longer half's padding; each half still keeps a device busy.
TEXTS_TO_HALVE = 32
FEATURES = ("llm", "vision", "concat")


class MllmReIDModel(ReIDCheckpoints, PreTrainedModel):
    """LLaVA by composition, with ReID heads on the LLM's latent image features (DirectReID) and the visual encoder's.

    Source: MLLMReID, arXiv 2401.13201. The language loss trains on a continuation after an image or after its caption.
    Inputs may be on any device: each goes to that of the module that takes it.
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
            {name: ReIDHead(self._sizes[name], config.num_identities, config.bnneck) for name in config.reid_heads}
        )
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The language model's number format: a trained visual encoder may stay in float32 beside it."""
        return self.mllm.lm_head.weight.dtype

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, IDClassifier):
            init.normal_(module.weight, mean=0.0, std=module.std)

    def set_num_identities(self, num_identities: int, identities_digest: str | None = None) -> None:
        """Makes the ID classifiers anew for other identities; 0 drops them. identities_digest: whom they stand for."""
        self.config.num_identities = num_identities
        self.config.identities_digest = identities_digest if num_identities else None
        for head in self.reid_head.values():
            head.remake_classifier(num_identities, self.device)

    def get_input_embeddings(self) -> nn.Module:
        return self.mllm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.mllm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.mllm.get_output_embeddings()

    # ---- parts ---------------------------------------------------------------------------------------------------

    @property
    def _sizes(self) -> dict[str, int]:
        """Per feature, its D."""
        return {"llm": self.config.get_text_config().hidden_size, "vision": self.config.vision_config.hidden_size}

    @property
    def _llava(self) -> PreTrainedModel:
        return self.mllm.model

    @property
    def vision_layer(self) -> int:
        """Index into the tower's hidden states that the vision feature is pooled from."""
        if self.config.vision_layer is not None:
            return self.config.vision_layer
        layer = self.config.mllm_config.vision_feature_layer
        return layer if isinstance(layer, int) else layer[-1]

    @property
    def _projected_layers(self) -> list[int]:
        """Indices into the tower's hidden states that the projector reads."""
        layers = self.config.mllm_config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    def _tower(self, pixel_values: Tensor) -> tuple[Tensor | None, ...]:
        """Hidden states of the vision tower, each (B, 1 + patches, D); position embeddings fit any crop size.

        None stands for those that nothing reads: keeping them would cost an inference their memory.
        """
        tower = self._llava.vision_tower
        return tower(
            checked_pixels(pixel_values, tower),
            interpolate_pos_encoding=True,
            output_hidden_states=[*self._projected_layers, self.vision_layer],
        ).hidden_states

    def _patches(self, hidden_states: Tensor) -> Tensor:
        """Drops the class token where LLaVA does."""
        return (
            hidden_states[:, 1:]
            if self.config.mllm_config.vision_feature_select_strategy == "default"
            else hidden_states
        )

    def _image_embeddings(self, tower_states: tuple[Tensor | None, ...]) -> Tensor:
        """What the language model reads in the image tokens' places: (B, image tokens, D)."""
        projector = self._llava.multi_modal_projector
        selected = torch.cat(
            [on_device_of(projector, self._patches(tower_states[layer])) for layer in self._projected_layers], dim=-1
        )
        return projector(in_format_of(projector, selected))

    def _language_model(self, embeddings: Tensor, attention_mask: Tensor | None, whole: bool) -> tuple[Tensor, Tensor]:
        """Runs the LLM without its head. embeddings: (B, T, D); attention_mask: (B, T).

        Returns the last hidden states, for the language loss, and those of `llm_layer`, for the ReID feature. Unless
        `whole`, layers above `llm_layer` are not run, and the last ones returned are that layer's too.
        """
        language_model, layer = self._llava.language_model, self.config.llm_layer
        attention_mask = None if attention_mask is None else attention_mask.to(embeddings.device)
        depth = len(language_model.layers)
        layer = layer if layer >= 0 else depth + 1 + layer
        at_end = layer == depth
        if not whole and not at_end:
            # A shallow view that shares every weight and ends after `layer` blocks, without the final norm.
            blocks, view = language_model.layers[:layer], copy.copy(language_model)
            view._modules = {**language_model._modules, "layers": blocks, "norm": nn.Identity()}
            view.config = copy.copy(language_model.config)
            view.config.num_hidden_layers = layer
            language_model = view
        output = language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=[layer] if whole and not at_end else False,
        )
        last = output.last_hidden_state
        return last, (output.hidden_states[layer] if whole and not at_end else last)

    def _texts(self, input_ids: Tensor, attention_mask: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
        """`_language_model` over right-padded texts (B, T), the shorter half on its own where they are many.

        Zeros stand in the padding that was left out. The halves depend on B alone, so that processes that share the
        weights of a step run the language model equally often.
        """
        input_ids, attention_mask = (
            on_device_of(self.get_input_embeddings(), of) for of in (input_ids, attention_mask)
        )
        if len(input_ids) < TEXTS_TO_HALVE:
            return self._language_model(self._embed(input_ids), attention_mask, whole)
        lengths, order = attention_mask.sum(dim=1).sort()
        halves = order.chunk(2)
        longest = torch.stack([half[-1] for half in lengths.chunk(2)]).tolist()
        last, pooled_from = zip(
            *(
                self._language_model(self._embed(input_ids[rows, :length]), attention_mask[rows, :length], whole)
                for rows, length in zip(halves, longest, strict=True)
            ),
            strict=True,
        )
        width, back = input_ids.shape[1], order.argsort()

        def joined(parts: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])[
                back.to(parts[0].device)
            ]

        joined_last = joined(last)
        return joined_last, (joined_last if last[0] is pooled_from[0] else joined(pooled_from))

    def _prefix(self, device: torch.device) -> Tensor:
        if self.config.image_prefix_ids is None:
            raise ValueError(
                "the configuration has no image_prefix_ids; set config.image_prefix_ids = processor.image_prefix_ids"
            )
        return torch.tensor(self.config.image_prefix_ids, dtype=torch.long, device=device)

    def _embed(self, input_ids: Tensor) -> Tensor:
        embedding = self.get_input_embeddings()
        return embedding(on_device_of(embedding, input_ids))

    def _embed_with_image(self, input_ids: Tensor, image_embeddings: Tensor) -> Tensor:
        """Token embeddings of (B, T) ids with the image in its tokens' places, which must follow the stored prefix."""
        input_ids = on_device_of(self.get_input_embeddings(), input_ids)
        start, length = len(self._prefix(input_ids.device)), image_embeddings.shape[1]
        expected = torch.full((start + length,), self.config.mllm_config.image_token_id, device=input_ids.device)
        expected[:start] = self._prefix(input_ids.device)
        if input_ids.shape[1] < len(expected) or not (input_ids[:, : len(expected)] == expected).all():
            raise ValueError(
                f"input_ids must start with image_prefix_ids and {length} image tokens; "
                "build them with the processor saved beside this model"
            )
        embeddings = self._embed(input_ids)
        image_embeddings = image_embeddings.to(embeddings)
        return torch.cat([embeddings[:, :start], image_embeddings, embeddings[:, start + length :]], dim=1)

    def _embed_image_prompt(self, image_embeddings: Tensor) -> Tensor:
        """Prefix and image alone: what an embedding needs. Returns (B, prefix + image tokens, D)."""
        prefix = self._embed(self._prefix(image_embeddings.device)).expand(len(image_embeddings), -1, -1)
        return torch.cat([prefix, image_embeddings.to(prefix)], dim=1)

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def _test_feature(self, name: str, pooled: Tensor) -> Tensor:
        if name in self.reid_head and self.config.feature_after_bn:
            pooled, _ = self.reid_head[name](pooled)
        return F.normalize(at_least_float32(pooled), dim=-1)

    def image_features(self, pixel_values: Tensor, names: tuple[str, ...] = ("llm", "vision")) -> dict[str, Tensor]:
        """The test features from one pass: "llm", "vision" and, with both, "concat" (each normalised, then / sqrt 2).

        pixel_values: (B, 3, H, W), moved to the model's device and number format. Each feature is (B, D), float32,
        L2-normalised. No lm_head runs, the sequence ends after the image tokens, and without "llm" the language model
        does not run at all. Raises ValueError for another name, and for pixels that no processor made.
        """
        unknown = [name for name in names if name not in FEATURES]
        if unknown or not names:
            raise ValueError(f"features {', '.join(map(repr, names)) or 'none'}: give 'llm', 'vision' or 'concat'")
        names = ("llm", "vision") if "concat" in names else names
        pixel_values = checked_pixels(pixel_values, self._llava.vision_tower)
        if pixel_values.shape[0] == 0:
            sizes = {name: size for name, size in self._sizes.items() if name in names}
            sizes |= {"concat": sum(sizes.values())} if len(sizes) == 2 else {}
            return {name: torch.zeros(0, size, device=pixel_values.device) for name, size in sizes.items()}
        tower_states = self._tower(pixel_values)
        pooled = {}
        if "llm" in names:
            pooled["llm"] = self._pooled_image(self._image_embeddings(tower_states))
        if "vision" in names:
            pooled["vision"] = mean_pool(self._patches(tower_states[self.vision_layer]))
        return self._test_features(pooled)

    def _pooled_image(self, image_embeddings: Tensor) -> Tensor:
        _, hidden = self._language_model(self._embed_image_prompt(image_embeddings), None, whole=False)
        return mean_pool(hidden[:, len(self.config.image_prefix_ids) :])

    def _test_features(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        features = {name: self._test_feature(name, values) for name, values in pooled.items()}
        if len(features) == 2:
            features["concat"] = torch.cat([features["llm"], features["vision"].to(features["llm"])], dim=-1) / 2**0.5
        return features

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """The embedding `config.test_feature` of person crops. pixel_values: (B, 3, H, W).

        Returns (B, D), float32, L2-normalised; call it in eval mode, where the batch norm uses its running statistics.
        """
        name = self.config.test_feature
        return self.image_features(pixel_values, (name,))[name]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, caption_mask: Tensor) -> Tensor:
        """The captions' latent, in the space of the "llm" feature; all inputs (B, T), from `processor(text=[...])`.

        Returns (B, D), float32, L2-normalised. Useful for text-to-image search only where training had `reid_text` on:
        otherwise captions and images lie apart and the ranking is at chance.
        """
        if input_ids.shape[0] == 0:
            return torch.zeros(
                0, self._sizes["llm"], device=on_device_of(self.get_input_embeddings(), input_ids).device
            )
        return self._test_feature("llm", self._pooled_text(input_ids, attention_mask, caption_mask))

    def _pooled_text(self, input_ids: Tensor, attention_mask: Tensor, caption_mask: Tensor) -> Tensor:
        _, hidden = self._texts(input_ids, attention_mask, whole=False)
        return mean_pool(hidden, caption_mask)

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
    ) -> MllmReIDOutput:
        """Features, and with `labels` the language loss, with `person_ids` the ReID loss; of pixels the embedding.

        pixel_values: (B, 3, H, W). Image rows `input_ids`, `attention_mask`, `labels`: (B, T), right-padded, labels
        -100 where no target stands. `person_ids`: (B,) labels 0..n-1 of the ID classifier. Text rows (B, T') have the
        caption in the image's place, `text_caption_mask` True at its positions. Returns [`MllmReIDOutput`].
        """
        if labels is None and person_ids is None and text_input_ids is None:
            return self._embedded(pixel_values)
        lam = self.config.loss_lambda
        language = labels is not None and lam < 1
        reid = person_ids is not None and lam > 0
        tower_states = self._tower(pixel_values)
        features: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        logits: dict[str, Tensor] = {}

        if "llm" in self.config.reid_heads or language:
            image = self._image_embeddings(tower_states)
            if language:
                embeddings = self._embed_with_image(input_ids, image)
                hidden, pooled_from = self._language_model(embeddings, attention_mask, whole=True)
                logits["image"] = self._label_logits(hidden, labels, sums, counts, "image")
                start = len(self.config.image_prefix_ids)
                features["llm"] = mean_pool(pooled_from[:, start : start + image.shape[1]])
            else:
                features["llm"] = self._pooled_image(image)
        features["vision"] = mean_pool(self._patches(tower_states[self.vision_layer]))

        text_features = None
        if text_input_ids is not None and language and text_labels is not None:
            hidden, pooled_from = self._texts(text_input_ids, text_attention_mask, whole=True)
            logits["text"] = self._label_logits(hidden, text_labels, sums, counts, "text")
            if self.config.reid_text:
                text_features = mean_pool(pooled_from, text_caption_mask)
        elif text_input_ids is not None and self.config.reid_text:
            text_features = self._pooled_text(text_input_ids, text_attention_mask, text_caption_mask)
        if self.config.distillation_weight and len(logits) == 2:
            sums["distillation"] = distillation_sum(logits["image"], logits["text"])
            counts["distillation"] = counts["image"]

        # A device map may have put tower, language model and heads on three devices.
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
        language_loss = on_device_of(self.reid_head, self.language_loss(sums, counts)) if language else None
        output.loss_parts |= {f"lm_{name}": sums[name].detach() / counts[name] for name in sums if counts[name]}
        output.loss = mix_losses(language_loss, output.reid_loss, lam)
        return output

    def _embedded(self, pixel_values: Tensor) -> MllmReIDOutput:
        """What `forward` gives of pixels alone, one row an image throughout, as pipelines split their batches."""
        tower_states = self._tower(pixel_values)
        pooled = {"vision": mean_pool(self._patches(tower_states[self.vision_layer]))}
        if "llm" in self.config.reid_heads or self.config.test_feature != "vision":
            pooled["llm"] = self._pooled_image(self._image_embeddings(tower_states))
        return MllmReIDOutput(
            image_embeds=self._test_features(pooled)[self.config.test_feature], features=ReIDFeatures(**pooled)
        )

    def _label_logits(self, hidden: Tensor, labels: Tensor, sums: dict, counts: dict, branch: str) -> Tensor:
        """Logits at label positions alone, (T, V); adds the branch's loss sum and label count."""
        targets = labels[:, 1:].to(hidden.device)
        at_labels = targets != -100
        logits = self.mllm.lm_head(in_format_of(self.mllm.lm_head, hidden[:, :-1][at_labels]))
        sums[branch] = language_loss_sum(logits, targets[at_labels].to(logits.device))
        counts[branch] = logits.shape[0]
        return logits

    def image_language_loss(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> tuple[Tensor, int]:
        """(summed loss, number of target tokens) of the image branch alone, in nats; inputs as in `forward`."""
        embeddings = self._embed_with_image(input_ids, self._image_embeddings(self._tower(pixel_values)))
        hidden, _ = self._language_model(embeddings, attention_mask, whole=True)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        self._label_logits(hidden, labels, sums, counts, "image")
        return sums["image"], counts["image"]

    def language_loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> Tensor:
        """Mean of the branches, each the mean over its target tokens, plus the weighted distillation term.

        `counts` may be those of a whole accumulation window: the parts of its micro-batches then add up exactly.
        """
        branches = [sums[name] / max(counts[name], 1) for name in ("image", "text") if name in sums]
        loss = torch.stack(branches).mean()
        if "distillation" in sums:
            loss = loss + self.config.distillation_weight * sums["distillation"] / max(counts["distillation"], 1)
        return loss

    def generate(self, input_ids: Tensor, pixel_values: Tensor | None = None, **kwargs) -> Tensor:
        """The language model's text after a prompt, with the image where one is given. Returns the new ids (B, T)."""
        embeddings = self._embed(input_ids)
        if pixel_values is not None:
            embeddings = self._embed_with_image(input_ids, self._image_embeddings(self._tower(pixel_values)))
        kwargs = {key: of.to(embeddings.device) if isinstance(of, Tensor) else of for key, of in kwargs.items()}
        return self.mllm.generate(inputs_embeds=embeddings, **kwargs)


MllmReIDModel.register_for_auto_class("AutoModel")
