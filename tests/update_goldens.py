"""Rewrites what tests compare with; the diff is what a reviewer reads.

The resolved config of every experiment, and how a mesh of 2x2x2 divides every leaf.

python tests/update_goldens.py
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def experiment(name: str):
    """The module of an experiment, which is not part of a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants() -> list[tuple[str, str]]:
    """Every (experiment, variant)."""
    names = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
    return [(name, variant) for name in names for variant in experiment(name).VARIANTS]


def resolved(name: str, variant: str) -> str:
    """The resolved config of a variant, as JSON text."""
    from ssjax import config as config_lib

    config = config_lib.from_config_dict(experiment(name).get_config(variant))
    return json.dumps(config_lib.to_dict(config), indent=2) + "\n"


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, variant in variants():
        (GOLDEN / f"{name}.{variant}.json").write_text(resolved(name, variant))
    (ROOT / "tests" / "golden_shardings.json").write_text(shardings())


def shardings() -> str:
    """By mode and leaf, its shape and partition, as JSON text."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    import meshes

    return json.dumps(meshes.shardings((2, 2, 2)), indent=1) + "\n"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
