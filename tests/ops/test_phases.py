"""Which layers a state keeps: the table of solver.md, row by row."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from ops.phases import select, state_of
from ops.proto.caffe_pb2 import NetParameter


def kept(rules, phase="TRAIN", level=0, stages=(), head=""):
    spec = text_format.Parse(f'{head} layer {{ name: "l" {rules} }}', NetParameter())
    return len(select(spec, state_of(spec, phase, level=level, stages=stages)).layer) == 1


@pytest.mark.parametrize(
    ("rules", "state", "expected"),
    [
        ("", {}, True),
        ("include { phase: TRAIN }", {}, True),
        ("include { phase: TEST }", {}, False),
        ("include { phase: TEST } include { phase: TRAIN }", {}, True),
        ("exclude { phase: TRAIN }", {}, False),
        ("exclude { phase: TEST }", {}, True),
        ("exclude { phase: TEST } exclude { phase: TRAIN }", {}, False),
        ("include {}", {}, True),
        ("exclude {}", {}, False),
        ("include { min_level: 2 }", {"level": 1}, False),
        ("include { min_level: 2 }", {"level": 2}, True),
        ("include { max_level: 2 }", {"level": 2}, True),
        ("include { max_level: 2 }", {"level": 3}, False),
        ('include { stage: "a" }', {}, False),
        ('include { stage: "a" }', {"stages": ["b", "a"]}, True),
        ('include { stage: "a" stage: "b" }', {"stages": ["a"]}, False),
        ('include { stage: "a" stage: "b" }', {"stages": ["a", "b"]}, True),
        ('include { not_stage: "a" }', {"stages": ["a"]}, False),
        ('include { not_stage: "a" }', {"stages": ["b"]}, True),
        ('include { stage: "a" } include { stage: "b" }', {"stages": ["b"]}, True),
        ('include { phase: TRAIN stage: "a" }', {"stages": ["a"], "phase": "TEST"}, False),
        ('exclude { stage: "a" not_stage: "b" }', {"stages": ["a"]}, False),
        ('exclude { stage: "a" not_stage: "b" }', {"stages": ["a", "b"]}, True),
    ],
)
def test_a_layer_is_kept_as_its_rules_say(rules, state, expected):
    assert kept(rules, **state) == expected


def test_stages_add_to_the_file_s_own_and_level_and_phase_replace_them():
    head = 'state { phase: TEST level: 7 stage: "own" }'
    assert kept('include { phase: TRAIN stage: "own" stage: "more" max_level: 1 }', stages=["more"], level=1, head=head)


def test_include_and_exclude_together_are_refused():
    with pytest.raises(ValueError, match="layer 'l': has include and exclude rules"):
        kept("include { phase: TEST } exclude { phase: TEST }")


def test_the_definition_itself_stays_as_it_is():
    spec = text_format.Parse('layer { name: "l" exclude {} }', NetParameter())
    select(spec, state_of(spec, "TEST"))
    assert len(spec.layer) == 1
