"""What a training run calls on its way: metrics file, display, and the callbacks of users."""

from collections.abc import Mapping


class StopTraining(Exception):
    """Raised by a callback: the run ends in order.

    >>> class Budget(ssjax.Callback):
    ...     def on_step(self, step, metrics):
    ...         if step >= 1000:
    ...             raise ssjax.StopTraining

    It is saved after the step that is under way, at most two steps after the one that the callback
    was told of, and the same training, started again, continues it.
    """


class Callback:
    """Told what happens in a training run. Every method does nothing: override those of interest.

    >>> class Losses(ssjax.Callback):
    ...     def on_evaluation(self, step, metrics):
    ...         print(step, metrics["validation_loss"])
    >>> Losses().on_evaluation(200, {"validation_loss": 1.5})
    200 1.5

    The values are plain numbers on the host, and no call makes the device wait: a step is told of
    while the next one is computed. Of several processes only the first calls. An exception other
    than `StopTraining` ends the training at once, without saving; `on_end` is called all the same.
    """

    def on_start(self, step: int, num_steps: int) -> None:
        """Before the first step.

        Args:
          step: updates applied so far; above 0 the run continues.
          num_steps: of the whole run.
        """

    def on_progress(self, step: int, loss: float, tokens_per_second: float) -> None:
        """After every step.

        Args:
          step: updates applied, this one included.
          loss: that was minimised in this step: nats per target token, weighted over the outputs.
          tokens_per_second: prompt and target tokens, mean since the last `on_step`; of the seconds
            of steps alone.
        """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Every `config.train.log_every` steps and after the last one.

        Args:
          step: updates applied, this one included.
          metrics: of a training record of metrics.jsonl, see `ssjax.training.reporting`.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each validation.

        Args:
          step: updates applied.
          metrics: of a validation record of metrics.jsonl: validation_loss and others; where
            prompts are decoded also validation_tokens_per_call and validation_acceptance_1, ...
        """

    def on_saving(self, step: int) -> None:
        """Before a checkpoint is written: what shall not be behind it is kept now.

        Args:
          step: updates applied in it.
        """

    def on_checkpoint(self, step: int) -> None:
        """When a checkpoint is whole on disk, at the latest before the next one is written.

        Args:
          step: updates applied in it; the name of its directory.
        """

    def on_summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """After the last step of this start, unless an exception ended it.

        Args:
          step: updates applied.
          metrics: goodput, the share of all seconds since the start that went into steps; and
            seconds_steps, seconds_compile, seconds_validation, seconds_saves, seconds_other.
        """

    def on_end(self, complete: bool) -> None:
        """At the end, however it came; called for each callback whose `on_start` returned.

        Args:
          complete: all steps were made and saved, or train.patience ended the run; False after a
            stop or an exception.
        """


class Recorder(Callback):
    """Whatever is measured, by steps, validations and the summary, goes to `write`."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, metrics)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, metrics)

    def on_summary(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, metrics)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps one record.

        Args:
          step: updates applied.
          metrics: by name.
        """
        raise NotImplementedError
