"""Every command in scripts/ and in the README is one that the real parsers take."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from shell import ROOT, mark_installed

from models import METHODS
from utils.refresh import command_module
from utils.tables.paper import TABLES
from utils.tables.results import identity

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
CELLS = [p for p in SCRIPTS if "\nsource scripts/cells.sh" in p.read_text()]
TRAINERS = {p: "imagenet.train" if "\nDATASET=imagenet\n" in p.read_text() else "cifar.train" for p in CELLS}
# What the shell puts in the place of a variable, for the parsers' eyes.
VALUES = {"common[@]": "", "flags[@]": "", "@": "", "extra[@]": "", "resume[@]": ""}


def commands(path):
    """[(module, arguments)] of the `python -m` lines of a file, continued lines joined, variables filled in."""
    text = path.read_text().replace("\\\\\n", " ").replace("\\\n", " ")
    found = []
    for match in re.finditer(r"(?:python|torchrun[^\n]*?) -m (\w+\.[\w.]+)([^\n`]*)", text):
        line = re.split(r"\s(?:\||>|2>|&&|;|#|-->)", f"{match[2]} ")[0].rstrip("); ")
        line = re.sub(r'"?\$\{?([\w@\[\]]+)[^}"\s]*\}?"?', lambda m: VALUES.get(m[1], "1"), line)
        found.append((match[1], shlex.split(line)))
    return found


def cell_lines(path):
    return [shlex.split(line)[1:] for line in path.read_text().splitlines() if line.startswith("cell ")]


def parse(module, arguments):
    parser = command_module(module).build_parser()
    return parser.parse_args([a for a in arguments if a not in ("...", "FLAGS")])


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "README.md"], ids=lambda p: p.name)
def test_commands_parse(path):
    for module, arguments in commands(path):
        if module.split(".")[0] in ("cifar", "imagenet", "utils") and arguments:
            parse(module, arguments)


@pytest.mark.parametrize("path", CELLS, ids=lambda p: p.name)
def test_cells_parse_and_have_names_of_their_own(path):
    lines = cell_lines(path)
    assert lines
    assert len({name for name, *_ in lines}) == len(lines)
    for _, *arguments in lines:
        parse(TRAINERS[path], arguments)


@pytest.mark.parametrize(
    ("script", "table"),
    [
        ("table1_ablation", "1"),
        ("table3_cifar10", "3"),
        ("irnet_tables", "irnet"),
        ("sdbnn_tables", "sdbnn"),
        ("methods_tables", "methods"),
        ("fig7_lambda", "fig7"),
    ],
)
def test_scripts_train_exactly_the_cells_of_their_table(script, table):
    trained = {
        identity(vars(parse("cifar.train", flags))) for _, *flags in cell_lines(ROOT / "scripts" / f"{script}.sh")
    }
    cells = [c.flags for c in TABLES[table][1] if c.flags is not None and c.flags.get("dataset") != "imagenet"]
    assert trained == {identity(flags) for flags in cells}
    assert len({identity(flags) for flags in cells}) == len(cells)


def test_the_leaderboard_trains_every_method_plain_and_with_cirec_by_one_recipe(tmp_path):
    """leaderboard.sh with a stand-in for training."""
    (bin_ := tmp_path / "bin").mkdir()
    stand_in = f'#!/bin/bash\ncase "$*" in *models*) exec {sys.executable} "$@";; esac\necho "$*" >> "$LOG"\n'
    (bin_ / "python").write_text(stand_in)
    (bin_ / "python").chmod(0o755)
    mark_installed(tmp_path)
    log = tmp_path / "log"
    environment = {**os.environ, "VENV": str(tmp_path), "LOG": str(log), "RUNS": str(tmp_path / "runs")}
    environment |= {"DATASET": "digits", "EPOCHS": "3", "SEEDS": "0 1", "JOBS": "1"}
    subprocess.run(["bash", ROOT / "scripts" / "leaderboard.sh"], env=environment, check=True, capture_output=True)
    *calls, table = [shlex.split(line)[1:] for line in log.read_text().splitlines()]
    assert table[:2] == ["utils.tables", "leaderboard"]
    parsed = [vars(parse(module, flags)) for module, *flags in calls]
    assert len(parsed) == 2 * (1 + 2 * len(METHODS))
    binary = {(args["method"], args["recovery"], args["seed"]) for args in parsed if args["weight_bits"] == 1}
    assert binary == {(method, head, seed) for method in METHODS for head in (None, "cirec") for seed in (0, 1)}
    recipe = ("epochs", "batch_size", "lr", "warmup_epochs", "momentum", "weight_decay", "t_min")
    assert {tuple(args[name] for name in recipe) for args in parsed} == {(3, 32, 0.1, 0, 0.9, 1e-4, 1e-3)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_shell(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_cells_skip_resume_and_report_failures(tmp_path):
    """cells.sh with a stand-in for training: a finished cell is skipped, an interrupted one resumed, a failure told."""
    (bin_ := tmp_path / "bin").mkdir()
    (bin_ / "python").write_text(
        '#!/bin/bash\necho "$*" >> "$LOG"\ncase "$*" in *--lr*) echo error: bad >&2; exit 1;; esac\n'
    )
    (bin_ / "python").chmod(0o755)
    runs = tmp_path / "runs"
    (runs / "done" / "seed0").mkdir(parents=True)
    (runs / "done" / "seed0" / "summary.json").write_text("{}")
    (runs / "half" / "seed0").mkdir(parents=True)
    (runs / "half" / "seed0" / "last.pt").touch()
    script = tmp_path / "script.sh"
    script.write_text(
        f"cd {ROOT}\nsource scripts/cells.sh\n"
        "cell done --ires\ncell half\ncell broken --lr 9\ncell fresh\nfinish echo the table\n"
    )
    log = tmp_path / "log"
    environment = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "LOG": str(log), "RUNS": str(runs)}
    environment |= {"DATASET": "digits", "EPOCHS": "1", "SEEDS": "0", "JOBS": "2"}
    result = subprocess.run(
        ["bash", script, "--batch-size", "8"], env=environment, capture_output=True, text=True, check=False
    )
    calls = log.read_text().splitlines()
    assert len(calls) == 3
    assert all("--dataset digits --no-progress --epochs 1 --batch-size 8" in call for call in calls)
    assert [("--resume" in call) for call in calls if "half" in call] == [True]
    assert [("--resume" in call) for call in calls if "fresh" in call] == [False]
    assert "the table" in result.stdout
    assert "broken/seed0: failed: error: bad" in result.stderr
    assert result.returncode == 1


@pytest.fixture
def environment(tmp_path):
    """What a script needs to believe that setup.sh has nothing to do, and a stand-in for every program it runs."""
    bin_ = tmp_path / "venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("python", "torchrun", "srun", "scontrol"):
        (bin_ / name).write_text('#!/bin/bash\necho "$0 $*" >> "$LOG"\n')
        (bin_ / name).chmod(0o755)
    mark_installed(tmp_path / "venv")
    settings = {"VENV": str(tmp_path / "venv"), "RUNS": str(tmp_path / "runs"), "LOG": str(tmp_path / "log")}
    return {**os.environ, **settings, "DATASET": "digits"}


@pytest.mark.parametrize(
    ("script", "setting"),
    [
        *(("table1_ablation", x) for x in ("JOBS=0", "JOBS=abc", "JOBS=-1", "JOBS=99999999999999999999", "JOBS=08")),
        *(("table1_ablation", f"SEEDS={x}") for x in (" ", "*", "0 a", "0;1", "-1")),
        *(("fig7_lambda", f"EPOCHS={x}") for x in ("abc", "0", "1.5", "1 2")),
        *(("table4_imagenet", f"GPUS={x}") for x in ("abc", "0", "*", "2 2")),
        *(("imagenette", x) for x in ("IMAGE_SIZE=abc", "EPOCHS=0", "JOBS=*", "SEEDS=a")),
        ("imagenet_slurm", "SLURM_GPUS_ON_NODE=abc"),
        ("imagenet_slurm", "SLURM_JOB_ID="),
        ("speed", "ROUNDS=abc"),
        ("fig8_attention", "PICK=*"),
        ("fig8_attention", "PICK=08"),
    ],
)
def test_settings_that_are_none_are_one_line(script, setting, environment, tmp_path):
    name, _, value = setting.partition("=")
    changed = {**environment, "SLURM_JOB_ID": "1", name: value}
    result = subprocess.run(
        ["bash", ROOT / "scripts" / f"{script}.sh"], env=changed, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*\n", result.stderr)
    assert name in result.stderr or "sbatch" in result.stderr
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("script", "settings", "count"),
    [
        ("table1_ablation", {"SEEDS": " 0  1 ", "JOBS": "2", "EPOCHS": "3"}, 2),
        ("table4_imagenet", {"GPUS": "2"}, 1),
        ("imagenette", {"SEEDS": " 0  1 ", "JOBS": "2", "EPOCHS": "3"}, 2),
    ],
)
def test_settings_that_are_right_reach_every_cell(script, settings, count, environment, tmp_path):
    path = ROOT / "scripts" / f"{script}.sh"
    subprocess.run(["bash", path], env={**environment, **settings}, check=True, capture_output=True)
    calls = [line for line in (tmp_path / "log").read_text().splitlines() if "--output-dir" in line]
    assert len(calls) == count * sum(line.startswith("cell ") for line in path.read_text().splitlines())
    assert all("--epochs 3" in call or "--nproc-per-node 2" in call for call in calls)


def test_a_failed_cell_tells_its_own_error_and_not_an_earlier_one(environment, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ir2net_a.log").write_text("error: old\n")
    stand_in = 'case $* in *ir2net_b*) echo "error: new"; exit 1;; *ir2net_a*) exit 1;; esac'
    Path(environment["VENV"], "bin", "torchrun").write_text(f"#!/bin/bash\n{stand_in}\n")
    script = ["bash", ROOT / "scripts" / "table4_imagenet.sh"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    runs = tmp_path / "runs"
    assert done.stderr.splitlines() == [
        f"{runs}/ir2net_a: failed: see {runs}/ir2net_a.log", f"{runs}/ir2net_b: failed: error: new",
    ]  # fmt: skip


def imagenette(environment, **settings):
    """scripts/imagenette.sh with a stand-in for training that finishes, or fails at what $BROKEN names."""
    stand_in = """#!/bin/bash
        call=$*; out=${call##*--output-dir }; echo "$call" >> "$LOG"; echo "$OMP_NUM_THREADS" >> "$LOG.threads"
        case $call in
            *utils.tables*) exit;;
            *"/$BROKEN/seed0") echo "error: bad" >&2; exit 1;;
            *single*) mkdir -p "$out"; touch "$out/summary.json";;
            *) mkdir -p "$out/stage1"; touch "$out/stage1/last.pt";;
        esac
    """
    Path(environment["VENV"], "bin", "python").write_text(stand_in)
    environment = {**environment, "EPOCHS": "3", "IMAGE_SIZE": "64", "DATA_DIR": "photographs", **settings}
    return subprocess.run(
        ["bash", ROOT / "scripts" / "imagenette.sh"], env=environment, capture_output=True, text=True, check=False
    )


def test_imagenette_trains_the_teacher_then_its_students_and_goes_on(environment, tmp_path):
    log = tmp_path / "log"
    assert imagenette(environment, BROKEN="ir2net_a").returncode == 1
    *calls, table = [shlex.split(line)[1:] for line in log.read_text().splitlines()]
    assert table[:2] == ["utils.tables", "costs"]
    parsed = [parse(module, flags) for module, *flags in calls]
    networks = ["fp", "baseline", "ir2net_c", "ir2net_a", "ir2net_d"]
    assert [Path(args.output_dir).parent.name for args in parsed] == networks
    teacher = f"{tmp_path}/runs/fp/seed0/last.pt"
    assert [args.teacher for args in parsed] == ["none", *4 * [teacher]]
    assert [args.variant for args in parsed] == [None, None, "c", "a", "d"]
    assert {(args.epochs, args.image_size, args.data_dir) for args in parsed} == {(3, 64, f"{ROOT}/photographs")}
    log.unlink()
    (tmp_path / "runs" / "ir2net_c" / "seed0" / "stage2").mkdir()
    (tmp_path / "runs" / "ir2net_c" / "seed0" / "stage2" / "summary.json").touch()
    assert imagenette(environment, BROKEN="none").returncode == 0
    calls = log.read_text().splitlines()[:-1]
    assert [(name, "--resume" in call) for call in calls for name in re.findall("runs/([^f]\\w+)/", call)] == [
        ("baseline", True),
        ("ir2net_a", False),
        ("ir2net_d", True),
    ]


def test_no_student_without_its_teacher(environment, tmp_path):
    result = imagenette(environment, BROKEN="fp")
    assert result.returncode == 1
    assert "fp/seed0: failed: error: bad" in result.stderr
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_the_teacher_has_every_core_and_the_others_share_them(environment, tmp_path):
    nproc = Path(environment["VENV"], "bin", "nproc")
    nproc.write_text("#!/bin/bash\necho 8\n")
    nproc.chmod(0o755)
    environment.pop("OMP_NUM_THREADS", None)
    assert imagenette(environment, BROKEN="none", JOBS="2").returncode == 0
    assert (tmp_path / "log.threads").read_text().split() == ["8", *5 * ["4"]]


def test_a_data_set_has_runs_of_its_own(environment, tmp_path):
    """Else a second one's cells would be finished with the first one's results."""
    del environment["RUNS"]
    environment["DATASET"] = "folder"
    for script, at in (("table1_ablation", "table1_ablation-"), ("imagenette", "")):
        for name in ("cats", "dogs"):
            settings = {"DATA_DIR": str(tmp_path / "data" / name)}
            probe = f'mkdir() {{ echo "$@" >> "$LOG"; exit; }}; source scripts/{script}.sh'
            call = ["bash", "-c", probe, f"scripts/{script}.sh"]
            subprocess.run(call, env={**environment, **settings}, check=True, cwd=ROOT)
            made = (tmp_path / "log").read_text().split()[-1]
            assert made.startswith(f"runs/{at}{name}")


# A trainer that ends once it has saved.
STAND_IN = """#!/bin/bash
    case $* in *utils.tables*) exit;; esac
    trap 'sleep 0.2; echo saved >> "$LOG"; exit 143' TERM
    echo started >> "$LOG"
    while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("script", "command", "jobs"), [("table1_ablation", "python", 2), ("table4_imagenet", "torchrun", 1)]
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_no_training_outlives_a_script_that_is_stopped(script, command, jobs, number, status, environment, tmp_path):
    """Ctrl-C goes to the whole group of processes, of which bash lets those in the background ignore it."""
    trainer = Path(environment["VENV"], "bin", command)
    trainer.write_text(STAND_IN)
    trainer.chmod(0o755)
    (log := tmp_path / "log").touch()
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background may ignore Ctrl-C
    options = {"env": {**environment, "JOBS": str(jobs)}, "start_new_session": True, "preexec_fn": hears}
    with subprocess.Popen(["bash", ROOT / "scripts" / f"{script}.sh"], **options) as process:
        try:
            while log.read_text().count("started") < jobs:
                time.sleep(0.05)
            os.killpg(process.pid, number)
            assert process.wait(30) == status
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert log.read_text().split() == ["started"] * jobs + ["saved"] * jobs


def test_sigterm_ends_the_trainings_and_not_who_called_the_script(environment, tmp_path):
    Path(environment["VENV"], "bin", "python").write_text(STAND_IN)
    call = """bash scripts/table1_ablation.sh & until [ "$(grep -c started "$LOG")" = 2 ]; do sleep 0.1; done
        kill $!; wait $!; echo "status $?"; cat "$LOG" """
    environment["JOBS"] = "2"
    (tmp_path / "log").touch()
    done = subprocess.run(["bash", "-c", call], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=60)
    lines = [line for line in done.stdout.splitlines() if "training" not in line]
    assert lines == ["status 143", "started", "started", "saved", "saved"]
    assert "failed" not in done.stderr


def test_photographs_are_drawn_with_the_networks_of_imagenette(environment, tmp_path):
    """In full_size/ if there is one, else in val/; the networks are those that scripts/imagenette.sh trains."""
    script = ["bash", ROOT / "scripts" / "fig8_attention.sh"]
    environment = {**environment, "DATA_DIR": str(tmp_path), "PICK": "1 0", "OUT": str(tmp_path / "out.png")}
    options = {"capture_output": True, "text": True, "check": False, "env": environment}
    assert "neither" in subprocess.run(script, **options).stderr
    for folder in ("val", "full_size"):
        (tmp_path / folder / "cat").mkdir(parents=True)
        for name in ("a b.jpg", "c.jpg"):
            (tmp_path / folder / "cat" / name).touch()
        assert subprocess.run(script, **options).returncode == 0
        (call,) = (tmp_path / "log").read_text().splitlines()
        assert f"--images {tmp_path}/{folder}/cat/c.jpg {tmp_path}/{folder}/cat/a b.jpg --lam" in call
        networks = ("fp/seed0", "baseline/seed0/stage2", "ir2net_c/seed0/stage2")
        assert " ".join(f"{tmp_path}/runs/{network}/last.pt" for network in networks) in call
        (tmp_path / "log").unlink()
    environment["PICK"] = "2"
    assert subprocess.run(script, **options).returncode == 2
