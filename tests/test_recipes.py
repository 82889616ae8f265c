"""What a recipe says where no flag does, and how it goes with the flags that are given."""

import pytest

from cifar import train as cifar_train
from imagenet import train as imagenet_train


def cifar(*argv):
    return cifar_train.resolve([str(word) for word in argv])[0]


def imagenet(*argv):
    return imagenet_train.resolve([str(word) for word in ("--data-dir", "x", *argv)])[0]


def test_published_recipes_are_the_defaults():
    names = ("epochs", "batch_size", "lr", "warmup_epochs", "weight_decay", "t_min")
    expected = {
        "bireal": (500, 128, 0.11, 0, 1e-4, 1e-3),
        "rbnn": (1000, 256, 0.1, 5, 1e-4, 1e-2),
        "recu": (600, 256, 0.1, 5, 5e-4, 1e-3),
        "adabin": (400, 128, 0.1, 0, 1e-4, 1e-3),
    }
    for method, values in expected.items():
        args = cifar("--method", method)
        assert tuple(getattr(args, name) for name in names) == values, method
    assert cifar("--method", "adabin", "--arch", "vgg_small").lr == 0.007
    names = ("stage", "optimizer", "teacher", *names[:5])
    expected = {
        "rbnn": ("single", "sgd", "none", 150, 512, 0.1, 5, 1e-4),
        "recu": ("single", "sgd", "none", 200, 512, 0.1, 5, 1e-4),
        "recu_twostage": ("both", "adam", "resnet34", 256, 512, 1e-3, 0, 0.0),
        "adabin": ("single", "sgd", "none", 120, 256, 0.1, 0, 1e-5),
    }
    for method, values in expected.items():
        args = imagenet("--method", method)
        assert tuple(getattr(args, name) for name in names) == values, method


def test_the_rate_of_rbnn_goes_with_its_batch():
    """Goyal et al., 2017: in proportion. No other recipe does, and a given rate is taken as it is."""
    assert cifar("--method", "rbnn", "--batch-size", 32).lr == pytest.approx(0.0125)
    assert cifar("--method", "rbnn", "--batch-size", 512).lr == pytest.approx(0.2)
    assert cifar("--method", "rbnn", "--batch-size", 32, "--lr", 0.3).lr == 0.3
    assert imagenet("--method", "rbnn", "--batch-size", 64).lr == pytest.approx(0.0125)
    for method in ("bireal", "irnet", "recu", "adabin"):
        assert cifar("--method", method, "--batch-size", 32).lr == cifar("--method", method).lr


def test_a_short_run_keeps_an_epoch_after_the_warm_up():
    for resolve in (cifar, imagenet):
        for epochs, warm in ((1, 0), (2, 1), (5, 4), (6, 5), (50, 5)):
            assert resolve("--method", "recu", "--epochs", epochs).warmup_epochs == warm
        assert resolve("--method", "recu", "--epochs", 2, "--warmup-epochs", 5).warmup_epochs == 5  # which is refused
