"""Hosts are found by the scheme of a URL."""

from __future__ import annotations

import pytest

from edgellm.benchmarks import hosts
from edgellm.benchmarks.hosts import Target
from edgellm.errors import UsageError


@pytest.mark.parametrize("url", ["pi@kitchen", "", "gopher://kitchen", "fleet://kitchen", "://"])
def test_what_is_no_host(url: str) -> None:
    with pytest.raises(UsageError, match=r"is no host; give a name of hosts\.toml"):
        hosts.host(url)


@pytest.mark.parametrize("scheme", hosts.available())
def test_each_is_found_by_its_scheme(scheme: str) -> None:
    assert callable(hosts.host(f"{scheme}://somewhere").bench)


def test_options_of_the_url_go_before_those_of_the_file() -> None:
    target = Target("kitchen", "ssh://pi@kitchen?patience=20m&key=/a%20b/c+d", (("patience", "1h"), ("python", "python3")))
    assert target.asked(("patience", "key", "python")) == {"patience": "20m", "key": "/a b/c+d", "python": "python3"}


@pytest.mark.parametrize("target", [Target("kitchen", "ssh://kitchen?pace=1"), Target("kitchen", "", (("pace", "1"),))])
def test_an_option_that_is_none_is_said_with_those_that_are(target: Target) -> None:
    with pytest.raises(UsageError, match="kitchen: unknown option 'pace'; it may be patience, key"):
        target.asked(("patience", "key"))
