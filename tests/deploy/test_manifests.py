"""Every overlay keeps every rule, and a broken copy for each rule is found out."""

import pytest

from tests.deploy import complete, restricted, traffic
from tests.deploy.broken import BROKEN, Change
from tests.deploy.manifests import OVERLAYS, load
from tests.deploy.rules import RULES, Service

assert complete and restricted and traffic  # their rules register themselves


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_keeps_every_rule(overlay: str, service: Service) -> None:
    assert {name: told for name, rule in RULES.items() if (told := list(rule(load(overlay), service)))} == {}


@pytest.mark.parametrize(("name", "overlay", "change"), BROKEN)
def test_a_broken_copy_is_found_out(name: str, overlay: str, change: Change, service: Service) -> None:
    objects = load(overlay)
    change(objects)
    assert list(RULES[name](objects, service))


def test_every_rule_has_a_broken_copy() -> None:
    assert {name for name, _, _ in BROKEN} == RULES.keys()
