"""The floating-point graph as ONNX, for other runtimes."""

import json

import torch

from utils.checkpoint.packed import KEPT
from utils.command import RunError
from utils.deploy.networks import megabytes, named_network, random_images
from utils.deploy.verify import images_for, relative_errors
from utils.files import output_path, replacing
from utils.images import MEAN, STD

TOLERANCE = 1e-3
"""Largest difference of logits that is accepted, relative to the largest logit of the image: runtimes fuse BatchNorms,
and a sign that flips on rounding moves the logits."""


def onnx(args):
    """Write the ONNX file, with the images that the network expects as its metadata, and compare it with torch."""
    output = output_path(args.output, args.force)
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise RunError(f"ONNX export needs onnx and onnxscript ({error}): pip install onnx onnxscript") from None
    model, contents = named_network(args)
    example = random_images(contents.image_size, 2)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    images = {"image_size": list(contents.image_size), "mean": MEAN, "std": STD}
    images = {name: contents.data[name] for name in KEPT if name in contents.data} | images
    program.model.metadata_props.update({name: json.dumps(value) for name, value in images.items()})
    with replacing(output) as temporary:
        program.save(temporary, external_data=False)
    shape = tuple(example.shape[1:])
    print(f"{output}: {megabytes(output.stat().st_size)}, the floating-point graph, images {shape}")
    return {"path": str(output), **check(args, output, contents, model)}


def check(args, output, contents, model):
    """Compare the file with torch on --data-dir's test images, or random ones. Raises RunError if they differ."""
    try:
        import onnxruntime
    except ImportError:
        print("not checked: onnxruntime is not installed")
        return {"checked": False}
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    count, same, errors = 0, 0, []
    for images, _ in images_for(args, contents, model):
        with torch.no_grad():
            expected = model(images)
        logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        errors.append(relative_errors(expected, logits).max().item())
        same += (expected.argmax(1) == logits.argmax(1)).sum().item()
        count += len(images)
    error = max(errors)
    print(f"onnxruntime {onnxruntime.__version__}: largest relative difference of logits {error:.1e} "
          f"(accepted: {TOLERANCE:.0e}); same top-1: {same} of {count} images")  # fmt: skip
    if error > TOLERANCE or same < count:
        raise RunError(f"onnxruntime's logits differ from torch's: see above. {output} is left for a look at it")
    return {"checked": True, "images": count, "relative_error": error, "same_top1": same}
