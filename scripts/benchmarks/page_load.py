"""Bytes of the page's first load in Chromium, as they go over the wire and unpacked.

Start the page first:  gralora ui --home /tmp/studio --port 7860
Then:                  python scripts/benchmarks/page_load.py http://127.0.0.1:7860
"""

import argparse
import collections
import shutil
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = 3000  # milliseconds without another request, after which the page counts as loaded
PATIENCE = 300_000  # milliseconds
GROUPS = (".js", ".css")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--largest", type=int, default=10, help="how many files to list (default: 10)")
    args = parser.parse_args()
    files = first_load(args.url)
    report(files, args.largest)


def first_load(url: str) -> dict[str, dict]:
    """{request: its path, wire and unpacked bytes, and encoding} of a browser with an empty cache."""
    files = collections.defaultdict(lambda: dict(path="", wire=0, unpacked=0, encoding=""))
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = chromium.new_page(viewport=dict(width=1280, height=900))
        page.set_default_timeout(PATIENCE)
        network = page.context.new_cdp_session(page)

        def responded(event: dict) -> None:
            response = event["response"]
            found = files[event["requestId"]]
            found["path"] = urlsplit(response["url"]).path
            found["encoding"] = response["headers"].get("content-encoding", "")

        def received(event: dict) -> None:
            files[event["requestId"]]["unpacked"] += event["dataLength"]

        def finished(event: dict) -> None:
            files[event["requestId"]]["wire"] = event["encodedDataLength"]

        network.on("Network.responseReceived", responded)
        network.on("Network.dataReceived", received)
        network.on("Network.loadingFinished", finished)
        network.send("Network.enable")
        page.goto(url)
        page.wait_for_selector("#strip-state")
        seen = -1
        while seen != len(files):
            seen = len(files)
            page.wait_for_timeout(QUIET)
        chromium.close()
    return {number: found for number, found in files.items() if found["path"]}


def report(files: dict[str, dict], largest: int) -> None:
    groups = collections.defaultdict(lambda: [0, 0, 0])
    for found in files.values():
        kind = next((end for end in GROUPS if found["path"].endswith(end)), "other")
        for name in (kind, "all"):
            groups[name][0] += 1
            groups[name][1] += found["wire"]
            groups[name][2] += found["unpacked"]
    print(f"{'':10} {'files':>5} {'wire kB':>9} {'unpacked kB':>12}")
    for name, (number, wire, unpacked) in sorted(groups.items(), key=lambda item: item[1][1]):
        print(f"{name:10} {number:5} {wire / 1e3:9.0f} {unpacked / 1e3:12.0f}")
    for found in sorted(files.values(), key=lambda found: -found["wire"])[:largest]:
        sizes = f"{found['wire'] / 1e3:9.0f} {found['unpacked'] / 1e3:12.0f}"
        print(f"{found['encoding'] or '-':>16} {sizes}  {found['path']}")


if __name__ == "__main__":
    main()
