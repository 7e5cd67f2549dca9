"""Globals that no honest pickle names: those that run code, start processes, open files or sockets."""

from __future__ import annotations

from functools import lru_cache

_PROCESSES = {"os", "posix", "nt", "subprocess", "_posixsubprocess", "pty", "commands", "popen2", "multiprocessing"}
_FILES = {"shutil", "tempfile", "fileinput", "glob", "io", "_io", "mmap", "fcntl", "posixpath", "ntpath", "linecache"}
_NETWORK = {
    "socket",
    "_socket",
    "ssl",
    "urllib",
    "http",
    "ftplib",
    "smtplib",
    "telnetlib",
    "webbrowser",
    "antigravity",
}
_CLIENTS = {"requests", "aiohttp", "httpx", "paramiko", "sqlite3"}
_IMPORTS = {"importlib", "_frozen_importlib", "_frozen_importlib_external", "imp", "runpy", "pkgutil", "zipimport"}
_CODE = {
    "code",
    "codeop",
    "ctypes",
    "_ctypes",
    "marshal",
    "inspect",
    "gc",
    "sys",
    "site",
    "lib2to3",
    "idlelib",
}
_PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
_TOOLS = {"timeit", "cProfile", "profile", "pdb", "bdb", "doctest", "trace", "pydoc", "platform", "resource"}
_THREADS = {"threading", "_thread", "asyncio", "concurrent"}
_INSTALLERS = {"distutils", "setuptools", "pip", "ensurepip", "venv", "sysconfig"}
_MODULES = frozenset().union(
    _PROCESSES, _FILES, _NETWORK, _CLIENTS, _IMPORTS, _CODE, _PICKLES, _TOOLS, _THREADS, _INSTALLERS
)
_SINGLE = frozenset({"code", "codeop", "site", "inspect", "trace", "profile", "platform", "resource", "glob", "io"})
"""Modules of the standard library without submodules: `code.model.Net` is somebody's own package of that name."""
_BUILTINS = frozenset({"eval", "exec", "compile", "open", "__import__", "setattr", "delattr", "globals", "locals"})
_BUILTINS |= {"vars", "input", "breakpoint", "apply", "execfile", "file", "reload", "help", "exit", "quit"}
_TYPES = frozenset({"types.FunctionType", "types.CodeType", "types.LambdaType"})
_OPERATORS = frozenset({"attrgetter", "methodcaller"})
_TORCH = ("torch.hub", "torch.jit", "torch.package", "torch.serialization", "torch.ops", "torch.load", "torch.save")
_TORCH_UTILS = ("torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.utils.collect_env", "torch.compile")
_TORCH_CALLS = frozenset({"torch.Size", "torch.device", "torch.memory_format", "torch.layout", "torch.qscheme"})
_HARMLESS = frozenset({"_io.BytesIO", "io.BytesIO", "_io.StringIO", "io.StringIO", "inspect._empty"})
_HARMLESS |= {"torch.serialization._get_layout"}


@lru_cache(maxsize=4096)
def is_hostile(name: str) -> bool:
    """Whether a checkpoint that names this global can only mean harm.

    >>> is_hostile("posix.system"), is_hostile("argparse.Namespace"), is_hostile("torch.hub.load")
    (True, False, True)
    """
    module, _, leaf = name.rpartition(".")
    if name.startswith("builtins."):
        return name.split(".")[1] in _BUILTINS or module != "builtins"
    if name in _HARMLESS:
        return False
    if name in _TYPES or (leaf in _OPERATORS and module in ("operator", "_operator")):
        return True
    inside = any(name == prefix or name.startswith(prefix + ".") for prefix in (*_TORCH, *_TORCH_UTILS))
    top, _, below = module.partition(".")
    return inside or (top in _MODULES and not (below and top in _SINGLE)) or module.startswith("test.support")


def is_hostile_call(name: str) -> bool:
    """Whether calling this global can only mean harm: functions of torch that checkpoints do not need.

    Classes of torch (optimizers, modules, whose names are capitalised) are left as objects that are ignored.

    >>> is_hostile_call("torch.from_file"), is_hostile_call("torch.optim.adam.Adam"), is_hostile_call("torch.Size")
    (True, False, False)
    """
    leaf = name.rpartition(".")[2].lstrip("_")
    return name.startswith("torch.") and leaf[:1].islower() and name not in _TORCH_CALLS | _HARMLESS
