"""The training step compiles into one graph, and stays compiled over an epoch and from epoch to epoch."""

import pytest
import torch

from models import build_model
from modules.binarize import EDE, TrainingAwareSTE
from modules.progress import set_progress, start_epoch
from modules.restriction import ThriftyIResLoss
from utils.training import runtime
from utils.training.losses import cross_entropy


@pytest.mark.parametrize(("method", "variant"), [("bireal", "released"), ("irnet", "paper"), ("reactnet", "quantile")])
def test_no_graph_breaks_and_no_recompiles(method, variant, small_resnet20):
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


def losses_of(compiled, method="bireal", device="cpu"):
    """The losses of five steps of IR²Net, a step an epoch, from equal weights on equal images; compiled(step) may
    compile the step. In float64: float32 may flip signs."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build_model("resnet20", method=method, recovery="cirec").to(device)
    step = ThriftyIResLoss(model, cross_entropy, lam=0.9).double().to(memory_format=torch.channels_last)
    for module in step.modules():
        for name in ("k", "t") if isinstance(module, (EDE, TrainingAwareSTE)) else ():
            setattr(module, name, getattr(module, name).float())  # scalars of float64 are traced twice
    compiled(step)
    optimizer = torch.optim.SGD(step.parameters(), 0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for epoch in range(5):
        set_progress(model, epoch / 5)
        start_epoch(model)
        images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.double)
        loss, _, _ = step(images.to(device, memory_format=torch.channels_last), torch.arange(8, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def as_it_is(step):
    pass


@pytest.mark.parametrize("method", ["bireal", "rbnn", "recu", "adabin"])
def test_compiled_and_eager_losses_agree(method, small_resnet20):
    def compiled(step):
        step.compile(backend="aot_eager", fullgraph=True, dynamic=False)

    assert losses_of(compiled, method) == pytest.approx(losses_of(as_it_is, method), abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_learn_as_eager_steps_do(small_resnet20):
    device = runtime.choose_device("cuda")

    def compiled(step):
        runtime.compile_step(step, device)

    assert losses_of(compiled, device=device) == pytest.approx(losses_of(as_it_is, device=device), abs=1e-4)


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
