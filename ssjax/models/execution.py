"""How a model is computed: changes time and memory, never results beyond rounding."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Execution:
    """The choices that depend on hardware."""

    platform: str = "cpu"  # that the program is compiled for: cpu, gpu or tpu
    fused_attention: bool = False  # main rows by the platform's kernel where there is one
    remat: str = "none"  # what the backward pass computes again; see `TrainConfig`
    few_rows_as_columns: bool = False  # decoding on CPU; see `projection.project`
    few_rows_padded: bool = False  # decoding on TPU; see there
    joined_projections: bool = False  # decoding on CPU; see `parameters.join_projections`
