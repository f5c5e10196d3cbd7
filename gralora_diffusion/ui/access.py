"""Who may open the page, and where it is: the options of `gralora ui` about it, with their mistakes."""

import re
from dataclasses import dataclass

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?")
ROOT_PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._~-]{0,63}){1,8}")


@dataclass(frozen=True)
class Access:
    """listen: another address; share: Gradio's tunnel; auth: NAME:PASSWORD.

    hosts: names by which a proxy is reached, with a port where it is not the usual one.
    root_path: the path under which a proxy has the page, such as /studio; "" for none.
    """

    listen: str | None = None
    share: bool = False
    auth: str | None = None
    hosts: tuple[str, ...] = ()
    root_path: str = ""

    def problem(self) -> str | None:
        """What is wrong with the options, in one sentence; None where they fit."""
        opens = {"--listen": self.listen, "--share": self.share, "--allow_host": self.hosts}
        given = [name for name, value in opens.items() if value]
        if given and not self.auth:
            verb = "opens" if len(given) == 1 else "open"
            return f"{' and '.join(given)} {verb} the page to others: give --auth NAME:PASSWORD too"
        if self.auth and not all(self.auth.partition(":")[::2]):
            return "--auth must be NAME:PASSWORD"
        for host in self.hosts:
            if not HOST.fullmatch(host):
                return f"--allow_host is {host!r}; it must be a name such as photos.example.com, or NAME:PORT"
        if self.root_path and not ROOT_PATH.fullmatch(self.root_path):
            return f"--root_path is {self.root_path!r}; it must be a path such as /studio"
        return None

    def names(self) -> set[str]:
        """The hosts without their ports."""
        return {host.partition(":")[0].lower() for host in self.hosts}
