"""The floating-point graph as ONNX, for other runtimes."""

import json

import torch

from utils.checkpoint.packed import KEPT
from utils.command import RunError, answering
from utils.deploy.networks import megabytes, named_network, random_images
from utils.deploy.verify import images_for, relative_errors
from utils.files import output_path, replacing
from utils.images import MEAN, STD

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the image's largest logit, of images that count as the same."""
SAME = 0.75
"""Of the images at least so many must be the same: runtimes sum convolutions in another order, and where a sum next to
zero falls on its other side a sign flips, on which all that follows depends. A wrong graph is wrong on every image."""


def onnx(args):
    """Write the ONNX file, with the images that the network expects as its metadata, if its logits are torch's."""
    output = output_path(args.output, args.force, [args.checkpoint])
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise RunError(f"ONNX export needs onnx and onnxscript ({error}): pip install onnx onnxscript") from None
    model, contents = named_network(args)
    example = random_images(contents.image_size, 2)
    batch = torch.export.Dim("batch")
    options = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: batch},)}
    with answering("the network cannot be exported"):
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, **options)
    images = {"image_size": list(contents.image_size), "mean": MEAN, "std": STD}
    images = {name: contents.data[name] for name in KEPT if name in contents.data} | images
    program.model.metadata_props.update({name: json.dumps(value) for name, value in images.items()})
    with replacing(output) as temporary:
        program.save(temporary, external_data=False)
        found = check(args, temporary, contents, model)
    size = megabytes(output.stat().st_size)
    print(f"{output}: {size}, the floating-point graph, images {tuple(example.shape[1:])}")
    return {"path": str(output), **found}


def check(args, path, contents, model):
    """Compare the file with torch on --data-dir's test images, or random ones. Raises RunError if they differ, or if
    onnxruntime, where it is installed, does not take the file."""
    try:
        import onnxruntime
    except ImportError:
        print("not checked: onnxruntime is not installed")
        return {"checked": False}
    version = f"onnxruntime {onnxruntime.__version__}"
    refusal = {"message": f"{version} refuses the exported graph", "errors": Exception}  # its errors have no other base
    with answering(**refusal):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    errors = []
    for images, _ in images_for(args, contents, model):
        with torch.no_grad():
            expected = model(images)
        with answering(**refusal):
            (logits,) = session.run(None, {"images": images.numpy()})
        errors.append(relative_errors(expected, torch.from_numpy(logits)))
    errors = torch.cat(errors)
    same, median = (errors <= TOLERANCE).sum().item(), errors.median().item()
    print(
        f"{version}: logits within {TOLERANCE:.0e} on {same} of {len(errors)} images "
        f"(needed: {SAME:.0%}); relative difference: median {median:.1e}, largest {errors.max():.1e}"
    )
    if same < SAME * len(errors) or not errors.isfinite().all():
        raise RunError(f"onnxruntime's logits are torch's on {same} of {len(errors)} images: see above")
    return {"checked": True, "images": len(errors), "same": same, "relative_error": median}
