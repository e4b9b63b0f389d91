"""Compiles modules: run by an environment's own interpreter, with nothing but its built-in modules.

Reads ``path size, source size, path, source`` from standard input and writes ``size, compiled file`` to
standard output until the input ends; sizes are four bytes, little endian. What cannot be compiled has size 0.

What ``marshal`` writes depends on which objects something else refers to: only those can be named again later
in the file. Here something refers to every one, so the bytes do not depend on what the process did before.
"""

from __future__ import annotations

import _frozen_importlib_external
import _imp
import _thread
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

_CODE = type(compile("0", "", "eval"))
_MAGIC = _frozen_importlib_external.MAGIC_NUMBER
_UNCHECKED = (1).to_bytes(4, "little")
_STACK = 64 << 20
"""How deep a module may be nested must not depend on the machine's limit of the stack."""


def compiled(source: bytes, path: str) -> bytes:
    """The file of a compiled module, which the interpreter loads without a look at its source."""
    try:
        code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, OverflowError, RecursionError):
        return b""
    except MemoryError:
        # The parser's own limit is told like this too; with memory at hand it was that.
        bytearray(_STACK)
        return b""
    held = _everything(code)
    body = marshal.dumps(code)
    del held
    return _MAGIC + _UNCHECKED + _imp.source_hash(int.from_bytes(_MAGIC, "little"), source) + body


def _everything(code: CodeType) -> list[Any]:
    """References to all that a code object is made of."""
    held: list[Any] = [code]
    for each in held:  # grows
        kind = type(each)
        if kind is _CODE:
            held += (each.co_consts, each.co_names, each.co_varnames, each.co_freevars, each.co_cellvars)
            held += (each.co_filename, each.co_name, each.co_qualname)
            held += (each.co_linetable, each.co_exceptiontable)
        elif kind is tuple or kind is frozenset:
            held += each
        elif kind is slice:
            held += (each.start, each.stop, each.step)
    return held


def _serve() -> None:
    # Texts of one character are shared, and whether they are interned shows in the bytes.
    for number in range(256):
        sys.intern(chr(number))
    take, give = open(0, "rb"), open(1, "wb")  # noqa: SIM115 - open to the end
    tag = str(sys.implementation.cache_tag).encode()
    give.write(len(tag).to_bytes(4, "little") + tag)
    give.flush()
    posix.dup2(posix.open("/dev/null", posix.O_WRONLY), 2)
    while len(head := take.read(8)) == 8:
        path = take.read(int.from_bytes(head[:4], "little")).decode()
        content = compiled(take.read(int.from_bytes(head[4:], "little")), path)
        give.write(len(content).to_bytes(4, "little") + content)
        give.flush()


def _main() -> None:
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            _serve()
        finally:
            done.release()

    _thread.stack_size(_STACK)
    _thread.start_new_thread(run, ())
    done.acquire()


if __name__ == "__main__":
    _main()
