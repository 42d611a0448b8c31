"""Which nets a solver trains and tests, and in which states."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from ops.proto.caffe_pb2 import TEST, TRAIN, SolverParameter
from ops.training.nets import definitions_of_tests, locate, read_solver, train_definition

NET = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 } } }'
TEST_FIELDS = "test_interval: 10"


def solver(text):
    return text_format.Parse(text, SolverParameter())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.prototxt").write_text('state { stage: "file" level: 2 } name: "n" ' + NET)
    (tmp_path / "other.prototxt").write_text('name: "other" ' + NET)
    return tmp_path


def test_the_train_net_has_the_file_s_state_with_the_solver_s_and_the_command_line_s_on_top(folder):
    spec = solver('net: "net.prototxt" train_state { stage: "solver" }')
    found = train_definition(spec, folder / "s.prototxt", stages=["typed"])
    assert found.state.phase == TRAIN
    assert list(found.state.stage) == ["file", "solver", "typed"]
    assert found.state.level == 2
    assert train_definition(spec, folder / "s.prototxt", level=0).state.level == 0
    assert found.spec.name == "n"
    assert found.folder == folder


def test_test_nets_come_in_caffe_s_order_the_shared_net_last(folder):
    spec = solver(
        'net: "net.prototxt" test_net_param { name: "inline" } test_net: "other.prototxt" test_iter: 1 test_iter: 2 '
        f'test_iter: 3 test_iter: 4 {TEST_FIELDS} test_state {{}} test_state {{}} test_state {{ stage: "a" }} '
        'test_state { stage: "b" }'
    )
    found = definitions_of_tests(spec, folder / "s.prototxt")
    assert [one.spec.name for one in found] == ["inline", "other", "n", "n"]
    assert [one.iterations for one in found] == [1, 2, 3, 4]
    assert [list(one.state.stage) for one in found] == [[], [], ["file", "a"], ["file", "b"]]
    assert all(one.state.phase == TEST for one in found)


def test_no_surplus_of_test_iter_means_no_test_of_the_shared_net(folder):
    assert definitions_of_tests(solver('net: "net.prototxt"'), folder / "s.prototxt") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "gives none of them; a solver names its net in one of net, net_param"),
        ('net: "net.prototxt" train_net: "net.prototxt"', "gives net and train_net"),
        ('net: "none.prototxt"', "net 'none.prototxt': there is neither"),
    ],
)
def test_a_solver_without_one_net_is_told(folder, text, told):
    with pytest.raises((ValueError, OSError)) as error:
        train_definition(solver(text), folder / "s.prototxt")
    assert told in str(error.value)
    assert str(folder / "s.prototxt") in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("test_iter: 1", "has test nets, but test_interval 0"),
        (f"test_iter: 0 {TEST_FIELDS}", "test_iter 0: expected 1 or more"),
        (f'test_net: "other.prototxt" {TEST_FIELDS}', "gives test_iter 0 times for 1 test nets"),
        (f"test_iter: 1 test_iter: 1 test_state {{}} {TEST_FIELDS}", "gives test_state 1 times for 2 test nets"),
    ],
)
def test_test_nets_that_do_not_add_up_are_told(folder, text, told):
    with pytest.raises(ValueError, match=told):
        definitions_of_tests(solver(f'net: "net.prototxt" {text}'), folder / "s.prototxt")


def test_files_are_looked_for_from_the_working_folder_then_beside(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert locate("net.prototxt", folder) == folder / "net.prototxt"
    (elsewhere / "net.prototxt").write_text(NET)
    assert locate("net.prototxt", folder).resolve() == elsewhere / "net.prototxt"


def test_old_solver_types_are_upgraded(tmp_path):
    (tmp_path / "s.prototxt").write_text("solver_type: ADAM")
    assert read_solver(tmp_path / "s.prototxt").type == "Adam"
