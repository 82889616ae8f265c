"""What people would use instead of a packed network, as files that `utils.bench.engines` loads.

The networks are torchvision's with random weights, on which the time does not depend. ONNX Runtime and OpenVINO are
measured if they are installed; this project needs neither.
"""

import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from utils.deploy.networks import lively


def _write_state(model, batches, stem):
    path = stem.with_suffix(".pt")
    torch.save(model.state_dict(), path)
    return path


def _write_onnx(model, batches, stem):
    path = stem.with_suffix(".onnx")
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(model, (batches[0],), path, dynamo=True, external_data=False, verbose=False, **names)
    return path


def _write_onnx_int8(model, batches, stem):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        left = iter(batches)

        def get_next(self):
            return next(({"images": batch.numpy()} for batch in self.left), None)

    plain, path = stem.with_suffix(".plain.onnx"), stem.with_suffix(".int8.onnx")
    quant_pre_process(_write_onnx(model, batches, stem), plain)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(plain, path, Reader(), quant_format=QuantFormat.QDQ, **kinds)
    return path


def _openvino_model(model, batches):
    import openvino

    converted = openvino.convert_model(torch.export.export(model, (batches[0],)))
    converted.reshape(list(batches[0].shape))
    return converted


def _write_openvino(model, batches, stem):
    import openvino

    path = stem.with_suffix(".xml")
    openvino.save_model(_openvino_model(model, batches), path, compress_to_fp16=False)
    return path


def _write_openvino_int8(model, batches, stem):
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    path = stem.with_suffix(".int8.xml")
    images = nncf.Dataset([batch.numpy() for batch in batches])
    quantized = nncf.quantize(_openvino_model(model, batches), images, subset_size=len(batches))
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


class Rival(NamedTuple):
    """write: function of (model, calibration batches, path without suffix) that gives the path of the engine's file."""

    network: str
    title: str
    precision: str
    engine: str
    needs: tuple[str, ...]
    write: Callable

    def __str__(self):
        return f"{self.network} in {self.title} {self.precision}"


RESNET, MOBILENET = "resnet18", "mobilenet_v3_small"
_ONNX, _OPENVINO = ("onnxruntime", "onnx", "onnxscript"), ("openvino", "nncf")
RIVALS = (
    Rival(RESNET, "torchvision, eager", "float32", "torchvision", ("torchvision",), _write_state),
    Rival(RESNET, "ONNX Runtime", "float32", "onnxruntime", _ONNX, _write_onnx),
    Rival(RESNET, "ONNX Runtime", "INT8", "onnxruntime", _ONNX, _write_onnx_int8),
    Rival(RESNET, "OpenVINO", "float32", "openvino", _OPENVINO[:1], _write_openvino),
    Rival(RESNET, "OpenVINO", "bf16", "openvino_bf16", _OPENVINO[:1], _write_openvino),
    Rival(RESNET, "OpenVINO", "INT8", "openvino", _OPENVINO, _write_openvino_int8),
    Rival(MOBILENET, "ONNX Runtime", "INT8", "onnxruntime", _ONNX, _write_onnx_int8),
    Rival(MOBILENET, "OpenVINO", "INT8", "openvino", _OPENVINO, _write_openvino_int8),
)


def installed():
    """The RIVALS that can be measured here; a line on standard error for those that cannot."""
    found, missing = [], {}
    for rival in RIVALS:
        lacking = tuple(name for name in rival.needs if importlib.util.find_spec(name) is None)
        if lacking:
            missing.setdefault(lacking, []).append(str(rival))
        elif rival.precision == "bf16" and not _has_bf16():
            print(f"skipped: {rival}: the processor does not compute in bf16", file=sys.stderr)
        else:
            found.append(rival)
    for lacking, names in missing.items():
        print(f"skipped: {', '.join(names)}: pip install {' '.join(lacking)}", file=sys.stderr)
    return found


def _has_bf16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def written(size, batches, folder):
    """Yield (rival, path of its file, row: what the result says of it, torch's float32 logits of the first image).

    Of the RIVALS that are installed, for images of `size` (H, W). batches: images (N, 3, H, W) that INT8's ranges are
    taken from, the first of which will be measured.
    """
    rivals = installed()
    for name in dict.fromkeys(rival.network for rival in rivals):
        import torchvision

        torch.manual_seed(0)
        model = lively(torchvision.models.get_model(name), size)
        published = torchvision.models.get_model_weights(name).DEFAULT.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        with torch.no_grad():
            expected = model(batches[0])[0]
        for rival in (rival for rival in rivals if rival.network == name):
            with contextlib.redirect_stdout(io.StringIO()):  # of bars of progress
                path = rival.write(model, batches, folder / name)
            row = {"network": name, "engine": rival.title, "precision": rival.precision, "published_top1": published}
            yield rival, path, row, expected
