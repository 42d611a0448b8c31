"""Noise is kept away from stderr, words are not."""

import os
import subprocess
import sys

CODE = """
import os, sys
from cluster.quiet import CHATTER, without_chatter
with without_chatter():
    os.write(2, f"[E] core_worker.cc:1: An actor {CHATTER[0]}. And more.\\n".encode())
    print("from Python", file=sys.stderr, flush=True)
    os.write(2, b"from C\\n")
    if len(sys.argv) > 1:
        os.write(2, b"last words\\n")
        os._exit(3)
print("afterwards", file=sys.stderr)
os.write(2, b"and again\\n")
"""


def run(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, set(done.stderr.splitlines())


def test_only_the_known_noise_goes():
    assert run() == (0, {"from Python", "from C", "afterwards", "and again"})


def test_last_words_arrive():
    assert run("die") == (3, {"from Python", "from C", "last words"})


def test_stderr_is_still_a_terminal_for_python():
    import pty

    def terminal(code: str) -> str:
        master, slave = pty.openpty()
        done = subprocess.run([sys.executable, "-c", code], stderr=slave, stdout=subprocess.PIPE, text=True, check=True)
        os.close(slave)
        os.close(master)
        return done.stdout

    code = "import sys; from cluster.quiet import without_chatter\nwith without_chatter(): print(sys.stderr.isatty())"
    assert terminal(code) == "True\n"
