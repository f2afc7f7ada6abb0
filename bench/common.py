"""What the programs of this folder share: running commands, naming the machine, writing tables into Markdown files."""
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATON = ROOT / "build" / "release" / "baton"
PEER = ROOT / "build" / "peer" / "bin"  # llama.cpp's programs (bench/peer)


def run(command):
    """Standard output of a command; on failure the error names the command and its last line."""
    done = subprocess.run([str(c) for c in command], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise RuntimeError(f"{pathlib.Path(str(command[0])).name} failed ({done.returncode}): {lines[-1]}")
    return done.stdout


def file_of_type(model, kind):
    """The model in another file type, made once by llama-quantize."""
    if f".{kind.lower()}." in model.name.lower() or f"-{kind.lower()}." in model.name.lower():
        return model
    made = ROOT / "build" / "peer" / "models" / f"{model.stem}.as.{kind}.gguf"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(".partial")
        run([PEER / "llama-quantize", "--allow-requantize", model, partial, kind])
        partial.rename(made)
    return made


def cpu_model():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    name = fields.get("model name", "unknown CPU")
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value):
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def marks(name):
    return f"<!-- {name} begin -->", f"<!-- {name} end -->"


def check_section(path, name):
    """Before hours of measuring: ends the program if write_section would find no place."""
    missing = [m for m in marks(name) if not path.exists() or m not in path.read_text()]
    if missing:
        raise SystemExit(f"{name}: {path} has no marks {' and '.join(missing)}")


def write_section(path, name, text):
    """Replaces what lies between the marks of the program `name`."""
    check_section(path, name)
    begin, end = marks(name)
    old = path.read_text()
    path.write_text(old[:old.index(begin)] + f"{begin}\n{text}{end}" + old[old.index(end) + len(end):])
