"""What `import client` costs a fresh interpreter, beside `import httpx`, which it is built on, and no import at all.

Interpreters are started in turn, so that whatever else the machine does falls on all three alike. `seconds` and `cpu` are
medians over whole processes, from start to end. Fails if the SDK brings a package that its promise excludes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {"python": "pass", "httpx": "import httpx", "client": "import client"}
HEAVY = ("torch", "numpy", "fastapi", "PIL", "celery", "redis")
ROOT = Path(__file__).parent.parent


def run(code: str) -> tuple[float, float]:
    """Wall and CPU seconds of one interpreter that runs `code`."""
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment())
    _, status, used = os.wait4(process, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"{code!r} ended with {os.waitstatus_to_exitcode(status)}")
    return wall, used.ru_utime + used.ru_stime


def brought() -> list[str]:
    """Which of the heavy packages are loaded after `import client`."""
    code = f"import client, json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    return json.loads(done.stdout)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="interpreters of each kind (default 20)")
    runs = parser.parse_args().runs
    for code in CASES.values():
        run(code)  # writes .pyc files, fills the page cache
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(runs):
        for name, code in CASES.items():
            seen[name].append(run(code))
    seconds, cpu = (
        {name: round(statistics.median(pair[which] for pair in pairs), 4) for name, pairs in seen.items()}
        for which in (0, 1)
    )
    print(f"{'':<16}{'seconds':>9}{'cpu':>9}")
    for name, code in CASES.items():
        print(f"{code if name != 'python' else 'nothing':<16}{seconds[name]:>9.3f}{cpu[name]:>9.3f}")
    heavy = brought()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "brought": heavy}))
    if heavy:
        sys.exit(f"import client brought {', '.join(heavy)}")


if __name__ == "__main__":
    main()
