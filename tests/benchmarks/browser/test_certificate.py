"""The certificate of one run: for its address, and for no other."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl

import pytest

from edgellm.benchmarks.browser import certificate
from edgellm.benchmarks.browser.server import Server


def test_https_for_an_address() -> None:
    """A client that trusts just this certificate; the fingerprint is what it was shown."""
    context, shown = certificate.made("127.0.0.1")
    with Server("127.0.0.1", 0, {}, lambda name, value: {"it": "works"}, tls=context) as server:
        assert server.url.startswith("https://")
        pem = ssl.get_server_certificate(("127.0.0.1", server.port))
        der = ssl.PEM_cert_to_DER_cert(pem)
        assert hashlib.sha256(der).hexdigest().upper() == shown.replace(":", "")
        trusting = ssl.create_default_context(cadata=pem)
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=trusting, timeout=10)
        connection.request("POST", f"/{server.token}/x", b"{}")
        assert connection.getresponse().read() == b'{"it": "works"}'
        connection.close()
        with (
            socket.create_connection(("127.0.0.1", server.port), 10) as plain,
            pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"),
        ):
            trusting.wrap_socket(plain, server_hostname="127.0.0.2")


def test_each_run_has_its_own() -> None:
    assert certificate.made("127.0.0.1")[1] != certificate.made("127.0.0.1")[1]
