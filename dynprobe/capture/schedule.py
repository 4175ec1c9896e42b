"""When to take snapshots: a rule that a user can type, and the steps it gives."""

import math
from dataclasses import dataclass

from dynprobe.errors import UsageError

DEFAULT_SCHEDULE = "log:8"
# Where nobody says how long a training will be, log-spaced steps are spaced as in one of this length, and go on so.
ASSUMED_STEPS = 10_000
_EXPECTED = "`schedule` must be 'log:N' (N steps, log-spaced), 'every:N', 'at:STEP,STEP,...' or 'ends'"


@dataclass(frozen=True)
class Schedule:
    """A rule for the steps at which snapshots are taken; step 0 and the last are always among them.

    Attributes
    ----------
    kind
        ``"log"``, ``"every"``, ``"at"`` or ``"ends"``.
    numbers
        Number of log-spaced steps, the interval, or the steps.

    Examples
    --------
    >>> Schedule.parse("log:4").steps(1000)
    (0, 1, 10, 100, 1000)
    >>> Schedule.parse("every:40").steps(100)
    (0, 40, 80, 100)
    """

    kind: str
    numbers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read ``log:8``, ``every:100``, ``at:10,50,200`` or ``ends``.

        Raises
        ------
        UsageError
            For anything else, saying what is possible.
        """
        kind, _, rest = text.strip().partition(":")
        try:
            numbers = tuple(int(part) for part in rest.split(",")) if rest else ()
        except ValueError:
            raise UsageError(f"{_EXPECTED}; got {text!r}") from None
        one_number = len(numbers) == 1 and numbers[0] >= 1
        fits = {"log": one_number, "every": one_number, "at": bool(numbers) and min(numbers) >= 0, "ends": not numbers}
        if not fits.get(kind, False):
            raise UsageError(f"{_EXPECTED}; got {text!r}")
        return cls(kind, numbers)

    def __str__(self) -> str:
        return self.kind if not self.numbers else f"{self.kind}:{','.join(map(str, self.numbers))}"

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """Steps of a training of `max_steps` optimizer steps, ascending, from 0 to `max_steps`."""
        between: set[int] = set()
        if self.kind == "log":
            last, n = max(max_steps, 1), self.numbers[0]
            between = {round(last ** (place / max(n - 1, 1))) for place in range(n)}
        elif self.kind == "every":
            between = set(range(0, max_steps, self.numbers[0]))
        elif self.kind == "at":
            between = set(self.numbers)
        return tuple(sorted({0, max_steps} | {step for step in between if step < max_steps}))

    def step_after(self, step: int) -> int | None:
        """The next step after `step` in a training of unknown length; ``None`` when only the last is left.

        ``log:N`` is spaced as for a training of 10,000 steps and goes on at the same ratio beyond them: a shorter training
        has fewer than N, a longer one more.

        Examples
        --------
        >>> schedule, steps = Schedule.parse("log:5"), [0]
        >>> while steps[-1] < 10_000:
        ...     steps.append(schedule.step_after(steps[-1]))
        >>> steps
        [0, 1, 10, 100, 1000, 10000]
        """
        if self.kind == "every":
            return (step // self.numbers[0] + 1) * self.numbers[0]
        if self.kind == "at":
            return min((number for number in self.numbers if number > step), default=None)
        if self.kind == "ends":
            return None
        # The first power of the ratio that rounds to more than `step`; with log:1 the one step is the first.
        if self.numbers[0] == 1:
            return 1 if step < 1 else None
        ratio = ASSUMED_STEPS ** (1 / (self.numbers[0] - 1))
        power = math.floor(math.log(max(step, 1), ratio))
        while round(ratio**power) <= step:
            power += 1
        return round(ratio**power)
