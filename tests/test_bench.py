"""The benchmark's plain reference computes the same as the code that it is compared with."""

import json

import pytest
import torch

from models import build_model
from modules.binarize import BiRealSTE, ClipSTE
from modules.restriction import ThriftyIResLoss
from utils.bench import __main__ as bench
from utils.bench import loading, paired, speed
from utils.bench import reference as plain
from utils.bench.step import CONTENDERS, saved_bytes
from utils.training.losses import cross_entropy
from utils.training.runtime import Precision


@pytest.mark.parametrize(("ours", "plain"), [(BiRealSTE, plain.MaskChainBiReal), (ClipSTE, plain.MaskChainClip)])
def test_mask_chains_are_the_same_estimators(ours, plain):
    x = torch.arange(-40, 41) / 20 + 0.01  # clear of -1 and 1, where clamp has a gradient of its own choosing
    grads = []
    for estimator in (ours(), plain()):
        points = x.clone().requires_grad_()
        out = estimator(points)
        out.sum().backward()
        grads.append((out.detach(), points.grad))
    assert torch.equal(grads[0][0].sign(), grads[1][0].sign())
    assert torch.allclose(grads[0][0], grads[1][0], atol=1e-6)
    assert torch.allclose(grads[0][1], grads[1][1], atol=1e-6)


def steps():
    torch.manual_seed(0)
    model = build_model("resnet20", recovery="cirec")
    reference = build_model("resnet20", recovery="cirec")
    reference.load_state_dict(model.state_dict())
    ours = ThriftyIResLoss(model, cross_entropy, lam=0.9)
    return ours, plain.ImageLoopIResLoss(plain.use_mask_chains(reference), cross_entropy, lam=0.9)


def test_the_reference_step_gives_the_same_loss_and_gradients():
    ours, reference = steps()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    losses = []
    for step in (ours, reference):
        loss, _, _ = step(images, labels)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    grads = [torch.cat([p.grad.flatten() for p in step.parameters()]) for step in (ours, reference)]
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.999


def test_backward_holds_at_most_half_of_the_reference():
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    plain = Precision(torch.device("cpu"), None)
    ours, reference = (saved_bytes(step, images, labels, plain) for step in steps())
    assert 0 < ours <= 0.5 * reference


def test_bench_train_reports_what_it_promises(capsys):
    flags = {"--batch-size": 8, "--warmup": 1, "--rounds": 1, "--steps": 1, "--dataset": "digits", "--workers": 1}
    bench.main(["train", *(str(word) for pair in flags.items() for word in pair), "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(CONTENDERS) == set(result["images_per_s"])
    assert {"step", "two_passes", "reference"} == set(result["backward_bytes"])
    assert 0 <= result["masked_fraction"] < 1
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert result["floor"]["images_per_s"] > 0


def test_bench_data_beats_a_loader_of_pil_transforms(capsys, monkeypatch):
    monkeypatch.setattr(loading, "LEAST_SECONDS", 0.3)
    bench.main(["data", "--dataset", "digits", "--workers", "1", "--rounds", "1", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = result["images_per_s"]
    assert result["ratio"] == pytest.approx(rates["ours"] / rates["pil_loader"])


def test_mistakes_get_one_line(fails):
    assert fails(bench.main, "data")[0] == 2
    assert "--checkpoint PATH is needed" in fails(bench.main, "deploy", "--threads", 1)[1]
    assert fails(bench.main, "train", "--batch-size", 0)[0] == 2
    assert fails(bench.main, "train", "--method", "xnor", "--weight-bits", 32)[0] == 2


def test_what_was_measured_is_told_in_tables(tmp_path, capsys, fails):
    rates = {"step": 300, "two_passes": 150, "no_ires": 310, "full_precision": 600, "plain_full_precision": 200}
    result = {
        "what": "train",
        "network": {"arch": "resnet20", "recovery": "cirec"},
        "images_per_s": {**rates, "reference": 100},
        "masked_fraction": 0.0,
        "backward_bytes": {"step": 20, "two_passes": 40, "reference": 100},
        "floor": {"images_per_s": 600},
        "batch_size": 128,
        "precision": "bfloat16",
        "compiled": False,
        "versions": {"device": "a processor", "torch": "2"},
    }
    loaded = {"what": "data", "dataset": "digits", "images_per_s": {"ours": 9000, "pil_loader": 900}, "ratio": 10.0}
    loaded |= {"workers": 2, "versions": result["versions"]}
    for name, content in (("train", result), ("data", loaded)):
        (tmp_path / name).write_text(f"other lines\n{json.dumps(content)}\n")
    speed.main([str(tmp_path / "train"), str(tmp_path / "data")])
    out = capsys.readouterr().out
    assert "### a processor, torch 2" in out
    assert "| resnet20 + cirec | 128 | bfloat16, eager | 300 | 150 | 310 | 600 | 200 | 100 | - |" in out
    assert "| resnet20 + cirec | 3.00 | 1.50 | 3.10 | 1.50 | 0.50 | 0.0% | 0.20 / 0.40 | 0.250 | 166.7 |" in out
    assert "| digits | 9,000 | 900 (2 workers) | 10.0 |" in out
    (tmp_path / "text").write_text("nothing\n")
    assert fails(speed.main, tmp_path / "text")[0] == 1
    (tmp_path / "part").write_text(json.dumps({name: result[name] for name in ("what", "images_per_s", "versions")}))
    assert fails(speed.main, tmp_path / "part")[0] == 1


def test_two_checkouts_take_turns(capsys, tmp_path, fails):
    """This one against itself: the ratio is near 1, and its table is one of speed.md's."""
    small = ["--image-size", "32", "--batch-size", "2", "--rounds", "2", "--steps", "1", "--amp", "off"]
    paired.main(["--other", str(paired.ROOT), *small, "--json"])
    line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(line)
    assert 0.2 < result["ratio"] < 5
    assert result["commits"]["this"] == result["commits"]["other"]
    (tmp_path / "paired").write_text(line)
    speed.main([str(tmp_path / "paired")])
    assert f"| IR²Net-C | 32x32 | 2 | float32 | {' : '.join(result['commits'].values())} |" in capsys.readouterr().out
    assert fails(paired.main, "--other", tmp_path)[0] == 2
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "train.py").write_text("broken")
    assert fails(paired.main, "--other", tmp_path, *small)[0] == 1
