"""Running commands in tests."""

import subprocess


def run(*command, cwd, **kwargs):
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, **kwargs)


def assert_one_sentence(done, *words):
    """The command answered a mistake with one sentence that holds these words."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("gralora train: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]
