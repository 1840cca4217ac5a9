"""axe-core, the checker of accessibility, from a package of the test dependencies: nothing is fetched."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

#: WCAG 2.0, 2.1 and 2.2, levels A and AA, and what axe-core calls good practice.
_ALL = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
#: What depends on colours: all else is the same in the dark.
_COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
_LOOKS = (("light", 390, _ALL), ("dark", 1280, _COLOURS))


def violations(tab: Page, only: dict[str, Any] = _ALL) -> list[str]:
    """Return what axe-core finds wrong with the page that is shown: rule, place, and what is amiss.

    Args:
        tab: With the page.
        only: The rules to check.
    """
    found = Axe().run(tab, options={"runOnly": only, "resultTypes": ["violations"], "preload": False}).response
    assert found["passes"], "it looked"
    return [
        f"{tab.url} {wrong['id']}: {node['target']} {node['failureSummary']}"
        for wrong in found["violations"]
        for node in wrong["nodes"]
    ]


def violations_in_each_look(tab: Page, *addresses: str) -> list[str]:
    """Return the same of several pages, in light and dark; a page that can be scrolled sideways is wrong too."""
    found = []
    for scheme, width, rules in _LOOKS:
        tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        tab.set_viewport_size({"width": width, "height": 900})
        for address in addresses:
            tab.goto(address)
            found += [f"{scheme} {wrong}" for wrong in violations(tab, rules)]
            if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{scheme} {address} scrolls sideways at {width}")
    return found
