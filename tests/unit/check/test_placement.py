"""What stands on the right of a comparison, as Nomad 1.11 took it or refused it."""

import pytest

from vllmjobs.check.placement import compare


@pytest.mark.parametrize(
    "value",
    [
        r"\Alinux\z", r"\pL+", r"\Qx\E", "lin(?i)UX", "(?<n>l)", "(?P<n>l)", "(?U)l+", r"\x{6c}", "[*+]",
        "a(?i)*", "{,5}", "a{1000}", "${", r"\_", r"[\d-x]", "-", r"[a-\x{7a}]",
        r"\\1", "[[:alpha:]]", "[]a]", "^H100", "(a|b)+", r"a\(b", "a{2,3}", "(?:x)?", "x*?", "[(]",
    ],
)  # fmt: skip
def test_regular_expressions_that_go_knows_are_left_alone(value: str) -> None:
    assert list(compare("regexp", value, ())) == []


@pytest.mark.parametrize(
    "value",
    [
        r"a\Z", "(?P<n>a)(?P=n)", "(?#x)", "(?x)a", r"\u006c", "(?=a)", "(?<!a)", r"(a)\1", "a++", "(", "a)",
        "*a", "[a", "(?>a)", "(+a)", "linux\\", "a{1001}", "a{2}{3}", "a{3,2}", "[z-a]", r"\y",
        "[[:foo:]]", "(?", "(?-)", "|*", r"\C", r"\p", r"\x{110000}", "[]", "a**", r"\Q\E*",
    ],
)  # fmt: skip
def test_regular_expressions_that_go_does_not_know_are_refused(value: str) -> None:
    assert len(list(compare("regexp", value, ()))) == 1


@pytest.mark.parametrize(
    ("operator", "value", "is_right"),
    [
        ("version", ">= 550.54", True),
        ("version", ">= 1.0, < 2", True),
        ("version", "1.2.3beta", True),
        ("version", "~> 1.2", True),
        ("version", ">= 1.0,", False),
        ("version", ">= 1.0.x", False),
        ("version", "1_0", False),
        ("semver", "1.2.3-beta.1+x", True),
        ("semver", "1.2.3beta", False),
        ("semver", "~> 1.2", False),
        ("distinct_property", "01", True),
        ("distinct_property", "0", False),
        ("distinct_hosts", "TRUE", True),
        ("distinct_hosts", "yes", False),
        ("is_set", "x", False),
        ("=", "", False),
    ],
)
def test_values_are_what_their_operator_takes(operator: str, value: str, is_right: bool) -> None:
    assert bool(list(compare(operator, value, ()))) != is_right
