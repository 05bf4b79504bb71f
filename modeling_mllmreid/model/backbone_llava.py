"""Runs the modules of a LLaVA one by one: vision tower, projector, token embeddings and language model."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .crops import checked_pixels
from .heads import mean_pool
from .tensors import in_format_of, on_device_of

# From this number of texts on, the shorter half runs without the longer half's padding; each half keeps a device busy.
TEXTS_TO_HALVE = 32


class LlavaBackbone:
    """The calls of [`MllmReIDModel`] into the LLaVA that it wraps; a base class of the model.

    Inputs may be on any device: each method moves them to the device of the module that takes them.
    """

    mllm: Any

    @property
    def _sizes(self) -> dict[str, int]:
        """The size D of each feature."""
        return {"llm": self.config.get_text_config().hidden_size, "vision": self.config.vision_config.hidden_size}

    @property
    def _llava(self) -> PreTrainedModel:
        llava: PreTrainedModel = self.mllm.model
        return llava

    # ---- images --------------------------------------------------------------------------------------------------

    @property
    def vision_layer(self) -> int:
        """Index into the tower's hidden states of the layer that the vision feature is pooled from."""
        layer: int | None = self.config.vision_layer
        return self._projected_layers[-1] if layer is None else layer

    @property
    def _projected_layers(self) -> list[int]:
        """Indices into the tower's hidden states that the projector reads."""
        layers = self.config.mllm_config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    def _tower(self, pixel_values: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the tower's hidden states, each (B, 1 + patches, D), or None for a state that nothing reads.

        Keeping every state would take memory at inference. The position embeddings fit any crop size.
        """
        tower = self._llava.vision_tower
        states: tuple[Tensor | None, ...] = tower(
            checked_pixels(pixel_values, tower),
            interpolate_pos_encoding=True,
            output_hidden_states=[*self._projected_layers, self.vision_layer],
        ).hidden_states
        return states

    def _patches(self, hidden_states: Tensor) -> Tensor:
        """Drops the class token where LLaVA drops it."""
        drops_class_token = self.config.mllm_config.vision_feature_select_strategy == "default"
        return hidden_states[:, 1:] if drops_class_token else hidden_states

    def _pooled_vision(self, tower_states: tuple[Tensor | None, ...]) -> Tensor:
        """Returns the un-normalised vision feature, (B, D)."""
        return mean_pool(self._patches(tower_states[self.vision_layer]))

    def _image_embeddings(self, tower_states: tuple[Tensor | None, ...]) -> Tensor:
        """Returns the embeddings that replace the image tokens, (B, image tokens, D)."""
        projector = self._llava.multi_modal_projector
        selected = torch.cat(
            [on_device_of(projector, self._patches(tower_states[layer])) for layer in self._projected_layers], dim=-1
        )
        embeddings: Tensor = projector(in_format_of(projector, selected))
        return embeddings

    # ---- prompts -------------------------------------------------------------------------------------------------

    def _prefix(self, device: torch.device) -> Tensor:
        if self.config.image_prefix_ids is None:
            raise ValueError(
                "the configuration has no image_prefix_ids; set config.image_prefix_ids = processor.image_prefix_ids"
            )
        return torch.tensor(self.config.image_prefix_ids, dtype=torch.long, device=device)

    def _embed(self, input_ids: Tensor) -> Tensor:
        embedding = self.mllm.get_input_embeddings()
        embeddings: Tensor = embedding(on_device_of(embedding, input_ids))
        return embeddings

    def _embed_with_image(self, input_ids: Tensor, image_embeddings: Tensor) -> Tensor:
        """Embeds (B, T) ids and replaces the image tokens, which must follow the stored prefix, by the image."""
        input_ids = on_device_of(self.mllm.get_input_embeddings(), input_ids)
        start, length = len(self._prefix(input_ids.device)), image_embeddings.shape[1]
        expected = torch.full((start + length,), self.config.mllm_config.image_token_id, device=input_ids.device)
        expected[:start] = self._prefix(input_ids.device)
        if input_ids.shape[1] < len(expected) or not (input_ids[:, : len(expected)] == expected).all():
            raise ValueError(
                f"input_ids must start with image_prefix_ids and {length} image tokens; "
                "build them with the processor of this checkpoint"
            )
        embeddings = self._embed(input_ids)
        image_embeddings = image_embeddings.to(embeddings)
        return torch.cat([embeddings[:, :start], image_embeddings, embeddings[:, start + length :]], dim=1)

    def _embed_image_prompt(self, image_embeddings: Tensor) -> Tensor:
        """Returns the prefix and the image, all that an embedding needs: (B, prefix + image tokens, D)."""
        prefix = self._embed(self._prefix(image_embeddings.device)).expand(len(image_embeddings), -1, -1)
        return torch.cat([prefix, image_embeddings.to(prefix)], dim=1)

    # ---- language model ------------------------------------------------------------------------------------------

    def _language_model(self, embeddings: Tensor, attention_mask: Tensor | None, whole: bool) -> tuple[Tensor, Tensor]:
        """Runs the language model without its output layer. embeddings: (B, T, D); attention_mask: (B, T).

        Returns the last hidden states, for the language loss, and those of `llm_layer`, for the ReID feature. Unless
        `whole`, the layers above `llm_layer` do not run, and both results are that layer's.
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
        """Runs `_language_model` on right-padded texts (B, T); a large batch runs as a short and a long half.

        The padding that a half leaves out is zero in the result. The number of halves depends on B alone, so that
        processes that share the weights of a step run the language model equally often.
        """
        embedding = self.mllm.get_input_embeddings()
        input_ids, attention_mask = on_device_of(embedding, input_ids), on_device_of(embedding, attention_mask)
        if len(input_ids) < TEXTS_TO_HALVE:
            return self._language_model(self._embed(input_ids), attention_mask, whole)
        lengths, order = attention_mask.sum(dim=1).sort()
        longest = torch.stack([half[-1] for half in lengths.chunk(2)]).tolist()
        last, pooled_from = zip(
            *(
                self._language_model(self._embed(input_ids[half, :length]), attention_mask[half, :length], whole)
                for half, length in zip(order.chunk(2), longest, strict=True)
            ),
            strict=True,
        )
        width, original_order = input_ids.shape[1], order.argsort()

        def joined(halves: tuple[Tensor, ...]) -> Tensor:
            padded = torch.cat([F.pad(half, (0, 0, 0, width - half.shape[1])) for half in halves])
            return padded[original_order.to(padded.device)]

        joined_last = joined(last)
        return joined_last, (joined_last if last[0] is pooled_from[0] else joined(pooled_from))

    # ---- pooled features -----------------------------------------------------------------------------------------

    def _pooled_image(self, image_embeddings: Tensor) -> Tensor:
        """Returns the un-normalised LLM feature of images, (B, D)."""
        _, hidden = self._language_model(self._embed_image_prompt(image_embeddings), None, whole=False)
        return mean_pool(hidden[:, len(self.config.image_prefix_ids) :])

    def _pooled_text(self, input_ids: Tensor, attention_mask: Tensor, caption_mask: Tensor) -> Tensor:
        """Returns the un-normalised LLM feature of captions, (B, D)."""
        _, hidden = self._texts(input_ids, attention_mask, whole=False)
        return mean_pool(hidden, caption_mask)
