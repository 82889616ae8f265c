"""Forward values and gradients of the estimators, at the places where they could be wrong."""

import math

import pytest
import torch

from modules.binarize import EDE, BiRealSTE, ClipSTE, TrainingAwareSTE, binary_sign
from modules.conv import BinaryConv2d
from modules.progress import set_progress, set_t_min, start_epoch

POINTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
GRADIENTS = {ClipSTE: (0, 1, 1, 1, 1, 1, 0), BiRealSTE: (0, 0, 1, 2, 1, 0, 0)}


def gradient(estimator, points, dtype=torch.float64):
    x = torch.tensor(points, dtype=dtype, requires_grad=True)
    estimator(x).sum().backward()
    return x.grad


def ede(progress, t_min=1e-3):
    estimator = EDE(t_min).double()
    estimator.set_progress(progress)
    return estimator


@pytest.mark.parametrize("estimator", [ClipSTE(), BiRealSTE(), EDE()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sign_is_plus_one_at_zero_and_never_zero(estimator, dtype):
    x = torch.tensor([-2, -1e-3, -0.0, 0.0, 1e-3, 2], dtype=dtype)
    out = estimator(x)
    assert out.dtype == dtype
    assert out.tolist() == [-1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize("estimator", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(estimator, dtype):
    assert gradient(estimator(), POINTS, dtype).tolist() == list(GRADIENTS[estimator])


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_ede_gradient_follows_the_formula(progress):
    t = 1e-3 * 10 ** (progress * math.log10(10 / 1e-3))
    k = max(1 / t, 1)
    expected = [k * t * (1 - math.tanh(t * x) ** 2) for x in POINTS]
    assert gradient(ede(progress), POINTS).tolist() == pytest.approx(expected, rel=1e-5)


def test_ede_begins_as_identity_and_ends_as_sign():
    assert gradient(ede(0.0), POINTS).tolist() == pytest.approx([1] * 7, abs=1e-4)
    last = gradient(ede(1.0), POINTS).tolist()
    assert last[3] == pytest.approx(10, rel=1e-6)
    assert last[:3] + last[4:] == pytest.approx([0] * 6, abs=1e-2)


@pytest.mark.parametrize("kind", [EDE, TrainingAwareSTE])
def test_annealed_estimators_start_at_the_beginning(kind):
    assert kind(0.1).t.item() == pytest.approx(0.1)
    estimator = kind()
    set_t_min(estimator, 0.5)
    assert (estimator.t.item(), estimator.k.item()) == pytest.approx((0.5, 2))


def test_progress_reaches_every_estimator_that_follows_it():
    model = torch.nn.Sequential(
        BinaryConv2d(3, 4, 3, weight_binarizer=EDE, activation_binarizer=EDE), BinaryConv2d(4, 4, 3)
    )
    set_t_min(model, 1e-1)
    assert set_progress(model, 0.5) == pytest.approx({"ede_k": 1, "ede_t": 1})
    for estimator in (m for m in model.modules() if isinstance(m, EDE)):
        assert estimator.t.item() == pytest.approx(1)
    assert "k" not in " ".join(model.state_dict()), "k and t are no part of a checkpoint"
    assert set_progress(torch.nn.Linear(2, 2), 0.5) == {}


def test_any_module_with_the_hooks_takes_part():
    class Follower(torch.nn.Module):
        epochs = 0

        def set_progress(self, progress):
            return {"seen": progress}

        def start_epoch(self):
            self.epochs += 1

    model = torch.nn.Sequential(Follower(), torch.nn.Sequential(Follower()))
    assert set_progress(model, 0.25) == {"seen": 0.25}
    start_epoch(model)
    assert model[0].epochs == model[1][0].epochs == 1


@pytest.mark.parametrize("estimator", [ClipSTE, BiRealSTE, EDE])
def test_one_tensor_is_saved_and_memory_format_is_kept(estimator):
    saved = []
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = estimator()(x)
    assert sum(t.dim() > 0 for t in saved) == 1
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("estimator", [ClipSTE, BiRealSTE, EDE])
def test_compiled_estimators_give_the_same_gradient(estimator):
    eager, compiled = estimator(), torch.compile(estimator(), fullgraph=True, backend="aot_eager")
    points = torch.linspace(-2, 2, 41)
    assert torch.equal(gradient(eager, points.tolist()), gradient(compiled, points.tolist()))


def test_binary_sign_has_no_gradient_of_its_own():
    assert not binary_sign(torch.zeros(3, requires_grad=True)).requires_grad
