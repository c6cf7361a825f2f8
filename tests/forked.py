"""Run the project's commands in forks of one process that has imported everything.

The imports take seven seconds, most of the time of a short command.
"""

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

# One request per line: a command to start, or the process id of one whose exit code is asked for. The server starts no
# thread, so that forking is safe.
SERVER = """
import gc, inspect, json, os, pickle, runpy, socket, subprocess, sys, traceback
gc.disable()
import wandb
import motionanim.animate, motionanim.data.encode, motionanim.data.prepare.collect, motionanim.evaluation.harness
import motionanim.training.motion_lora, motionanim.training.preview
from hydra._internal.hydra import Hydra
from lightning.fabric.utilities import rank_zero
gc.freeze()
gc.enable()
spare, taker, execute = [], [0], subprocess.Popen._execute_child

def run(job, files):
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.argv = job["argv"]
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # which Lightning does as it is imported
    # Hydra would compose once more only to look for a setting hydra.mode.
    Hydra.get_mode = lambda *_, **__: None
    stand_by(job.get("pythons", 0))
    status = 0
    try:
        if "call" in job:
            sys.path[:] = job["path"]
            function, arguments = pickle.loads(bytes.fromhex(job["call"]))
            function(*arguments)
        elif sys.argv[0] == "-m":
            del sys.argv[0]
            sys.modules.pop(sys.argv[0], None)  # `python -m` too runs it once more, and warns where it was imported
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(sys.argv[0])
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

def stand_by(count):  # children that this process takes in place of the next Python programs that it starts
    taker[0] = os.getpid()
    for _ in range(count):
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            for each in (ours, *(each for _, each in spare)):
                each.close()
            spare.clear()
            job, files, *_ = socket.recv_fds(theirs, 2**20, 3)
            theirs.close()
            if not job:  # the parent has ended
                os._exit(0)
            job = json.loads(job)
            if job["session"]:
                os.setsid()
            run(job, files)
        theirs.close()
        spare.append((pid, ours))

def take_spare(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
    ours = spare and os.getpid() == taker[0] and not isinstance(args, (str, bytes)) and len(args) > 1
    if not ours or args[0] != sys.executable or str(args[1]) == "-c":
        return execute(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
    self.pid, spare_one = spare.pop(0)
    named = inspect.signature(execute).bind(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
    pipes = [named.arguments[name] for name in "p2cread p2cwrite c2pread c2pwrite errread errwrite".split()]
    job = {
        "argv": [*map(str, args[2:] if args[1] == "-u" else args[1:])], "cwd": str(cwd or os.getcwd()),
        "env": dict(os.environ if env is None else env), "pythons": 1,
        "session": named.arguments["start_new_session"],
    }
    files = [number if pipe == -1 else pipe for number, pipe in zip((0, 1, 2), (pipes[0], pipes[3], pipes[5]))]
    socket.send_fds(spare_one, [json.dumps(job).encode()], files)
    self._child_created = True
    self._close_pipe_fds(*pipes)

subprocess.Popen._execute_child = take_spare
for line in sys.stdin:
    job = json.loads(line)
    if isinstance(job, int):
        ended, status = os.waitpid(job, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
        continue
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        # An input that does not end
        run(job, [os.pipe()[0], *(os.open(file, os.O_WRONLY) for file in job["files"])])
    os.setpgid(child, child)  # in both, or it could be asked to end before
    print(child, flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _ask(request: object) -> int | None:
    server = _server()
    print(json.dumps(request), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, "the server of commands has died"
    return json.loads(answer)


class Process:
    """A command that runs, in a process group of its own."""

    def __init__(self, job: dict[str, Any], folder: str, cwd: Path | str, env: Mapping[str, str] | None) -> None:
        self.files, self.code = [Path(folder, name) for name in ("out", "err")], None
        for file in self.files:
            file.touch()
        env = dict(os.environ if env is None else env)
        self.pid = _ask({**job, "cwd": str(cwd), "env": env, "files": [str(file) for file in self.files]})

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.code is None:
            self.code = _ask(self.pid)
        return self.code

    def wait(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, "it did not end in time"
            time.sleep(0.01)
        return self.code

    def read(self, number: int) -> str:
        """What it has written to standard output (1) or error (2)."""
        return self.files[number - 1].read_text(encoding="utf-8", errors="replace")


@contextmanager
def _running(job: dict[str, Any], cwd: Path | str, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    with tempfile.TemporaryDirectory() as folder:
        process = Process(job, folder, cwd, env)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def started(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, pythons: int = 0
) -> AbstractContextManager[Process]:
    """`python *command` as it runs; at the end all of its process group is killed.

    Args:
        command: A script's path or "-m" and a module, and arguments.
        env: The environment; None for this process's own.
        pythons: As many of the first Python programs that it starts are forks too, as is the first that each of these
            starts. They are its children, in this order.
    """
    return _running({"argv": [*map(str, command)], "pythons": pythons}, cwd, env)


def calling(function: Callable[..., None], *arguments: object) -> AbstractContextManager[Process]:
    """`function(*arguments)` of a module as it runs."""
    job = {"argv": ["call"], "path": sys.path, "call": pickle.dumps((function, arguments)).hex()}
    return _running(job, os.getcwd())


def call(function: Callable[..., None], *arguments: object, ranks: int) -> None:
    """`function(rank, *arguments)` in as many processes; an error if one of them fails."""
    with ExitStack() as running:
        processes = [running.enter_context(calling(function, rank, *arguments)) for rank in range(ranks)]
        while any(process.poll() is None for process in processes):
            failed = next((process for process in processes if process.poll()), None)
            assert failed is None, failed.read(2)[-3000:]
            time.sleep(0.01)
        assert [process.code for process in processes] == [0] * ranks, [
            process.read(2)[-1000:] for process in processes
        ]


def run(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, pythons: int = 0
) -> subprocess.CompletedProcess[str]:
    """`python *command`, its output captured."""
    with started(*command, cwd=cwd, env=env, pythons=pythons) as process:
        return subprocess.CompletedProcess(command, process.wait(), process.read(1), process.read(2))
