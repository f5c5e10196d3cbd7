"""How often a password may be wrong before one has to wait."""

import threading
import time

FREE_TRIES = 5  # of one address, before it has to wait
FREE_TRIES_OF_ALL = 50  # of all addresses together: behind some proxies a client can choose its address
WAIT = 2.0  # seconds, and as many more for each further one
MAX_WAIT = 60.0
FORGET_AFTER = 300.0  # seconds since the last wrong password
ALL = "all addresses"


class Logins:
    """Wrong passwords by address and of all together: (how many, when the last)."""

    def __init__(self):
        self.failures: dict[str, tuple[int, float]] = {}
        self.lock = threading.Lock()

    def begin(self, address: str) -> float:
        """Seconds until the address may try again; at 0 the try counts as wrong until end() says otherwise.

        So that many at once are no way around the wait.
        """
        with self.lock:
            now = time.monotonic()
            kept = {name: found for name, found in self.failures.items() if now - found[1] < FORGET_AFTER}
            self.failures = kept
            wait = max(self.wait(address, FREE_TRIES, now), self.wait(ALL, FREE_TRIES_OF_ALL, now))
            if wait <= 0:
                for name in (address, ALL):
                    tries, _ = self.failures.get(name, (0, now))
                    self.failures[name] = tries + 1, now
            return wait

    def wait(self, name: str, free: int, now: float) -> float:
        tries, last = self.failures.get(name, (0, 0.0))
        if tries < free:
            return 0.0
        return max(0.0, last + min(MAX_WAIT, WAIT * (tries - free + 1)) - now)

    def end(self, address: str, good: bool) -> None:
        """A good password: forget those of this address."""
        if not good:
            return
        with self.lock:
            self.failures.pop(address, None)
            tries, last = self.failures.get(ALL, (0, 0.0))
            self.failures[ALL] = max(0, tries - 1), last
