"""Running commands in tests: as a process of their own, or faster in this one."""

import contextlib
import io
import os
import subprocess
from unittest import mock

from gralora_diffusion import console
from gralora_diffusion.cli.main import main


def run(*command, cwd, **kwargs):
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, **kwargs)


def call(*words, cwd, encoding: str = "utf-8") -> subprocess.CompletedProcess:
    """`gralora WORDS` in this process, which has loaded the libraries already: what run() returns.

    Its environment, folder and name are restored; a warning is an error here.  encoding: of its output.
    """
    argv = [str(word) for word in words]
    streams = []
    for _ in ("stdout", "stderr"):
        streams.append(io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True))
    code = 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        mock.patch.dict(os.environ),
        mock.patch.object(console, "_program", None),
    ):
        try:
            main(argv)
        except SystemExit as stop:
            code = stop.code or 0
    output = [stream.buffer.getvalue().decode(encoding) for stream in streams]
    return subprocess.CompletedProcess(argv, code, *output)


def assert_one_sentence(done, *words):
    """The command answered a mistake with one sentence that holds these words."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("gralora train: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]
