"""What capture keeps of a training of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet
from dynprobe.probe_task import ProbeTask
from dynprobe.tasks import Split, Task, probe_task


@dataclass(frozen=True)
class Watch:
    """What capture keeps of a training.

    Attributes
    ----------
    settings
        What to keep and when.
    probe
        Examples to measure the model on; by default those of the validation split. Trainings on several tasks can be compared
        when they are measured on the same ones, which then have no labels.
    probe_tasks
        Tasks, by name, of which pooled vectors are kept for linear probes: of all training and test examples, so take few
        enough of them.
    """

    settings: CaptureSettings | None = None
    probe: Split | None = None
    probe_tasks: Mapping[str, Task] = field(default_factory=dict)

    def probe_set(self, tokenizer: Any, *, max_length: int) -> ProbeSet | None:
        """The examples as model inputs, or ``None`` where they are those of the training itself."""
        if self.probe is None:
            return None
        return ProbeSet.from_texts(
            self.probe.texts, tokenizer, labels=self.probe.labels, n_examples=len(self.probe), max_length=max_length
        )

    def tasks(self, tokenizer: Any, *, max_length: int) -> dict[str, ProbeTask]:
        """The probe tasks as model inputs."""
        return {
            name: probe_task(task, tokenizer, n_train=None, n_test=None, max_length=max_length)
            for name, task in self.probe_tasks.items()
        }
