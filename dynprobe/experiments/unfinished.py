"""The table of an experiment of which cells are missing: what is finished, compared where all partners are there."""

import pandas as pd

from dynprobe.experiments.experiment import Experiment
from dynprobe.experiments.results import Results, cells_of
from dynprobe.experiments.tables import arm_table, last_stages, score_frame


def table_of_finished(experiment: Experiment, results: Results, *, margin: float = 0.02) -> pd.DataFrame:
    """Each arm of each model, as far as it is finished.

    Parameters
    ----------
    experiment
        All that there will be.
    results
        Of the cells that are finished; at least one.
    margin
        As for :func:`~dynprobe.experiments.tables.arm_table`.

    Returns
    -------
    pandas.DataFrame
        As :func:`~dynprobe.experiments.tables.arm_table` gives it. An arm with seeds that are not finished in the first arm of
        its model has scores, and no difference. When all is finished there is no such arm.
    """
    frame = last_stages(score_frame(results))
    finished = {(cell["model"], cell["arm"], cell["seed"]) for cell in cells_of(results)}
    if all((cell.model, cell.arm, cell.seed) in finished for cell in experiment.cells):
        return arm_table(frame, margin=margin)
    rows = []
    for model in experiment.models:
        arms = list(dict.fromkeys(cell.arm for cell in experiment.cells if cell.model == model))
        seeds = {arm: {seed for own, named, seed in finished if (own, named) == (model, arm)} for arm in arms}
        compared = [arm for arm in arms if seeds[arm] and seeds[arm] <= seeds[arms[0]]]
        alone = [[arm] for arm in arms if seeds[arm] and arm not in compared]
        of_model = frame[frame["model"] == model]
        tables = [
            arm_table(of_model[of_model["arm"].isin(group)], margin=margin) for group in (compared, *alone) if group
        ]
        found = {row["arm"]: row for table in tables for row in table.to_dict("records")}
        rows += [found[arm] for arm in arms if arm in found]
    return pd.DataFrame(rows)
