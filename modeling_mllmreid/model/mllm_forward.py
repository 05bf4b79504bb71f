"""Runs the modules of a multimodal LLM one by one: vision tower, projector, token embeddings and language model."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .backbone import Backbone, Image
from .crops import checked_pixels
from .heads import mean_pool
from .pairs import Reading, check_window, mine_pairs, pair_cache, pair_length, pair_loss, recorded, recorder
from .tensors import at_least_float32, in_format_of, on_device_of
from .towers import TowerOutput

# From this number of texts on, the shorter half runs without the longer half's padding; each half keeps a device busy.
TEXTS_TO_HALVE = 32


class MllmForward:
    """The calls of [`MllmReIDModel`] into the multimodal LLM that it wraps; a base class of the model.

    Inputs may be on any device: each method moves them to the device of the module that takes them.
    """

    mllm: Any

    @property
    def backbone(self) -> Backbone:
        """Description of the multimodal LLM's family."""
        backbone: Backbone = self.config.backbone_description
        return backbone

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = self.mllm.get_submodule(self.backbone.tower_path)
        return tower

    @property
    def language_model(self) -> nn.Module:
        """The language model without its output layer."""
        language_model: nn.Module = self.mllm.get_submodule(self.backbone.language_path)
        return language_model

    @property
    def _sizes(self) -> dict[str, int]:
        """The size D of each feature."""
        return {"llm": self.config.get_text_config().hidden_size, "vision": self.backbone.tower.size}

    # ---- images --------------------------------------------------------------------------------------------------

    @property
    def vision_layer(self) -> int | None:
        """Layer that the vision feature is pooled from: index of a hidden state, or None for the final output."""
        layer: int | None = self.config.vision_layer
        return self.backbone.projected_layers[-1] if layer is None else layer

    @property
    def read_layers(self) -> list[int | None]:
        """Layers of the tower that are read: indices of hidden states, or None for the final output."""
        return [*self.backbone.projected_layers, self.vision_layer]

    def run_tower(self, pixel_values: Tensor) -> TowerOutput:
        """Runs the vision tower on crops (B, 3, H, W); it returns the states that projector and feature read."""
        layers = [layer for layer in self.read_layers if layer is not None]
        return self.backbone.tower.run(self.tower, checked_pixels(pixel_values, self.tower), layers)

    def project_image(self, output: TowerOutput) -> Image:
        """Returns the embeddings that replace the image tokens, and what goes with them."""
        return self.backbone.project(self.mllm, output)

    def pool_vision(self, output: TowerOutput) -> Tensor:
        """Returns the un-normalised vision feature, (B, D): the mean over patches."""
        return mean_pool(self.backbone.pooled_states(output, self.vision_layer))

    # ---- prompts -------------------------------------------------------------------------------------------------

    @property
    def image_start(self) -> int:
        """Position of the first image token in every prompt."""
        if self.config.image_prefix_ids is None:
            raise ValueError(
                "the configuration has no image_prefix_ids; set config.image_prefix_ids = processor.image_prefix_ids"
            )
        return len(self.config.image_prefix_ids)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Embeds token ids (B, T)."""
        embedding = self.mllm.get_input_embeddings()
        embeddings: Tensor = embedding(on_device_of(embedding, input_ids))
        return embeddings

    def embed_with_image(self, input_ids: Tensor, image: Image) -> Tensor:
        """Embeds (B, T) ids and replaces the image tokens, which must follow the stored prefix, by the image."""
        input_ids = on_device_of(self.mllm.get_input_embeddings(), input_ids)
        start, length = self.image_start, image.embeddings.shape[1]
        expected = torch.full((start + length,), self.config.mllm_config.image_token_id, device=input_ids.device)
        expected[:start] = torch.tensor(self.config.image_prefix_ids, device=input_ids.device)
        if input_ids.shape[1] < len(expected) or not (input_ids[:, : len(expected)] == expected).all():
            raise ValueError(
                f"input_ids must start with image_prefix_ids and {length} image tokens; "
                "build them with the processor of this checkpoint"
            )
        # The image token itself may lie outside of the embeddings. One call for the whole: with one for each side the
        # gradients of the embeddings add up in another order, and results have other last digits than before.
        others = input_ids.clone()
        others[:, start : start + length] = 0
        embeddings = self.embed_tokens(others)
        return torch.cat(
            [embeddings[:, :start], image.embeddings.to(embeddings), embeddings[:, start + length :]], dim=1
        )

    def embed_image_prompt(self, image: Image) -> Tensor:
        """Returns the prefix and the image, all that an embedding needs: (B, prefix + image tokens, D)."""
        prefix_ids = torch.tensor([self.config.image_prefix_ids or []], dtype=torch.long)
        # Embedded once for all images: otherwise the gradients of the embeddings add up in another order.
        prefix = self.embed_tokens(prefix_ids).expand(len(image.embeddings), self.image_start, -1)
        return torch.cat([prefix, image.embeddings.to(prefix)], dim=1)

    # ---- language model ------------------------------------------------------------------------------------------

    def run_language_model(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        image: Image | None = None,
        *,
        whole: bool,
        record: Cache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs the language model without its output layer.

        Args:
            embeddings (`torch.Tensor` of shape `(B, T, D)`):
                Embedded sequences.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                0 at padding on the right.
            image ([`Image`], *optional*):
                The image in the sequences, after the stored prefix.
            whole (`bool`):
                Whether the layers above `llm_layer` run.
            record (`Cache`, *optional*):
                Of `pairs.recorder`; gets the keys and values of the layers that run.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: hidden states (B, T, D) of the last layer, for the language loss, and
            of `llm_layer`, for the ReID feature. Unless `whole`, both are those of `llm_layer`.
        """
        language_model, layer = self.language_model, self.config.llm_layer
        attention_mask = None if attention_mask is None else attention_mask.to(embeddings.device)
        inputs: dict[str, Any] = {"attention_mask": attention_mask}
        if image is not None:
            inputs = self.backbone.language_inputs(self.mllm, embeddings, attention_mask, image, self.image_start)
        depth = len(language_model.layers)
        layer = layer if layer >= 0 else depth + 1 + layer
        at_end = layer == depth
        if not whole and not at_end:
            language_model = _first_layers(language_model, layer)
        output = language_model(
            inputs_embeds=embeddings,
            use_cache=False,
            past_key_values=record,
            output_hidden_states=[layer] if whole and not at_end else False,
            **inputs,
        )
        last: Tensor = output.last_hidden_state
        if not whole or at_end:
            return last, last
        if image is None:
            return last, output.hidden_states[layer]
        return last, self.backbone.hidden_state(output.hidden_states, layer, image, self.image_start)

    def run_texts(self, input_ids: Tensor, attention_mask: Tensor, *, whole: bool) -> tuple[Tensor, Tensor]:
        """Runs `run_language_model` on right-padded texts (B, T); a large batch runs as a short and a long half.

        The padding that a half leaves out is zero in the result. The number of halves depends on B alone, so that
        processes that share the weights of a step run the language model equally often.
        """
        embedding = self.mllm.get_input_embeddings()
        input_ids, attention_mask = on_device_of(embedding, input_ids), on_device_of(embedding, attention_mask)
        if len(input_ids) < TEXTS_TO_HALVE:
            return self.run_language_model(self.embed_tokens(input_ids), attention_mask, whole=whole)
        lengths, order = attention_mask.sum(dim=1).sort()
        longest = torch.stack([half[-1] for half in lengths.chunk(2)]).tolist()
        last, pooled_from = zip(
            *(
                self.run_language_model(
                    self.embed_tokens(input_ids[half, :length]), attention_mask[half, :length], whole=whole
                )
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

    def pool_image(self, image: Image) -> Tensor:
        """Returns the un-normalised LLM feature of images, (B, D)."""
        _, hidden = self.run_language_model(self.embed_image_prompt(image), None, image, whole=False)
        return mean_pool(hidden[:, self.image_start :])

    def pool_text(self, input_ids: Tensor, attention_mask: Tensor, caption_mask: Tensor) -> Tensor:
        """Returns the un-normalised LLM feature of captions, (B, D)."""
        _, hidden = self.run_texts(input_ids, attention_mask, whole=False)
        return mean_pool(hidden, caption_mask)

    # ---- pairs ---------------------------------------------------------------------------------------------------

    def _positions_after_image(self, length: int) -> Tensor:
        """Returns the positions of a text of `length` tokens after an image."""
        unit = self.backbone.unit
        grid = self.config.height // unit, self.config.width // unit
        return self.backbone.positions_after(grid, self.image_start, length)

    def read_images(self, pixel_values: Tensor) -> Reading:
        """Reads person crops once, for any number of pairs.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Person crops from the processor.

        Returns:
            [`Reading`]: the keys and values of every layer, for `score_pairs`.
        """
        return self.read_image(self.project_image(self.run_tower(pixel_values)))[1]

    def read_image(self, image: Image) -> tuple[Tensor, Reading]:
        """Runs all layers on images; returns the un-normalised LLM feature (B, D), and the readings for pairs."""
        record, embeddings = recorder(self.language_model.layers), self.embed_image_prompt(image)
        _, hidden = self.run_language_model(embeddings, None, image, whole=True, record=record)
        return mean_pool(hidden[:, self.image_start :]), self.reading_of(record, image)

    def reading_of(self, record: Cache, image: Image) -> Reading:
        """Returns the readings of images after a recorded pass, whatever followed them."""
        return recorded(record, self.image_start + image.embeddings.shape[1])

    def score_pairs(self, reading: Reading, first: Tensor, second: Tensor, others: Reading | None = None) -> Tensor:
        """Scores whether pairs of crops show one person: the logit of yes minus that of no, after the question.

        It means something only after a training with `pair_weight`.

        Args:
            reading ([`Reading`]):
                B crops.
            first, second (`torch.LongTensor` of shape `(N,)`):
                Places in the reading.
            others ([`Reading`], *optional*):
                The second crops, if they are not among the first ones.

        Returns:
            `torch.Tensor` of shape `(N,)`: float32; above 0 for one person. It is the same for both orders.

        Raises:
            ValueError: if the configuration has no question, or layers do not see both crops.
        """
        if self.config.pair_question_ids is None or self.config.pair_answer_ids is None:
            raise ValueError(
                "the model has no question about pairs: train it with pair_weight, or set config.pair_question_ids and "
                "config.pair_answer_ids to those of its processor"
            )
        check_window(self.config.get_text_config(), pair_length(reading, self.image_start))
        ids, answers = (torch.tensor(getattr(self.config, name)) for name in ("pair_question_ids", "pair_answer_ids"))
        question = self.embed_tokens(ids[None]).expand(len(first), -1, -1)
        positions = self._positions_after_image(len(ids)).to(question.device)
        hidden = self.language_model(
            inputs_embeds=question,
            position_ids=positions.unsqueeze(-2).expand(*positions.shape[:-1], len(first), -1),
            past_key_values=pair_cache(reading, reading if others is None else others, first, second, self.image_start),
            use_cache=False,
        ).last_hidden_state[:, -1]
        logits = at_least_float32(self.mllm.lm_head(in_format_of(self.mllm.lm_head, hidden)))
        yes, no = logits[:, answers.to(logits.device)].unbind(dim=1)
        return yes - no

    def pair_loss(
        self,
        reading: Reading,
        features: Tensor,
        person_ids: Tensor,
        camera_ids: Tensor | None,
        loss_parts: dict[str, Tensor],
    ) -> Tensor:
        """Computes the loss of the pairs that `mine_pairs` chooses in a batch of one process.

        Args:
            reading ([`Reading`]):
                B crops.
            features (`torch.Tensor` of shape `(B, D)`):
                Their LLM features.
            person_ids, camera_ids (`torch.LongTensor` of shape `(B,)`):
                Labels, and cameras or None.
            loss_parts (`dict[str, torch.Tensor]`):
                Receives the detached loss as "pair".

        Returns:
            `torch.Tensor`: a scalar.
        """
        person_ids = person_ids.to(features.device)
        camera_ids = None if camera_ids is None else camera_ids.to(features.device)
        first, second, same = mine_pairs(features, person_ids, camera_ids)
        scores = on_device_of(self.reid_head, self.score_pairs(reading, first, second))
        loss = pair_loss(scores, same)
        loss_parts["pair"] = loss.detach()
        return loss


def _first_layers(language_model: Any, layers: int) -> Any:
    """Returns a shallow view that shares every weight and ends after `layers` blocks, without the final norm."""
    view, config = copy.copy(language_model), copy.copy(language_model.config)
    view._modules = {**language_model._modules, "layers": language_model.layers[:layers], "norm": nn.Identity()}
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
    view.config = config
    return view
