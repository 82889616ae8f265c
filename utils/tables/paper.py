"""The accuracies that the papers report, as data: each cell with the flags that train it here, or cited."""

from dataclasses import dataclass

from models import family_of
from models.methods import CIFAR


@dataclass(frozen=True)
class Cell:
    """One figure of a table. top1, top5: as printed, in percent; None where not given.

    flags: what sets this cell apart from the defaults of cifar.train or imagenet.train; None for a cited method, which
    is not built here. The cell FP of a backbone is what the others' gaps are measured from.
    """

    backbone: str
    method: str
    bits: str
    top1: float | None
    flags: dict | None
    top5: float | None = None
    family: str = CIFAR


HARDTANH_TWIN = {"weight_bits": 32, "activation_bits": 32}
"""The binary network at 32 bits. Its Hardtanh saturates, so that it falls short of the standard network."""
FP = {**HARDTANH_TWIN, "activation": "relu"}
"""The standard network. A ResNet has the `normal` structure too; VGG-Small has no structure."""
IRES = {"ires": True}
IR2NET = {"ires": True, "recovery": "cirec"}
QUANTILE = {"ires_variant": "quantile", "lam": 0.15}
NORMAL = {"structure": "normal"}


def _cell(backbone, method, top1, flags, bits="1/1", top5=None, **arch):
    family = family_of(arch.get("dataset", "cifar10"))
    return Cell(backbone, method, bits, top1, None if flags is None else {**arch, **flags}, top5, family)


def _resnet20(method, top1, flags, bits="1/1"):
    return _cell("ResNet-20", method, top1, flags, bits, arch="resnet20")


def _resnet18(method, top1, flags, bits="1/1"):
    return _cell("ResNet-18", method, top1, flags, bits, arch="resnet18")


def _vgg(method, top1, flags, bits="1/1"):
    return _cell("VGG-Small", method, top1, flags, bits, arch="vgg_small")


def _imagenet(method, top1, top5, flags, bits="1/1", arch="resnet18"):
    backbone = {"resnet18": "ResNet-18", "resnet34": "ResNet-34"}[arch]
    return _cell(backbone, method, top1, flags, bits, top5, arch=arch, dataset="imagenet")


IRNET = {"method": "irnet"}
IRNET_1W32A = {"method": "irnet", "activation_bits": 32}
SDBNN = {"method": "sdbnn"}
RBNN = {"method": "rbnn"}
RECU = {"method": "recu"}
ADABIN = {"method": "adabin"}

TABLES = {
    "1": (
        "Table I: ablation, CIFAR-10",
        (
            _resnet20("FP", 90.8, {**FP, **NORMAL}, "32/32"),
            _resnet20("Hardtanh twin, 32/32 (ours)", None, HARDTANH_TWIN, "32/32"),
            _resnet20("Baseline", 85.2, {}),
            _resnet20("IRes", 86.2, IRES),
            _resnet20("IRes, quantile (ours)", None, {**IRES, **QUANTILE}),
            _resnet20("IRec", 87.5, {"recovery": "irec"}),
            _resnet20("CIRec", 86.9, {"recovery": "cirec"}),
            _resnet20("IR²Net (IRes + CIRec)", 87.2, IR2NET),
            _resnet20("IR²Net, quantile (ours)", None, {**IR2NET, **QUANTILE}),
        ),
    ),
    "3": (
        "Table III: comparison, CIFAR-10 (* Bi-Real structure)",
        (
            _vgg("FP", 91.7, FP, "32/32"),
            _vgg("XNOR-Net", 89.8, {"method": "xnor"}),
            _vgg("BNN", 89.9, {"method": "bnn"}),
            _vgg("BNN-DL", 90.0, None),
            _vgg("IR-Net", 90.4, IRNET),
            _vgg("BinaryDuo", 90.4, None),
            _vgg("IR²Net", 91.5, IR2NET),
            _resnet20("FP", 90.8, {**FP, **NORMAL}, "32/32"),
            _resnet20("DSQ", 84.1, None),
            _resnet20("IR-Net", 85.4, {**IRNET, **NORMAL}),
            _resnet20("IR²Net", 86.3, {**IR2NET, **NORMAL}),
            _resnet20("IR-Net*", 86.5, IRNET),
            _resnet20("IR²Net*", 87.2, IR2NET),
            _resnet18("FP", 93.0, {**FP, **NORMAL}, "32/32"),
            _resnet18("BNN-DL", 90.5, None),
            _resnet18("IR-Net", 91.5, IRNET),
            _resnet18("RBNN", 92.2, RBNN),
            _resnet18("IR²Net", 92.5, IR2NET),
        ),
    ),
    "4": (
        "Table IV: comparison, ImageNet",
        (
            _imagenet("FP", 69.3, 89.2, None, "32/32"),
            _imagenet("BNN", 42.2, None, None),
            _imagenet("XNOR-Net", 51.2, 73.2, None),
            _imagenet("Bi-Real Net", 56.4, 79.5, None),
            _imagenet("XNOR-Net++", 57.1, 79.9, None),
            _imagenet("IR-Net", 58.1, 80.0, IRNET),
            _imagenet("BGG", 59.4, None, None),
            _imagenet("CI-BCNN", 59.9, 84.2, None),
            _imagenet("BinaryDuo", 60.9, 82.6, None),
            _imagenet("Real-to-Bin", 65.4, 86.2, None),
            _imagenet("ReActNet", 65.5, None, {"method": "reactnet"}),
            _cell("MeliusNet29/2", "MeliusNet", 65.7, None, dataset="imagenet"),
            _cell("MeliusNet29", "MeliusNet", 65.8, None, dataset="imagenet"),
            _imagenet("BENN", 61.1, None, None, "(1/1)x6"),
            _imagenet("CBCN", 61.4, 82.8, None, "(1/1)x4"),
            _imagenet("ABC-Net", 65.0, 85.9, None, "(1/1)x5"),
            _imagenet("Group-Net", 66.3, 86.6, None, "(1/1)x4"),
            _imagenet("IR²Net-D", 63.8, 85.5, {"variant": "d", **IRES}),
            _imagenet("IR²Net-C", 66.6, 87.0, {"variant": "c", **IRES}),
            _imagenet("IR²Net-B", 67.0, 87.1, {"variant": "b", **IRES}),
            _imagenet("IR²Net-A", 68.2, 88.0, {"variant": "a", **IRES}),
        ),
    ),
    "irnet": (
        "IR-Net (Qin et al., CVPR 2020)",
        (
            _resnet20("IR-Net, normal structure", 85.4, {**IRNET, **NORMAL}),
            _resnet20("IR-Net, Bi-Real structure", 86.5, IRNET),
            _resnet20("IR-Net", 90.8, IRNET_1W32A, "1/32"),
            _vgg("IR-Net", 90.4, IRNET),
            _resnet18("IR-Net", 91.5, IRNET),
            _imagenet("IR-Net, ImageNet", 58.1, 80.0, IRNET),
            _imagenet("IR-Net, ImageNet", 66.5, 86.8, IRNET_1W32A, "1/32"),
            _imagenet("IR-Net, ImageNet", 62.9, 84.1, IRNET, arch="resnet34"),
            _imagenet("IR-Net, ImageNet", 70.4, 89.5, IRNET_1W32A, "1/32", arch="resnet34"),
        ),
    ),
    "sdbnn": (
        "SD-BNN (Xue et al., 2022)",
        (
            _resnet20("SD-BNN", 86.9, SDBNN),
            _vgg("SD-BNN", 90.8, SDBNN),
            _resnet18("SD-BNN", 92.5, SDBNN),
            _imagenet("SD-BNN, ImageNet, stage 1", 67.6, 87.4, {**SDBNN, "weight_bits": 32}, "32/1"),
            _imagenet("SD-BNN, ImageNet", 66.5, 86.7, SDBNN),
        ),
    ),
    "methods": (
        "RBNN (Lin et al., NeurIPS 2020), ReCU (Xu et al., ICCV 2021), AdaBin (Tu et al., ECCV 2022)",
        (
            _resnet20("RBNN, normal structure", 86.5, {**RBNN, **NORMAL}),
            _resnet20("RBNN, Bi-Real structure", 87.8, RBNN),
            _resnet20("ReCU", 87.5, RECU),
            _resnet20("AdaBin", 88.1, ADABIN),
            _resnet18("RBNN", 92.2, RBNN),
            _resnet18("ReCU", 92.8, RECU),
            _vgg("RBNN", 91.3, RBNN),
            _vgg("ReCU", 92.2, RECU),
            _vgg("AdaBin", 92.3, ADABIN),
            _imagenet("RBNN, ImageNet", 59.9, None, RBNN),
            _imagenet("ReCU, ImageNet", 61.0, None, RECU),
            _imagenet("ReCU, ImageNet, two stages", 66.4, None, {"method": "recu_twostage"}),
            _imagenet("AdaBin, ImageNet", 63.1, None, ADABIN),
            _imagenet("AdaBin, ImageNet, two stages", 66.4, None, None),
            _imagenet("RBNN, ImageNet", 63.1, None, RBNN, arch="resnet34"),
            _imagenet("ReCU, ImageNet", 65.1, None, RECU, arch="resnet34"),
            _imagenet("AdaBin, ImageNet", 66.4, None, ADABIN, arch="resnet34"),
        ),
    ),
}
"""{table: (title, cells)}. Table III's IR²Net figures are those of IRes + CIRec."""

LAMBDAS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
"""Figure 7's values of lambda; the paper gives its accuracies as a plot alone."""

QUANTILES = (0.15, 0.3, 0.45, 0.6)
"""Those of them at which Figure 7's script tries the quantile too: there lambda is the fraction of pixels masked."""

TABLES["fig7"] = (
    "Figure 7: lambda, CIFAR-10",
    tuple(
        _resnet20(f"{name}, lambda {lam:g}", None, {**flags, "lam": lam})
        for name, flags, lambdas in (
            ("IRes", IRES, LAMBDAS),
            ("IRes + CIRec", IR2NET, LAMBDAS),
            ("IRes, quantile (ours)", {**IRES, "ires_variant": "quantile"}, QUANTILES),
            ("IRes + CIRec, quantile (ours)", {**IR2NET, "ires_variant": "quantile"}, QUANTILES),
        )
        for lam in lambdas
    ),
)

LEADERBOARD = {
    "bireal": (85.2, 86.9),
    "irnet": (86.5, None),
    "sdbnn": (86.9, None),
    "rbnn": (87.8, None),
    "recu": (87.5, None),
    "adabin": (88.1, None),
}
"""{method: (accuracy, with CIRec)} on CIFAR-10, ResNet-20 in the Bi-Real structure, as each method's own paper has it;
None where none gives it. bireal's are IR²Net's Table I."""
