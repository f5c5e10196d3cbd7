"""Guesses of the password: slow for one address, and for many together."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI, Response
from starlette.testclient import TestClient

from gralora_diffusion.ui.access import Access
from gralora_diffusion.ui.logins import FREE_TRIES, FREE_TRIES_OF_STRANGERS, MOST_KNOWN, Logins
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
        return Response(status_code=200 if password == "a good password" else 400)

    client = TestClient(app, "http://127.0.0.1")
    for path in ("/studio/studio/login", "/studio/studio", "/studio/studio/studio/login"):
        assert client.post(path, params=dict(password="a good password")).status_code == 404, path
    for path in ["/login", "/studio/login"] * 3:
        last = client.post(path, params=dict(password="wrong")).status_code
    assert last == 429
    assert client.post("/studio/login", params=dict(password="a good password")).status_code == 429
