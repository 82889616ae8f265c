"""Damaged run folders end a command in one line."""

import json
import random

import pytest
from run_folders import make_runs, write_run

from utils.tables import __main__ as tables


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


ODD = [None, True, 3, -1.5, float("nan"), 10**30, "", "x", "\0", "\ud800", "a 'b", [], [[]], {}, {"a": 1}]
RAW = [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00\x01", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("name", ["args.json", "summary.json", "metrics.csv"])
def test_damaged_runs_get_one_line(name, runs, capsys, fails):
    """Every key of a file with every odd value, and what is no such file: a table or one line, never a traceback."""
    write_run(runs / "ires", 90.0, ires=True)
    victim = runs / "ires" / name
    text = victim.read_bytes()
    if name == "metrics.csv":
        contents = [
            *RAW,
            b"test_top1,train_masked_fraction\nx,y\n",
            b"test_top1\n1,2,3\n",
            b'"',
            text.replace(b"0.0", b"nan"),
        ]
    else:
        whole = json.loads(text)
        inner = {"versions": {"device": "x"}, "data": dict.fromkeys(("classes", "image_size", "test_fingerprint"))}
        contents = [*RAW, *(json.dumps({k: v for k, v in whole.items() if k != gone}).encode() for gone in whole)]
        contents += [json.dumps({**whole, key: value}).encode() for key in whole for value in ODD]
        for key in inner.keys() & whole.keys():
            for sub in inner[key]:
                contents += [json.dumps({**whole, key: {**whole[key], sub: value}}).encode() for value in ODD]
    random.seed(0)
    for _ in range(50):
        damaged = bytearray(text)
        damaged[random.randrange(len(text))] = random.randrange(256)
        contents.append(bytes(damaged))
    ended = set()
    shown = ("masked", "curves") if name == "metrics.csv" else ("1", "runs", "leaderboard")
    for content in contents:
        victim.write_bytes(content)
        for table in shown:
            try:
                tables.main([table, "--runs", str(runs), *(["--commands"] if table == "1" else [])])
                ended.add(0)
            except SystemExit as stopped:
                ended.add(stopped.code)
            printed = capsys.readouterr()
            assert len(printed.err.splitlines()) <= 1, printed.err
            printed.out.encode()
    assert ended == {0, 1}
    victim.unlink()
    victim.mkdir()
    for table in ("1", "curves") if name != "metrics.csv" else ("curves",):
        assert fails(tables.main, table, "--runs", runs)[0] == 1
