"""How long the inference of a packed network takes, beside floating point, and how large it is."""

import torch

from utils.checkpoint.files import is_packed
from utils.checkpoint.packed import packed_content
from utils.command import answering, available_cpus, cpu_name
from utils.deploy import latency
from utils.deploy.networks import (
    float_size,
    megabytes,
    named_network,
    packed_contents,
    packed_network,
    random_images,
    random_network,
    use_fast,
)


def bench(args):
    """Measure, print and return the figures of the network that the flags name."""
    if args.checkpoint and is_packed(args.checkpoint):
        contents = packed_contents(args)
        with answering(f"the network does not run on images {contents.image_size}"):
            model = random_network(contents.network, contents.image_size)  # time does not depend on the weights
    else:
        model, contents = named_network(args)
    packed = packed_network(model)
    if args.fast:
        use_fast(packed, contents.image_size)
    count = args.threads or available_cpus()
    images = random_images(contents.image_size, args.batch_size)
    with latency.threads(count), answering(f"the network does not run on images {contents.image_size}"):
        result = {
            "end_to_end": latency.end_to_end(packed, model, images, args.repeats, args.compile),
            "layers": latency.layers(packed, images, args.repeats),
            "parts": latency.parts(packed, images, args.repeats),
        }
    result |= {"threads": count, "batch": args.batch_size, "fast": args.fast}
    result |= {"cpu": cpu_name(), "torch": torch.__version__}
    result["bytes"] = {
        "float32": float_size(model),
        "packed": len(packed_content(model, contents.network)),
        "packed_half": len(packed_content(model, contents.network, half=True)),
    }
    print_bench(result)
    return result


def print_bench(result):
    time = "processor time" if result["threads"] == 1 else "wall time"
    print("{cpu}, threads: {threads}, batch {batch}, torch {torch}; ".format(**result) + f"medians of {time}, ms")
    print("\n| binary convolution | packed | float32 | ratio |\n|---|---|---|---|")
    for row in result["layers"]:
        ratio = row["float_ms"] / row["packed_ms"]
        print(f"| {row['name']} {row['shape']} | {row['packed_ms']:.3f} | {row['float_ms']:.3f} | {ratio:.1f} |")
    print("\n| network | ms | packed is faster by |\n|---|---|---|")
    packed_ms = result["end_to_end"]["packed_ms"]
    for name, value in result["end_to_end"].items():
        print(f"| {name.removesuffix('_ms')} | {value:.2f} | {value / packed_ms:.2f} |")
    print("\n| part of the packed network | ms |\n|---|---|")
    for name, value in result["parts"].items():
        print(f"| {name} | {value:.3f} |")
    print("\n" + "; ".join(f"{name}: {megabytes(size)}" for name, size in result["bytes"].items()))
