"""What the numbers of a comparison say, in plain sentences; never more than the intervals allow."""

from collections.abc import Iterator

import pandas as pd

from dynprobe.analysis.catalog import METRICS
from dynprobe.analysis.knowledge import DEFAULT_MARGIN
from dynprobe.analysis.knowledge_findings import knowledge_findings
from dynprobe.analysis.phrasing import both, layer_of, number, percent, share, with_interval


def findings(table: pd.DataFrame, names: tuple[str, ...], *, level: float = 0.95) -> tuple[str, ...]:
    """Four to ten sentences on a comparison, the most important first.

    Parameters
    ----------
    table
        Table of a comparison.
    names
        Names of the two runs.
    level
        Confidence level of the intervals, to be named.

    Returns
    -------
    tuple of str
        Only measured values are spoken of. Two values are called different only where their intervals do not overlap, or the
        interval of their difference leaves out 0.
    """
    measured = table[(table["status"] == "measured").fillna(value=False) & table["head"].isna()]
    sentences = (
        *_score(measured, names),
        *_flips(measured, names),
        *(line for name in names for line in _attention(measured, name)),
        *(line for name in names for line in _hidden_states(measured, name)),
        *_apart(measured, names),
        *(line for name in names for line in _isotropy(measured, name)),
        *(line for name in names for line in _probe(measured, name)),
        *knowledge_findings(measured, names, margin=DEFAULT_MARGIN, level=level),
        *_unmeasured(table),
    )
    unique = tuple(dict.fromkeys(sentences))
    if any("[" in line for line in unique):
        first = next(i for i, line in enumerate(unique) if "[" in line)
        said = f"{unique[first]} Brackets hold {percent(level)} intervals over the probe examples of these two runs."
        unique = (*unique[:first], said, *unique[first + 1 :])
    return unique


def end_rows(table: pd.DataFrame, metric: str, comparison: str, run: str | None = None) -> pd.DataFrame:
    """Rows of a metric at the last compared step of one run, or of the pair of runs."""
    rows = table[(table["metric"] == metric) & (table["comparison"] == comparison)]
    if run is not None:
        rows = rows[rows["run_a"] == run]
    return rows[rows["step_a"] == rows["step_a"].max()] if len(rows) else rows


def _score(table: pd.DataFrame, names: tuple[str, ...]) -> Iterator[str]:
    """The score of both runs at the end, and whether they differ."""
    for metric, difference, unit in (
        ("accuracy", "accuracy_difference", "accuracy"),
        ("mean_nll", "mean_nll_difference", "nats per token"),
    ):
        ends = [end_rows(table, metric, "within", name) for name in names]
        if any(rows.empty for rows in ends):
            continue
        a, b = (rows.iloc[-1] for rows in ends)
        line = (
            f"At the end {names[0]} reaches {METRICS[metric].label} {with_interval(a)} and {names[1]} {with_interval(b)} "
            f"(n = {a['n']})"
        )
        apart = end_rows(table, difference, "between")
        if apart.empty:
            yield f"{line}."
            continue
        row = apart.iloc[-1]
        clear = row["low"] > 0 or row["high"] < 0
        verdict = "they differ" if clear else "the difference cannot be told from 0"
        idle = all(end["low"] <= end["chance"] for end in (a, b))
        floor = f"; neither is clearly above the commonest class, {number(a['chance'])}" if idle else ""
        yield f"{line}; {verdict}: {with_interval(row)} {unit} on the same examples{floor}."


def _flips(table: pd.DataFrame, names: tuple[str, ...]) -> Iterator[str]:
    """How many predictions changed since the start, and between the runs."""
    parts = []
    for name in names:
        rows = end_rows(table, "prediction_flip_rate", "from_start", name)
        if len(rows):
            parts.append(f"{name} gives another answer than at its start on {share(rows.iloc[-1])}")
    rows = end_rows(table, "prediction_flip_rate", "between")
    if len(rows):
        parts.append(f"at the end the runs contradict each other on {share(rows.iloc[-1])}")
    if parts:
        line = "; ".join(parts)
        yield f"{line[0].upper() + line[1:] if not line.startswith(names) else line}."


def _changes(table: pd.DataFrame, metric: str, name: str) -> tuple[pd.DataFrame, str]:
    """Rows of a run against its start; of two single snapshots, which have no start, those of one against the other."""
    rows = end_rows(table, metric, "from_start", name)
    against = "its start"
    if rows.empty:
        rows = end_rows(table, metric, "between", name)
        against = str(rows["run_b"].iloc[0]) if len(rows) else against
    return rows[rows["layer"].notna()], against


def _at(row: pd.Series) -> str:
    return f", step {row['step_a']}" if row["comparison"] == "from_start" else ""


def _attention(table: pd.DataFrame, name: str) -> Iterator[str]:
    rows, against = _changes(table, "attention_js_divergence", name)
    for stack, own in rows.groupby("stack", sort=False):
        plain = _of_the_stack(own)
        if len(plain) < 2:
            continue
        top, least = plain.iloc[int(plain["value"].argmax())], plain.iloc[int(plain["value"].argmin())]
        where = f"{name}{_at(top)} against {against}{_of(stack)}"
        level_with = sorted({top["layer"], *plain[plain["high"] >= top["low"]]["layer"]})
        most = f"up to {with_interval(top)} nats of JS divergence, in layer {top['layer']}"
        if least["layer"] in level_with:
            yield f"{where}: attention moved, but in no layer clearly more than in the others ({most})."
            continue
        word = "most in" if len(level_with) == 1 else "most, and about as much, in"
        yield (
            f"{where}: attention moved {word} {layer_of(level_with)} ({most}) and least in layer {least['layer']} "
            f"({with_interval(least)})."
        )


def _hidden_states(table: pd.DataFrame, name: str) -> Iterator[str]:
    rows, against = _changes(table, "svcca_similarity", name)
    for stack, own in rows.groupby("stack", sort=False):
        if len(own) < 2:
            continue
        low, high = own.iloc[int(own["value"].argmin())], own.iloc[int(own["value"].argmax())]
        chance = "" if pd.isna(low["chance"]) else f", where unrelated states would give {number(low['chance'])}"
        where = f"{name}{_at(low)} against {against}{_of(stack)}"
        if not _clearly_above(high, low, 1):
            yield (
                f"{where}: hidden states changed in no layer clearly more than in another (SVCCA {with_interval(low)} to "
                f"{with_interval(high)}{chance})."
            )
            continue
        level_with = sorted({low["layer"], *own[own["low"] <= low["high"]]["layer"]})
        word = "most in" if len(level_with) == 1 else "most, and about as much, in"
        yield (
            f"{where}: hidden states changed {word} {layer_of(level_with)} (down to SVCCA {with_interval(low)}{chance}, in "
            f"layer {low['layer']}) and least in layer {high['layer']} ({with_interval(high)})."
        )


def _of_the_stack(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a stack's own attention or states, whole or of [CLS], without those of cross attention and pooled vectors."""
    return rows[rows["position"].isna() | rows["position"].isin(["cls"])]


def _apart(table: pd.DataFrame, names: tuple[str, ...]) -> Iterator[str]:
    """Whether the runs ended further from each other than from their starts, layer by layer."""
    for metric, sign, what in (("svcca_similarity", 1, "hidden states"), ("attention_js_divergence", -1, "attention")):
        between = end_rows(table, metric, "between")
        between = _of_the_stack(between).set_index(["stack", "layer"])
        starts = [end_rows(table, metric, "from_start", name) for name in names]
        starts = [_of_the_stack(own).set_index(["stack", "layer"]) for own in starts]
        shared = between.index.intersection(starts[0].index).intersection(starts[1].index)
        if not len(shared):
            continue
        near, far = [], []
        for key in shared:
            row, own = between.loc[key], [start.loc[key] for start in starts]
            if all(_clearly_above(row, other, sign) for other in own):
                near.append(key[1])
            elif all(_clearly_above(other, row, sign) for other in own):
                far.append(key[1])
        parts = []
        if near:
            parts.append(f"closer to each other than to their starts in {layer_of(near)}")
        if far:
            parts.append(f"further from each other than from their starts in {layer_of(far)}")
        rest = len(shared) - len(near) - len(far)
        verdict = " and ".join(parts) or "neither clearly closer to each other nor to their starts in any layer"
        open_ = f" ({rest} of {len(shared)} layers: the intervals leave it open)" if parts and rest else ""
        yield f"By their {what} the two runs ended {verdict}{open_}."


def _clearly_above(row: pd.Series, other: pd.Series, sign: int) -> bool:
    """Whether the interval of one value lies wholly on the upper (sign 1) or lower (-1) side of another's."""
    if sign > 0:
        return bool(row["low"] > other["high"])
    return bool(row["high"] < other["low"])


def _isotropy(table: pd.DataFrame, name: str) -> Iterator[str]:
    rows = table[(table["metric"] == "isoscore") & (table["run_a"] == name)]
    for stack, own in rows.groupby("stack", sort=False):
        kind = own["position"].iloc[0]
        own = own[(own["position"] == kind) & (own["layer"] == own["layer"].max())].sort_values("step_a")
        if len(own) < 2:
            continue
        first, last = own.iloc[0], own.iloc[-1]
        verdict = "became less isotropic" if last["high"] < first["low"] else "did not clearly change in isotropy"
        verdict = "became more isotropic" if last["low"] > first["high"] else verdict
        what = (
            "[CLS] (first token)" if kind == "first" else f"the {kind} token" if kind == "last" else "the mean vector"
        )
        yield (
            f"{name}{_of(stack)}: {what} of layer {last['layer']} {verdict} from step {first['step_a']} to "
            f"{last['step_a']}: IsoScore {both(first, last)}."
        )


def _probe(table: pd.DataFrame, name: str) -> Iterator[str]:
    rows = end_rows(table, "probe_accuracy", "within", name)
    for stack, own in rows.groupby("stack", sort=False):
        own = own[own["position"] == own["position"].iloc[0]]
        best = own.iloc[int(own["value"].argmax())]
        start = table[(table["metric"] == "probe_accuracy") & (table["run_a"] == name) & (table["stack"] == stack)]
        start = start[(start["step_a"] == start["step_a"].min()) & (start["position"] == best["position"])]
        before = start[start["layer"] == best["layer"]]
        words = f"{with_interval(best)}, chance {number(best['chance'])}"
        if best["low"] <= best["chance"]:
            yield f"{name}{_of(stack)}: no layer lets a linear probe read the label clearly above chance (best {words})."
            continue
        was = f"; at its start this layer gave {with_interval(before.iloc[0])}" if len(before) else ""
        changed = "" if before.empty or before.iloc[0]["step_a"] == best["step_a"] else was
        level_with = sorted({best["layer"], *own[own["high"] >= best["low"]]["layer"]})
        word = "best in" if len(level_with) == 1 else "best, and about as well, in"
        what = {"first": "[CLS]", "last": "the last token"}.get(str(best["position"]), "the mean vector")
        yield (
            f"{name}{_of(stack)}: a linear probe on {what} reads the label {word} {layer_of(level_with)} (up to {words}, in "
            f"layer {best['layer']}){changed}."
        )


def _unmeasured(table: pd.DataFrame) -> Iterator[str]:
    """What could not be compared at all, in one sentence per reason."""
    rows = table[table["status"].isin(["incompatible", "not-captured", "not-computed"]) & table["reason"].notna()]
    for reason, own in rows.groupby("reason", sort=False):
        # Rows of the probe suite name their task.
        tasks = own["group"].where(own["metric"].str.startswith("knowledge_"))
        labels = dict.fromkeys(
            METRICS[name].label + ("" if pd.isna(task) else f" ({task})")
            for name, task in zip(own["metric"], tasks, strict=True)
        )
        yield f"Not compared: {', '.join(labels)}, because {reason}."


def _of(stack: object) -> str:
    return "" if stack == "model" else f" ({stack})"
