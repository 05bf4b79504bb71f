"""Images without a caption where captions enter the ReID losses: they enter no loss on captions."""

import copy

import pytest
import torch
import torch.nn.functional as F

from modeling_mllmreid.training.diagnostic_measures import weighted_reid_losses

FIELDS = {"reid_text": True, "reid_on": "llm", "loss_lambda": 0.6, "label_smoothing": 0.2, "triplet_soft_margin": True}
BARE = torch.tensor([True, False, True, True, False, True, False, True])


def without_captions(batch, bare):
    """The batch of the collator for these images: no caption, no target."""
    batch = {name: values.clone() for name, values in batch.items()}
    batch["text_caption_mask"][bare] = False
    for name in ("labels", "text_labels"):
        batch[name][bare] = -100
    return batch


def triplet(anchors, anchor_ids, others, other_ids, own=False):
    """Batch-hard with a soft margin, by loops."""
    terms = []
    for i, anchor in enumerate(anchors):
        pairs = [((anchor - other).norm(), other_ids[j]) for j, other in enumerate(others) if not (own and i == j)]
        near = [distance for distance, person in pairs if person == anchor_ids[i]]
        far = [distance for distance, person in pairs if person != anchor_ids[i]]
        if near and far:
            terms.append(F.softplus(max(near) - min(far)))
    return sum(terms) / len(terms)


def contrastive(anchors, anchor_ids, others, other_ids, temperature):
    """The cross-entropy of the cosines with the target shared by the same person, by loops."""
    terms = []
    for anchor, person in zip(anchors, anchor_ids, strict=True):
        logs = (F.cosine_similarity(anchor[None], others) / temperature).log_softmax(0)
        if matches := [log for log, other in zip(logs, other_ids, strict=True) if other == person]:
            terms.append(-sum(matches) / len(matches))
    return sum(terms) / len(terms)


def normed(samples, norm):
    """Samples after a batch norm in training."""
    return (samples - samples.mean(0)) / (samples.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight


@pytest.mark.parametrize("text_loss", ["contrastive", "triplet"])
def test_losses_gradients_and_statistics_are_those_of_the_images_with_captions(make_model, make_batch, text_loss):
    model = make_model(**FIELDS, text_loss=text_loss).double().train()
    batch = without_captions(make_batch(8), BARE)
    batch["pixel_values"] = batch["pixel_values"].double()
    plain, people = copy.deepcopy(model), batch["person_ids"]
    output = model(**batch)
    output.loss.backward()

    seen = plain(**{name: values for name, values in batch.items() if name != "person_ids"})
    images, captions = seen.features["llm"], seen.text_features[~BARE]
    caption_people, head = people[~BARE], plain.reid_head["llm"]
    if text_loss == "triplet":
        statistics = {"bottleneck": torch.cat([images, captions])}
        after = normed(statistics["bottleneck"], head.bottleneck)
        across = triplet(images, people, captions, caption_people), triplet(captions, caption_people, images, people)
    else:
        statistics = {"bottleneck": images, "text_bottleneck": captions}
        sides = normed(images, head.bottleneck), normed(captions, head.text_bottleneck)
        after = torch.cat(sides)
        across = (
            contrastive(sides[0], people, sides[1], caption_people, 0.07),
            contrastive(sides[1], caption_people, sides[0], people, 0.07),
        )
    ids = torch.cat([people, caption_people])
    expected = {
        "id_llm": F.cross_entropy(after @ head.classifier.weight.T, ids, label_smoothing=0.2),
        "triplet_llm": triplet(images, people, images, people, own=True),
        f"{text_loss}_text": sum(across) / 2,
    }
    loss = 0.4 * plain.language_loss(seen.language_loss_sums, seen.label_counts) + 0.6 * sum(expected.values())
    loss.backward()

    torch.testing.assert_close(output.loss, loss)
    for name, value in expected.items():
        torch.testing.assert_close(output.loss_parts[name], value.detach())
        if not name.endswith("_text"):
            torch.testing.assert_close(weighted_reid_losses(model.config, output, people)[name], 0.6 * value)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for name, rows in statistics.items():
        norm = getattr(model.reid_head["llm"], name)
        torch.testing.assert_close(norm.running_mean, 0.1 * rows.detach().mean(0))
    torch.testing.assert_close(output.captioned, ~BARE)


@pytest.mark.parametrize("loss_lambda", [0.6, 1.0])
@pytest.mark.parametrize(("text_loss", "captions"), [("contrastive", 0), ("contrastive", 1), ("triplet", 0)])
def test_a_batch_without_captions_equals_a_batch_of_images(make_model, make_batch, loss_lambda, text_loss, captions):
    """One caption is too few for a batch norm of its own."""
    fields = {**FIELDS, "loss_lambda": loss_lambda, "text_loss": text_loss}
    model, plain = make_model(**fields).double().train(), make_model(**{**fields, "reid_text": False}).double().train()
    batch = make_batch(8)
    batch = without_captions(batch, torch.arange(8) >= captions)
    batch["pixel_values"] = batch["pixel_values"].double()
    output, expected = model(**batch), plain(**batch)
    output.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    language = {"lm_image", "lm_text"} if captions and loss_lambda < 1 else set()
    assert output.loss_parts.keys() == expected.loss_parts.keys() == {"id_llm", "triplet_llm", *language}
    people = batch["person_ids"]
    weighted = weighted_reid_losses(model.config, output, people)["id_llm"]
    torch.testing.assert_close(weighted.detach(), loss_lambda * output.loss_parts["id_llm"])
    others = dict(plain.named_parameters())
    for name, one in model.named_parameters():
        if name.startswith("reid_head.llm.text_bottleneck"):
            # DDP waits for it.
            assert torch.equal(one.grad, torch.zeros_like(one))
            continue
        gradient = torch.zeros_like(one) if one.grad is None else one.grad
        other = others[name]
        torch.testing.assert_close(gradient, torch.zeros_like(one) if other.grad is None else other.grad, msg=name)
