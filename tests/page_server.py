"""The page as a process of its own, and requests to it without a browser."""

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import httpx
from helpers import GRALORA

from gralora_diffusion.ui.processes import end_group

PATIENCE = 300  # seconds; a busy machine takes its time
SECRET = "root:x:0:0"  # of /etc/passwd


def sample_request(adapter: str, base: str = "same as training") -> list:
    """What the browser sends to generate one image of one step."""
    asked = [adapter, 1, "a robot", 1, 0, "none", 0, 1, None, base, False, "", "", "same as the base model"]
    return [*asked, False, "", "none", 0.5, "none", 0.5, 0]


class Page:
    """gralora ui --home HOME on a free port; requests() and the browser speak to `url`."""

    def __init__(self, home: Path, *arguments, **env):
        self.home = home
        self.log = home / "page.log"
        home.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            command = [*GRALORA, "ui", "--port", "0", "--home", home, *arguments]
            env = os.environ | {"OMP_NUM_THREADS": "1"} | env
            output = dict(stdout=log, stderr=subprocess.STDOUT)
            self.process = subprocess.Popen(command, env=env, cwd=home, **output)
        until = time.monotonic() + PATIENCE
        while "the page is at" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        self.url = self.log.read_text().partition("the page is at ")[2].split()[0].rstrip("/;")
        self.client = httpx.Client(
            base_url=self.url, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def config(self) -> dict:
        return self.client.get("/config").json()

    def function(self, name: str) -> dict:
        return next(d for d in self.config()["dependencies"] if d["api_name"] == name)

    def call(self, name, *data):
        """What an endpoint, named or numbered, answers: its data, or {"error": ...}."""
        found = (
            self.function(name)
            if isinstance(name, str)
            else next(d for d in self.config()["dependencies"] if d["id"] == name)
        )
        return self.send(found["id"], list(data))

    def send(self, number: int, data: list, session: str | None = None):
        session = session or uuid.uuid4().hex
        joined = self.client.post(
            "/gradio_api/queue/join", json=dict(data=data, fn_index=number, session_hash=session)
        )
        if joined.status_code != 200:
            return dict(error=joined.text, status=joined.status_code)
        event = joined.json()["event_id"]
        last = None
        with self.client.stream("GET", "/gradio_api/queue/data", params=dict(session_hash=session)) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("event_id") != event:
                    continue
                last = message.get("output") or last
                if message["msg"] == "process_completed":
                    output = message["output"]
                    return (
                        output["data"] if message["success"] else dict(error=output.get("error") or "error")
                    )
        return dict(error="no answer", output=last)

    def function_of(self, target: str, event: str) -> int:
        """The number of the function that an event of the element with this id calls."""
        config = self.config()
        number = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == target)
        for function in config["dependencies"]:
            if function["backend_fn"] and [number, event] in [list(t) for t in function["targets"]]:
                return function["id"]
        raise AssertionError(f"{event} of {target} calls nothing")

    def function_with(self, target: str) -> int:
        """The number of the only function that takes the value of the element with this id."""
        config = self.config()
        number = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == target)
        found = [d["id"] for d in config["dependencies"] if d["backend_fn"] and number in d["inputs"]]
        assert len(found) == 1, f"{len(found)} functions take the value of {target}"
        return found[0]

    def stop_run(self, name: str) -> str:
        return self.client.post("/gradio_api/run/stop", json=dict(data=[name])).text

    def form(self, **values) -> list:
        """The inputs of start and validate: every field as the page shows it at first, but for these."""
        config = self.config()
        components = {c["id"]: c["props"] for c in config["components"]}
        found = []
        for number in self.function("start")["inputs"]:
            name = (
                (components[number].get("elem_id") or "").removeprefix("option-").replace("run-name", "name")
            )
            found.append(values.pop(name, components[number].get("value")))
        assert not values, f"no such fields: {values}"
        return found

    def upload(self, *paths: Path) -> list[dict]:
        files = [("files", (path.name, path.read_bytes())) for path in paths]
        sent = self.client.post("/gradio_api/upload", files=files)
        assert sent.status_code == 200, sent.text
        return [
            dict(path=p, orig_name=path.name, meta={"_type": "gradio.FileData"})
            for p, path in zip(sent.json(), paths, strict=True)
        ]

    def alive(self) -> bool:
        return self.process.poll() is None and self.client.get("/").status_code == 200

    def close(self, number=signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)
        self.client.close()


def end_runs(home: Path) -> None:
    """Kill the runs that a test left active."""
    for job in home.glob("runs/*/job.json"):
        try:
            end_group(json.loads(job.read_text())["pid"], at_once=True)
        except (OSError, KeyError, ValueError):
            continue


def until(condition, what: str, seconds: float = PATIENCE):
    """Wait for a condition and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"in {seconds} seconds never: {what}")


def refused(answer) -> bool:
    return isinstance(answer, dict) and "error" in answer


def everything(home: Path) -> set[str]:
    """All files in and beside HOME, but for what the page makes for itself."""
    found = [path for path in home.parent.rglob("*") if ".page" not in path.parts and path.name != "page.log"]
    return {str(path.relative_to(home.parent)) for path in found}
