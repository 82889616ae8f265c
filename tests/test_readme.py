"""What the README says: its examples run, its links and scripts exist, its table of methods is whole."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import CIFAR, IMAGENET, METHODS, build_model
from models.inference import pack_network
from modules.conv import BinaryConv2d
from modules.progress import set_progress
from utils.complexity import count

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", *sorted((ROOT / "results").glob("*.md"))]
EXAMPLES, OTHER_EXAMPLES = (
    re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES[:2]
)
GENERATED = re.compile(r"<!-- python -m .*?<!-- end -->", re.DOTALL)


def run(example):
    """The names that an example leaves behind."""
    names = {"__name__": "readme"}
    exec(compile(example, "README.md", "exec"), names)
    return names


def anchor(heading):
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_it_can_be_read_in_one_sitting():
    assert len(README.splitlines()) <= 150
    assert max(len(line) for line in GENERATED.sub("", README).splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, fragment = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_files_that_the_pages_name_exist():
    names = re.findall(
        r"\b(?:scripts|tests|models|modules|utils)/[\w/]+\.(?:sh|py)", "".join(map(Path.read_text, PAGES))
    )
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_table_of_methods_names_every_method():
    table = README.split("## Methods\n")[1].split("\n## ")[0].splitlines()[2:]
    assert {name for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])} == set(METHODS)


def test_the_building_blocks_work(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run(EXAMPLES[0])
    assert names["conv"](torch.randn(2, 64, 8, 8)).shape == (2, 128, 4, 4)
    names["loss"].backward()
    assert all(parameter.grad is not None for parameter in names["model"].parameters())


def test_the_method_in_20_lines_is_adabin(monkeypatch):
    """The same outputs and gradients as those of the repository's own entry, and a network that trains."""
    monkeypatch.setitem(METHODS, "mine", None)  # undone after the test
    assert sum(bool(line) for line in EXAMPLES[1].splitlines()) <= 20
    run(EXAMPLES[1])
    torch.manual_seed(0)
    mine = build_model("resnet20", method="mine", recovery="cirec")
    theirs = build_model("resnet20", method="adabin", recovery="cirec")
    theirs.load_state_dict(mine.state_dict())
    images = torch.randn(4, 3, 32, 32)
    gradients = []
    for model in (mine, theirs):
        set_progress(model, 0.5)
        logits = model(images)
        logits.logsumexp(1).sum().backward()
        gradients.append([logits, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert any(isinstance(module, BinaryConv2d) and module.weight_transform for module in mine.modules())


def test_a_trained_network_tells_what_an_image_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run(OTHER_EXAMPLES[0])
    assert names["name"] in [str(digit) for digit in range(10)]
    assert names["scores"].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("arch", "family"), [("resnet20", CIFAR), ("vgg_small", CIFAR), ("resnet18", IMAGENET)])
def test_the_method_in_20_lines_has_networks_that_are_counted_and_pack(monkeypatch, arch, family):
    monkeypatch.setitem(METHODS, "mine", None)
    run(EXAMPLES[1])
    size = 64 if family == IMAGENET else 32
    torch.manual_seed(0)
    mine, theirs = (build_model(arch, family, method, recovery="cirec").eval() for method in ("mine", "adabin"))
    theirs.load_state_dict(mine.state_dict())
    assert replace(count(mine, size), layers=()) == replace(count(theirs, size), layers=())
    images = torch.randn(2, 3, size, size)
    logits = pack_network(theirs)(images)
    torch.testing.assert_close(pack_network(mine)(images), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
