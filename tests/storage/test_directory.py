"""The run directory: who may write, what may be removed, what a stranger's manifest may say."""

import json
import os

import pytest

from dynprobe.errors import RunFormatError, UsageError
from dynprobe.storage.directory import (
    append_scalars,
    free_bytes,
    prepare,
    read_manifest,
    read_scalars,
    sweep,
    write_manifest,
)
from dynprobe.storage.folder import is_run, list_steps, require_run
from dynprobe.storage.layout import LEDGER, MANIFEST, SCALARS, SNAPSHOTS, probe_path, snapshot_path
from dynprobe.storage.ledger import Ledger, read_ledger


def _files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())


OWN = [
    ".writer.lock",
    "ledger.jsonl",
    "manifest.json",
    "probes/main.h5",
    "snapshots/step-00000000.h5",
    "snapshots/step-00000010.h5",
]


def test_new_run(tmp_path):
    prepare(tmp_path / "deep" / "run", force=False, resume=False)
    assert not is_run(tmp_path / "deep" / "run")
    assert (tmp_path / "deep" / "run" / SNAPSHOTS).is_dir()


def test_existing_run_needs_a_flag(run):
    with pytest.raises(UsageError, match=r"must be new; got one with 2 snapshot\(s\)"):
        prepare(run, force=False, resume=False)
    assert _files(run) == OWN


def test_snapshots_without_manifest_and_probe_set_are_a_run_too(run):
    (run / MANIFEST).unlink()
    probe_path(run).unlink()
    with pytest.raises(UsageError, match="must be new; got one with 2 snapshot"):
        prepare(run, force=False, resume=False)


def test_resume_keeps_everything(run):
    (run / SNAPSHOTS / "step-00000020.h5.77.tmp").touch()
    prepare(run, force=False, resume=True)
    assert _files(run) == OWN


def test_force_removes_the_run_and_nothing_else(run):
    foreign = ["notes.txt", "notes.tmp", "snapshots/thesis.tex", "snapshots/a.tmp", "probes/list.csv", "mine/x.h5"]
    (run / "mine").mkdir()
    for name in foreign:
        (run / name).write_text("keep")
    (run / SNAPSHOTS / "step-00000099.h5").mkdir()
    append_scalars(run, {"step": 1})
    prepare(run, force=True, resume=False)
    assert _files(run) == sorted([".writer.lock", "ledger.jsonl", *foreign])
    assert read_ledger(run) == Ledger()
    assert (run / SNAPSHOTS / "step-00000099.h5").is_dir()


@pytest.mark.parametrize("force", [False, True])
def test_folder_of_somebody_else_is_never_used(tmp_path, force):
    (tmp_path / "thesis.tex").write_text("keep")
    with pytest.raises(UsageError, match="must be new or empty; got a folder with other files in it"):
        prepare(tmp_path, force=force, resume=True)
    assert _files(tmp_path) == ["thesis.tex"]


def test_file_in_the_way(tmp_path):
    (tmp_path / "run").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name in ("run", "lost"):
        with pytest.raises(UsageError, match="must be a folder; got a file"):
            prepare(tmp_path / name, force=True, resume=False)


@pytest.mark.parametrize("folder", ["snapshots", "probes"])
def test_linked_folder_is_never_followed(run, tmp_path, folder):
    other = tmp_path / "other"
    (run / folder).rename(other)
    (other / "main.h5.12.tmp").touch()
    before = _files(other)
    (run / folder).symlink_to(other)
    with pytest.raises(UsageError, match="must be a folder of the run itself; got a symbolic link"):
        prepare(run, force=True, resume=False)
    sweep(run)
    assert _files(other) == before


def test_linked_files_are_unlinked_not_followed(run, tmp_path):
    target = tmp_path / "precious.h5"
    target.write_text("keep")
    snapshot_path(run, 7).symlink_to(target)
    prepare(run, force=True, resume=False)
    assert target.read_text() == "keep"
    assert list_steps(run) == ()


def test_steps_are_sorted_and_foreign_names_left_out(run):
    snapshot_path(run, 123456789).touch()
    for name in ("step-3.h5", "step-00000003.h5.1.tmp", "step-000000003.h5", "best.h5", ".step-00000003.h5"):
        (run / SNAPSHOTS / name).touch()
    assert list_steps(run) == (0, 10, 123456789)
    assert list_steps(run / "nowhere") == ()


def test_require_run(run, tmp_path):
    require_run(run)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name, got in {"file": "a file", "folder": "a folder without a manifest", "missing": "nothing"}.items():
        with pytest.raises(RunFormatError, match=f"must be a run directory .*; got {got}"):
            require_run(tmp_path / name)


def test_run_without_manifest_is_still_a_run(run):
    (run / MANIFEST).unlink()
    require_run(run)
    assert read_manifest(run) == {"format": 1}


def test_manifest_comes_back(run):
    odd = {"model": {"name": "é \ud800"}, "notes": ["a"], "path": run, "rate": float("nan"), "format": 7}
    write_manifest(run, odd)
    assert read_manifest(run) == {
        "model": {"name": "é \ud800"}, "notes": ["a"], "path": str(run), "rate": "NaN", "format": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "must have format 1 or earlier; got 2"),
        ('{"format": "1"}', "integer `format`; got '1'"),
        ("{}", "integer `format`; got None"),
        ("[]", "must be a JSON object"),
        ('{"format": 1', "must hold a JSON object"),
        ('{"format": 1, "x": NaN}', "got NaN, which is no JSON number"),
        ('{"format": 1, "x": -Infinity}', "got -Infinity, which is no JSON number"),
        ("\ud800", "must hold a JSON object"),
        ('{"format": 1, "model": []}', r"`model` must be a JSON object; got \[\]"),
        ('{"format": 1, "notes": "a"}', "`notes` must be a JSON array; got 'a'"),
        ('{"format": 1, "versions": null}', "`versions` must be a JSON object; got None"),
    ],
)
def test_manifest_that_cannot_be_read(run, text, message):
    (run / MANIFEST).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(RunFormatError, match=message):
        read_manifest(run)


def test_manifest_too_large_or_linked(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dynprobe.storage.directory.MAX_MANIFEST_BYTES", 10)
    with pytest.raises(RunFormatError, match=r"manifest\.json: must be an ordinary file of at most 10 bytes"):
        read_manifest(run)
    monkeypatch.undo()
    (run / MANIFEST).rename(tmp_path / "elsewhere")
    (run / MANIFEST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFormatError, match="must be an ordinary file"):
        read_manifest(run)


def test_pipe_instead_of_a_manifest_does_not_hang(run):
    (run / MANIFEST).unlink()
    os.mkfifo(run / MANIFEST)
    assert read_manifest(run) == {"format": 1}


def test_scalars_come_back_without_the_half_line(run):
    assert read_scalars(run) == []
    append_scalars(run, {"step": 1, "loss": float("inf")})
    with (run / SCALARS).open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert read_scalars(run) == [{"step": 1, "loss": float("inf")}]
    append_scalars(run, {"step": 3, "name": "é \ud800"})
    assert [record["step"] for record in read_scalars(run)] == [1, 3]


def test_scalars_of_a_stranger(run, tmp_path, monkeypatch):
    long = json.dumps({"step": 0, "text": "x" * 2**20})
    (run / SCALARS).write_bytes(b'\xff\n[1]\n3\n\n{"step": 5}\n' + b"[" * 50_000 + b"\n" + long.encode() + b"\n")
    (run / LEDGER).unlink()  # with it, every line must be as it was written
    assert read_scalars(run) == [{"step": 5}]
    monkeypatch.setattr("dynprobe.storage.directory.MAX_SCALARS_BYTES", 10)
    with pytest.raises(RunFormatError, match=r"scalars\.jsonl: must be an ordinary file of at most 10 bytes"):
        read_scalars(run)
    (run / SCALARS).unlink()
    (run / SCALARS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFormatError, match="must be an ordinary file"):
        read_scalars(run)


def test_free_bytes(tmp_path):
    assert free_bytes(tmp_path) > 0
