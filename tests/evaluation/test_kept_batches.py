"""An evaluation that is stopped goes on where it was: scripted decoders, files by hand."""

import dataclasses

import pytest

from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import BatchTiming
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.evaluation.kept_batches import KeptBatches, Stopped
from ssjax.evaluation.speed import Entry, TimedBatch, time_ways

PROMPTS = [[n + 1] * (1 + n % 3) for n in range(7)]
ABOUT = {"step": 3, "decode": {"temperature": 0.0}}


@dataclasses.dataclass
class Scripted:
    """A decoder whose output says which prompt it was, with which limit, seed and number."""

    name: int
    decoded: list  # numbers of prompts, in their order

    def one_batch_per_bucket(self, prompts, batch_size):
        return [prompts[:batch_size]] if prompts else []

    def generate(self, request, way):
        """Compiles; not one of the prompts that count."""

    def run_batches(self, request, way):
        for batch in request.batches():
            rows = []
            for row in range(batch.num_prompts):
                number = int(batch.places[row])
                said = (batch.prompts[row][0], batch.limits[row], batch.seeds[row], number)
                tokens = tuple(int(each) for each in (self.name, *said))
                self.decoded.append(number)
                rows.append(Completion(tokens, "length", (1, 4), (3,), 3, log_probs=(0.5, 0.25)))
            yield rows, BatchTiming(0.5, 1.5)


REQUEST = Request(PROMPTS, 9, Sampling(), seed=11, batch_size=2)


def decode(kept=None):
    """What two ways make of the prompts, and which ones each of them decoded."""
    decoders = [Scripted(1, []), Scripted(2, [])]
    entries = [Entry(decoder, None) for decoder in decoders]
    try:
        found = time_ways(entries, REQUEST, kept=kept)
    except Stopped:
        found = None
    return found, [decoder.decoded for decoder in decoders]


def stopping_after(count):
    """Asked to stop by the time so many batches are decoded; the first look comes before them."""
    looks = iter([False] * count + [True] * 9)
    return lambda: next(looks)


@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_a_stopped_evaluation_goes_on_and_gives_the_same(tmp_path, stopped_after, capsys):
    expected, everything = decode()
    path = tmp_path / "kept.jsonl"
    nothing, first = decode(KeptBatches(path, ABOUT, stopping_after(stopped_after)))
    done = list(range(2 * stopped_after))
    assert nothing is None and first == [done, done]
    found, rest = decode(KeptBatches(path, ABOUT, lambda: False))
    assert found == expected
    assert [a + b for a, b in zip(first, rest, strict=True)] == everything
    said = capsys.readouterr().err
    assert ("goes on after" in said) == (stopped_after > 0)


def test_a_second_start_of_a_finished_one_decodes_nothing(tmp_path):
    kept = KeptBatches(tmp_path / "kept.jsonl", ABOUT, lambda: False)
    expected, _ = decode(kept)
    again = KeptBatches(tmp_path / "kept.jsonl", ABOUT, lambda: False)
    assert decode(again) == (expected, [[], []])
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_decoded_again(tmp_path):
    path = tmp_path / "kept.jsonl"
    expected, _ = decode(KeptBatches(path, ABOUT, lambda: False))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    found, decoded = decode(KeptBatches(path, ABOUT, lambda: False))
    assert (found, decoded) == (expected, [[6], [6]]) and path.read_bytes() == content


@pytest.mark.parametrize("content", ["", "{}\n[]\n", '{"step": 2', "\0\n"])
def test_what_is_of_something_else_is_begun_anew(tmp_path, content):
    path = tmp_path / "kept.jsonl"
    path.write_text(content)
    _, decoded = decode(KeptBatches(path, ABOUT, lambda: False))
    assert decoded == [list(range(7))] * 2


def test_other_settings_begin_anew(tmp_path):
    path = tmp_path / "kept.jsonl"
    decode(KeptBatches(path, ABOUT, lambda: False))
    kept = KeptBatches(path, ABOUT | {"step": 4}, lambda: False)
    assert kept.of_ways(2) == [[], []] and len(path.read_text().splitlines()) == 1


def test_batches_are_kept_with_all_that_they_say(tmp_path):
    batch = TimedBatch(
        (Completion((5, 2), "eos", (1, 1), (0,), 2), Completion((), "empty", (), (), 0)),
        BatchTiming(0.125, 0.1),
    )
    KeptBatches(tmp_path / "kept", {}, lambda: False).append([batch, batch])
    assert KeptBatches(tmp_path / "kept", {}, lambda: False).of_ways(2) == [[batch], [batch]]
