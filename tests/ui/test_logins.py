"""Guesses of the password: slow for one address, and for many together."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import gradio as gr
import pytest
from fastapi import FastAPI, Response
from gradio.routes import App
from starlette.testclient import TestClient

from gralora_diffusion.ui import logins as module
from gralora_diffusion.ui.access import Access
from gralora_diffusion.ui.logins import (
    FREE_TRIES,
    FREE_TRIES_OF_STRANGERS,
    HERE,
    MAX_WAIT_HERE,
    MOST_KNOWN,
    Logins,
)
from gralora_diffusion.ui.security import allowed_hosts, is_foreign, middleware, without_prefix


def test_tries_at_once_are_no_way_around_the_wait():
    logins = Logins()
    with ThreadPoolExecutor(30) as pool:
        waits = list(pool.map(lambda _: logins.begin("203.0.113.5"), range(30)))
    assert sum(wait == 0 for wait in waits) == FREE_TRIES


def test_many_addresses_together_are_slowed_too():
    """Where a proxy passes on the client's own X-Forwarded-For, each guess can have another address."""
    logins = Logins()
    waits = [logins.begin(f"203.0.113.{number}") for number in range(2 * FREE_TRIES_OF_STRANGERS)]
    assert sum(wait == 0 for wait in waits) == FREE_TRIES_OF_STRANGERS


def flood(logins: Logins) -> int:
    """Strangers with many addresses try until all of them have to wait; returns how many could try."""
    waits = [logins.begin(f"203.0.113.{number}") for number in range(2 * FREE_TRIES_OF_STRANGERS)]
    assert waits[-1] > 0
    return sum(wait == 0 for wait in waits)


@pytest.mark.parametrize("own", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.9.10"])
def test_the_owner_can_log_in_on_this_computer_while_strangers_flood(own):
    logins = Logins()
    flood(logins)
    assert logins.begin(own) == 0


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7", "::ffff:198.51.100.7"),
        ("2001:db8::1", "2001:db8::cafe:1"),  # another of the same /64, as with privacy extensions
    ],
)
def test_the_owner_can_log_in_from_a_known_address_while_strangers_flood(tmp_path, before, now):
    logins = Logins(tmp_path / "known.json")
    assert logins.begin(before) == 0
    logins.end(before, good=True)
    flood(logins)
    assert logins.begin(now) == 0
    logins.end(now, good=True)
    again = Logins(tmp_path / "known.json")  # as after a restart
    flood(again)
    assert again.begin(now) == 0
    assert again.begin("198.51.100.8") > 0


def test_a_known_address_that_guesses_is_slowed():
    logins = Logins()
    for address in ("127.0.0.1", "198.51.100.7"):
        logins.begin(address)
        logins.end(address, good=True)
        waits = [logins.begin(address) for _ in range(30)]
        assert sum(wait == 0 for wait in waits) == FREE_TRIES


def test_guesses_stay_bounded_with_as_many_known_addresses_as_there_can_be():
    logins = Logins()
    known = [f"198.51.100.{number}" for number in range(3 * MOST_KNOWN)]
    for address in known:
        logins.begin(address)
        logins.end(address, good=True)
    tries = sum(logins.begin(address) == 0 for address in known for _ in range(20))
    tries += sum(logins.begin(f"203.0.113.{number}") == 0 for number in range(200))
    assert tries <= MOST_KNOWN * FREE_TRIES + FREE_TRIES_OF_STRANGERS


def test_addresses_of_one_ipv6_network_are_one():
    logins = Logins()
    waits = [logins.begin(f"2001:db8::{number:x}") for number in range(1, 30)]
    assert sum(wait == 0 for wait in waits) == FREE_TRIES


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', "[" * 100_000, "null"])
def test_a_damaged_file_of_known_addresses_counts_as_none(tmp_path, text):
    (tmp_path / "known.json").write_text(text)
    assert Logins(tmp_path / "known.json").known == []


def test_a_good_password_is_no_failure():
    logins = Logins()
    for _ in range(2 * FREE_TRIES_OF_STRANGERS):
        assert logins.begin("203.0.113.5") == 0
        logins.end("203.0.113.5", good=True)
    for _ in range(FREE_TRIES):
        assert logins.begin("203.0.113.5") == 0
        logins.end("203.0.113.5", good=False)
    assert logins.begin("203.0.113.5") > 0
    assert logins.begin("198.51.100.7") == 0


def test_all_addresses_of_this_computer_are_one():
    """Any process of it can have any of 127.0.0.0/8."""
    logins = Logins()
    addresses = [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(500)]
    addresses += ["::1", "::ffff:127.0.0.9", "127.0.0.1"]
    assert sum(logins.begin(address) == 0 for address in addresses for _ in range(2)) == FREE_TRIES
    assert 0 < logins.begin("127.0.0.1") <= MAX_WAIT_HERE
    assert list(logins.failures) == [HERE]


def test_the_owner_on_this_computer_never_waits_long(monkeypatch):
    """However many passwords somebody guesses here; and the guesses stay bounded."""
    logins, now = Logins(), 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    tries = 0
    for _ in range(3600):
        tries += logins.begin("127.0.0.2") == 0
        assert logins.begin("127.0.0.1") <= MAX_WAIT_HERE
        now += 1
    assert tries <= FREE_TRIES + 3600 / MAX_WAIT_HERE + 10


def test_the_table_of_failures_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_FAILURES", 7)
    logins = Logins()
    flood(logins)
    assert len(logins.failures) == 7
    assert logins.begin("203.0.113.255") > 0  # all strangers together still have to wait


SPELLINGS = (
    "/login//", "//login", "//login//", "/login///", "/./login", "/login/.", "/x/../login", "/login/..;/",
    "/%6cogin//", "/%256cogin", "/login%2f", "/login%2f%2f", "/login%0a", "/login/%0a", "/login%0d%0a",
    "/login%00", "/login%20", "/LOGIN", "/login%5c", "/studio/login", "/studio//login",
    "/studio/studio/login", "//studio/login", "/studio/studio/login//", "/studio/login//", "/studio/login%0a",
)  # fmt: skip


@pytest.mark.parametrize("root_path", ["", "/studio"])
def test_no_spelling_of_the_log_in_is_a_way_around_the_wait(root_path, tmp_path):
    """With Gradio's own log-in: guesses are refused or counted, and none makes an address known."""

    async def app() -> App:
        with gr.Blocks() as page:
            pass
        page.auth, page.auth_message, page.root_path = [("ann", "a good password")], None, root_path
        access = Access(auth="ann:a good password", root_path=root_path)
        guard = dict(middleware=middleware(access, tmp_path / "known.json"))
        return App.create_app(page, app_kwargs=guard)

    served = asyncio.run(app())

    async def as_sent(scope, receive, send):  # the test's client would send /./login as /login
        path = scope.get("query_string", b"").decode()
        await served(dict(scope, path=unquote(path)) if path else scope, receive, send)

    client = TestClient(as_sent, "http://127.0.0.1", client=("203.0.113.9", 1))
    guess = dict(data=dict(username="ann", password="wrong"), follow_redirects=False)
    for path in SPELLINGS:
        answer = client.post(f"/?{path}", **guess)
        is_login = unquote(path).removeprefix(root_path) in ("/login", "/login/")  # and so is counted
        assert answer.status_code == (400 if is_login else 404), path
    assert not (tmp_path / "known.json").exists()
    last = [client.post(f"/?{path}", **guess).status_code for path in ("/login", "/login/", *SPELLINGS) * 3]
    assert 429 in last
    assert last.count(400) <= FREE_TRIES
    good = dict(data=dict(username="ann", password="a good password"))
    assert client.post("/login", **good).status_code == 429
    home = TestClient(served, "http://127.0.0.1", client=("198.51.100.7", 1))
    assert home.post("/login/", **good).status_code == 200
    assert json.loads((tmp_path / "known.json").read_text()) == ["198.51.100.7"]


def test_hosts_of_a_proxy_are_known_without_their_ports():
    access = Access(auth="ann:secret", hosts=("Photos.example.com:8443",))
    assert access.problem() is None
    assert "photos.example.com" in allowed_hosts(access)
    assert "photos.example.com" not in allowed_hosts(Access())


@pytest.mark.parametrize(
    ("origin", "foreign"),
    [
        ("https://photos.example.com:8443", False),
        ("https://photos.example.com", True),
        ("https://photos.example.com:8444", True),
        ("https://evil.example", True),
        ("http://127.0.0.1:7860", False),
        ("null", True),
    ],
)
def test_only_the_proxys_own_pages_may_send_requests(origin, foreign):
    own = {"photos.example.com:8443"}
    assert is_foreign(dict(origin=origin, host="127.0.0.1:7860"), own) is foreign


def test_only_the_whole_prefix_is_taken_off():
    for path, expected in (("/studio/login", "/login"), ("/studio2/x", "/studio2/x"), ("/x", "/x")):
        assert without_prefix(dict(path=path), "/studio")["path"] == expected


def test_a_repeated_prefix_is_no_way_around_the_wait():
    access = Access(auth="ann:a good password", root_path="/studio")
    app = FastAPI(middleware=middleware(access))
    app.root_path = "/studio"  # as Gradio sets it

    @app.post("/login")
    def login(password: str) -> Response:
        response = Response(status_code=200 if password == "a good password" else 400)
        if response.status_code == 200:
            response.set_cookie("access-token-1", "x")
        return response

    client = TestClient(app, "http://127.0.0.1")
    for path in ("/studio/studio/login", "/studio/studio", "/studio/studio/studio/login"):
        assert client.post(path, params=dict(password="a good password")).status_code == 404, path
    for path in ["/login", "/studio/login"] * 3:
        last = client.post(path, params=dict(password="wrong")).status_code
    assert last == 429
    assert client.post("/studio/login", params=dict(password="a good password")).status_code == 429
