"""Run the project's commands in forks of one process that has imported everything.

The imports take seven seconds, most of the time of a short command.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# One job per line. The server starts no thread, so that forking is safe.
SERVER = """
import json, os, runpy, sys, traceback
import motionanim.animate, motionanim.data.encode, motionanim.data.prepare.collect, motionanim.evaluation.harness
import motionanim.training.motion_lora, motionanim.training.preview
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(job["files"][number - 1], os.O_WRONLY), number)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])
        sys.argv = job["argv"]
        status = 0
        try:
            if sys.argv[0] == "-m":
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
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python *command`, its output captured.

    Args:
        command: A script's path or "-m" and a module, and arguments.
        env: The environment; None for this process's own.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        for file in files:
            file.touch()
        job = {
            "argv": list(command), "cwd": str(cwd), "env": dict(os.environ if env is None else env),
            "files": [str(file) for file in files],
        }  # fmt: skip
        print(json.dumps(job), file=server.stdin, flush=True)
        status = server.stdout.readline()
        assert status, "the server of commands has died"
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return subprocess.CompletedProcess(command, int(status), out, err)
