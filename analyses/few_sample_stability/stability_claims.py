"""What the paper on few training examples claims, as statements about the arms of one model."""

from collections.abc import Mapping

import pandas as pd

from dynprobe.experiments.over_seeds import OverSeeds, fails_more, larger, same, smaller, varies
from dynprobe.experiments.stability import over_seeds
from dynprobe.experiments.statements import Statement

MARGIN = 0.02
ADAM, BERT, TIMES, OVER, STEADY = "adam", "bert-adam", "adam-times-r", "bert-adam-over-r", "adam-steady"
OPTIMIZERS = (ADAM, BERT, TIMES, OVER, STEADY)
_NAMES = {
    ADAM: "Adam",
    BERT: "BERTAdam",
    TIMES: "Adam, steps × r(t)",
    OVER: "BERTAdam, steps ÷ r(t)",
    STEADY: "Adam, rate × mean r(t)",
    "layer-rates": "layer-wise rates",
    "mixout": "Mixout",
    "pull": "pull to the start",
    "weight-decay": "weight decay",
    "intermediate": "intermediate task",
}

Arms = Mapping[str, pd.DataFrame]


def statements(arms: Arms, weights: Mapping[str, pd.DataFrame]) -> list[Statement]:
    """What the paper claims, as far as the arms of one model can tell; to be judged together.

    Parameters
    ----------
    arms
        Arm to its rows, of :func:`arms_of`.
    weights
        Arm to how far the weights moved, of :func:`moved`.
    """
    found, adam = _optimizer_statements(arms), over_seeds(arms[ADAM])
    for arm, rows in arms.items():
        name, own = name_of(arm), over_seeds(rows)
        if arm.startswith("reinit"):
            top = list(weights[ADAM])[-int(arm.partition("-")[2]) :]
            near = (OverSeeds(values=weights[kind][top].mean(axis=1).to_dict()) for kind in (arm, ADAM))
            early = (over_seeds(part, "early_loss") for part in (rows, arms[ADAM]))
            found += [
                larger(f"With {name} the scores are higher", own, adam, margin=MARGIN),
                smaller(f"With {name} the training loss of the first half is lower", *early),
                smaller(f"With {name} the blocks at their places move less than pretrained ones", *near),
            ]
        elif arm.startswith("steps"):
            found.append(larger(f"With {name} the scores are higher", own, adam, margin=MARGIN))
            found.append(varies(f"With {name} the scores vary less", own, adam, more=False))
        elif arm not in OPTIMIZERS:
            found.append(same(f"With {name} Adam scores as without", own, adam, margin=MARGIN))
    return found


def _optimizer_statements(arms: Arms) -> list[Statement]:
    """Whether BERTAdam is worse than Adam, and whether it is so by the length of its steps alone."""
    if BERT not in arms:
        return []
    score, found = {arm: over_seeds(rows) for arm, rows in arms.items()}, []
    adam, bert, both = score[ADAM], score[BERT], (arms[BERT], arms[ADAM])
    losses = [over_seeds(part, "final_loss") for part in both]
    failed = [~part.set_index("seed")["fitted"] for part in both]
    found += [
        smaller("Without bias correction (BERTAdam) the scores are lower than with Adam", bert, adam, margin=MARGIN),
        varies("Without bias correction the scores vary more", bert, adam, more=True),
        larger("Without bias correction the last training loss is higher", *losses),
        fails_more("Without bias correction more runs never fit their training examples", *failed),
    ]
    if TIMES in arms:
        text = "Adam with steps r(t) times as long scores"
        found.append(smaller(f"{text} lower than Adam", score[TIMES], adam, margin=MARGIN))
        found.append(same(f"{text} as BERTAdam does", score[TIMES], bert, margin=MARGIN))
    if OVER in arms:
        text = "BERTAdam with steps divided by r(t) scores"
        found.append(larger(f"{text} higher than BERTAdam", score[OVER], bert, margin=MARGIN))
        found.append(same(f"{text} as Adam does", score[OVER], adam, margin=MARGIN))
    if STEADY in arms:
        text = "Adam at a rate that is larger throughout, by the mean of r(t), scores as BERTAdam does"
        found.append(same(text, score[STEADY], bert, margin=MARGIN))
    return found


def name_of(arm: str) -> str:
    """What an arm is called on the page."""
    kind, _, number = arm.partition("-")
    if kind == "reinit":
        return f"{number} block{'s' * (number != '1')} re-initialised"
    if kind == "steps":
        return f"{number.removesuffix('x')} times the steps"
    return _NAMES.get(arm, arm)
