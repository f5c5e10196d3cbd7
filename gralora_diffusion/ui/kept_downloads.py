"""A served file that a browser fetches counts as handed out now, so that a download can be resumed later."""

import contextlib
import os
from pathlib import Path

FILE = "/gradio_api/file="  # how the path of a request for a served file begins


class KeptDownloads:
    """Renews the time of a served file's folder, which housekeeping looks at, when the file is sent.

    The file's own time stays: a resumed download compares it, and would otherwise start again.
    """

    def __init__(self, app, served: Path):
        self.app = app
        self.served = served

    async def __call__(self, scope, receive, send):
        folder = None
        if scope["type"] == "http" and scope["path"].startswith(FILE):
            folder = self.folder_of(scope["path"].removeprefix(FILE))

        async def send_and_renew(message):
            sent = message["type"] == "http.response.start" and message["status"] in (200, 206, 304)
            if sent and folder is not None:
                with contextlib.suppress(OSError):
                    os.utime(folder, follow_symlinks=False)
            await send(message)

        await self.app(scope, receive, send_and_renew if folder else send)

    def folder_of(self, path: str) -> Path | None:
        """The folder among the served files that a path leads into; None if it leads elsewhere."""
        path = Path(os.path.normpath(path))
        if not path.is_relative_to(self.served) or path == self.served:
            return None
        return self.served / path.relative_to(self.served).parts[0]
