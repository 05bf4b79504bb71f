"""The language loss of a multimodal LLM, on images and on their captions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backbone import Image
from .heads import mean_pool
from .losses import distillation_sum, language_loss_sum
from .mllm_forward import MllmForward
from .tensors import in_format_of


class LabelLoss(NamedTuple):
    """The language loss of one branch: logits at label positions (T, V), their summed loss, and T."""

    logits: Tensor
    loss_sum: Tensor
    count: int


class LanguageBranches(MllmForward):
    """The branches of the language loss of [`MllmReIDModel`]; a base class of the model."""

    def _image_branch(
        self, image: Image, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, record: Any = None
    ) -> tuple[Tensor, LabelLoss]:
        """Returns the LLM feature (B, D) and the language loss from one run over image, instruction and target."""
        embeddings, start = self.embed_with_image(input_ids, image), self.image_start
        hidden, pooled_from = self.run_language_model(embeddings, attention_mask, image, whole=True, record=record)
        at_image = pooled_from[:, start : start + image.embeddings.shape[1]]
        return mean_pool(at_image), self._label_loss(hidden, labels)

    def _text_branch(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> LabelLoss:
        """Returns the language loss of some texts of a batch, in one run, whatever their number."""
        hidden, _ = self.run_language_model(self.embed_tokens(input_ids), attention_mask, whole=True)
        return self._label_loss(hidden, labels)

    def _label_loss(self, hidden: Tensor, labels: Tensor) -> LabelLoss:
        """Runs the output layer at label positions only: logits at all positions would fill the memory."""
        targets = labels[:, 1:].to(hidden.device)
        # Positions, not a mask: each index by a mask makes the host wait for the device, in the backward pass too.
        at_labels = (targets != -100).nonzero(as_tuple=True)
        logits = self.mllm.lm_head(in_format_of(self.mllm.lm_head, hidden[:, :-1][at_labels]))
        return LabelLoss(logits, language_loss_sum(logits, targets[at_labels].to(logits.device)), logits.shape[0])

    def _sums_and_counts(self, branches: dict[str, LabelLoss]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Returns each branch's summed loss and label count, with the distillation's where it has a weight."""
        sums = {name: branch.loss_sum for name, branch in branches.items()}
        counts = {name: branch.count for name, branch in branches.items()}
        if self.config.distillation_weight and len(branches) == 2:
            sums["distillation"] = distillation_sum(branches["image"].logits, branches["text"].logits)
            counts["distillation"] = counts["image"]
        return sums, counts

    def language_loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> Tensor:
        """Averages the branches' losses and adds the weighted distillation loss.

        Args:
            sums (`dict[str, torch.Tensor]`):
                `language_loss_sums` of a [`MllmReIDOutput`].
            counts (`dict[str, float]`):
                Target tokens by branch. With the counts of a whole accumulation window, the losses of its
                micro-batches add up to the exact mean.

        Returns:
            `torch.Tensor`: a scalar.
        """
        branches = [sums[name] / max(counts[name], 1) for name in ("image", "text") if name in sums]
        loss = torch.stack(branches).mean()
        if "distillation" in sums:
            loss = loss + self.config.distillation_weight * sums["distillation"] / max(counts["distillation"], 1)
        return loss


def read_rows(language_rows: Tensor) -> Tensor:
    """Returns the positions of the images whose texts the language loss reads.

    Without any it is the first one, which has no labels: engines that share the weights of a step between processes
    need the language model to run in each of them.

    Args:
        language_rows (`torch.BoolTensor` of shape `(B,)`):
            True at these images.
    """
    rows = language_rows.nonzero().flatten()
    return rows if len(rows) else rows.new_zeros(1)
