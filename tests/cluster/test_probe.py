"""Two sides of one folder."""

import pytest

from cluster.probe import PREFIX, leave


def test_both_sides_see_and_write(tmp_path):
    probe = leave(str(tmp_path))
    look = probe.look("node1")
    assert probe.here() == look == probe.confirm("node1", look) == {"sees": True, "writes": True, "reason": ""}
    probe.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_probed_beside_itself(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("a.jpg 0\n")
    probe = leave(str(file))
    assert sorted(one.name.startswith(PREFIX) for one in tmp_path.iterdir()) == [False, True]
    assert probe.look("node1")["sees"]
    probe.clear()
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_of_the_same_name_on_another_disk_is_not_the_same(tmp_path):
    probe = leave(str(tmp_path))
    (tmp_path / probe.name).unlink()  # as the other machine has it
    assert probe.look("node1") == {
        "sees": False,
        "writes": False,
        "reason": "there, but not the one that this process sees",
    }


def test_what_a_node_writes_has_to_arrive(tmp_path):
    probe = leave(str(tmp_path))
    look = probe.look("node1")
    (tmp_path / f"{probe.name}-node1").unlink()
    assert probe.confirm("node1", look) == {
        "sees": True,
        "writes": False,
        "reason": "what it writes does not arrive here",
    }
    probe.clear()


def test_a_path_that_is_not_there(tmp_path):
    probe = leave(str(tmp_path / "none"))
    nothing = {"sees": False, "writes": False, "reason": "not there"}
    assert probe.here() == probe.look("node1") == nothing
    (tmp_path / "none").mkdir()  # another machine may have it
    assert probe.look("node1")["sees"]
    probe.clear()


@pytest.mark.parametrize("path", ["/proc/self", "/sys/kernel"])
def test_a_folder_where_nobody_may_write_is_seen_all_the_same(path):
    probe = leave(path)
    assert probe.here() == {"sees": True, "writes": False, "reason": probe.reason}
    assert probe.reason.startswith("cannot write: ")
    assert probe.look("node1")["sees"]
    probe.clear()
