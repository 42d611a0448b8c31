"""Trees of classes: what a node stands for, what it tells, and what is no tree."""

from __future__ import annotations

import numpy as np
import pytest

from ops.hierarchy import CHAIN, read

CLASSES = ["n1 husky", "n2 poodle", "n3 car"]
TREE = "n1 dog\nn2 dog\ndog animal Canis\nanimal thing\nn3 thing\n# a note\n\n"


@pytest.fixture
def tree(tmp_path):
    def write(text):
        (tmp_path / "tree.txt").write_text(text)
        return read(tmp_path / "tree.txt", CLASSES)

    return write


def test_the_value_of_a_name_is_its_probability_times_its_bits(tree):
    found = tree(TREE)
    p = np.array([[0.5, 0.3, 0.2]])
    values = dict(zip(found.names, found.values(p)[0], strict=True))
    bits = np.log2(3 / 2)
    expected = {"n1 husky": 0.5 * np.log2(3), "n2 poodle": 0.3 * np.log2(3), "n3 car": 0.2 * np.log2(3)}
    expected |= {"Canis": 0.8 * bits, "animal": 0.8 * (bits - CHAIN), "thing": 0.0}
    assert values == pytest.approx(expected)


def test_an_unsure_net_gives_the_general_answer(tree):
    found = tree(TREE.replace("animal thing\n", "animal thing\nx thing\n"))
    best = [found.names[place] for place in np.argsort(-found.values(np.array([[0.49, 0.49, 0.02]]))[0])]
    assert best.index("Canis") < best.index("thing")
    assert "x" not in best  # it stands for no class


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n1 dog\ndog n1\nn2 dog\nn3 dog", "stands above itself: a circle"),
        ("n1 dog\nn2 dog\n", "class 2, 'n3 car', is not in it"),
        ("n1 dog\nn2\n", "tree.txt:2: found 'n2' alone"),
        ("\n# nothing\n", "holds no 'child parent' lines"),
    ],
)
def test_what_is_no_tree_of_the_classes_is_told(tree, text, told):
    with pytest.raises(ValueError, match=told):
        tree(text)


@pytest.mark.parametrize("start", [b"\x80\x02}", b"(dp0\nS'words'"])
def test_caffes_pickle_is_refused(tmp_path, start):
    (tmp_path / "bet.pickle").write_bytes(start)
    with pytest.raises(ValueError, match="a pickle, which is never loaded"):
        read(tmp_path / "bet.pickle", CLASSES)
