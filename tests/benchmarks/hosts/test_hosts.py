"""Hosts are found by the scheme of a URL."""

from __future__ import annotations

import pytest

from edgellm.benchmarks import hosts
from edgellm.errors import UsageError


@pytest.mark.parametrize("url", ["pi@kitchen", "", "gopher://kitchen", "fleet://kitchen", "://"])
def test_what_is_no_host(url: str) -> None:
    with pytest.raises(UsageError, match=r"is no host; give a name of hosts\.toml"):
        hosts.host(url)


@pytest.mark.parametrize("scheme", hosts.available())
def test_each_is_found_by_its_scheme(scheme: str) -> None:
    assert callable(hosts.host(f"{scheme}://somewhere").bench)
