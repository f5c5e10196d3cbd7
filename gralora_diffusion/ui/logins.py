"""How often a password may be wrong before one has to wait.

Addresses are counted each on their own, and all of this computer as one.  Strangers are also counted all
together, since one person may have many addresses; those that have logged in before, and this computer, are
not: whoever floods the log-in makes strangers wait, and not the owner.
"""

import contextlib
import ipaddress
import json
import threading
import time
from pathlib import Path

from gralora_diffusion.files import write_text

FREE_TRIES = 5  # of one address, before it has to wait
FREE_TRIES_OF_STRANGERS = 50  # all together: behind some proxies a client can choose its address
WAIT = 2.0  # seconds, and as many more for each further one
MAX_WAIT = 60.0
MAX_WAIT_HERE = 10.0  # on this computer, whose owner has no other address while somebody guesses there
FORGET_AFTER = 300.0  # seconds since the last wrong password
MOST_KNOWN = 20  # addresses that have logged in; each is one more that can guess beside the strangers
MOST_FAILURES = 1000  # names that are remembered; beyond that the one whose last try is the oldest goes
STRANGERS = "strangers"
HERE = "this computer"


class Logins:
    """Wrong passwords by address and of all strangers together: (how many, when the last).

    file: where the addresses that have logged in are kept over a restart; None: in memory alone.
    """

    def __init__(self, file: Path | None = None):
        self.failures: dict[str, tuple[int, float]] = {}
        self.file = file
        self.known = addresses_in(file)
        self.lock = threading.Lock()

    def begin(self, address: str) -> float:
        """Seconds until the address may try again; at 0 the try counts as wrong until end() says otherwise.

        So that many at once are no way around the wait.
        """
        with self.lock:
            now = time.monotonic()
            kept = {name: found for name, found in self.failures.items() if now - found[1] < FORGET_AFTER}
            self.failures = kept
            limits = self.limits(address)
            wait = max(self.wait(name, free, now) for name, free in limits.items())
            if wait <= 0:
                for name in limits:
                    tries, _ = self.failures.pop(name, (0, now))
                    self.failures[name] = tries + 1, now  # at the end, so that the first is the oldest
            while len(self.failures) > MOST_FAILURES:
                del self.failures[next(iter(self.failures))]
            return wait

    def limits(self, address: str) -> dict[str, int]:
        """{what a try from this address is counted under: how many are free}"""
        network = network_of(address)
        limits = {network: FREE_TRIES}
        if network not in self.known and network != HERE:
            limits[STRANGERS] = FREE_TRIES_OF_STRANGERS
        return limits

    def wait(self, name: str, free: int, now: float) -> float:
        tries, last = self.failures.get(name, (0, 0.0))
        if tries < free:
            return 0.0
        longest = MAX_WAIT_HERE if name == HERE else MAX_WAIT
        return max(0.0, last + min(longest, WAIT * (tries - free + 1)) - now)

    def end(self, address: str, good: bool) -> None:
        """A good password: forget the wrong ones of this address, and know it from now on."""
        if not good:
            return
        with self.lock:
            network = network_of(address)
            if STRANGERS in self.limits(address):
                tries, last = self.failures.get(STRANGERS, (0, 0.0))
                self.failures[STRANGERS] = max(0, tries - 1), last
            self.failures.pop(network, None)
            if network != HERE and self.known[-1:] != [network]:
                others = [name for name in self.known if name != network]
                self.known = [*others, network][-MOST_KNOWN:]
                self.save()

    def save(self) -> None:
        if self.file is None:
            return
        with contextlib.suppress(OSError):  # a full disk keeps nobody from logging in
            write_text(self.file, json.dumps(self.known) + "\n")


def network_of(address: str) -> str:
    """What stands for an address: HERE for all of this computer, whose processes can have any of 127.0.0.0/8.

    Of IPv6 it is the /64, in which one computer can have any number of them.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped:
        found = found.ipv4_mapped
    if found.is_loopback:
        return HERE
    if found.version == 6:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def addresses_in(file: Path | None) -> list[str]:
    """Those of save(), the latest last; [] for a file that holds something else."""
    try:
        found = json.loads(file.read_text()) if file is not None else []
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return []
    return found[-MOST_KNOWN:]
