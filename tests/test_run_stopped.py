"""What a run shows of a training, and how it ends when it is stopped: in one sentence, with what is trained kept."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.machine.folders import root
from lib.notebook.execute import NotebookError, execute

TRAINS = """# %% [markdown]
# # A notebook

# %%
import os, sys
from pathlib import Path

sys.path.insert(0, "..")
from lib.config import load_config
from lib.data.sources import ensure_data, weights_folder
from lib.training.loop import train_until

Path("pid").write_text(str(os.getpid()))
config = load_config()
train_until("rpn", config, ensure_data("synthetic", config), weights_folder("synthetic", config))
"""
SHOWS = """# %%
import sys, time
print("rpn: 16 epochs of 640 images")
print("rpn is a word that other lines begin with too: it is none of a training")
print("joint  1/2  tra", end="", flush=True)
time.sleep(0.5)
print("in 0.5000  12 s")
print("\\r 50%|#####     | 1/2\\rmaskhead  2/8  train 0.1  2 s", file=sys.stderr)
"""


def written(folder: Path, text: str) -> Path:
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "03_rpn.py").write_text(text)
    return folder


def test_the_lines_of_a_training_are_told_while_it_runs(tmp_path):
    said: list[str] = []
    execute("03_rpn", written(tmp_path, SHOWS), say=said.append)
    assert sorted(said) == [
        "joint  1/2  train 0.5000  12 s",
        "maskhead  2/8  train 0.1  2 s",
        "rpn: 16 epochs of 640 images",
    ]


posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_kernel_that_ends_is_a_sentence(tmp_path, end):
    project = written(tmp_path, f"# %%\nimport os\n\n# %%\n{end}\n")
    with pytest.raises(NotebookError, match="^03_rpn stopped at cell 2 of 2: its kernel died.*same command goes on"):
        execute("03_rpn", project)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_to_the_run_reaches_the_kernel_and_a_second_one_ends_it(tmp_path, number, times):
    """The kernel's parent is this process. The cell of the second case goes on after an interrupt."""
    deaf = "while True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        send()\n"
    send = f"def send():\n    os.kill(os.getppid(), {number:d})\n    time.sleep(5)\n\n"
    text = f"# %%\nimport os, time\n\n{send}\n# %%\nsend()\n\n# %%\nprint()\n"
    if times == 2:
        text = text.replace("# %%\nsend()\n", "# %%\ntry:\n    send()\nexcept KeyboardInterrupt:\n    send()\n" + deaf)
    project, before = written(tmp_path, text), signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="^03_rpn stopped at cell 2 of 3$"):
        execute("03_rpn", project)
    assert signal.getsignal(number) in (before, signal.SIG_DFL, signal.default_int_handler)
    assert [path.name for path in (project / "notebooks").iterdir()] == ["03_rpn.py"]


class Process:
    """`python -m lib run --only 03_rpn` in a project of its own, once it has trained some epochs."""

    def __init__(self, project: Path):
        environment = os.environ | {"MASKRCNN_SET": "data.images=24 data.val_fraction=0.2 rpn.epochs=9999"}
        for variable in ("MASKRCNN_DATA", "MASKRCNN_WEIGHTS", "MASKRCNN_SOURCE", "MASKRCNN_PROFILE"):
            environment.pop(variable, None)
        command = [sys.executable, "-m", "lib", "run", "--only", "03_rpn"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=project, env=environment, text=True, **pipes)
        self.project, self.log = project, project / "weights" / "demo" / "run.log"
        before, begun = len(self.epochs()), time.monotonic()
        while len(self.epochs()) < before + 2:
            assert self.process.poll() is None and time.monotonic() < begun + 300
            time.sleep(0.1)

    def epochs(self) -> list[str]:
        return re.findall(r"rpn +\d+/9999", self.log.read_text()) if self.log.exists() else []

    def stopped(self, pid: int, number: int) -> tuple[int, str, str]:
        """Send the signal -> exit status, what it printed, and the last lines of its errors, bars left out."""
        os.kill(pid, number)
        out, err = self.process.communicate(timeout=100)
        lines = [line.rsplit("\r", 1)[-1] for line in err.splitlines()]
        return self.process.returncode, out, "\n".join(line for line in lines if "%|" not in line).strip()


@posix
def test_a_run_that_is_stopped_ends_in_one_sentence_and_goes_on(tmp_path):
    """By a scheduler, and then by the death of its kernel."""
    project = written(tmp_path, TRAINS)
    shutil.copytree(root() / "lib", project / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "weights").mkdir()
    shutil.copy(root() / "weights" / "scenes_backbone.safetensors", project / "weights")
    run = Process(project)
    status, out, said = run.stopped(run.process.pid, signal.SIGTERM)
    sentence = "stopped: 03_rpn stopped at cell 2 of 2: the same command goes on, and what is trained is kept"
    assert (status, said) == (1, sentence)
    assert re.search(r"about \d+ to \d+ (minutes|hours), .* GB of disk, by a pass that was measured here", out)
    run = Process(project)
    status, out, said = run.stopped(int((project / "notebooks" / "pid").read_text()), signal.SIGKILL)
    assert status == 1 and "rpn: going on after" in out
    assert re.fullmatch("error: 03_rpn stopped at cell 2 of 2: its kernel died.*03_rpn.failed.ipynb", said), said
