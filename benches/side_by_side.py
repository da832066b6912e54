"""Runs two programs in turn and writes down everything that a figure of speed needs: used by the other scripts here."""
import datetime, json, os, pathlib, platform, re, shutil, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["f16c", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve"]


def run(command, env=None):
    """Runs `command` to its end. Standard output, wall seconds, and the most memory it held at once, in bytes."""
    if shutil.which(str(command[0])) is None:
        sys.exit(f"{command[0]} is no program: build it first, or name another (see --help)")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        load = os.getloadavg()[0]
        begun = time.monotonic()
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode != 0:
            sys.exit(f"{command[0]} ended with {child.returncode}:\n{err.read()[-3000:]}")
        scale = 1 if sys.platform == "darwin" else 1024
        return out.read(), {"wall_seconds": round(wall, 3), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
                            "peak_bytes": usage.ru_maxrss * scale, "load_before": round(load, 2)}


def machine(python, packages):
    """What the figures depend on, without names or paths of the machine."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    field = lambda name: (re.search(rf"^{name}\s*:\s*(.*)$", cpu, re.M) or [None, ""])[1]
    flags = (field("flags") or field("Features")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = f"import importlib.metadata as m\nfor p in {packages!r}:\n try: print(p, m.version(p))\n except m.PackageNotFoundError: pass"
    versions = subprocess.run([str(python), "-c", lines], capture_output=True, text=True).stdout
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    return {"cpu": field("model name") or platform.processor() or platform.machine(), "cores": cores,
            "flags": [flag for flag in FLAGS if flag in flags], "memory_bytes": memory,
            "kernel": f"{platform.system()} {re.match('[0-9.]*', platform.release())[0]}", "python": platform.python_version(),
            "packages": dict(line.split(" ", 1) for line in versions.splitlines()),
            "commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
            "rustc": subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()}


def alternate(ours, peers, repeats):
    """Runs `ours` and each peer in turn, `repeats` times: every peer's run has one of ours right before it.

    `ours` and the values of `peers` take no argument and return a dictionary with `tokens_per_second`.
    """
    runs = []
    for i in range(repeats):
        for name, peer in peers.items():
            for program, function in [("mechinterp", ours), (name, peer)]:
                print(f"{i + 1}/{repeats} {program} …", file=sys.stderr, flush=True)
                result = {"program": program, "against": name, "pair": i, **function()}
                print(f"    {result['tokens_per_second']:,.0f} tokens/s, {result['peak_bytes'] / 1e6:,.0f} MB", file=sys.stderr)
                runs.append(result)
    return runs


def summarise(runs):
    """Medians of every program, and the median, least and greatest ratio over the pairs with every peer."""
    median = lambda rows, key: statistics.median(row[key] for row in rows)
    programs = dict.fromkeys(row["program"] for row in runs)
    rows = {name: [row for row in runs if row["program"] == name] for name in programs}
    summary = {"medians": {name: {key: median(rows[name], key) for key in ("tokens_per_second", "wall_seconds", "peak_bytes")} for name in rows}, "ratios": {}}
    for peer in rows:
        if peer == "mechinterp":
            continue
        pairs = {}
        for row in runs:
            if row["against"] == peer:
                pairs.setdefault(row["pair"], {})[row["program"]] = row["tokens_per_second"]
        ratios = [pair["mechinterp"] / pair[peer] for pair in pairs.values()]
        summary["ratios"][peer] = {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return summary


def table(summary):
    """The summary as a small Markdown table."""
    lines = ["| program | tokens/s | ours is faster by | peak memory | whole process |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, row in summary["medians"].items():
        ratio = summary["ratios"].get(name)
        times = f"{ratio['median']:.2f} × ({ratio['least']:.2f}–{ratio['greatest']:.2f})" if ratio else ""
        lines.append(f"| {name} | {row['tokens_per_second']:,.0f} | {times} | {row['peak_bytes'] / 1e6:,.0f} MB | {row['wall_seconds']:.1f} s |")
    return "\n".join(lines)


def write(name, bench, settings, machine_, runs, summary, extra=None):
    """Writes `benches/results/NAME.json` and prints the table. Settings must name no path of this machine."""
    path = ROOT / "benches" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = {"bench": bench, "date": datetime.date.today().isoformat(), "machine": machine_, "settings": settings,
              "summary": summary, **(extra or {}), "runs": runs}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    flags = ", ".join(machine_["flags"])
    print(f"{machine_['cores']} cores of {machine_['cpu']} ({flags}), {machine_['memory_bytes'] / 1e9:.0f} GB\n")
    print(table(summary))
    print(f"\nwrote {path.relative_to(ROOT)}")


def add_common(parser, default_name):
    """The arguments that every script here takes."""
    parser.add_argument("model", help="directory of the model, in Hugging Face layout")
    parser.add_argument("--python", default=os.environ.get("MECHINTERP_PEER_PYTHON", sys.executable),
                        help="the Python that has the peers' packages (default: $MECHINTERP_PEER_PYTHON, else this one)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs to run; figures are medians (default %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of every program; all cores when absent")
    parser.add_argument("--name", default=default_name, help="name of the file under benches/results (default %(default)s)")


def thread_environment(threads):
    """Limits PyTorch to as many threads as our program gets."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if threads else {}
