"""What cifar.train and imagenet.train do alike: go on with a run, and take a run from its set-up to its summary."""

import math
import shlex
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from utils import checkpoint, complexity
from utils.command import RunError, UsageError
from utils.training import distributed, engine
from utils.training.flags import given_flags
from utils.training.run import versions

RUNTIME = {"device", "print_freq", "no_progress", "resume", "output_dir", "data_dir", "download", "compile"}
RUNTIME |= {"workers", "skip_corrupt", "checkpoint_minutes", "auto_resume", "teacher_weights", "stage1_checkpoint"}
"""Flags that may differ between a run and its resumption: they change how it is computed, not what."""
REMEMBERED = {"data_dir", "compile", "teacher_weights", "skip_corrupt"}
"""Those of them that a resumed run takes over where they are not given."""

NEEDED = {"args", "data", "model", "rng", "rows", *checkpoint.TRAINING_STATE, *vars(engine.Progress())}
"""What a checkpoint must hold for training to go on."""

SCHEDULES = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "step": lambda done: 0.1 ** sum(done >= at for at in (0.3, 0.6, 0.9)),
}
"""Name -> factor of the learning rate where a fraction `done` of the training lies behind."""


def schedule(optimizer, name, steps):
    """Scheduler to be stepped after each of `steps` optimizer steps.

    At the start of every epoch the rate is that of the papers' schedules, which step once an epoch. In between it goes
    on falling, so that a short training ends at a rate of nearly 0 too: after 500 epochs there is no difference, after
    2 there is a large one.
    """
    return LambdaLR(optimizer, lambda step: SCHEDULES[name](min(step / steps, 1)))


def resume_flags(parser, argv, args, path):
    """Give `args` the flags of the run whose checkpoint is at `path`; returns what the checkpoint holds.

    Raises UsageError if a flag that stands in argv contradicts the run, RunError for no such checkpoint.
    """
    payload = checkpoint.read(path)
    if not checkpoint.is_ours(payload) or not payload.keys() >= NEEDED:
        raise RunError(f"{path} is not a checkpoint that training can go on from")
    if not payload["args"].keys() <= vars(args).keys():
        raise UsageError(f"{path} is a checkpoint of another command than {parser.prog}")
    given = given_flags(parser, argv)
    for name, value in payload["args"].items():
        if name in RUNTIME:
            if name not in given and name in REMEMBERED:
                setattr(args, name, value)
        elif name in given and given[name] != value:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"the run in {path} has {flag} {value}, not {given[name]}: leave {flag} out")
        else:
            setattr(args, name, value)
    return payload


def go_on_in(folder, parser, argv, args):
    """A run goes on in its own folder: set --output-dir to it. Raises UsageError if argv names another."""
    given = given_flags(parser, argv).get("output_dir")
    if given is not None and Path(given).resolve() != Path(folder).resolve():
        raise UsageError(f"a run goes on in its own folder, {folder}: leave --output-dir {given} out")
    args.output_dir = str(folder)


def command_line(module, argv):
    """The command that runs `module` with argv, as a shell takes it."""
    return shlex.join(["python", "-m", module, *argv])


def train(
    args, step, train, test, optimizer, scheduler, precision, run, *,
    payload, network, data, command, stage=None, asked=None, on_epoch=None, **options,
):  # fmt: skip
    """Train `step` as `args` say, from the start or from `payload`, a checkpoint of the run; write its summary.

    network: build_model's arguments; data: what the run keeps of its data; command: its command line.
    stage: one of several that a command trains; asked: its flags before the stage set any, for a resumption.
    on_epoch(epoch, writer): called after every epoch, on every rank; writer is None on all but rank 0.
    options: more for engine.fit.
    """
    main = distributed.is_main()
    step.to(memory_format=torch.channels_last)
    scaler = precision.scaler()
    state = engine.Progress()
    if payload is not None:
        if payload["data"] != data:
            raise UsageError(f"the images are not those that the run in {run.folder} began with: check --data-dir")
        checkpoint.load_state(step.model, payload["model"], run.last)
        optimizer.load_state_dict(payload["optimizer"])
        scheduler.load_state_dict(payload["scheduler"])
        scaler.load_state_dict(payload["scaler"])
        engine.set_rng_state(payload["rng"])
        state = engine.Progress(**{name: payload[name] for name in vars(state)})
        run.rows = payload["rows"]

    flags, asked = ({name: value for name, value in vars(a).items() if name != "resume"} for a in (args, asked or args))
    compiled, reason = engine.choose_compile(
        args.compile, precision.device, (args.epochs - state.epoch) * len(train) - state.step
    )
    if compiled:
        engine.compile_step(step, precision.device, options.get("accumulate", 1))
    writer = None
    if main:
        size = data["image_size"]
        line, counts = complexity.of_run(step.model, size if isinstance(size, int) else tuple(size))
        print(line)
        print("flags:", " ".join(f"{name}={value}" for name, value in flags.items() if value is not None))
        print(
            f"computing on {precision.device} in {precision}, {'compiled' if compiled else 'not compiled'} ({reason})"
        )
        if payload is not None:
            within = f", step {state.step} of {len(train)} of the next" if state.step else ""
            print(f"resuming after epoch {state.epoch} of {args.epochs}{within}", flush=True)
            run.set_rows(payload["rows"])
        else:
            run.save_args({**flags, "command": command})

        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(run.folder, purge_step=state.epoch + 1 if payload else None)

    try:
        state = engine.fit(
            step, train, test, optimizer, scheduler, scaler, precision, run,
            epochs=args.epochs, state=state, t_min=args.t_min, checkpoint_minutes=args.checkpoint_minutes,
            print_freq=args.print_freq, progress=not args.no_progress, writer=writer,
            on_epoch=on_epoch and (lambda epoch: on_epoch(epoch, writer)),
            describe=lambda: {"network": network, "args": asked, "data": data} | ({"stage": stage} if stage else {}),
            **options,
        )  # fmt: skip
    finally:
        if writer:
            writer.close()
    if main:
        _summarise(run, state, counts, data, precision.device)


def _summarise(run, state, counts, data, device):
    last = run.rows[-1]
    summary = {
        "top1_last": last["test_top1"],
        "top1_best": state.best,
        "images": last["test_images"],
        "epochs": state.epoch,
        "seconds": round(state.seconds, 1),
        **counts,
        "data": data,
        "versions": versions(device),
    }
    run.save_summary(summary)
    print(f"last {summary['top1_last']:.2f} %, best {summary['top1_best']:.2f} % of {summary['images']} test images")
