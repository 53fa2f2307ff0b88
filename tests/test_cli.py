"""The command line that all verbs share."""

from absl import flags

from ssjax import cli

flags.DEFINE_list("sizes_of_tests", [], "Only for these tests.")


def test_flags_may_be_written_with_dashes_and_values_stay_as_they_are():
    written = ["x", "--sizes-of-tests=a-b,c", "--config.data-x=y-z", "--no such-thing", "-v", "a-b"]
    kept = [cli._underscored(argument) for argument in written]
    assert kept == ["x", "--sizes_of_tests=a-b,c", *written[2:]]
