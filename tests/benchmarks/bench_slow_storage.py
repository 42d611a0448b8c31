"""Slow storage: 20 ms more for every file that is opened (a small preloaded library), against the local speed."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.benchmarks.common import cortado, progress_of, row, timed, workplace
from tests.benchmarks.pictures import crops

COUNT = 16000
DELAY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
static void wait_for(const char *path) {
    const char *dot = strrchr(path, '.');
    struct timespec pause = {0, 20 * 1000 * 1000};
    if (dot && !strcmp(dot, ".jpg")) nanosleep(&pause, 0);
}
#define SLOW(name) int name(const char *path, int flags, ...) { \\
    static int (*real)(const char *, int, ...); \\
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \\
    if (!real) real = dlsym(RTLD_NEXT, #name); \\
    wait_for(path); \\
    return real(path, flags, mode); }
#define SLOW_AT(name) int name(int at, const char *path, int flags, ...) { \\
    static int (*real)(int, const char *, int, ...); \\
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \\
    if (!real) real = dlsym(RTLD_NEXT, #name); \\
    wait_for(path); \\
    return real(at, path, flags, mode); }
SLOW(open) SLOW(open64) SLOW_AT(openat) SLOW_AT(openat64)
"""


def main() -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        sys.exit("slow storage: needs a C compiler for the delay")
    with workplace("slow") as folder:
        source, library = folder / "delay.c", folder / "delay.so"
        source.write_text(DELAY)
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
        files = crops(folder / "images", count=500)
        list_file = folder / "list.txt"
        list_file.write_text("".join(f"{files[i % len(files)].name} {i % 10}\n" for i in range(COUNT)))
        rates = {}
        for name, env in (("local", {}), ("slow", {"LD_PRELOAD": str(library)})):
            out = folder / name
            command = cortado("convert", "--list", list_file, "--root", f"{folder}/images/", "--out", out)
            command += ["--resize-height", "256", "--resize-width", "256", "--set", "cpus=2", "--json"]
            rates[name] = timed(command, progress_of(out), env).steady(COUNT)
            shutil.rmtree(out)
        row("20 ms for every open, against local", rates["slow"], rates["local"], "images/s", "(at least 0.8)")
        print(f"without read-ahead two processes could open {2 / 0.02:.0f} files/s")


if __name__ == "__main__":
    main()
