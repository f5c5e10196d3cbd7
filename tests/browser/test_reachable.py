"""The page behind a real nginx: under another name and a path, with a password."""

import os
import shutil
import socket
import subprocess

import httpx
import pytest
from page_browser import MILLIS, PROXY
from page_server import Page, end_runs, until

from gralora_diffusion.data.dataset import EXAMPLE

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light"),
]
CONFIG = """
{user}
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off; client_max_body_size 100m;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_buffering off;
    server {{ listen 127.0.0.1:{port}; location /studio/ {{ proxy_pass {page}/; }} }}
    server {{ listen 127.0.0.1:{whole}; location /studio/ {{ proxy_pass {page}; }} }}
}}
"""
GOOD = dict(username="ann", password="a good password")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Proxied:
    """port: of an nginx that takes the path /studio off; whole: of one that leaves it in."""

    def __init__(self, folder, finished_run):
        self.port, self.whole = free_port(), free_port()
        self.home = folder / "h"
        shutil.copytree(finished_run, self.home / "runs" / "robot-1")
        hosts = ["--allow_host", f"{PROXY}:{self.port}", "--allow_host", f"{PROXY}:{self.whole}"]
        self.page = Page(self.home, "--auth", "ann:a good password", "--root_path", "/studio", *hosts)
        user = "user root;" if os.geteuid() == 0 else ""
        values = dict(folder=folder, port=self.port, whole=self.whole, page=self.page.url, user=user)
        (folder / "nginx.conf").write_text(CONFIG.format(**values))
        command = [NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        self.nginx = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(self.answers, "nginx answers", 30)

    def answers(self) -> bool:
        assert self.nginx.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/").status_code == 404
        except httpx.ConnectError:
            return False

    def client(self, port: int) -> httpx.Client:
        """Requests that a browser sends to http://photos.example.com:PORT."""
        host = f"{PROXY}:{port}"
        headers = {"host": host, "origin": f"http://{host}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)

    def close(self) -> None:
        self.nginx.terminate()
        self.nginx.wait(30)
        end_runs(self.home)
        self.page.close()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory, finished_run):
    found = Proxied(tmp_path_factory.mktemp("proxied"), finished_run)
    yield found
    found.close()


def test_the_page_works_behind_nginx(chromium, proxied):
    """Log in, upload, images, events and the report, all of them under the prefix."""
    context = chromium.new_context(viewport=dict(width=1280, height=900))
    page = context.new_page()
    page.set_default_timeout(MILLIS)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    url = f"http://{PROXY}:{proxied.port}/studio/"
    page.goto(url)
    for password in ("a wrong one", GOOD["password"]):
        page.get_by_label("username").fill("ann")
        page.get_by_label("password").fill(password)
        page.get_by_role("button", name="Login").click()
        if password != GOOD["password"]:
            page.get_by_text("Incorrect Credentials").wait_for()
    page.wait_for_selector("#strip-state")
    page.set_input_files("#drop input[type=file]", str(EXAMPLE / "00.png"))
    until(lambda: list(proxied.home.glob("images/*/00.png")), "the image is uploaded")
    page.get_by_role("tab", name="Watch", exact=True).click()
    page.wait_for_function("document.querySelector('#history img')?.naturalWidth > 0")
    page.wait_for_function("document.querySelector('#samples img')?.naturalWidth > 0")
    with context.expect_page() as opened:
        page.locator("#open-report").click()
    opened.value.get_by_text("Options that differ from the defaults").wait_for()
    assert opened.value.url == f"{url}report/robot-1/"
    away = [address for address in requests if not address.startswith((url, "data:", "blob:"))]
    assert not away
    assert not errors
    context.close()


def test_a_proxy_may_leave_the_prefix_in(proxied):
    with proxied.client(proxied.whole) as client:
        assert client.post("/studio/login", data=GOOD).status_code == 200
        assert client.get("/studio/config").json()["root"].endswith("/studio")
        assert client.get("/studio/report/robot-1/").status_code == 200
        assert client.get("/studio").headers["location"].endswith("/studio/")


def test_a19_a20_foreign_names_and_pages_are_refused_behind_it_too(proxied):
    own = f"http://{PROXY}:{proxied.port}"
    foreign = ("http://evil.example", "null", f"http://{PROXY}", f"http://{PROXY}:1")
    with proxied.client(proxied.port) as client:
        assert client.get("/studio/", headers={"host": "evil.example"}).status_code == 400
        for origin in foreign:
            sent = client.post("/studio/login", data=GOOD, headers={"origin": origin})
            assert sent.status_code == 403, origin
        assert client.post("/studio/login", data=GOOD, headers={"origin": own}).status_code == 200
        for place in ("/studio/gradio_api/file=/etc/passwd", "/studio/../etc/passwd", "/etc/passwd"):
            assert client.get(place).status_code >= 400, place


def test_a21_guesses_through_it_are_slowed_whatever_address_they_claim(proxied):
    """nginx sets X-Forwarded-For; a client's own is not believed."""
    codes = []
    with proxied.client(proxied.port) as client:
        client.post("/studio/login", data=GOOD)  # forgets the wrong passwords so far
        for number in range(12):
            claimed = {"x-forwarded-for": f"203.0.113.{number}"}
            guess = dict(username="ann", password=f"guess {number}")
            codes.append(client.post("/studio/login", data=guess, headers=claimed).status_code)
    assert codes == [400] * 5 + [429] * 7
