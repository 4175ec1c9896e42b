"""What each step consisted of, averaged between two lines of the log."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from dynprobe.finetune.method import StepLoss


class Meter:
    """Sums of what the steps consisted of; on their device until they are asked for, so that nothing waits.

    Examples
    --------
    >>> meter = Meter()
    >>> for task in (1.0, 3.0):
    ...     meter.add(StepLoss(torch.tensor(task), torch.tensor(task), torch.tensor(0.0)), part=1.0)
    ...     meter.end_step()
    >>> meter.drain()["task_loss"]
    2.0
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)
        self._n_steps = 0

    def add(self, step: StepLoss, *, part: float) -> None:
        """Take in one batch, whose losses the loop will multiply by `part` to make those of an optimizer step."""
        self._sum("task_loss", step.task * part)
        self._sum("regulariser", step.regulariser * part)
        counts = {"extra_forwards": step.extra_forwards, "extra_backwards": step.extra_backwards}
        for name, value in {**step.terms, **counts, "dropout_share": step.dropout_share}.items():
            if value is not None:
                self._sum(name, torch.as_tensor(value, dtype=torch.float32, device=step.task.device))
                self._weights[name] += 1

    def end_step(self) -> None:
        """An optimizer step is complete."""
        self._n_steps += 1

    def drain(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Means since the last time: losses per optimizer step, all else per batch; empty where there was no step.

        Parameters
        ----------
        over_processes
            Averages a tensor over the processes of a distributed training.
        """
        if self._n_steps == 0:
            return {}
        names = list(self._sums)
        means = torch.stack([self._sums[name] / (self._weights.get(name) or self._n_steps) for name in names])
        means = means if over_processes is None else over_processes(means)
        self._sums, self._n_steps = {}, 0
        self._weights.clear()
        return dict(zip(names, means.tolist(), strict=True))

    def _sum(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
