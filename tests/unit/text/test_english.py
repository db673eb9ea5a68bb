"""Counts, lists and near names, as messages hold them."""

from vllmjobs.text.english import counted, did_you_mean, joined, listed, near, nearest


def test_a_count_has_a_noun_in_the_right_number() -> None:
    assert [counted(count, "node") for count in (0, 1, 2, 1000)] == [
        "0 nodes", "1 node", "2 nodes", "1,000 nodes",
    ]  # fmt: skip


def test_a_list_ends_with_a_conjunction() -> None:
    assert [joined(["a", "b", "c"][:count]) for count in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert joined(["8", "16"], "or") == "8 or 16"


def test_a_long_list_is_cut_and_its_rest_is_counted() -> None:
    assert listed("abc", most=3) == "a, b, c"
    assert listed("abcde", most=3) == "a, b, c and 2 more"


def test_the_name_that_was_probably_meant_is_found_and_no_other() -> None:
    known = ["max-num-seqs", "max-model-len", "model"]
    assert nearest("max-num-seq", known) == "max-num-seqs"
    assert near("max-mode-len", known, 2, cutoff=0.5) == ["max-model-len", "model"]
    assert did_you_mean("max-num-seq", known) == "; did you mean max-num-seqs?"
    assert did_you_mean("port", known) == ""
