"""Information recovery heads: shapes, parameters, and what they compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modules.recovery import CIRec, IRec, pool_to

CHANNELS = [16, 16, 32, 64]


def hardtanh(channels):
    return nn.Hardtanh()


def maps():
    return [torch.randn(2, c, s, s) for c, s in zip(CHANNELS, (32, 32, 16, 8))]


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (7, 7), (5, 3), (32, 32)])
def test_pooling_is_adaptive_average_pooling(size):
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(pool_to(x, size), F.adaptive_avg_pool2d(x, size))


def test_irec_is_cirec_with_ratio_1():
    torch.manual_seed(0)
    irec, cirec = IRec(CHANNELS, hardtanh), CIRec(CHANNELS, 1, "depthwise", hardtanh)
    cirec.load_state_dict(irec.state_dict())
    x = maps()
    assert torch.equal(irec(x), cirec(x))
    assert irec(x).shape == (2, 64, 8, 8)


def test_irec_computes_equations_11_to_13():
    head = IRec(CHANNELS, hardtanh).eval()
    x = maps()
    pooled = torch.cat([F.adaptive_avg_pool2d(m, 8) for m in x], 1)
    conv, norm, _ = head.channel
    expected = F.hardtanh(norm(torch.einsum("nchw,oc->nohw", pooled, conv.weight[:, :, 0, 0])))
    assert torch.allclose(head(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "ratio", "groups", "reduced", "spatial"),
    [
        (CHANNELS, 4, "depthwise", 16, (48, 1, 3, 3)),
        ([64, 64, 128, 256, 512], 20, "depthwise", 26, (494, 1, 3, 3)),  # 26 + 494 = 520, cut to 512
        ([128, 512], 32, "depthwise", 16, (496, 1, 3, 3)),
        ([64, 64, 128, 256, 512], 4, 8, 128, (384, 16, 3, 3)),
    ],
)
def test_cirec_shapes(channels, ratio, groups, reduced, spatial):
    head = CIRec(channels, ratio, groups, hardtanh)
    assert head.channel[0].weight.shape == (reduced, sum(channels), 1, 1)
    assert head.spatial[0].weight.shape == spatial
    out = head([torch.randn(2, c, 4, 4) for c in channels])
    assert out.shape == (2, channels[-1], 4, 4)


def test_cirec_concatenates_both_convolutions():
    head = CIRec(CHANNELS, 4, "depthwise", hardtanh).eval()
    x = maps()
    out = head(x)
    first = head.channel(torch.cat([pool_to(m, (8, 8)) for m in x], 1))
    assert torch.equal(out[:, :16], first)
    assert torch.equal(out[:, 16:], head.spatial(first))


@pytest.mark.parametrize(("ratio", "groups"), [(0, 1), (65, 1), (4, 3), (4, 32)])
def test_what_does_not_fit_is_refused(ratio, groups):
    with pytest.raises(ValueError, match="must"):
        CIRec(CHANNELS, ratio, groups, hardtanh)
