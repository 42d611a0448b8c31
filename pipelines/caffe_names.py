"""What users of Caffe type -> our command lines: `./build/tools/caffe` is `cortado`, `./build/tools/X` is `cortado X`.

Verbs that both have (train, test, time) keep their options, in any of gflags' spellings; tools become our commands.
docs/caffe.md holds the same table for people.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ops.names import hint
from pipelines.caffe_tools import TOOLS, Given, Tool

# the flags of `caffe`, whatever the verb; all take a value
CAFFE: tuple[str, ...] = ("solver", "model", "phase", "level", "stage", "snapshot", "weights", "iterations", "gpu")
CAFFE += ("sigint_effect", "sighup_effect")
VERBS = {  # those that count
    "train": ("solver", "snapshot", "weights", "gpu", "level", "stage", "sigint_effect", "sighup_effect"),
    "test": ("model", "weights", "iterations", "gpu", "level", "stage"),
    "time": ("model", "phase", "iterations", "gpu", "level", "stage", "weights"),
    "device_query": ("gpu",),
}
# (verb, a flag that `caffe` takes and passes over there) -> what counts instead
INSTEAD = {
    ("train", "iterations"): "max_iter in the solver says how many",
    ("train", "model"): "the solver names its net",
    ("train", "phase"): "the solver's nets are trained and tested",
    ("test", "phase"): "a test is of phase TEST",
    ("test", "solver"): "give the net, --model, and --weights",
    ("test", "snapshot"): "give the weights beside it, --weights",
    ("time", "solver"): "give the net",
    ("time", "snapshot"): "give its weights, --weights, or none",
}
# glog's flags, which every tool of Caffe takes -> do they take a value
GLOG = dict.fromkeys(("log_dir", "log_link", "minloglevel", "stderrthreshold", "v", "vmodule", "logbuflevel"), True)
GLOG |= dict.fromkeys(("logbufsecs", "max_log_size", "log_backtrace_at", "logemaillevel", "alsologtoemail"), True)
GLOG |= dict.fromkeys(("logtostderr", "alsologtostderr", "colorlogtostderr", "log_prefix"), False)
GLOG |= dict.fromkeys(("stop_logging_if_full_disk", "drop_log_memory", "symbolize_stacktrace"), False)
HELP = ("h", "help", "helpshort", "helpfull", "helpxml", "helpon", "helpmatch", "helppackage")
STOPS = ("flagfile", "fromenv", "tryfromenv", "undefok")  # gflags' own, which would change what the others say
SHARED = {"json": False, "set": True, "config": True}  # of every command of ours: tools take them too
VALUED = {*CAFFE, *(flag for flag, valued in GLOG.items() if valued)}
TRUE, FALSE = {"true", "t", "1", "yes", "y"}, {"false", "f", "0", "no", "n"}
FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)


@dataclass
class Typed:
    """Command lines of ours, to run one after the other, and what to say before."""

    lines: list[list[str]]
    notes: list[str] = field(default_factory=list)


class Word(NamedTuple):
    """A word of a command line; of a flag its name, with underscores, and its value where it has one."""

    text: str
    flag: str = ""
    value: str | None = None


def understood(arguments: Sequence[str]) -> Typed:
    """What was typed as command lines of ours. ValueError, one line: there is no such thing here, or not so."""
    words = verb_first(list(arguments))
    verb = words[0].replace("-", "_") if words else ""
    if verb in VERBS:
        return Verb(verb).typed(words[1:])
    name = verb if verb in TOOLS else verb.partition(".")[0]  # convert_imageset.bin, draw_net.py
    if name in TOOLS:
        return tool(name, words[1:])
    cut = words.index("--") if "--" in words else len(words)
    return Typed([[*words[:1], *map(dashed, words[1:cut]), *words[max(cut, 1) :]]])


def verb_first(words: list[str]) -> list[str]:
    """gflags takes flags before the verb too."""
    if not words or not FLAG.fullmatch(words[0]):
        return words
    place = next((place for place, word in numbered(words, VALUED) if not word.flag), None)
    return words if place is None else [words[place], *words[:place], *words[place + 1 :]]


def numbered(words: Sequence[str], valued: Container[str]) -> Iterator[tuple[int, Word]]:
    """The words with their places; a flag of `valued` takes the next one for its value."""
    place = 0
    while place < len(words):
        text = words[place]
        found = FLAG.fullmatch(text)
        flag, value = (found[1].replace("-", "_"), found[2]) if found else ("", None)
        at = place
        if flag in valued and value is None:
            place += 1
            if place == len(words):
                raise ValueError(f"{text} needs a value")
            value = words[place]
        yield at, Word(text, flag, value)
        place += 1


def dashed(word: str) -> str:
    """-solver as --solver; -h and numbers as they are."""
    return f"-{word}" if re.match(r"-[A-Za-z][\w-]", word) else word


def glog(word: Word) -> str | None:
    """What to say of a flag of glog's; None for others."""
    if word.flag not in GLOG and GLOG.get(word.flag.removeprefix("no")) is not False:
        return None
    return (
        f"note: {word.text} is passed over: messages go to stderr, those of a training also to train.log in its folder"
    )


# -- train, test, time, device_query -----------------------------------------------------------------------------------


class Verb:
    """One of the verbs of `caffe`; other options of our command of that name stay as they are."""

    def __init__(self, name: str):
        self.name = name
        self.notes: list[str] = []

    def typed(self, words: Sequence[str]) -> Typed:
        line = [word for _, one in numbered(words, VALUED) for word in self.taken(one)]
        if self.name == "device_query":
            asked = any(word.startswith("--gpu") or word == "--help" for word in line)
            return Typed([["status", *line, *([] if asked else ["--gpu=all"])]], self.notes)
        return Typed([[self.name, *line]], self.notes)

    def taken(self, word: Word) -> list[str]:
        """A word as our command takes it."""
        flag, value = word.flag, word.value
        if flag in HELP:
            return ["--help"]
        if flag in STOPS:
            raise ValueError(f"{word.text}: not understood here; give the flags themselves")
        if (note := glog(word)) is not None:
            self.notes.append(note)
            return []
        if flag in CAFFE and value == "":
            return []  # as if it were not given
        if flag not in CAFFE:
            return [dashed(word.text)]
        if (self.name, flag) in INSTEAD:
            raise ValueError(f"{self.name} takes no {word.text}: {INSTEAD[self.name, flag]}")
        if flag not in VERBS[self.name]:
            self.notes.append(f"note: {word.text} is passed over: it says nothing to {self.name}")
            return []
        assert value is not None
        if self.name == "time" and flag == "model":
            return [value]
        if self.name == "time" and flag == "gpu":
            return [f"--device={self.device(value)}"]
        return [f"--{flag.replace('_', '-')}={value}"]

    def device(self, gpu: str) -> str:
        """The first of the GPUs, as Caffe."""
        if gpu == "none":
            return "cpu"
        first = "0" if gpu == "all" else gpu.split(",")[0].strip()
        if first != gpu:
            self.notes.append(f"note: time uses one GPU, as Caffe: the first of {gpu}")
        return f"cuda:{first}"


# -- tools -------------------------------------------------------------------------------------------------------------


def tool(name: str, words: Sequence[str]) -> Typed:
    """A tool of Caffe as commands of ours."""
    chosen = TOOLS[name]
    if isinstance(chosen, str):
        raise ValueError(f"{name}: {chosen}")
    given, shared = Given(), list[str]()
    known = GLOG | SHARED | chosen.flags
    for _, word in numbered(words, {flag for flag, valued in known.items() if valued}):
        if word.flag in HELP:
            return Typed([[chosen.command, "--help"]])
        if not word.flag:
            given.words += [word.text] if word.text != "--" else []
        elif word.flag in SHARED:
            shared.append(f"--{word.flag}" if word.value is None else f"--{word.flag}={word.value}")
        elif (note := glog(word)) is not None:
            given.notes.append(note)
        else:
            given.flags |= flag_of(name, word, chosen.flags)
    check_count(name, chosen, given.words)
    try:
        lines = chosen.lines(given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Typed([[*line, *shared] for line in lines], given.notes)


def flag_of(name: str, word: Word, known: dict[str, bool]) -> dict[str, str]:
    """{flag: value}; of a switch, -gray, -nogray or -gray=false, the value is true or false."""
    switch = word.flag.removeprefix("no")
    if word.flag not in known and known.get(switch) is False:
        return {switch: "false"}
    if word.flag not in known:
        raise ValueError(f"{name}: no flag {word.text}{hint(word.flag, known)}")
    if known[word.flag]:
        return {word.flag: word.value or ""}
    value = (word.value or "true").lower()
    if value not in TRUE | FALSE:
        raise ValueError(f"{name}: {word.text}: expected true or false")
    return {word.flag: "true" if value in TRUE else "false"}


def check_count(name: str, chosen: Tool, words: list[str]) -> None:
    """ValueError where a tool has too few words behind it, or too many."""
    least = len(chosen.words)
    most = least + len(chosen.more) if "..." not in chosen.more else len(words)
    if not least <= len(words) <= most:
        usage = " ".join([*chosen.words, *(f"[{one}]" for one in chosen.more)])
        raise ValueError(f"{name}: expected {usage}; found {' '.join(words) or 'nothing'}")
