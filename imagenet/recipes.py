"""Hyper-parameters on ImageNet, by method."""

from utils.training.teacher import NONE

# IR²Net, section V-A, and ReActNet, which it follows.
COMMON = {
    "stage": "both",
    "epochs": 256,
    "batch_size": 512,
    "optimizer": "adam",
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "teacher": "resnet34",
    "label_smoothing": 0.1,
    "lighting": 0.1,
    "color_jitter": False,
    "t_min": 1e-3,
}
# Trained in one stage, with labels and without ReActNet's augmentation, as ResNets are (He et al., CVPR 2016). IR-Net's
# and AdaBin's papers leave what is open to He et al. too.
ONE_STAGE = {
    "stage": "single",
    "batch_size": 256,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "teacher": NONE,
    "label_smoothing": 0.0,
    "lighting": 0.0,
}
# What a method's own recipe changes.
RECIPES = {
    "xnor": {"stage": "single"},  # its scale belongs to binary weights: there is no stage 1
    "irnet": {**ONE_STAGE, "epochs": 100, "weight_decay": 1e-5, "schedule": "step", "color_jitter": True},
    "reactnet": {"epochs": 128, "lr": 2.5e-3, "schedule": "linear"},
    "sdbnn": {"schedule": "linear"},
    "rbnn": {  # its rate goes with its batch, as on CIFAR-10
        **ONE_STAGE,
        "epochs": 150,
        "batch_size": 512,
        "lr_batch": 512,
        "warmup_epochs": 5,
        "weight_decay": 1e-4,
        "t_min": 1e-2,
    },
    "recu": {
        **ONE_STAGE,
        "epochs": 200,
        "batch_size": 512,
        "warmup_epochs": 5,
        "weight_decay": 1e-4,
        "decay": "conv-fc",
    },
    "recu_twostage": {"weight_decay": 0.0},
    "adabin": {**ONE_STAGE, "epochs": 120, "weight_decay": 1e-5},
}
WEIGHT_DECAY = {32: 1e-5, 1: 0.0}
"""Of the two stages: bits of the weights -> decay; binary weights are left alone."""


def recipe(method):
    """Hyper-parameters of `method`: {flag: value}, as `take_recipe` reads them."""
    return {**COMMON, **RECIPES.get(method, {})}
