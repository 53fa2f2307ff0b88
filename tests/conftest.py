"""Shared fixtures. Helpers and independent oracles live in `oracles.py`, beside this file."""

import os
import sys
from pathlib import Path

import jax
import pytest

# With the TPU compiler installed, processes that do not say so look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
# Verbs keep compiled programs in the user's home, unless JAX's own switch is off. What tests of
# several processes share lies in a directory of theirs, and so switches it on.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import `oracles`
# Nearly all the time of these tests is XLA compiling small programs: 5.8 s against 3.6 s for one
# drafter without optimisations, and a third less again with the emitters of before 2025 (52 s
# against 34 s for tests/models/test_lora.py). JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs the suite with
# the compiler of users, as the processes that tests start always do.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):  # a flag that XLA does not know ends the process
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

jax.config.update(
    "jax_num_cpu_devices", 8
)  # for tests/parallel/test_partitioning.py; the others use one

import oracles  # noqa: E402

# A minute and more each; begun first, so that neither worker is left alone with one at the end.
SLOW_FILES = (
    "test_runs.py",
    "test_sample.py",
    "test_finetune.py",
    "test_lossless_matrix.py",
    "test_partitioning.py",
    "test_best_way.py",
    "test_processes.py",
    "test_study.py",
    "test_sampling_penalties.py",
    "test_plans.py",
    "test_malformed.py",
    "test_transformer.py",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def tiny():
    """A random model: 1 trunk layer, 2 stream layers, 3 streams, 13 tokens; (model, params)."""
    model = oracles.make_model()
    return model, oracles.random_params(model, seed=0)


@pytest.fixture(scope="session")
def counting():
    """The same model trained to count upwards; (model, params, metrics of the last step)."""
    return oracles.train_to_count(steps=150)


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file():
    """Compiled programs are dropped after each file.

    They keep memory mappings: the 36 tests of test_transformer.py leave 3,715, and 748 once the
    programs are dropped. A process may have 65,530 (vm.max_map_count), and a worker of the stress
    tests crashed in the compiler.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs:// in memory, and a cache of its own for what is fetched; gives the objects by name."""
    from buckets import memory_bucket

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    with memory_bucket() as objects:
        yield objects
