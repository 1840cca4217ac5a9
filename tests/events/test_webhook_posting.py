"""What may be reached by a webhook, and how little it can do to us."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network

import pytest
import trustme

from jobs.settings import Settings
from jobs.webhooks import posting
from jobs.webhooks.addresses import Refused, addresses, may_reach, target
from jobs.webhooks.posting import Failed, post
from tests.events.receiver import LOOPBACK, babble, drip, flood, hang_up, nonsense, receiver

OPEN = Settings(webhook_allow_http=True, webhook_networks=("127.0.0.1/32",), webhook_timeout_seconds=1.0)
STRICT = Settings()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1"),
        *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "fe80::1", "fe80::1%eth0"),
        *("2001:4860:4860::8888%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "64:ff9b::a00:1"),
        *("64:ff9b::127.0.0.1", "64:ff9b:1::808:808", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "100::1", "x", ""),
    ],
)
def test_no_inner_address_is_reached(address: str) -> None:
    assert not may_reach(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses_are_reached(address: str) -> None:
    assert may_reach(address)


def test_an_operator_allows_a_network_and_no_more() -> None:
    allowed = [ip_network("10.1.0.0/16"), ip_network("fd12::/16")]
    assert [may_reach(a, allowed) for a in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1")] == [True, True, True]
    assert not any(may_reach(a, allowed) for a in ("10.2.0.1", "127.0.0.1", "fd13::1"))


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/", "ftp://example.com/", "//example.com/", "example.com", "", "https://", "https:///x"),
        *("https://user@example.com/", "https://u:p@example.com/", "https://example.com/#f", "https://exa mple.com/"),
        *("https://example.com:22/", "https://example.com:99999/", "https://example.com:x/", "https://[::1/"),
        *(
            "https://ex\\ample.com/",
            "https://example.com/\n",
            "https://exämple.com/",
            "https://a@b@c/",
            "https://-x.com/",
        ),
        *(
            "https://[fe80::1%25eth0]/",
            "https://example.com/" + "x" * 3000,
            "https://exam;ple.com/",
            "javascript:alert(1)",
        ),
    ],
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        target(url, STRICT)


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "https://127.1/", "https://0x7f000001/", "https://2130706433/", "https://[::1]/"]
)
def test_every_spelling_of_loopback_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        addresses(target(url, STRICT), STRICT)


def test_one_private_address_among_public_ones_is_enough() -> None:
    wanted = target("https://example.com/", STRICT)
    assert addresses(wanted, STRICT, lambda *_: ["8.8.8.8", "8.8.4.4"]) == ["8.8.8.8", "8.8.4.4"]
    with pytest.raises(Refused):
        addresses(wanted, STRICT, lambda *_: ["8.8.8.8", "10.0.0.1"])


def test_a_name_that_changes_its_address_is_asked_once() -> None:
    answers = [[LOOPBACK], ["10.0.0.1"]]

    def rebinding(_host: str, _port: int) -> list[str]:
        return answers.pop(0)

    with receiver() as there:
        url = f"http://rebinding.example:{there.port}/hook"
        assert post(url, b"{}", {}, OPEN, rebinding) == (204, None)
        assert len(answers) == 1
        assert there.got[0].headers["host"] == f"rebinding.example:{there.port}"
        with pytest.raises(Failed, match="not public"):
            post(url, b"{}", {}, OPEN, rebinding)
        assert len(there.got) == 1


def test_the_address_is_tried_that_answers() -> None:
    with receiver() as there:
        settings = OPEN.model_copy(update={"webhook_networks": ("127.0.0.0/8",)})
        found = ["127.9.9.9", LOOPBACK]  # nobody listens at the first
        assert post(f"http://two.example:{there.port}/", b"{}", {}, settings, lambda *_: found)[0] == 204


@pytest.mark.parametrize("behaviour", [drip, babble, nonsense, hang_up])
def test_a_bad_receiver_costs_one_timeout_at_most(behaviour: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with receiver() as there:
        there.answers = [behaviour]
        started = time.monotonic()
        with pytest.raises(Failed) as failed:
            post(there.url, b"{}", {}, OPEN)
        assert time.monotonic() - started < 3
        assert "nonsense" not in str(failed.value)  # nothing of the answer is shown
        assert ("No answer within 1 seconds" in str(failed.value)) == (behaviour is drip)


def test_the_body_of_an_answer_is_not_read() -> None:
    with receiver() as there:
        there.answers = [flood]
        started = time.monotonic()
        assert post(there.url, b"{}", {}, OPEN) == (200, None)
        assert time.monotonic() - started < 1


def test_a_redirect_is_not_followed() -> None:
    with receiver() as inner, receiver() as there:
        there.answers, there.headers = [307], {"Location": inner.url, "Retry-After": "7"}
        assert post(there.url, b"{}", {}, OPEN) == (307, 7.0)
        assert inner.got == []


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as there:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{LOOPBACK}:{proxy.port}")
        assert post(there.url, b"{}", {}, OPEN)[0] == 204
        assert (len(proxy.got), len(there.got)) == (0, 1)


def test_a_name_that_does_not_resolve_says_so() -> None:
    with pytest.raises(Failed, match="does not resolve"):
        post("https://nowhere.invalid/", b"{}", {}, STRICT)


def test_tls_is_for_the_name_and_not_for_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    authority, ours = trustme.CA(), ssl.create_default_context()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(theirs)
    authority.configure_trust(ours)
    names: list[str | None] = []
    theirs.sni_callback = lambda _socket, name, _context: names.append(name)
    with receiver(theirs) as there:
        url = f"https://hooks.example:{there.port}/hook"
        with pytest.raises(Failed, match="certificate"):
            post(url, b"{}", {}, OPEN, lambda *_: [LOOPBACK])
        monkeypatch.setattr(posting, "_context", lambda: ours)
        assert post(url, b"{}", {}, OPEN, lambda *_: [LOOPBACK])[0] == 204
        assert set(names) == {"hooks.example"}
        with pytest.raises(Failed, match="certificate"):
            post(f"https://other.example:{there.port}/hook", b"{}", {}, OPEN, lambda *_: [LOOPBACK])
