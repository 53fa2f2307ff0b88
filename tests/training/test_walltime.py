"""Where seconds go, by a clock that is set by hand; what is told of devices."""

import types

import pytest

from ssjax.parallel import accelerators
from ssjax.training.walltime import WallTime


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def test_steps_are_timed_without_what_lies_between_them():
    clock = Clock()
    wall = WallTime(clock)
    clock.now += 7  # the start
    wall.begin()
    with wall.spent_on("compile"):
        clock.now += 20
    clock.now += 2
    assert wall.end_step() == 2
    clock.now += 3
    assert wall.end_step() == 3
    with wall.spent_on("validation"):
        clock.now += 5
    with pytest.raises(KeyError), wall.spent_on("saves"):
        clock.now += 1
        raise KeyError
    clock.now += 4
    assert wall.end_step() == 4
    clock.now += 8
    assert wall.summary() == {
        "goodput": 9 / 50,
        "seconds_steps": 9,
        "seconds_compile": 20,
        "seconds_validation": 5,
        "seconds_saves": 1,
        "seconds_other": 15,
    }


def test_no_time_at_all_is_no_division_by_zero():
    clock = Clock()
    wall = WallTime(clock)
    wall.begin()
    assert wall.end_step() == 0 and wall.summary()["goodput"] == 0


def devices(kind, cores=1, count=4):
    return [
        types.SimpleNamespace(device_kind=kind, core_on_chip=i % cores, process_index=i // 2)
        for i in range(count)
    ]


def test_a_chip_of_two_devices_has_its_peak_once():
    assert accelerators.peak_flops(devices("TPU v4")) == 275e12
    assert accelerators.peak_flops(devices("TPU v4", cores=2)) == 137.5e12
    assert accelerators.peak_flops([types.SimpleNamespace(device_kind="NVIDIA H200")]) == 989e12
    assert accelerators.peak_flops(devices("cpu")) is None


def test_devices_are_counted_by_kind():
    assert accelerators.device_line(devices("TPU v4")) == "4 x TPU v4 of 2 processes"
    assert accelerators.device_line(devices("cpu", count=1)) == "1 x cpu"


@pytest.fixture
def on_cpu(monkeypatch):
    """A machine on which nobody said what JAX should compute on, and it took the CPU."""
    monkeypatch.setattr(accelerators, "_asked_platforms", lambda: "")
    monkeypatch.setattr(accelerators.importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(accelerators, "_is_installed", lambda package: True)
    return monkeypatch


def test_a_machine_without_accelerators_is_not_warned(on_cpu, tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()  # of a driver without a card
    assert accelerators.fallback_line(tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [("nvidia0", "an NVIDIA GPU"), ("kfd", "an AMD GPU"), ("accel0", "TPU"), ("vfio/0", "TPU")],
)
def test_an_accelerator_that_is_not_used_is_a_warning(on_cpu, tmp_path, name, said):
    path = tmp_path / "dev" / name
    path.parent.mkdir(parents=True)
    path.touch()
    line = accelerators.fallback_line(tmp_path)
    assert line.startswith("WARNING: JAX computes on the CPU, although there is") and said in line
    on_cpu.setattr(accelerators, "_asked_platforms", lambda: "cpu")
    assert accelerators.fallback_line(tmp_path) == ""


def test_a_plugin_that_failed_is_a_warning(on_cpu, tmp_path):
    plugin = types.SimpleNamespace(name="xla_cuda13")
    on_cpu.setattr(accelerators.importlib.metadata, "entry_points", lambda group: [plugin])
    assert "there is the JAX plugin xla_cuda13" in accelerators.fallback_line(tmp_path)
