"""The facts of a run that `dynprobe info` shows."""

from typing import Any

from dynprobe.capture.settings import show_bytes
from dynprobe.run import Run


def facts_of(run: Run) -> dict[str, Any]:
    """JSON-able facts of a run: model, probe set, steps, sizes, notes."""
    probe = run.probe_set
    return {
        "path": str(run.path),
        "format": run.manifest.get("format"),
        "created": run.manifest.get("created"),
        "model": run.manifest.get("model", {}),
        "training": run.manifest.get("training", {}),
        "versions": run.manifest.get("versions", {}),
        "status": run.manifest.get("status", {}),
        "steps": list(run.steps),
        "max_steps": run.max_steps,
        "bytes": {step: run[step].n_bytes for step in run.steps},
        "probe": {
            "fingerprint": probe.fingerprint,
            "label_fingerprint": probe.label_fingerprint,
            "n_examples": probe.n_examples,
            "n_real_tokens": {stack: probe.n_real_tokens(stack) for stack in probe.real},
            "label_names": list(probe.label_names or ()),
            "origin": probe.origin,
        },
        "probe_tasks": {
            name: [run.probe_task(name, split).n_examples for split in ("train", "test")] for name in run.probe_tasks
        },
        "holds": {stack: _holds(run, stack) for stack in run.stacks},
        "notes": list(run.notes),
    }


def lines_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same facts as rows of a table of two columns."""
    model, probe, sizes = facts["model"], facts["probe"], list(facts["bytes"].values())
    total = show_bytes(sum(sizes))
    rows = [
        ("model", f"{model.get('name', 'unknown')} ({model.get('model_class', 'unknown')})"),
        ("created", str(facts["created"] or "unknown")),
        ("status", _status(facts["status"])),
        ("steps", ", ".join(map(str, facts["steps"])) or "none"),
        ("planned steps", str(facts["max_steps"] or "unknown")),
        ("size", f"{len(sizes)} snapshots of {show_bytes(max(sizes, default=0))}, {total} in all"),
        ("probe set", f"{probe['n_examples']} examples, {probe['origin']}, fingerprint {probe['fingerprint'][:16]}"),
        ("real tokens", ", ".join(f"{count} ({stack})" for stack, count in probe["n_real_tokens"].items())),
        ("labels", ", ".join(probe["label_names"]) or ("yes" if probe["label_fingerprint"] else "none")),
    ]
    tasks = [f"{name} ({n_train} + {n_test} examples)" for name, (n_train, n_test) in facts["probe_tasks"].items()]
    rows += [("probe tasks", ", ".join(tasks))] if tasks else []
    rows += [(f"holds ({stack})", holds) for stack, holds in facts["holds"].items()]
    rows += [(str(name), str(value)) for name, value in facts["training"].items()]
    return rows


def _status(status: dict[str, Any]) -> str:
    """How the capture ended, as far as the run itself can know."""
    state, step, reason = (status.get(key) for key in ("state", "step", "reason"))
    if state == "fault":
        return f"switched off by a fault at step {step}: {reason}"
    if state == "finished":
        return f"finished after step {step}"
    return "being captured, or ended before it could say so" if state == "capturing" else "unknown"


def _holds(run: Run, stack: str) -> str:
    snapshot = run[run.steps[0]]
    parts = []
    if snapshot.layers(stack):
        rows = len(snapshot.hidden_rows(stack))
        parts.append(f"hidden states of {rows} tokens in layers {_ranges(snapshot.layers(stack))}")
    for kind, what in (("self", "attention"), ("cls", "attention of [CLS]"), ("cross", "cross attention")):
        if blocks := snapshot.attention_layers(stack, kind):
            examples = len(snapshot.attention_examples(stack))
            stored = " and ".join(sorted({snapshot.attentions(block, stack, kind).dtype.name for block in blocks}))
            parts.append(f"{what} of {examples} examples in blocks {_ranges(blocks)}, {stored}")
    if blocks := snapshot.value_norm_layers(stack):
        parts.append(f"value norms in blocks {_ranges(blocks)}")
    parts.append(f"pooled vectors: {', '.join(snapshot.pooled_kinds(stack)) or 'none'}")
    said = snapshot.outputs()
    parts.append(f"outputs: {said.kind if said else 'none'}")
    return "; ".join(parts)


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers, neighbours joined: ``0-3, 6``."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)
