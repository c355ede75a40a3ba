"""Waits on its standard input for a command, then becomes it: run from its text, on bare Python.

What it is told, up to the end of file, are items that each end in a NUL: the number of words, the words of
the command, the variables of its environment as NAME=VALUE. Once it waits it says so, by one byte on standard
output. Where nobody tells it anything, it ends.
"""

import os
import signal
import sys

# Python ignores these for itself; a program that it becomes would inherit that.
for _number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(_number, signal.SIG_DFL)
os.write(1, b".")
_items = b"".join(iter(lambda: os.read(0, 65536), b"")).split(b"\0")[:-1]
if _items:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _command, _variables = _items[1 : 1 + int(_items[0])], _items[1 + int(_items[0]) :]
    try:
        os.execvpe(_command[0], _command, dict(_item.split(b"=", 1) for _item in _variables))
    except OSError as _exc:
        sys.exit(f"waiter: {os.fsdecode(_command[0])}: {_exc.strerror}")
