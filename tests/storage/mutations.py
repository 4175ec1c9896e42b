"""Mutated run directories: what a damaged disk, a bad copy or a stranger makes of a good one. Also a program: see `main`."""

import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from dynprobe.errors import DynprobeError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run
from dynprobe.storage.directory import append_scalars, prepare, write_manifest, write_status
from dynprobe.storage.layout import LEDGER, MANIFEST, SCALARS, probe_path, snapshot_path
from dynprobe.storage.probe_file import write_probe_set
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter

KINDS = ("flip", "truncate", "swap", "zero", "repeat", "insert", "noise")
SECONDS_PER_FILE = 10
MAX_MEMORY = 4 * 2**30


def make_run(path, *, old=False):
    """A finished run with everything a snapshot may hold; `old`: without ledger and seals, as earlier versions wrote it."""
    ids = np.array([[2, 7, 3, 0], [2, 8, 9, 3]])
    probe = ProbeSet(
        inputs={"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "x": np.ones((2, 3))},
        real={"model": ids > 0},
        special={"model": (ids == 2) | (ids == 3)},
        labels=np.array([1, 0]),
        label_names=("no", "yes"),
        texts=(("seven",), ("eight nine",)),
    )
    prepare(path, force=False, resume=False)
    write_manifest(path, {"model": {"name": "tiny"}, "max_steps": 20, "notes": ["a note"]})
    write_probe_set(probe_path(path), probe)
    for step in (0, 20):
        rng = np.random.default_rng(step)
        meta = {"kind": "snapshot", "step": step, "probe_fingerprint": probe.fingerprint}
        with FileWriter(snapshot_path(path, step), meta) as file:
            rows = np.argwhere(ids > 0).astype(np.int32)
            file.write("main/model/index/hidden_rows", rows)
            file.write("main/model/index/attention_examples", np.arange(2, dtype=np.int32))
            file.write("main/model/index/attention_shape", np.array([[3, 3], [4, 4]], dtype=np.int32))
            for layer in (0, 1):
                file.write(f"main/model/hidden_states/{layer}", rng.normal(size=(7, 4)).astype(np.float16))
                file.write(f"main/model/pooled/first/{layer}", rng.normal(size=(2, 4)).astype(np.float32))
            file.write("main/model/self_attention/1", rng.random(2 * (9 + 16)).astype(np.float16), n_heads=2)
            file.write("main/outputs/nll", rng.random(7).astype(np.float32))
            file.write("main/outputs/nll_offsets", np.array([0, 3, 7]))
            file.write("parameters/names", np.frombuffer(b'["a.weight", "b"]', dtype=np.uint8))
            file.write("parameters/distance", rng.random(2))
            file.write("parameters/norm", rng.random(2))
        append_scalars(path, {"step": step, "loss": 1 / (1 + step)})
        append_scalars(path, {"step": step, "loss": float("nan")})
    write_status(path, "finished", step=20)
    if old:
        (path / LEDGER).unlink()
        (path / MANIFEST).write_text('{"format": 1, "model": {"name": "tiny"}}')
        (path / SCALARS).write_text('{"step": 0, "loss": 1.0}\n')
    return path


def targets(run):
    """Files that are mutated: HDF5 files more often than the others."""
    heavy = [snapshot_path(run, 0), snapshot_path(run, 20), probe_path(run)]
    return [*heavy * 2, *(file for file in (run / MANIFEST, run / LEDGER, run / SCALARS) if file.exists())]


def mutated(content, rng):
    """Content with one to four damages of one kind, and their name."""
    kind, data = rng.choice(KINDS), bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        length = min(len(data), rng.choice((1, 2, 8, 64, 512)))
        start, other = (rng.randrange(max(1, len(data) - length + 1)) for _ in range(2))
        block = bytes(data[start : start + length])
        if kind == "flip" and data:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == "truncate":
            del data[start:]
        elif kind == "swap":
            data[start : start + length], data[other : other + length] = data[other : other + length], block
        elif kind == "zero":
            data[start : start + length] = bytes(length)
        elif kind == "repeat":
            data[other : other + length] = block
        elif kind == "insert":
            data[other:other] = block
        elif kind == "noise":
            data[start : start + length] = rng.randbytes(length)
    return bytes(data), kind


def read_everything(run_dir, *, verify, records=True):
    """Every number and word of a run, by name, as a user's program can ask for them."""
    run = open_run(run_dir, verify=verify)
    probe = run.probe_set
    found = {"steps": run.steps, "labels": probe.labels.tobytes(), "texts": probe.texts, "names": probe.label_names}
    found |= {
        f"{kind}/{k}": a.tobytes() for kind in ("inputs", "real", "special") for k, a in getattr(probe, kind).items()
    }
    if records:
        found |= {"notes": run.notes, "max_steps": run.max_steps, "model": run.manifest.get("model")}
        found["scalars"] = repr(run.scalars)
    for snapshot in run:
        with snapshot:
            at = snapshot.step
            found |= {f"{at}/hidden/{k}": snapshot.hidden_states(k).tobytes() for k in snapshot.layers()}
            found[f"{at}/rows"] = snapshot.hidden_rows().tobytes()
            found[f"{at}/examples"] = snapshot.attention_examples().tobytes()
            for block in snapshot.attention_layers():
                found |= {f"{at}/{block}/{i}": a.tobytes() for i, a in enumerate(snapshot.attentions(block))}
            for kind in snapshot.pooled_kinds():
                found |= {f"{at}/{kind}/{k}": snapshot.pooled(kind, k).tobytes() for k in snapshot.pooled_layers(kind)}
            said = snapshot.outputs()
            found[f"{at}/said"] = None if said is None else (said.kind, said.values.tobytes(), said.offsets.tobytes())
            found[f"{at}/weights"] = snapshot.parameter_changes()
            found[f"{at}/meta"] = sorted(map(str, snapshot.meta.items()))
    return found


class Fuzz:
    """Cases on one scratch copy of a run; case `n` is the same in every process."""

    def __init__(self, source, scratch, *, old):
        shutil.copytree(source, scratch)
        self.run, self.old = scratch, old
        self.files = targets(scratch)
        self.whole = {file: file.read_bytes() for file in self.files}
        self.expected = {records: read_everything(source, verify=False, records=records) for records in (True, False)}

    def outcome(self, number):
        """What happens with case `number`: ``"same"``, ``"error …"``, ``"damaged …"`` or what is wrong: ``"WRONG …"``."""
        rng = random.Random(number)
        file = rng.choice(self.files)
        content, kind = mutated(self.whole[file], rng)
        where = f"{kind} {file.name}"
        file.write_bytes(content)
        try:
            verified = self._read(verify=True)
            if verified == "other":
                return f"WRONG {where}: verified reading gave other numbers"
            plainly = self._read(verify=False)
            if plainly == "other" and not self._damage():
                return f"WRONG {where}: other numbers were read, and verify found nothing"
            if (
                not self.old
                and content != self.whole[file]
                and not self._damage()
                and not self._is_short(file, content)
            ):
                return f"WRONG {where}: bytes have changed, and verify found nothing"
            return f"{verified}/{plainly} {where}"
        finally:
            file.write_bytes(self.whole[file])

    def _read(self, *, verify):
        records = not self.old  # what has no checksum in an old run is not expected to be watched over
        try:
            same = read_everything(self.run, verify=verify, records=records) == self.expected[records]
        except DynprobeError as error:
            return f"error {type(error).__name__}"
        return "same" if same else "other"

    def _damage(self):
        return any(check.problems for check in verify_run(self.run))

    def _is_short(self, file, content):
        """A ledger that lost its last lines is that of a writer that was killed before it could write them."""
        return file.name == LEDGER and self.whole[file].startswith(content)


def main(source, scratch, age, first, last):
    """Run cases and say before and after each which it is, so that who waits knows at which one this process has died."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    fuzz = Fuzz(Path(source), Path(scratch), old=age == "old")
    for number in range(int(first), int(last)):
        print(f"begin {number}", flush=True)
        signal.alarm(SECONDS_PER_FILE)  # unhandled, it ends this process: a case that hangs is a case that is found
        said = fuzz.outcome(number)
        signal.alarm(0)
        print(f"end {number} {said}", flush=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(*sys.argv[1:])
