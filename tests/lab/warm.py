"""A Python for modules that has loaded what they import, so that one costs a tenth of a second and not a whole one.

What a target's interpreter is asked to run is run by a fork of a process that waits, with the same code, arguments, environment, folder and streams. The
process that was started as the interpreter stays until that has ended, and passes on how.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTED = """\
#!{python} -IS
import array, json, os, socket, sys
if len(sys.argv) != 2 or not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as warm:
    warm.connect({place!r})
    asked = json.dumps([sys.argv[1], os.getcwd(), dict(os.environ)]).encode()
    streams = array.array("i", [0, 1, 2])
    warm.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    warm.sendall(asked)
    sys.exit(warm.recv(1)[0])
"""


@contextlib.contextmanager
def warm_python() -> t.Iterator[str]:
    """The path of such a Python, with a folder ``modules`` beside it for what runs pack for it."""
    with tempfile.TemporaryDirectory(prefix="healer-lab-", dir="/var/tmp") as folder:
        place = f"{folder}/socket"
        python = Path(folder) / "python"
        python.write_text(STARTED.format(python=sys.executable, place=place))
        python.chmod(0o755)
        (Path(folder) / "modules").mkdir()
        with subprocess.Popen([sys.executable, "-m", "tests.lab.warm", place], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield str(python)
            finally:
                process.terminate()


def serve(place: str) -> None:
    """Wait, and fork for each that asks."""
    from ansible.module_utils import basic  # noqa: F401, PLC0415

    package = "ansible_collections.homelab.healer.plugins.module_utils"
    for found in pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))]):
        importlib.import_module(f"{package}.{found.name}")
    for name in ("proxmoxer.backends.https", "docker", "psycopg2.extras"):
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(16)
        print("ready", flush=True)
        while True:
            client, _address = listener.accept()
            if os.fork() == 0:
                listener.close()
                _child(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _child(client: socket.socket) -> t.NoReturn:
    """Be the interpreter that was asked for. One process runs it, and another tells how it ended, as that may come in any way."""
    streams = array.array("i")
    size, passed, _flags, _address = client.recvmsg(4, socket.CMSG_LEN(3 * streams.itemsize))
    streams.frombytes(passed[0][2])
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += client.recv(65536)
    script, folder, environment = json.loads(asked)
    running = os.fork()
    if running:
        with contextlib.suppress(OSError):
            client.sendall(bytes([_exit_code(running, client)]))
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = [script]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(running: int, client: socket.socket) -> int:
    """Wait for a process; if who asked for it is killed, so is it."""
    ended = os.pidfd_open(running)
    either = select.poll()
    either.register(client, select.POLLIN)
    either.register(ended, select.POLLIN)
    while True:
        if ended in dict(either.poll()):
            return os.waitstatus_to_exitcode(os.waitpid(running, 0)[1]) & 255
        os.kill(running, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
