"""Runs as they are, a line each: what they are and gave, and what IRes masked in them."""

from utils.tables.markdown import markdown_table

RECOVERY_NAMES = {"irec": "IRec", "cirec": "CIRec"}


def is_full_precision(args):
    """Whether a run's flags binarize nothing."""
    return (args["weight_bits"], args["activation_bits"]) == (32, 32)


def head_name(args):
    """The recovery head of a run's flags, "CIRec", or "CIRec of IR²Net-C"; None if there is none."""
    if args["variant"]:
        return f"CIRec of IR²Net-{args['variant'].upper()}"
    return RECOVERY_NAMES.get(args["recovery"])


def network_name(args):
    """What a run's flags make: "bireal + IRes (λ 0.9) + CIRec", or "full precision, relu, normal"."""
    if is_full_precision(args):
        name = ", ".join(["full precision", *filter(None, (args["activation"], args["structure"]))])
    else:
        name = args["method"]
    unusual = [args["ires_variant"]] if args["ires_variant"] != "paper" else []
    unusual += [f"λ {args['lam']:g}"] if args["lam"] != 0.15 else []
    ires = "IRes" + (f" ({', '.join(unusual)})" if unusual else "")
    return " + ".join([name, *[ires] * args["ires"], *filter(None, [head_name(args)])])


def runs_table(results):
    """Markdown of the runs as they are, a line each."""
    rows = []
    for r in results:
        bops, flops = (r.summary.get(key) for key in ("bops", "flops"))
        rows.append(
            [
                r.name,
                r.data_name,
                r.summary["epochs"],
                f"{r.args['arch']}, {network_name(r.args)}",
                f"{r.args['weight_bits']}/{r.args['activation_bits']}",
                f"{r.top1:.2f}",
                f"{r.summary['top1_best']:.2f}",
                r.summary["images"],
                "-" if bops is None else f"{bops / 1e6:.2f}",
                "-" if flops is None else f"{flops / 1e6:.2f}",
                f"{r.summary['seconds']:.0f}",
            ]
        )
    header = ["run", "data", "epochs", "network", "W/A", "last %", "best %", "images"]
    header += ["BOPs 1e6", "FLOPs 1e6", "seconds"]
    return "\n".join(markdown_table(header, rows))


def masked_table(results):
    """Markdown of what IRes masked: a line per run with it, and the fraction of pixels along the training."""
    parts = {"epoch 1": 0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75, "last": 1}
    rows = []
    for r in results:
        if r.args["ires"]:
            fractions = r.column("train_masked_fraction")
            at = [f"{fractions[round(part * (len(fractions) - 1))]:.2%}" for part in parts.values()]
            head = r.args["recovery"] or head_name(r.args) or "none"
            settings = [r.data_name, *(r.args[name] for name in ("ires_variant", "lam")), head]
            rows.append([r.name, *settings, *at, f"{max(fractions):.2%}", f"{r.top1:.2f}"])
    header = ["run", "data", "variant", "λ", "recovery", *parts, "most in an epoch", "last %"]
    return "\n".join(markdown_table(header, rows))
