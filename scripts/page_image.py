"""docs/page.png: the tab Watch of a page with a run that has ended, in Chromium, 1280 pixels wide.

    gralora train --output_dir studio/runs/robot-1 --max_train_steps 300 --learning_rate 1e-3 \\
        --validation_steps 60 > log.txt 2>&1
    mv log.txt studio/runs/robot-1
    gralora ui --home studio &
    python scripts/page_image.py http://127.0.0.1:7860
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IMAGE = Path(__file__).parents[1] / "docs" / "page.png"
WIDTH, HEIGHT = 1280, 1310
PATIENCE = 300_000  # milliseconds
COMPLETE = "() => [...document.querySelectorAll('#samples img')].every(image => image.complete)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport=dict(width=WIDTH, height=HEIGHT), color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(args.url)
        page.get_by_role("tab", name="Watch", exact=True).click()
        page.locator("#samples img").first.wait_for()
        page.locator("#loss svg").wait_for()
        page.wait_for_function(COMPLETE)
        page.screenshot(path=IMAGE)
        chromium.close()


if __name__ == "__main__":
    main()
