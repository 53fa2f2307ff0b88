"""Kinds of settings that many keys are of."""

from typing import Annotated

from ssjax.config.ranges import Range

Count = Annotated[int, Range(0)]
Size = Annotated[int, Range(1)]
Id = Annotated[int, Range(0)]
# Of what a program holds a copy each, or a square of: more would compile for hours.
Few = Annotated[int, Range(0, 256)]
Some = Annotated[int, Range(1, 256)]
Share = Annotated[float, Range(0, below=1)]
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(above=0)]
Factor = Annotated[float, Range(above=0, high=1e6)]
