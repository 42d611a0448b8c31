"""Lists are read as convert_imageset reads them, to the oddities."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.records import image_list
from ops.records.image_list import ImageList, atoi

LIBC = ctypes.CDLL(None)


def oracle(text: bytes) -> list[tuple[bytes, int]]:
    """Line by line: std::getline, find_last_of(' '), atoi."""
    lines = text.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    out = []
    for line in lines:
        place = line.rfind(b" ")
        label = line[place + 1 :]
        out.append((line if place < 0 else line[:place], LIBC.atoi(ctypes.c_char_p(label))))
    return out


def read(tmp_path, text: bytes, labels: str = "caffe") -> ImageList:
    file = tmp_path / "list.txt"
    file.write_bytes(text)
    return ImageList.read(file, labels)


def rows(listed: ImageList) -> list[tuple[bytes, int]]:
    return list(zip(listed.paths(slice(None)), listed.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        (b"a.jpg 7", b"a.jpg", 7),
        (b"my cat.jpg 3", b"my cat.jpg", 3),
        (b"a.jpg 7\r", b"a.jpg", 7),
        (b"a.jpg x", b"a.jpg", 0),
        (b"a.jpg -2.9", b"a.jpg", -2),
        (b"a.jpg +5", b"a.jpg", 5),
        (b"a.jpg", b"a.jpg", 0),
        (b"7", b"7", 7),
        (b"a.jpg 3 ", b"a.jpg 3", 0),
        (b"a.jpg\t3", b"a.jpg\t3", 0),
        (b"", b"", 0),
        (b" 5", b"", 5),
        (b"a.jpg 12abc", b"a.jpg", 12),
        (b"a.jpg 0012", b"a.jpg", 12),
        (b"a.jpg 2147483648", b"a.jpg", -2147483648),
        (b"a.jpg 99999999999999999999", b"a.jpg", -1),
        (b"a.jpg \t4", b"a.jpg", 4),
        (b"sp\xe9cial.jpg 1", b"sp\xe9cial.jpg", 1),
    ],
)
def test_one_line(tmp_path, line, path, label):
    assert rows(read(tmp_path, line + b"\nb.jpg 1\n")) == [(path, label), (b"b.jpg", 1)]


@given(st.lists(st.binary(max_size=24).map(lambda line: line.replace(b"\n", b" ").replace(b"\0", b"0")), min_size=1))
def test_any_bytes_are_read_as_getline_rfind_atoi_read_them(tmp_path_factory, lines):
    text = b"\n".join(lines)
    if text.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")) or not text:
        return
    assert rows(read(tmp_path_factory.mktemp("list"), text)) == oracle(text)


@given(st.text("0123456789+- \t\r\vx.", max_size=26))
def test_atoi_is_the_c_librarys(text):
    assert atoi(text.encode()) == LIBC.atoi(ctypes.c_char_p(text.encode()))


def test_pieces_are_joined_without_a_seam(tmp_path, monkeypatch):
    text = b"".join(b"folder/%d file.jpg %d\n" % (i, i % 7) for i in range(1000))
    whole = rows(read(tmp_path, text))
    monkeypatch.setattr(image_list, "CHUNK", 100)
    assert rows(read(tmp_path, text)) == whole == oracle(text)


def test_odd_lines_are_warned_about_with_their_place(tmp_path):
    listed = read(tmp_path, b"a.jpg 1\nb.jpg x\n\nc.jpg\nd.jpg 2 \n")
    assert [warning.split("list.txt:")[1] for warning in listed.warnings] == [
        "2: label 'x', read as label 0",
        "3: no path, read as label 0",
        "4: no space between path and label, read as label 0",
        "5: a space at the end of the line, read as label 0",
    ]
    assert not listed.bad


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        ("int", b"a.jpg 3\n", [3]),
        ("float", b"a b.jpg 0.25\n", [[0.25]]),
        ("vector:3", b"a b.jpg 1 -2.5 3e2\r\n", [[1, -2.5, 300]]),
    ],
)
def test_labels_that_are_asked_for_as_numbers(tmp_path, labels, text, expected):
    listed = read(tmp_path, text, labels)
    assert listed.labels.tolist() == expected
    assert listed.path(0) in (b"a.jpg", b"a b.jpg")
    assert not listed.bad


@pytest.mark.parametrize(
    ("labels", "line"),
    [("int", b"a.jpg x"), ("int", b"a.jpg 1.5"), ("int", b"a.jpg"), ("float", b"a.jpg nan"), ("vector:2", b"a.jpg 1")],
)
def test_a_line_without_the_numbers_asked_for_is_bad(tmp_path, labels, line):
    listed = read(tmp_path, b"fine.jpg 1 1\n" + line + b"\n", labels)
    assert list(listed.bad) == [1]
    assert "expected a path and" in listed.bad[1]


def test_unknown_label_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected caffe, int, float or vector:N"):
        read(tmp_path, b"a 1\n", "vector:0")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_other_encodings_are_named(tmp_path, encoding):
    with pytest.raises(ValueError, match=r"list.txt: (UTF-16|not text)"):
        read(tmp_path, "a.jpg 1\n".encode(encoding))


def test_a_byte_order_mark_does_not_become_part_of_a_name(tmp_path):
    listed = read(tmp_path, b"\xef\xbb\xbfa.jpg 1\n")
    assert rows(listed) == [(b"a.jpg", 1)]
    assert "byte order mark" in listed.warnings[0]


def test_empty_missing_and_folder(tmp_path):
    with pytest.raises(ValueError, match="empty list"):
        read(tmp_path, b"")
    with pytest.raises(FileNotFoundError):
        ImageList.read(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="a folder"):
        ImageList.read(tmp_path)


NAMES = st.binary(min_size=1, max_size=12).filter(lambda path: b"\n" not in path and b"\0" not in path)


@given(st.lists(st.tuples(NAMES, st.integers(-9, 9)), min_size=1))
def test_what_is_written_is_read_back(tmp_path_factory, pairs):
    paths, labels = zip(*pairs, strict=True)
    file = tmp_path_factory.mktemp("list") / "list.txt"
    listed = ImageList.of([b"x" + path for path in paths], np.array(labels, np.int32))
    listed.write(file)
    assert rows(ImageList.read(file)) == rows(listed)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(FINITE, min_size=2, max_size=2), min_size=1))
def test_vector_labels_are_written_to_the_last_bit(tmp_path_factory, vectors):
    file = tmp_path_factory.mktemp("list") / "list.txt"
    labels = np.array(vectors, np.float32)
    ImageList.of([b"a b.jpg"] * len(vectors), labels).write(file)
    assert np.array_equal(ImageList.read(file, "vector:2").labels, labels)


@given(st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=40), st.data())
def test_duplicates_are_found_by_both_ways(paths, data):
    again = data.draw(st.lists(st.sampled_from(paths), max_size=10))
    listed = ImageList.of([b"padding", *paths, *again], np.zeros(1 + len(paths) + len(again), np.int32))
    everything = listed.paths(slice(None))
    expected = [i for i, path in enumerate(everything) if path in everything[:i]]
    assert listed.duplicates().tolist() == expected
    alike = set(image_list._alike(listed).tolist())
    assert set(expected) <= alike
    assert {everything.index(everything[i]) for i in expected} <= alike


def test_the_digest_knows_paths_labels_and_their_order():
    base = ImageList.of(["a", "b"], np.array([1, 2], np.int32))
    others = [(["a", "b"], [1, 3]), (["b", "a"], [1, 2]), (["ab", ""], [1, 2]), (["a", "b", "c"], [1, 2, 3])]
    digests = {base.digest(), *(ImageList.of(p, np.array(v, np.int32)).digest() for p, v in others)}
    assert len(digests) == 5
