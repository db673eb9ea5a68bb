"""A job's HCL is read as a tree of its words."""

import pytest

from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.jobs.tree import Item, Tree
from vllmjobs.environment.problems import UserError


def tree(body: str) -> Tree:
    return read(f'job "chat" {{\n{body}\n}}\n', "job").tree


def value(expression: str) -> Item:
    return tree(f"x = {expression}")["x"]


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ('"a"', "a"),
        ('""', ""),
        (r'"say \"hi\"\\ \n\r\t"', 'say "hi"\\ \n\r\t'),
        (r'"\u00e9\U0001F99C"', "é🦜"),
        ('"${attr.kernel.name}"', "${attr.kernel.name}"),
        ('"a${node.class}b"', "a${node.class}b"),
        ('"{{ env \\"HOME\\" }}"', '{{ env "HOME" }}'),
        ("1", 1),
        ("-1", -1),
        ("1.5", 1.5),
        ("1.0", 1),
        ("true", True),
        ("false", False),
        ("null", None),
        ('["a", 1, true]', ["a", 1, True]),
        ("[]", []),
        ('[\n  "a", # first\n  "b",\n]', ["a", "b"]),
        ("{}", {}),
        ('{ a = 1, "b" : 2 }', {"a": 1, "b": 2}),
        ("{\n  a = 1\n  b = [2]\n}", {"a": 1, "b": [2]}),
        ("<<EOF\n  one\n two\nEOF\n", "  one\n two\n"),
        ("<<-EOF\n    one\n      two\n  EOF\n", "one\n  two\n"),
        ("<<EOF\nEOF\n", ""),
    ],
)
def test_a_value_is_read_as_what_it_says(written: str, read_as: Item) -> None:
    found = value(written)
    assert found == read_as
    assert type(found) is type(read_as)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('upper("a")', '${upper("a")}'),
        ("var.count", "${var.count}"),
        ("1 + 1", "${1 + 1}"),
        ("var.big ? 2 : 1", "${var.big ? 2 : 1}"),
        ('[for x in ["a"] : x]', '${[for x in ["a"] : x]}'),
        ("upper(\n  var.x,\n)", "${upper( var.x, )}"),
    ],
)
def test_an_expression_is_kept_as_it_is(written: str, kept: str) -> None:
    assert value(written) == kept


def test_a_block_stands_under_its_kind_and_its_labels() -> None:
    found = tree('group "web" {\ncount = 2\ntask "main" {\ndriver = "docker"\n}\n}\ngroup "other" {}')
    assert found == {
        "group": {"web": {"count": 2, "task": {"main": {"driver": "docker"}}}, "other": {}},
    }


def test_a_map_as_a_block_and_one_with_an_equals_sign_are_the_same() -> None:
    assert tree('meta {\na = "b"\n}') == tree('meta = { "a" = "b" }') == {"meta": {"a": "b"}}


def test_order_layout_and_comments_make_no_difference() -> None:
    tidy = tree('priority = 50\n\nmeta {\n  a = "b"\n}')
    assert tidy == tree('# old\nmeta { a = "b" } // new\n/* half */ priority=50')


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ('constraint {\nattribute = "${node.class}"\nvalue = "gpu"\n}', ("constraint", "${node.class}")),
        ('constraint {\noperator = "distinct_hosts"\n}', ("constraint", "distinct_hosts")),
        ('affinity {\nattribute = "${node.class}"\n}', ("affinity", "${node.class}")),
        ('spread {\nattribute = "${node.class}"\n}', ("spread", "${node.class}")),
        ('service {\nname = "chat"\n}', ("service", "chat")),
        ('check {\ntype = "http"\n}', ("check", "http")),
        ('template {\ndestination = "local/x"\n}', ("template", "local/x")),
        ('artifact {\nsource = "https://x"\n}', ("artifact", "https://x")),
        ("service {}", ("service", "default")),
        ("identity {\nenv = true\n}", ("identity", "default")),
    ],
)
def test_a_block_that_may_be_repeated_goes_by_what_tells_it_from_the_others(
    block: str, name: tuple[str, str]
) -> None:
    kind, word = name
    found = tree(block)[kind]
    assert isinstance(found, dict)
    assert list(found) == [word]


def test_two_blocks_of_one_name_are_numbered() -> None:
    same = 'constraint {\nattribute = "${attr.cpu.arch}"\nvalue = "%s"\n}\n'
    assert tree(same % "amd64" + same % "arm64") == {
        "constraint": {
            "${attr.cpu.arch}": {"attribute": "${attr.cpu.arch}", "value": "amd64"},
            "${attr.cpu.arch}#2": {"attribute": "${attr.cpu.arch}", "value": "arm64"},
        }
    }


def test_a_job_goes_by_its_label_unless_it_has_an_id() -> None:
    assert read('job "chat" {}', "job").id == "chat"
    assert read('job "chat" {\n  id = "other"\n}', "job") == ("other", {}, {})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('job "chat" {\n  group "web" {\n', "prod.hcl:2:15: is not HCL from here on"),
        ('job "chat" {\n  count = = 2\n}\n', "prod.hcl:2:"),
        ('job "chat" {\n  name = "a\n}\n', "prod.hcl:2:10: is not HCL from here on"),
        ("<html></html>", "prod.hcl:1:1: is not HCL from here on"),
        ("", "prod.hcl: must hold one job, but holds 0"),
        ('variable "x" {}', "prod.hcl: must hold one job, but holds 0"),
        ('job "a" {}\njob "b" {}', "prod.hcl: must hold one job, but holds 2"),
        ("\njob {}", "prod.hcl:2:1: job must have one name"),
    ],
)
def test_what_holds_no_job_is_an_error_with_its_place(text: str, place: str) -> None:
    with pytest.raises(UserError) as error:
        read(text, "prod.hcl")
    assert str(error.value).startswith(place)


def test_a_byte_order_mark_and_windows_line_ends_are_read_over() -> None:
    assert read('\ufeffjob "chat" {\r\n  priority = 50\r\n}\r\n', "job").tree == {"priority": 50}
