"""The losses against naive recomputation and known values."""

import math

import pytest
import torch

from modeling_mllmreid.model.losses import (
    batch_hard_triplet_loss,
    comparable_features,
    distillation_sum,
    euclidean_distances,
    id_loss,
    language_loss_sum,
    mix_losses,
)


def naive_triplet(anchors, labels, others, other_labels, margin, soft, own):
    terms = []
    for i, (anchor, label) in enumerate(zip(anchors, labels, strict=True)):
        pairs = [
            (float((anchor - o).norm()), ol == label)
            for j, (o, ol) in enumerate(zip(others, other_labels, strict=True))
            if not (own and i == j)
        ]
        positive, negative = [d for d, same in pairs if same], [d for d, same in pairs if not same]
        if positive and negative:
            gap = max(positive) - min(negative)
            terms.append(math.log1p(math.exp(gap)) if soft else max(0.0, gap + margin))
    return sum(terms) / len(terms)


def test_distances_keep_their_digits_under_autocast():
    torch.manual_seed(0)
    features = torch.randn(16, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = euclidean_distances(features, features)
    assert distances.dtype == torch.float32 and torch.allclose(distances, torch.cdist(features, features), atol=2e-2)


@pytest.mark.parametrize("soft", [False, True])
def test_triplet_with_unequal_identity_counts_equals_a_naive_loop(soft):
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4])
    got = batch_hard_triplet_loss(features, labels, margin=0.3, soft_margin=soft)
    assert float(got) == pytest.approx(naive_triplet(features, labels, features, labels, 0.3, soft, True), rel=1e-5)


def test_triplet_across_modalities_takes_positives_and_negatives_from_the_other_side():
    torch.manual_seed(1)
    images, texts, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    got = batch_hard_triplet_loss(images, labels, texts, labels)
    assert float(got) == pytest.approx(naive_triplet(images, labels, texts, labels, 0.3, False, False), rel=1e-5)


def test_triplet_without_a_usable_anchor_is_a_zero_with_a_graph():
    features = torch.randn(3, 4, requires_grad=True)
    loss = batch_hard_triplet_loss(features, torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and features.grad.abs().sum() == 0


def test_triplet_has_a_finite_gradient_where_two_images_are_equal():
    features = torch.ones(4, 3, requires_grad=True)
    batch_hard_triplet_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad.isfinite().all()


def test_distances_keep_their_digits_in_a_narrow_cone():
    torch.manual_seed(0)
    features = 100 * torch.randn(64) + 0.01 * torch.randn(8, 64)
    expected = torch.cdist(features.double(), features.double())
    off_diagonal = ~torch.eye(8, dtype=torch.bool)
    assert torch.allclose(
        euclidean_distances(features, features).double()[off_diagonal], expected[off_diagonal], rtol=1e-3
    )


def test_id_loss_smooths_over_all_classes():
    logits, label, eps = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]), 0.1
    target = torch.tensor([1 - eps + eps / 3, eps / 3, eps / 3])
    assert float(id_loss(logits, label)) == pytest.approx(float(-(target * logits.log_softmax(1)).sum()), rel=1e-6)


def test_language_loss_is_a_sum_and_zero_tokens_keep_the_graph():
    logits = torch.zeros(3, 5, requires_grad=True)
    assert float(language_loss_sum(logits, torch.tensor([0, 1, 2])).detach()) == pytest.approx(
        3 * math.log(5), rel=1e-6
    )
    none = language_loss_sum(logits[:0], torch.empty(0, dtype=torch.long))
    none.backward()
    assert none.item() == 0 and logits.grad.abs().sum() == 0


def test_distillation_is_kl_to_the_detached_teacher():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    p = teacher.softmax(1)
    expected = (p * (p.log() - student.log_softmax(1))).sum()
    got = distillation_sum(student, teacher)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    got.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_distillation_refuses_targets_of_different_length():
    with pytest.raises(ValueError, match="image branch has 3 target tokens, text branch 4"):
        distillation_sum(torch.zeros(3, 6), torch.zeros(4, 6))


def test_the_mix_weighs_by_lambda():
    language, reid = torch.tensor(2.0), torch.tensor(4.0)
    assert float(mix_losses(language, reid, 0.7)) == pytest.approx(0.3 * 2 + 0.7 * 4)
    assert float(mix_losses(language, None, 0.0)) == 2 and mix_losses(None, None, 0.5) is None


@pytest.mark.parametrize("size", [0.01, 1.0, 300.0])
def test_the_triplet_loss_on_scaled_features_does_not_depend_on_the_size_of_the_features(size):
    generator = torch.Generator().manual_seed(0)
    # A narrow cone, as hidden states of language models are.
    features = (torch.randn(12, 8, generator=generator) + 30).double()
    labels = torch.arange(12) // 3
    assert comparable_features(features, "none") is features
    for scale in ("batch", "unit"):
        losses = [batch_hard_triplet_loss(comparable_features(f, scale), labels) for f in (features, size * features)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    batch = comparable_features(size * features, "batch")
    torch.testing.assert_close((batch - batch.mean(0)).pow(2).sum(1).mean().sqrt(), torch.ones(()).double())
    distances = euclidean_distances(batch, batch)
    assert 1.0 < float(distances[~torch.eye(12, dtype=torch.bool)].mean()) < 1.6
    assert torch.equal(comparable_features(features, "unit"), torch.nn.functional.normalize(features, dim=-1))
    # One feature alone, or equal ones, have no spread.
    assert comparable_features(features[:1], "batch").isfinite().all()


@pytest.mark.parametrize("scale", ["none", "batch", "unit"])
def test_the_model_computes_its_triplet_losses_on_the_chosen_scale(make_model, make_batch, scale):
    model, batch = make_model(triplet_scale=scale, reid_text=True, text_loss="triplet").train(), make_batch(8)
    output = model(**batch)
    images = output.features["llm"]
    both = comparable_features(torch.cat([images, output.text_features]), scale)
    expected = batch_hard_triplet_loss(both[:8], batch["person_ids"])
    torch.testing.assert_close(output.loss_parts["triplet_llm"], expected.detach())
    cross = [
        batch_hard_triplet_loss(one, batch["person_ids"], other, batch["person_ids"])
        for one, other in ((both[:8], both[8:]), (both[8:], both[:8]))
    ]
    torch.testing.assert_close(output.loss_parts["triplet_text"], torch.stack(cross).mean().detach())
