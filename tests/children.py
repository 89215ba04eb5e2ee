"""Work in processes that share what is imported here, so that they may be killed for cheap."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch

Work = Callable[[], object]


class Ended(NamedTuple):
    """How a process ended: its exit code, or minus the signal; and what it said on stderr."""

    code: int
    said: str


def _started(work: Work, environment: dict[str, str]) -> tuple[int, int]:
    """The process, and where its stderr can be read."""
    said, saying = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no other thread is at work
        child = os.fork()
    if child:
        os.close(saying)
        return child, said
    os.dup2(saying, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)  # makes the pool of threads anew, which did not come along
    code = 0
    with open(2, "w", buffering=1, closefd=False) as sys.stderr:
        try:
            work()
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
    os._exit(code)


def in_children(works: Sequence[Work]) -> list[Ended]:
    """Runs each in a process; several are told of each other as torchrun does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(works))}
    ranks = [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(len(works))]
    children = [_started(w, r if len(works) > 1 else {}) for w, r in zip(works, ranks)]
    ended = []
    for child, said in children:
        with open(said, errors="replace") as stream:
            words = stream.read()
        ended.append(Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words))
    return ended


def in_child(work: Work) -> Ended:
    """The same for one process."""
    return in_children([work])[0]


def before(module: ModuleType, name: str, number: int, act: Work) -> None:
    """From now on, `act` precedes the `number`th call of a function of the module."""
    function, count = getattr(module, name), 0

    def called(*arguments, **keywords):
        nonlocal count
        count += 1
        if count == number:
            act()
        return function(*arguments, **keywords)

    setattr(module, name, called)


def die() -> None:
    """As if memory had run out."""
    os.kill(os.getpid(), signal.SIGKILL)
