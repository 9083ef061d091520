"""From the start of a process to its first token, and what memory that takes.

    python bench/startup.py MODEL.gguf [--rounds 7] [--tools FOLDER] [--json bench/results/startup-NAME.json]

chat     `ridgeline chat MODEL -p ... --max-tokens 1`, until the first byte of the answer, and until it has ended
serve    `ridgeline serve MODEL`, until the answer to the first request for one token
memory   `ridgeline chat` with a prompt of 512 tokens and 64 new ones: the most that was resident, by kind

FOLDER has `llama-completion` and `llama-server` of llama.cpp, which then take turns with Ridgeline. One round before
those that count packs the weights, compiles the vocabulary and measures the roofline, as the first start ever does.

Times are from before the process is made. On a machine that is not idle the least is what the program needs, and the
CPU seconds (of all its processes, until they ended) say more than the clock does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from http_streams import free_port
from machine import facts, foreign_share
from ridgeline.chips.cpu.pages import page_bytes
from ridgeline.model.load import page_layout, plan_model
from ridgeline.ops.step import PAGE_SLOTS
from ridgeline.text.open import open_text
from ridgeline.weights.open import open_checkpoint

PROMPT = "Hi"
MEMORY_PROMPT_TOKENS, MEMORY_NEW_TOKENS = 512, 64
POLL_SECONDS = 0.002
MEMORY_POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 60.0
TEXT = Path(__file__).parent / "data" / "varied.txt"

Figures = dict[str, float]


def ridgeline(*arguments: str) -> list[str]:
    """The command line, run as a module so that no launcher's time is counted."""
    return [sys.executable, "-m", "ridgeline", *arguments]


def one_answer(command: Sequence[str]) -> Figures:
    """Run a command that writes an answer to stdout."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process.stdout as out:
        os.read(out.fileno(), 1)
        first = time.perf_counter() - begin
        out.read()
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.perf_counter() - begin
    if status != 0:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return {"first_byte_seconds": first, "end_seconds": ended, **_cost(usage)}


def one_request(command: Sequence[str], port: int, path: str, body: Mapping[str, Any]) -> Figures:
    """Start a server, ask it until it answers, end it."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    request = f"{head}content-length: {len(content)}\r\n\r\n".encode() + content
    while not _answers(port, request):
        if process.poll() is not None or time.perf_counter() - begin > GIVE_UP_SECONDS:
            process.kill()
            raise SystemExit(f"{' '.join(command)} did not answer")
        time.sleep(POLL_SECONDS)
    answered = time.perf_counter() - begin
    process.send_signal(signal.SIGTERM)
    _, _, usage = os.wait4(process.pid, 0)
    return {"answer_seconds": answered, **_cost(usage)}


def _answers(port: int, request: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)
            return b" 200 " in connection.recv(1 << 16).split(b"\r\n")[0]
    except OSError:
        return False


def _cost(usage: Any) -> Figures:
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_resident_bytes": usage.ru_maxrss * 1024.0}


def chat(model: Path) -> Figures:
    """One token in the terminal."""
    return one_answer(ridgeline("chat", str(model), "-p", PROMPT, "--max-tokens", "1", "--quiet"))


def serve(model: Path) -> Figures:
    """One token over HTTP."""
    port = free_port()
    command = ridgeline("serve", str(model), "--port", str(port))
    return one_request(command, port, "/v1/chat/completions", _one_token())


def llama_completion(tools: Path, model: Path, num_threads: int) -> Figures:
    """The same by llama.cpp; its first byte is an echo of the prompt, so only the end is comparable."""
    command = [str(tools / "llama-completion"), "-m", str(model), "-p", PROMPT, "-n", "1", "-no-cnv",
               "-t", str(num_threads)]  # fmt: skip
    return one_answer(command)


def llama_server(tools: Path, model: Path, num_threads: int) -> Figures:
    """The same by llama.cpp."""
    port = free_port()
    command = [str(tools / "llama-server"), "-m", str(model), "--port", str(port), "-t", str(num_threads)]
    return one_request(command, port, "/v1/chat/completions", _one_token())


def _one_token() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}


def memory(model: Path) -> Figures:
    """The most memory of a conversation, next to what it cannot do without: the weights, keys and values."""
    checkpoint = open_checkpoint(model)
    plan = plan_model(checkpoint)
    tokenizer, template = open_text(checkpoint)
    words = TEXT.read_text().split(" ")
    count = 0
    while True:
        prompt = " ".join(words[:count])
        text = template.render([{"role": "user", "content": prompt}])
        num_tokens = len(tokenizer.encode(text))
        if num_tokens >= MEMORY_PROMPT_TOKENS:
            break
        count += max(1, (MEMORY_PROMPT_TOKENS - num_tokens) // 4)
    num_pages = -(-(num_tokens + MEMORY_NEW_TOKENS) // PAGE_SLOTS)
    needed = plan.weight_bytes + num_pages * page_bytes(page_layout(plan.spec, "bf16"))
    command = ridgeline("chat", str(model), f"--prompt={prompt}", "--max-tokens", str(MEMORY_NEW_TOKENS), "--quiet")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most: Figures = {"resident_bytes": 0.0}
    while process.poll() is None:
        most = max(most, _resident(process.pid), key=lambda found: found["resident_bytes"])
        time.sleep(MEMORY_POLL_SECONDS)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[:5])} ended with {process.returncode}")
    return {**most, "prompt_tokens": num_tokens, "weights_and_kv_bytes": needed,
            "ratio": most["resident_bytes"] / needed}  # fmt: skip


def _resident(process_id: int) -> Figures:
    """Resident memory by kind (Linux)."""
    try:
        text = Path(f"/proc/{process_id}/smaps_rollup").read_text()
    except OSError:
        return {"resident_bytes": 0.0}
    sizes = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    anonymous = sizes["Anonymous"]
    return {"resident_bytes": sizes["Rss"], "anonymous_bytes": anonymous, "file_bytes": sizes["Rss"] - anonymous}


def main() -> int:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, tools = options.model, options.tools
    num_threads = len(os.sched_getaffinity(0))
    sides: dict[str, Callable[[], Figures]] = {"chat": lambda: chat(model), "serve": lambda: serve(model)}
    if tools is not None:
        sides["llama-completion"] = lambda: llama_completion(tools, model, num_threads)
        sides["llama-server"] = lambda: llama_server(tools, model, num_threads)
    for measure in sides.values():
        measure()
    rounds: dict[str, list[Figures]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, measure in sides.items():
            with foreign_share() as foreign:
                figures = measure()
            rounds[name].append({**figures, "foreign_share": foreign.share})
            print(json.dumps({name: rounds[name][-1]}), file=sys.stderr)
    report = {
        "machine": facts(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": model.name,
        "rounds": rounds,
        "memory": memory(model),
    }
    show(rounds, report["memory"])
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def show(rounds: Mapping[str, list[Figures]], peak: Figures) -> None:
    """Least and median of every figure."""
    print(f"{'':<18}{'figure':<22}{'least':>10}{'median':>10}")
    for name, entries in rounds.items():
        for figure in entries[0]:
            values = [entry[figure] / (1e6 if figure.endswith("_bytes") else 1) for entry in entries]
            unit = " MB" if figure.endswith("_bytes") else ""
            print(f"{name:<18}{figure:<22}{min(values):>10.3f}{statistics.median(values):>10.3f}{unit}")
    for figure, value in peak.items():
        print(f"{'memory':<18}{figure:<22}{value / 1e6 if figure.endswith('_bytes') else value:>10.3f}")


if __name__ == "__main__":
    sys.exit(main())
