"""Information restriction: the mask, the two passes, the loss."""

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from modules.conv import BinaryConv2d
from modules.restriction import IResLoss, PlainLoss, ThriftyIResLoss, attention_map, attention_mask
from utils.training.losses import cross_entropy


def test_attention_map_is_the_sum_of_squares_over_channels():
    features = torch.randn(2, 5, 3, 4)
    expected = torch.stack([sum(features[n, c] ** 2 for c in range(5)) for n in range(2)])
    assert torch.allclose(attention_map(features), expected)


def test_released_attention_map_is_normalised_along_the_height():
    features = torch.randn(2, 5, 3, 4)
    mean = features.square().mean(1)
    expected = mean / mean.square().sum(1, keepdim=True).sqrt()
    assert torch.allclose(attention_map(features, "released"), expected)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="relased"):
        attention_mask(torch.randn(1, 4, 2, 2), (8, 8), 0.15, "relased")


def test_attention_map_of_bfloat16_is_summed_in_float32():
    assert attention_map(torch.randn(1, 4, 2, 2).bfloat16()).dtype == torch.float32


def test_mask_of_a_hand_made_map():
    # One channel, no upsampling: attention 0, 1, 4, 9 with mean 3.5; lam 0.5 keeps what is 1.75 or more.
    features = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 2, 2)
    assert attention_mask(features, (2, 2), 0.5).flatten().tolist() == [0, 0, 1, 1]
    assert attention_mask(features, (2, 2), 0.25).flatten().tolist() == [0, 1, 1, 1]


def test_mask_after_upsampling():
    # Attention 16 in the left column and 0 in the right; upsampled by 2, each row is 16, 12, 4, 0 with mean 8.
    features = torch.tensor([[4.0, 0.0], [4.0, 0.0]]).view(1, 1, 2, 2)
    assert attention_mask(features, (4, 4), 0.5)[0, 0].tolist() == [[1, 1, 1, 0]] * 4
    assert attention_mask(features, (4, 4), 0.51)[0, 0].tolist() == [[1, 1, 0, 0]] * 4
    # With corners aligned each row is 16, 32/3, 16/3, 0.
    assert attention_mask(features, (4, 4), 0.6, "released")[0, 0].tolist() == [[1, 1, 1, 0]] * 4


def test_the_released_mask_is_strict():
    features = torch.ones(1, 3, 4, 4)
    assert attention_mask(features, (4, 4), 1.0).min() == 1
    assert attention_mask(features, (4, 4), 1.0, "released").max() == 0


@pytest.mark.parametrize("features", ["hardtanh", "relu", "normal", "flat", "steep"])
@pytest.mark.parametrize(("side", "size"), [(8, (32, 32)), (4, (32, 32)), (7, (224, 224)), (8, (8, 8)), (5, (21, 40))])
def test_the_quantile_masks_lambda_of_the_pixels_whatever_the_features(features, side, size):
    torch.manual_seed(0)
    drawn = {
        "hardtanh": lambda: F.hardtanh(torch.randn(64, 64, side, side)),
        "relu": lambda: torch.randn(64, 16, side, side).relu(),
        "normal": lambda: torch.randn(64, 3, side, side),
        "flat": lambda: 1 + 1e-3 * torch.randn(64, 8, side, side),
        "steep": lambda: torch.randn(64, 4, side, side) ** 5,
    }[features]()
    for lam in (0.0, 0.15, 0.3, 0.5, 0.7, 0.9):
        masked = 1 - attention_mask(drawn, size, lam, "quantile").mean((1, 2, 3))
        tolerance = max(0.01, 1 / (size[0] * size[1]))  # of 8x8 pixels, one is more than a hundredth
        assert (masked - lam).abs().max() <= tolerance + 1e-6, lam


def test_pixels_at_the_quantile_are_kept():
    # Attention 1, 4, 9, 16: lambda 0.5 masks two of four; a pixel that equals the threshold stays.
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert attention_mask(features, (2, 2), 0.5, "quantile").flatten().tolist() == [0, 0, 1, 1]
    assert attention_mask(features, (2, 2), 1.0, "quantile").flatten().tolist() == [0, 0, 0, 1]
    # Equal pixels stay together, on the side that is nearer to lambda.
    features = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]).view(1, 1, 2, 3)
    assert attention_mask(features, (2, 3), 0.3, "quantile").flatten().tolist() == [1] * 6
    assert attention_mask(features, (2, 3), 0.4, "quantile").flatten().tolist() == [0, 0, 0, 0, 1, 1]
    for lam in (0.0, 0.15, 0.9, 1.0):
        assert attention_mask(torch.ones(2, 3, 4, 4), (32, 32), lam, "quantile").min() == 1


def test_the_quantile_is_each_images_own_and_has_no_gradient():
    features = torch.rand(3, 4, 4, 4, requires_grad=True)
    together = attention_mask(features, (16, 16), 0.4, "quantile")
    alone = torch.cat([attention_mask(features[i : i + 1] * 10**i, (16, 16), 0.4, "quantile") for i in range(3)])
    assert torch.equal(together, alone)
    assert not together.requires_grad


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15])
def test_lambda_zero_keeps_every_pixel(scale):
    features = torch.randn(4, 8, 4, 4).relu() * scale
    assert attention_mask(features, (32, 32), 0.0).min() == 1


def test_the_threshold_is_each_images_own():
    features = torch.rand(3, 4, 4, 4)
    together = attention_mask(features * torch.tensor([1e-3, 1, 1e3]).view(3, 1, 1, 1), (16, 16), 0.8)
    alone = torch.cat([attention_mask(features[i : i + 1], (16, 16), 0.8) for i in range(3)])
    assert torch.equal(together, alone)
    assert 0 < together.mean() < 1


def test_the_mask_carries_no_gradient():
    features = torch.randn(2, 4, 4, 4, requires_grad=True)
    assert not attention_mask(features, (8, 8), 0.5).requires_grad


def test_the_loss_is_that_of_algorithm_1():
    torch.manual_seed(0)
    model = build_model("resnet20", recovery="cirec").eval()  # BatchNorm that does not move between the passes
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    step = IResLoss(model, cross_entropy, lam=1.0, mu=0.3)
    loss, logits, metrics = step(images, labels)

    mask = attention_mask(model.features(images)[-1], (32, 32), 1.0)
    original = F.cross_entropy(model(images), labels)
    masked = F.cross_entropy(model(images * mask), labels)
    assert torch.equal(logits, model(images))
    assert loss.item() == pytest.approx((0.3 * original + 0.7 * masked).item(), rel=1e-6)
    assert metrics["loss_original"].item() == pytest.approx(original.item())
    assert metrics["loss_masked"].item() == pytest.approx(masked.item())
    assert metrics["masked_fraction"].item() == pytest.approx(1 - mask.mean().item())
    assert metrics["masked_fraction"] > 0


def test_both_passes_reach_the_weights():
    model = build_model("resnet20")
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for mu in (0.0, 1.0):
        model.zero_grad()
        IResLoss(model, cross_entropy, lam=0.9, mu=mu)(images, labels)[0].backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("method", ["bireal", "sdbnn"])
def test_a_thrifty_step_is_what_two_whole_passes_are(lam, method):
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32, dtype=torch.double), torch.arange(8)
    models = [build_model("resnet20", method=method, recovery="cirec").double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    passes = []
    for model, wrapper in zip(models, (ThriftyIResLoss, IResLoss)):
        model.stages[2].register_forward_hook(lambda *_: passes.append(1))
        loss, _, _ = wrapper(model, cross_entropy, lam=lam, mu=0.3)(images, labels)
        loss.backward()
    assert len(passes) == (3 if lam == 0 else 4)  # at lam = 0 nothing is masked: one pass tells all
    for ours, plain in zip(models[0].parameters(), models[1].parameters()):
        assert torch.allclose(ours.grad, plain.grad, rtol=1e-9, atol=1e-12)
    for ours, plain in zip(models[0].buffers(), models[1].buffers()):
        assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-14)


def test_a_failing_step_holds_no_weights():
    model = build_model("resnet20", weight_bits=32)
    step = ThriftyIResLoss(model, cross_entropy)
    before = set(model.state_dict())
    with pytest.raises(RuntimeError):
        step(torch.randn(4, 1, 32, 32), torch.arange(4))
    assert set(model.state_dict()) == before
    assert all(module.held_weight is None for module in model.modules() if isinstance(module, BinaryConv2d))


def test_statistics_that_are_no_exponential_averages_take_both_passes():
    model = build_model("resnet20")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    ThriftyIResLoss(model, cross_entropy, lam=0.0)(torch.randn(4, 3, 32, 32), torch.arange(4))
    assert model.bn1.num_batches_tracked == 2


def test_weights_are_binarized_once_in_a_step():
    model = build_model("resnet20")
    convs = [module for module in model.modules() if isinstance(module, BinaryConv2d)]
    calls = []
    for conv in convs:
        conv.weight_binarizer.register_forward_hook(lambda *_: calls.append(1))
    step = ThriftyIResLoss(model, cross_entropy, lam=1.0)
    step(torch.randn(4, 3, 32, 32), torch.arange(4))
    assert len(calls) == len(convs) == 18
    model(torch.randn(4, 3, 32, 32))
    assert len(calls) == 2 * len(convs)  # outside of a step nothing is held


def test_without_ires_the_step_is_one_pass():
    model = build_model("resnet20").eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([3, 1])
    loss, logits, metrics = PlainLoss(model, cross_entropy)(images, labels)
    assert metrics == {}
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels).item())


@pytest.mark.parametrize("wrong", [{"lam": 2}, {"lam": -0.1}, {"mu": 1.5}, {"variant": "mine"}])
def test_wrong_hyper_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        IResLoss(build_model("resnet20"), cross_entropy, **wrong)
