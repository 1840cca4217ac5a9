"""One fuzzing process: ``python -m fuzz.engine <target> <folder> <seconds>``; see `fuzz.__main__`.

Atheris (libFuzzer) chooses the inputs by the branches they reach in our own modules, which are instrumented as they are
imported; `fuzz.guards` judges what happens.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import atheris

_MEMORY_BYTES = 6 * 2**30
_INSTRUMENTED = (
    *("pruning_core.formats", "pruning_core.calibration", "pruning_core.network", "pruning_core.recipe"),
    *("pruning_core.masks", "api", "python_multipart"),
)


def main() -> None:
    """Fuzz until the time is over."""
    name, folder, seconds = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        import pruning_core.formats  # noqa: F401
        from fuzz import targets
    from fuzz.guards import Judge

    target = targets.TARGETS[name]
    judge = Judge(folder / "findings")
    corpus = folder / "corpus"
    for i, data in enumerate(target.seeds()):
        (corpus / f"seed-{i}").write_bytes(data)
        judge.warm_up(target.run, data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if target.mutate is None or chance.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        changed = target.mutate(data, chance)
        return changed if len(changed) <= most else bytes(atheris.Mutate(data, most))

    atheris.Setup(
        [
            *(sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={target.most}"),
            *("-timeout=60", "-rss_limit_mb=0", "-reload=0", "-len_control=0", "-print_final_stats=1"),
            f"-artifact_prefix={folder / 'findings'}/",
        ],
        lambda data: judge.judge(target.run, data),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
