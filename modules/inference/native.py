"""The compiled kernels as machine code: made by numba once, kept in a file, and mapped from it later.

The code refers to nothing but itself, wherever it lies, so that its file is the code. The file's name tells numba's
version: numba has to be installed, though it is not imported where the file exists. Where a system has another format
of object files than ELF for x86-64, or allows no code in files, numba compiles in each process.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import mmap
import os
import platform
import struct
import sys
from pathlib import Path

import numpy as np

from modules.caches import user_cache

HERE = Path(__file__).parent
SOURCES = ("kernels.py", "layout.py", "native.py")
_SIGNATURE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 5)
_DIGEST = 64


def _processor():
    """What tells processors apart that run the same code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return [line for line in lines if line.split("\t")[0] in ("flags", "model", "model name", "cpu family")]
    except OSError:
        return [platform.processor()]


@functools.cache
def has_bf16():
    """Whether the CPU multiplies numbers in bfloat16, 32 at a time."""
    return any("avx512_bf16" in line.split() for line in _processor())


@functools.cache
def has_tables():
    """Whether tables are the way to count bits: the CPU looks up 32 bytes at once, and cannot count those of words."""
    flags = {flag for line in _processor() for flag in line.split()}
    return "avx2" in flags and "avx512_vpopcntdq" not in flags


def name():
    """The name of the code's file: of this source, numba, and processor."""
    parts = [(HERE / name).read_text() for name in SOURCES]
    parts += [importlib.metadata.version(package) for package in ("numba", "llvmlite")]
    parts += [platform.machine(), sys.platform, *_processor()]
    return f"kernels-{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.code"


def folders():
    """Where the code's file may lie: NUMBA_CACHE_DIR if set; else beside the source, or in the user's cache."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(chosen)]
    return [folder for folder in (HERE / "__pycache__", user_cache()) if folder]


def _paths():
    """The files of `folders` that may hold the code. Raises ImportError where numba is not installed."""
    file = name()
    return [folder / file for folder in folders()]


def mapped(path):
    """(entry address, mapping) of the code in a file. Raises OSError, or ValueError if it is not whole."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < _DIGEST:
            raise ValueError(f"{path} is damaged")
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    content = np.frombuffer(mapping, np.uint8)
    digest = bytes(content[-_DIGEST:])
    if hashlib.sha256(content[:-_DIGEST]).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged")
    (entry,) = struct.unpack("<q", content[-_DIGEST - 8 : -_DIGEST])
    return content.ctypes.data + entry, content


def _keep(code, entry):
    """Write the code to the first folder that takes it, and map it. Raises OSError if none does."""
    content = code + struct.pack("<q", entry)
    content += hashlib.sha256(content).hexdigest().encode()
    for path in _paths():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            return mapped(path)
        except OSError:
            continue
    raise OSError("no folder for the code")


def _sections(content):
    """The sections of an ELF object: (type, flags, offset, size, link, info, alignment) each."""
    (start,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    found = []
    for i in range(count):
        values = struct.unpack_from("<IIQQQQIIQQ", content, start + i * size)
        _, kind, flags, _, offset, length, link, info, align, _ = values
        found.append((kind, flags, offset, length, link, info, align))
    return found


def _linked(content, symbol):
    """(code, entry) of an ELF object for x86-64 that refers to nothing outside. Raises ValueError for any other."""
    if content[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", content, 18) != (62,):
        raise ValueError("no ELF object for x86-64")
    sections = _sections(content)
    code, places = bytearray(), {}
    for i, (kind, flags, offset, length, *_, align) in enumerate(sections):
        if flags & 2 and length:  # what a program has in memory
            if flags & 1 or kind != 1:
                raise ValueError("the code has variables")
            code += bytes(-len(code) % max(align, 1))
            places[i] = len(code)
            code += content[offset : offset + length]
    symbols = _symbols(content, sections)
    for kind, _, offset, length, _, target, _ in sections:
        if kind != 4 or target not in places:
            continue
        for at, info, addend in struct.iter_unpack("<QQq", content[offset : offset + length]):
            section, value = symbols[info >> 32][1:]
            if info & 0xFFFFFFFF not in (2, 4) or section not in places:
                raise ValueError("the code refers to something outside")
            at += places[target]
            struct.pack_into("<i", code, at, places[section] + value + addend - at)
    (entry,) = [places[section] + value for label, section, value in symbols if label == symbol]
    return bytes(code), entry


def _symbols(content, sections):
    """[(name, section, value)] of an ELF object."""
    _, _, offset, length, link, _, _ = next(section for section in sections if section[0] == 2)
    strings = content[sections[link][2] : sections[link][2] + sections[link][3]]
    found = []
    for label, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", content[offset : offset + length]):
        found.append((strings[label : strings.index(b"\0", label)].decode(), section, value))
    return found


def _compile():
    """(entry address, what keeps it alive) of newly compiled code, and, where that is possible, its file for others.

    Raises ImportError without numba.
    """
    import numba
    from llvmlite import binding

    from modules.inference import kernels

    line = "compiling the kernels of 1-bit inference, once on this machine: up to half a minute"
    print(line, file=sys.stderr, flush=True)
    signature = numba.types.intp(*[numba.types.intp] * 5)
    compiled = numba.njit(signature, **kernels.OPTIONS)(kernels.run)
    result = compiled.overloads[signature.args]
    symbol = result.fndesc.llvm_func_name
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, reloc="pic",
        codemodel="small",
    )  # fmt: skip
    try:
        return _keep(*_linked(target.emit_object(binding.parse_assembly(result.library.get_llvm_str())), symbol))
    except (OSError, ValueError, AttributeError):  # no ELF, or no folder, or no mapping of code
        return result.library.get_pointer_to_function(symbol), compiled


def load():
    """`modules.inference.kernels.run`, as a Python function. Raises ImportError where numba is not installed."""
    entry = None
    for path in _paths():
        try:
            entry, alive = mapped(path)
            break
        except (OSError, ValueError, AttributeError):
            continue
    if entry is None:
        entry, alive = _compile()
    function = _SIGNATURE(entry)

    def run(table, first, last, call, counters=0):
        """See `modules.inference.kernels.run`."""
        result, failure = ctypes.c_int64(), ctypes.c_void_p()
        function(ctypes.addressof(result), ctypes.addressof(failure), table, first, last, call, counters)
        return result.value

    run.alive = alive
    return run
