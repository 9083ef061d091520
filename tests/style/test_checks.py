"""The house rules that tools can check: format, lint, types, layers, and what must not stand in tracked files."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON_FOLDERS = ["src", "tests", "bench"]


def tracked(*patterns: str) -> list[Path]:
    """Files of the project, whether it is a git checkout or an unpacked archive."""
    listing = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).exists()]
    return [path for pattern in patterns for path in ROOT.rglob(pattern)]


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install ridgeline[test])")
    return found


def test_ruff() -> None:
    check(tool("ruff"), "check", *PYTHON_FOLDERS)


def test_format() -> None:
    check(tool("ruff"), "format", "--check", *PYTHON_FOLDERS)


def test_clang_format() -> None:
    sources = [str(path) for path in tracked("*.cpp", "*.h")]
    assert sources
    check(tool("clang-format"), "--dry-run", "--Werror", *sources)


def test_types() -> None:
    check(tool("mypy"))


def test_layers() -> None:
    check(tool("lint-imports"), "--no-cache")


def test_no_files_that_nobody_reads_in_a_sitting() -> None:
    limits = {".py": 450, ".cpp": 600, ".h": 600}
    long = {}
    for path in tracked("src/*.py", "src/**/*.py", "src/**/*.cpp", "src/**/*.h"):
        num_lines = len(path.read_text().splitlines())
        if num_lines > limits[path.suffix]:
            long[str(path.relative_to(ROOT))] = num_lines
    assert not long


def test_no_refused_names() -> None:
    refused = re.compile(r"\bclass \w*(Manager|Helper|Util|Utils|Handler|Impl)\b")
    bad = [str(p) for p in tracked("src/**/*.py") if refused.search(p.read_text())]
    rooms = {"utils", "common", "helpers", "misc", "shared", "core"}
    bad += [str(p) for p in tracked("src/**/*.py") if rooms & set(p.relative_to(ROOT).parent.parts)]
    assert not bad


def test_no_code_is_executed_from_data() -> None:
    found = []
    for path in tracked("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = bool({"pickle", "marshal", "shelve", "dill"} & {name.split(".")[0] for name in names})
            if isinstance(node, ast.Call):
                bad |= isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
                bad |= ast.unparse(node.func) == "torch.load"
                bad |= any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
            if bad:
                found.append(f"{path}:{getattr(node, 'lineno', 0)}")
    assert not found


def test_every_module_says_what_it_is() -> None:
    silent = []
    for path in tracked("src/*.py", "src/**/*.py"):
        text = path.read_text()
        if text.strip() and not text.lstrip().startswith(('"""', "#!")):
            silent.append(str(path))
    assert not silent
