"""LMDB's pages, read without the library, against the library."""

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.records.lmdb_pages import Pages
from tests.ops.inputs.pictures import GOLDEN


def write(folder, records: dict[bytes, bytes], **options):
    with lmdb.open(str(folder), map_size=1 << 28, **options) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    return folder


@pytest.mark.parametrize("name", ["raw_lmdb", "encoded_lmdb", "gray_lmdb", "passthrough_lmdb"])
def test_caffes_databases_read_as_the_library_reads_them(name):
    pages = Pages(GOLDEN / name)
    with lmdb.open(str(GOLDEN / name), readonly=True, lock=False) as env, env.begin() as txn:
        expected = list(txn.cursor())
    assert [(key, bytes(value)) for key, value in pages.items()] == expected
    assert len(pages) == 30
    for key, value in expected:
        assert bytes(pages.get(key)) == value


@settings(max_examples=40)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=60), st.binary(max_size=300), max_size=200), st.integers(0, 2**32)
)
def test_any_records_read_back(records, seed):
    import tempfile

    rng = np.random.default_rng(seed)
    for key in list(records)[::7]:
        records[key] = rng.bytes(int(rng.integers(1, 20_000)))  # larger than a page
    with tempfile.TemporaryDirectory() as folder:
        pages = Pages(write(folder, records))
        assert [(key, bytes(value)) for key, value in pages.items()] == sorted(records.items())
        for key, value in records.items():
            assert bytes(pages.get(key)) == value
            for other in (key[:-1], key + b"\0", b"", b"\xff" * 61):
                if other not in records:
                    with pytest.raises(KeyError):
                        pages.get(other)


def test_a_tree_of_several_levels_after_deletions(tmp_path):
    records = {b"%08d" % number: b"v" * (number % 900) for number in range(20_000)}
    write(tmp_path, records)
    with lmdb.open(str(tmp_path), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for number in range(0, 20_000, 3):
            txn.delete(b"%08d" % number)
            del records[b"%08d" % number]
    pages = Pages(tmp_path)
    assert pages.depth >= 3
    assert {key: bytes(value) for key, value in pages.items()} == records
    assert bytes(pages.get(b"00001000")) == records[b"00001000"]


def test_an_empty_database_has_no_records(tmp_path):
    pages = Pages(write(tmp_path, {}))
    assert list(pages.items()) == []
    with pytest.raises(KeyError):
        pages.get(b"a")


def test_two_readers_of_one_file_do_not_mind_each_other_nor_the_library(tmp_path):
    write(tmp_path, {b"a": b"1"})
    one, two = Pages(tmp_path), Pages(tmp_path)
    with lmdb.open(str(tmp_path), readonly=True, lock=False):
        assert bytes(one.get(b"a")) == bytes(two.get(b"a")) == b"1"


def test_a_head_that_counts_more_records_than_the_file_can_hold_is_damage(tmp_path):
    file = write(tmp_path, {b"a": b"1"}) / "data.mdb"
    data = bytearray(file.read_bytes())
    page = int.from_bytes(data[40:44], "little")
    for place in (0, page):  # both heads
        assert int.from_bytes(data[place + 120 : place + 128], "little") <= 1
        data[place + 120 : place + 128] = (1 << 63).to_bytes(8, "little")
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged LMDB: .* bytes for 9,223,372,036,854,775,808 records"):
        Pages(tmp_path)


def test_named_databases_and_sorted_duplicates_are_refused(tmp_path):
    with lmdb.open(str(tmp_path / "named"), max_dbs=2) as env:
        env.open_db(b"inner")
    with pytest.raises(ValueError, match="named databases"):
        list(Pages(tmp_path / "named").items())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_an_error_not_a_crash(tmp_path, share):
    whole = (GOLDEN / "raw_lmdb" / "data.mdb").read_bytes()
    (tmp_path / "data.mdb").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"data.mdb: damaged LMDB: "):
        list(Pages(tmp_path).items())
