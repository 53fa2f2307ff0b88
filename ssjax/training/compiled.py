"""The training step as it was compiled: for each width of rows once, with what it costs."""

import dataclasses
import time
from collections.abc import Callable

from ssjax.messages import say
from ssjax.models.parameters import Params
from ssjax.parallel.program_cost import count_flops, peak_memory
from ssjax.training.losses import Batch
from ssjax.training.programs import TrainPrograms
from ssjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Step:
    """The training step for rows of one width."""

    run: Callable[[TrainState, Params, Batch], tuple]  # donates the state
    flops: float  # of matrix products, what is computed again included, of one device


class CompiledSteps:
    """Compiles when a width is first met.

    Not left to `jax.jit`, which would compile within a step: so the time of steps is known apart,
    and what the compiler says of the program is told before it runs.

    Args:
      programs: of the run.
    """

    def __init__(self, programs: TrainPrograms):
        self._programs = programs
        self._steps: dict[int, Step] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def find(self, batch: Batch) -> Step | None:
        """The step for rows of this width, if it was compiled."""
        return self._steps.get(batch.tokens.shape[1])

    def compile(self, state: TrainState, frozen: Params, batch: Batch) -> Step:
        """Compiles it, and says what it needs; to be called on the mesh of the programs.

        Args:
          state, frozen, batch: of the first step; only their shapes and shardings are looked at.
        """
        programs, arguments = self._programs, (state, frozen, batch)
        begun = time.perf_counter()
        program = programs.train.lower(*arguments).compile()
        seconds = time.perf_counter() - begun
        flops = count_flops(programs.countable, *arguments) / programs.mesh.size
        width = batch.tokens.shape[1]
        say(
            f"compiled for rows of {width} tokens in {seconds:.1f} s; each device: "
            f"{flops / 1e12:,.3g} T operations a step, {peak_memory(program) / 2**30:.2f} GiB"
        )
        self._steps[width] = Step(program, flops)
        return self._steps[width]
