"""The training step compiles into one graph, and stays compiled over an epoch and from epoch to epoch."""

import pytest
import torch

from models import build_model
from modules.progress import set_progress, start_epoch
from modules.restriction import ThriftyIResLoss
from utils.training import runtime
from utils.training.losses import cross_entropy


@pytest.mark.parametrize(("method", "variant"), [("bireal", "released"), ("irnet", "paper"), ("reactnet", "quantile")])
def test_no_graph_breaks_and_no_recompiles(method, variant, short_resnet20):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    model = build_model("resnet20", method=method, recovery="cirec")
    step = ThriftyIResLoss(model, cross_entropy, lam=0.9, variant=variant).to(memory_format=torch.channels_last)
    step.compile(backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD(step.parameters(), 0.01, momentum=0.9)
    for epoch in range(2):
        set_progress(model, epoch / 2)
        step.train()
        for _ in range(2):
            images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)  # as in training
            loss, _, _ = step(images, torch.arange(4))
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad.abs().sum() > 0 for p in step.parameters())
            optimizer.step()
    assert len(graphs) == 1


@pytest.mark.parametrize("method", ["bireal", "rbnn", "recu", "adabin"])
def test_compiled_and_eager_losses_agree(method, short_resnet20):
    torch._dynamo.reset()
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model("resnet20", method=method, recovery="cirec")
        step = ThriftyIResLoss(model, cross_entropy, lam=0.9).double()
        if compiled:
            step.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        optimizer = torch.optim.SGD(step.parameters(), 0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        losses[compiled] = []
        for epoch in range(5):
            set_progress(model, epoch / 5)
            start_epoch(model)
            images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.double)  # float32 may flip signs
            loss, _, _ = step(images, torch.arange(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[compiled].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)


class Recorder:
    """A step that keeps how it was compiled."""

    def compile(self, **options):
        self.options = options


@pytest.mark.parametrize(
    ("device", "accumulate", "ranks", "mode"),
    [("cpu", 1, 1, "default"), ("cuda", 1, 1, "reduce-overhead"), ("cuda", 2, 1, "default"), ("cuda", 1, 2, "default")],
)
def test_cuda_graphs_are_for_one_gpu_and_whole_batches(device, accumulate, ranks, mode, monkeypatch):
    monkeypatch.setattr(runtime.distributed, "world_size", lambda: ranks)
    step = Recorder()
    runtime.compile_step(step, torch.device(device), accumulate)
    assert step.options == {"mode": mode, "dynamic": False}


def test_automatic_precision_is_what_the_device_computes_in(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert runtime.choose_precision("auto", torch.device("cpu")).dtype is dtype
    assert runtime.choose_precision("off", torch.device("cpu")).dtype is None
