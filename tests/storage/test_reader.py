"""The reader: files from strangers, damaged files, files that are no files."""

import json
import os
import resource

import h5py
import numpy as np
import pytest

from dynprobe.errors import RunFormatError
from dynprobe.storage.layout import MAX_DEPTH
from dynprobe.storage.reader import FileReader

ONES = np.ones(4, dtype="<f4")


def _external_link(file):
    file["x"] = h5py.ExternalLink("other.h5", "/a")


def _external_link_inside_a_group(file):
    file.create_group("g")["x"] = h5py.ExternalLink("other.h5", "/a")


def _soft_link(file):
    file["x"] = h5py.SoftLink("/a")


def _soft_link_inside_groups(file):
    file.create_group("g/h")["x"] = h5py.SoftLink("/a")


def _dangling_soft_link(file):
    file.create_group("g")["x"] = h5py.SoftLink("/nowhere")


def _external_storage(file):
    file.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def _virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", shape=(4,))
    file.create_virtual_dataset("x", layout)


def _chunked(file):
    file.create_dataset("x", data=ONES, chunks=(2,))


def _compressed(file):
    file.create_dataset("x", data=ONES, compression="gzip")


def _unknown_filter(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(32_123, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), plist)


def _decompression_bomb(file):
    """60 MB of zeros in about 60 kB."""
    file.create_dataset("x", (60_000_000,), "u1", compression="gzip", chunks=(60_000_000,))[:8] = 0


def _chunk_bomb(file):
    """Reading one value would need all of a chunk of a gigabyte."""
    file.create_dataset("x", (2**28,), "f4", chunks=(2**28,))


def _extendible(file):
    file.create_dataset("x", (4,), "f4", maxshape=(None,))


def _attribute(file):
    file["a"].attrs["x"] = 1


def _attribute_of_a_group(file):
    file.create_group("g").attrs["x"] = "text of any length"


def _attribute_of_the_file(file):
    file.attrs["x"] = ONES


def _array_type(file):
    file.create_dataset("x", (2,), dtype=np.dtype(("f4", (3,))))


def _bit_field(file):
    h5py.h5d.create(file.id, b"x", h5py.h5t.STD_B8LE, h5py.h5s.create_simple((4,)))


def _region_reference(file):
    file.create_dataset("x", (1,), dtype=h5py.regionref_dtype)


def _compact(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist).write(h5py.h5s.ALL, h5py.h5s.ALL, ONES)


def _compound(file):
    file.create_dataset("x", data=np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]))


def _string(file):
    file.create_dataset("x", data=np.array([b"abc"]))


def _text(file):
    file.create_dataset("x", data=["abc"], dtype=h5py.string_dtype())


def _ragged(file):
    file.create_dataset("x", (2,), dtype=h5py.vlen_dtype("f4"))[0] = ONES


def _reference(file):
    file.create_dataset("x", data=np.array([file["a"].ref], dtype=h5py.ref_dtype))


def _boolean(file):
    file.create_dataset("x", data=np.array([True]))


def _complex(file):
    file.create_dataset("x", data=np.array([1j]))


def _opaque(file):
    file.create_dataset("x", data=np.array([b"ab"], dtype="V2"))


def _big_endian(file):
    file.create_dataset("x", data=ONES.astype(">f4"))


def _long_double(file):
    file.create_dataset("x", data=np.ones(2, np.longdouble))


def _twelve_bits(file):
    twelve = h5py.h5t.STD_I16LE.copy()
    twelve.set_precision(12)
    h5py.h5d.create(file.id, b"x", twelve, h5py.h5s.create_simple((4,)))


def _bfloat16(file):
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    data = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((4,)))
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, ONES)


def _terabytes(file):
    file.create_dataset("x", (10**6, 10**6), "f4")


def _exabytes(file):
    file.create_dataset("x", (2**30, 2**30), "f4")


def _scalar(file):
    file.create_dataset("x", data=np.float32(1))


def _null(file):
    file.create_dataset("x", data=h5py.Empty("f4"))


def _named_type(file):
    file["x"] = np.dtype("f4")


def _cycle(file):
    file["g/x"] = file.create_group("g/h")
    file["g/h/back"] = file["g"]


def _cycle_to_root(file):
    file["g"] = file["/"]


def _many_cycles(file):
    for number in range(40):
        file[f"g{number}"] = file["/"]


def _two_names(file):
    file["x"] = file["a"]


def _deep(file):
    file.create_dataset("/".join("x" * (MAX_DEPTH + 1)), data=ONES)


def _very_deep(file):
    group = file
    for _ in range(500):
        group = group.create_group("x")


def _odd_name(file):
    file.create_dataset("x\x1b[31m\n", data=ONES)


def _long_name(file):
    file.create_dataset("x" * 65, data=ONES)


def _name_outside_utf8(file):
    h5py.h5d.create(file.id, b"\xff\xfe", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((0,)))


HOSTILE = [
    (_external_link, "`x` must be a hard link; got ExternalLink"),
    (_external_link_inside_a_group, "`g/x` must be a hard link; got ExternalLink"),
    (_soft_link, "`x` must be a hard link; got SoftLink"),
    (_soft_link_inside_groups, "`g/h/x` must be a hard link; got SoftLink"),
    (_dangling_soft_link, "`g/x` must be a hard link; got SoftLink"),
    (_unknown_filter, "`x` must be a contiguous array inside this file"),
    (_decompression_bomb, "`x` must be a contiguous array inside this file"),
    (_chunk_bomb, "`x` must be a contiguous array inside this file"),
    (_extendible, "`x` must be a contiguous array inside this file"),
    (_attribute, "`a` must have no attributes; got 1"),
    (_attribute_of_a_group, "`g` must have no attributes; got 1"),
    (_attribute_of_the_file, "`/` must have no attributes; got 1"),
    (_array_type, "`x` must"),
    (_bit_field, "`x` must hold plain little-endian numbers"),
    (_region_reference, "`x` must hold plain little-endian numbers"),
    (_external_storage, "`x` must be a contiguous array inside this file"),
    (_virtual, "`x` must be a contiguous array inside this file"),
    (_chunked, "`x` must be a contiguous array inside this file"),
    (_compressed, "`x` must be a contiguous array inside this file"),
    (_compact, "`x` must be a contiguous array inside this file"),
    (_compound, "`x` must hold plain little-endian numbers"),
    (_string, "`x` must hold plain little-endian numbers"),
    (_text, "`x` must hold plain little-endian numbers"),
    (_ragged, "`x` must hold plain little-endian numbers"),
    (_reference, "`x` must hold plain little-endian numbers"),
    (_boolean, "`x` must hold plain little-endian numbers"),
    (_complex, "`x` must hold plain little-endian numbers"),
    (_opaque, "`x` must hold plain little-endian numbers"),
    (_big_endian, "`x` must hold plain little-endian numbers"),
    (_long_double, "`x` must hold plain little-endian numbers"),
    (_twelve_bits, "`x` must hold plain little-endian numbers"),
    (_bfloat16, "`x` must hold plain little-endian numbers"),
    (_terabytes, "it declares 4000000000000 bytes that are not there"),
    (_exabytes, "it declares 4611686018427387904 bytes that are not there"),
    (_scalar, "`x` must be an array with at least one axis"),
    (_null, "`x` must be"),
    (_named_type, "`x` must be a group or an array; got Datatype"),
    (_cycle, "must be the only name of its object; got a second link or a cycle"),
    (_cycle_to_root, "`g` must be the only name of its object"),
    (_many_cycles, "must be the only name of its object"),
    (_two_names, "must be the only name of its object"),
    (_deep, "must hold at most 100000 objects, 8 deep"),
    (_very_deep, "must hold at most 100000 objects, 8 deep"),
    (_odd_name, r"names must be made of letters, digits and `_.-`; got 'x\\x1b\[31m\\n'"),
    (_long_name, "names must be made of letters"),
    (_name_outside_utf8, "names must be made of letters"),
]


@pytest.mark.parametrize(("build", "message"), HOSTILE, ids=[build.__name__.strip("_") for build, _ in HOSTILE])
def test_hostile_file_is_refused(tmp_path, seal, build, message):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["a"] = ONES
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = ONES
        seal(file)
        build(file)
    with pytest.raises(RunFormatError, match=message):
        FileReader(tmp_path / "x.h5")


def test_hostile_files_cost_no_memory(tmp_path, seal):
    """What a file declares is refused before anything of that size is made."""
    for build in (_decompression_bomb, _chunk_bomb, _terabytes):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["a"] = ONES
            seal(file)
            build(file)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(RunFormatError):
            FileReader(tmp_path / "x.h5")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; the bombs are 60 MB and more


def test_arrays_that_lie_over_each_other(tmp_path, seal):
    """One megabyte under a hundred names would take a hundred to read."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(3):
            file.create_dataset(f"a{number}", data=np.full(4096, number, "u1"))
        seal(file)
        places = [file[f"a{number}"].id.get_offset() for number in range(3)]
    whole = (tmp_path / "x.h5").read_bytes()
    size = (4096).to_bytes(8, "little")
    for place in places[1:]:
        assert whole.count(place.to_bytes(8, "little") + size) == 1
        whole = whole.replace(place.to_bytes(8, "little") + size, places[0].to_bytes(8, "little") + size)
    (tmp_path / "x.h5").write_bytes(whole)
    with pytest.raises(
        RunFormatError, match="its arrays must lie beside each other; got one that begins inside another"
    ):
        FileReader(tmp_path / "x.h5")


def test_a_file_that_begins_later_is_no_file_of_ours(tmp_path, good):
    """HDF5 would look for its signature behind 512, 1024, 2048 … bytes of anything, such as a program."""
    (tmp_path / "x.h5").write_bytes(b"#!/bin/sh".ljust(512, b"\0") + good.read_bytes())
    with pytest.raises(RunFormatError, match="which begins as HDF5 files do; got b'#!/bin/s'"):
        FileReader(tmp_path / "x.h5")


def test_the_same_file_without_hostility_is_read(tmp_path, seal):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = ONES
        seal(file)
    with FileReader(tmp_path / "x.h5") as file:
        assert file.names == ("a",)
        assert file.read("a").tolist() == [1, 1, 1, 1]


def test_too_many_objects(tmp_path, seal, monkeypatch):
    monkeypatch.setattr("dynprobe.storage.reader.MAX_OBJECTS", 20)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(25):
            file.create_group(f"g{number}")
        seal(file)
    with pytest.raises(RunFormatError, match="must hold at most 20 objects"):
        FileReader(tmp_path / "x.h5")


def _write(path, seal, document=None, **changes):
    with h5py.File(path, "w") as file:
        file["a"] = ONES
        seal(file, document, **changes)
    return path


FACTS = {"sha256": "0" * 64, "shape": [4], "dtype": "<f4"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": 2, "datasets": {"a": FACTS}}, "must have format 1 or earlier; got 2. Update dynprobe"),
        ({"datasets": {"a": FACTS}}, "integer `format`; got None"),
        ({"format": True, "datasets": {"a": FACTS}}, "integer `format`; got True"),
        ({"format": 0, "datasets": {"a": FACTS}}, "integer `format`; got 0"),
        ([1], "integer `format`; got None"),
        (b'{"format": 1, "x": NaN}', "must hold a JSON object; got NaN, which is no JSON number"),
        (b"\xff{", "must hold a JSON object"),
        (b"[" * 100_000, "must hold a JSON object; got objects inside objects without end"),
        (b'{"a":' * 100_000, "must hold a JSON object; got objects inside objects without end"),
        (b"[" + b"[]," * 1_000_001 + b"[]]", "must hold a JSON object; got more than 1000000 objects and arrays"),
        (b'{"format": 1, "x": 1e999}', "must hold a JSON object; got 1e999, which is no finite number"),
        (b'{"format": ' + b"1" * 5000 + b"}", "must hold a JSON object; got Exceeds the limit"),
        ({"format": 1}, "must hold exactly the arrays that it describes"),
        ({"format": 1, "datasets": {}}, "must hold exactly the arrays that it describes"),
        ({"format": 1, "datasets": {"a": FACTS, "b": FACTS}}, "must hold exactly the arrays that it describes"),
        ({"format": 1, "datasets": {"a": None}}, "array `a` must be as described"),
        ({"format": 1, "datasets": {"a": {**FACTS, "shape": [5]}}}, "array `a` must be as described"),
        ({"format": 1, "datasets": {"a": {**FACTS, "dtype": "<i4"}}}, "array `a` must be as described"),
        ({"format": 1, "datasets": {"a": {**FACTS, "sha256": None}}}, "must have a sha256"),
        ({"format": 1, "datasets": {"a": {**FACTS, "sha256": "F" * 64}}}, "must have a sha256"),
    ],
)
def test_description_that_does_not_fit(tmp_path, seal, document, message):
    with pytest.raises(RunFormatError, match=message):
        FileReader(_write(tmp_path / "x.h5", seal, document))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("meta", None, "must hold `meta`"),
        ("meta_sha256", None, "must hold `meta_sha256`"),
        ("meta", np.frombuffer(b'{"format": 1}', "u1"), "description must match its checksum"),
        ("meta", np.ones(3, "f4"), "must hold `meta`, at most"),
        ("meta", np.ones((3, 3), "u1"), "must hold `meta`, at most"),
        ("meta_sha256", np.ones(31, "u1"), "description must match its checksum"),
        ("meta_sha256", np.ones(33, "u1"), "must hold `meta_sha256`, at most 32 bytes"),
    ],
)
def test_mangled_description(tmp_path, seal, name, value, message):
    path = _write(tmp_path / "x.h5", seal)
    with h5py.File(path, "r+") as file:
        del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(RunFormatError, match=message):
        FileReader(path)


def test_oversized_description(tmp_path, seal, monkeypatch):
    monkeypatch.setattr("dynprobe.storage.reader.MAX_META_BYTES", 50)
    with pytest.raises(RunFormatError, match="must hold `meta`, at most 50 bytes"):
        FileReader(_write(tmp_path / "x.h5", seal))


def test_error_messages_stay_short(tmp_path, seal):
    path = _write(tmp_path / "x.h5", seal, {"format": "A" * 10**6, "datasets": {}})
    with pytest.raises(RunFormatError) as caught:
        FileReader(path)
    assert len(str(caught.value)) < 1000


def test_what_is_no_ordinary_file_is_refused_without_waiting(tmp_path, good):
    (tmp_path / "link.h5").symlink_to(good)
    (tmp_path / "folder.h5").mkdir()
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "empty.h5").touch()
    for name, message in {
        "link.h5": "got a symbolic link",
        "folder.h5": "got a folder",
        "pipe.h5": "got a device or pipe",
        "missing.h5": "No such file",
        "empty.h5": "must be a complete dynprobe file, which begins as HDF5 files do; got b''",
        "x\0.h5": "null",
    }.items():
        with pytest.raises(RunFormatError, match=message):
            FileReader(tmp_path / name)


def test_truncated_file_is_refused(good):
    whole = good.read_bytes()
    for length in [*range(0, 600, 7), *range(600, len(whole), 41), len(whole) - 1]:
        good.write_bytes(whole[:length])
        with pytest.raises(RunFormatError, match=r"good\.h5"):
            FileReader(good)


@pytest.mark.slow
def test_flipped_bits_are_never_silent(good):
    """One bit of every other byte flipped: the file is refused, an array is found damaged, or every number is as it was."""
    whole = bytearray(good.read_bytes())
    expected = [np.arange(12, dtype="f4").reshape(3, 4).tolist(), np.arange(5).tolist()]
    outcomes = {"refused": 0, "damaged": 0, "same": 0}
    for position in range(0, len(whole), 2):
        damaged = whole.copy()
        damaged[position] ^= 1 << (position // 2 % 8)
        good.write_bytes(damaged)
        try:
            with FileReader(good) as file:
                if not all(file.is_intact(name) for name in file.names):
                    outcomes["damaged"] += 1
                    continue
                assert [file.read("a/b").tolist(), file.read("c").tolist()] == expected, position
                assert file.meta["kind"] == "example"
                outcomes["same"] += 1
        except RunFormatError:
            outcomes["refused"] += 1
    assert outcomes["damaged"] >= (12 + 5) * 4 // 2  # at least the bytes of the arrays themselves
    assert outcomes["refused"] > 0


def test_rows_and_facts(good):
    with FileReader(good) as file:
        assert "a/b" in file
        assert "meta" not in file
        assert "nothing" not in file
        assert file.shape("a/b") == (3, 4)
        assert file.read("a/b", slice(1, 2)).tolist() == [[4, 5, 6, 7]]
        assert json.dumps(file.facts("a/b"))


def test_closed_file_says_so(good):
    file = FileReader(good)
    file.close()
    with pytest.raises(RunFormatError, match="must be a complete dynprobe file"):
        file.read("c")


def test_reading_needs_no_lock_and_no_write_permission(good):
    good.chmod(0o444)
    with FileReader(good), FileReader(good) as file:
        assert file.is_intact("c")
