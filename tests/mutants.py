"""Would the tests notice? Small faults are put into samplers/ and schedulers/, one at a time, and the tests run.

    python3 run.py python -m pip install cosmic-ray==8.7.0 coverage==7.17.5
    python3 run.py python tests/mutants.py [--count 200] [--seed 0] [--jobs 2] [--of FOLDER ...] [--report FILE.json]
    python3 run.py python tests/mutants.py --again FILE.json [--seconds 600]

A mutant is one change by one of cosmic-ray's operators (a number, a comparison, an operator, a decorator ...). Against
it run the tests that reach its line, those of its module's own file and then the quickest first, until one fails or
the seconds are used up; then it counts as survived. Changes of annotations alone are none. Survivors are printed with
their place, to be read.

--again takes up those that a report, or what a run printed, does not call caught. They are found by the text of their
line, so the code around them may have changed. It does not look which tests reach what: all run, the nearest first.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.abc
import importlib.machinery
import json
import multiprocessing
import os
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])
FOLDERS = ("samplers", "schedulers")
ARGUMENTS = ["-c", str(ROOT / "tests" / "pytest.ini"), "-q", "--no-header", "--tb=no"]
SECONDS = 120  # of tests for one mutant, unless told otherwise
PRINTED = re.compile(r"(caught|survived|survived \d+ s|no test reaches it) +(\S+):(\d+) [\d.]+ s  (.*)")
forking = multiprocessing.get_context("fork")  # torch is imported once


@dataclass
class Mutant:
    """place: file and line. before, after: the line."""

    path: str
    line: int
    before: str
    after: str
    operator: str
    outcome: str = ""
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------------------------
# Which tests reach which line


class Watch:
    """A pytest plugin that tells coverage which test runs, and keeps how long each takes."""

    def __init__(self, coverage):
        self.coverage, self.seconds = coverage, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        began = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - began
        return result


def reached(folders: list[str]) -> tuple[dict[str, dict[int, list[str]]], dict[str, float]]:
    """By file and line the tests of the folders that run it, and the seconds of each test."""
    import coverage

    measured = coverage.Coverage(source=[str(ROOT / "samplers"), str(ROOT / "schedulers")], data_file=None)
    watch = Watch(measured)
    measured.start()
    code = pytest.main([*ARGUMENTS, "-x", *(str(ROOT / "tests" / name) for name in folders)], plugins=[watch])
    measured.stop()
    if code:
        raise SystemExit(1)
    data = measured.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        lines[str(Path(file).resolve())] = data.contexts_by_lineno(file)
    return lines, watch.seconds


def in_child(work, *arguments):
    """The result of work(*arguments), run in a process of its own."""
    receiver, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=lambda: sender.send(work(*arguments)))
    process.start()
    sender.close()  # then its end is seen when the child ends
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("The tests fail as they are; mend them first.") from None
    finally:
        process.join()


# ---------------------------------------------------------------------------------------------------------
# Mutants


Place = tuple[Path, str, int]  # of a possible change: file, operator of cosmic-ray, and its number in the file


def places_of(path: Path) -> Iterator[Place]:
    """Where each operator would change a file."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    nodes = list(ast_nodes(get_ast_from_path(path)))
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        if kind.arguments():  # that want to be told a variable
            continue
        operator = kind()
        for number in range(sum(len(list(operator.mutation_positions(node))) for node in nodes)):
            yield path, name, number


def mutant_at(place: Place) -> tuple[Mutant, str] | None:
    """The mutant and its source; None where it does not compile, or runs no otherwise."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    path, name, number = place
    source = path.read_text(encoding="utf-8")
    mutated = mutate_code(source, cosmic_ray.plugins.get_operator(name)(), number)
    if not mutated or not runs(mutated) or without_annotations(mutated) == without_annotations(source):
        return None
    return described(path, source, mutated, name), mutated


def runs(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def without_annotations(source: str) -> str:
    """The program's tree, as far as it is run."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def described(path: Path, source: str, mutated: str, operator: str) -> Mutant:
    pairs = zip(source.splitlines(), mutated.splitlines(), strict=False)
    line, (before, after) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return Mutant(str(path.relative_to(ROOT)), line, before.strip(), after.strip(), operator.split("/")[-1])


def chosen(count: int, seed: int, folders: list[str]) -> list[tuple[Mutant, str]]:
    """So many of all mutants of all files in the folders."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    places = [place for path in files for place in places_of(path)]
    print(f"{len(places)} places in {len(files)} files", flush=True)
    random.Random(seed).shuffle(places)
    return list(islice(filter(None, map(mutant_at, places)), count))


# ---------------------------------------------------------------------------------------------------------
# Mutants of an earlier run


Durations = dict[str, float]  # seconds, by test


def reported(report: Path) -> tuple[list[Mutant], Durations]:
    """The mutants of a report, or of what a run printed: that says neither what a line was nor how long tests took."""
    text = report.read_text(encoding="utf-8")
    if report.suffix == ".json":
        told = json.loads(text)
        return [Mutant(**mutant) for mutant in told["mutants"]], told["durations"]
    matches = [match.groups() for match in map(PRINTED.fullmatch, text.splitlines()) if match]
    return [Mutant(path, int(line), "", after, "", outcome) for outcome, path, line, after in matches], {}


@dataclass(eq=False)  # pytest wants it hashable
class QuickestFirst:
    """A pytest plugin that sorts the tests of each file. Those that nobody knows yet are the first."""

    durations: Durations

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), self.durations.get(item.nodeid, 0.0)))


def again(mutant: Mutant) -> tuple[Mutant, str] | None:
    """The mutant where the code has its line today, and its source; None where there is no such line any more."""
    lines = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines(keepends=True)
    before = mutant.before or closest(mutant.after, lines)
    places = [i for i, line in enumerate(lines) if line.strip() == before]
    if not places:
        return None
    i = min(places, key=lambda place: abs(place + 1 - mutant.line))
    without = mutant.before and lines[i + 1 : i + 2] and lines[i + 1].strip() == mutant.after  # a decorator
    lines[i] = "" if without else lines[i].replace(before, mutant.after)
    source = "".join(lines)
    return (replace(mutant, line=i + 1, before=before), source) if runs(source) else None


def closest(after: str, lines: list[str]) -> str:
    """Of the lines the one most like it."""
    found = difflib.get_close_matches(after, [line.strip() for line in lines], 1)
    return found[0] if found else after


def nearest_tests(mutant: Mutant) -> list[str]:
    """All files of tests: the module's own, those that name it, those of its folder, the others; the shortest first."""
    stem = re.compile(rf"\b{Path(mutant.path).stem}\b")

    def distance(file: Path) -> tuple:
        test, text = str(file.relative_to(ROOT / "tests")), file.read_text(encoding="utf-8")
        away = Path(test).parent != home(mutant)
        return not is_own(mutant, test), not stem.search(text), away, len(text), test

    files = [path for name in FOLDERS for path in (ROOT / "tests" / name).rglob("test_*.py")]
    return [str(file.relative_to(ROOT / "tests")) for file in sorted(files, key=distance)]


def home(mutant: Mutant) -> Path:
    """The folder of its tests, below tests/."""
    return Path(mutant.path).parent


def is_own(mutant: Mutant, test: str) -> bool:
    """Whether a test, or a file of tests, bears the module's name."""
    file = Path(test.split("::")[0])
    return file.parent == home(mutant) and file.stem.removeprefix("test_") == Path(mutant.path).stem


# ---------------------------------------------------------------------------------------------------------
# Judging


class Instead(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """Imports one module of the pack from another source."""

    def __init__(self, path: Path, source: str):
        self.path, self.source = path, source
        self.name = ".".join(["fewstep", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        package = self.path.name == "__init__.py"
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.path), is_package=package)

    def get_filename(self, name):
        return str(self.path)

    def get_data(self, path):
        return self.source.encode()


def attacked(mutant: Mutant, source: str, tests: list[str], plugins: list, outcome) -> None:
    """In a process of its own: the tests against the mutant."""
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT / "tests")  # where the names of tests begin
    sys.meta_path.insert(0, Instead(ROOT / mutant.path, source))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    outcome.value = 1 + int(pytest.main([*ARGUMENTS, "-x", "-W", "ignore", *tests], plugins=plugins) != 0)


def judged(mutant: Mutant, source: str, tests: list[str], seconds: float, *plugins: object) -> Mutant:
    """The mutant with its outcome. seconds: that its tests may take. plugins: of pytest."""
    outcome, began = forking.Value("i", 0), time.monotonic()
    if tests:
        process = forking.Process(target=attacked, args=(mutant, source, tests, plugins, outcome))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            outcome.value = outcome.value or 3
        elif outcome.value == 0:
            outcome.value = 2  # the process died
    names = ("no test reaches it", "survived", "caught", f"survived {seconds:g} s")
    mutant.outcome, mutant.seconds = names[outcome.value], round(time.monotonic() - began, 1)
    print(f"{mutant.outcome:10} {mutant.path}:{mutant.line} {mutant.seconds} s  {mutant.after}", flush=True)
    return mutant


def judge_new(args: argparse.Namespace) -> tuple[list[Mutant], Durations]:
    """Mutants drawn by chance, each against the tests that reach its line."""
    lines, durations = in_child(reached, args.of)
    import scipy.interpolate  # noqa: F401  (here, so that every child has it)
    import torch  # noqa: F401

    def judge(pair: tuple[Mutant, str]) -> Mutant:
        mutant, source = pair
        own = lines.get(str(ROOT / mutant.path), {})
        tests = set(own.get(mutant.line, [])) & set(durations)
        if not tests:  # a line that runs when the file is imported
            tests = {test for reaching in own.values() for test in reaching} & set(durations)
        if not tests:  # a file of constants
            tests = {test for test in durations if test.startswith(str(home(mutant)))}
        ordered = sorted(tests, key=lambda test: (not is_own(mutant, test), durations[test]))
        return judged(mutant, source, ordered, args.seconds)

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(judge, chosen(args.count, args.seed, args.of))), durations


def judge_again(args: argparse.Namespace) -> tuple[list[Mutant], Durations]:
    """The mutants of a report; those that were caught as they stand there."""
    import scipy.interpolate  # noqa: F401
    import torch  # noqa: F401

    known, durations = reported(args.again)
    plugin = QuickestFirst(durations)
    check_that_tests_pass(plugin)

    def judge(mutant: Mutant) -> Mutant:
        if mutant.outcome == "caught":
            return mutant
        pair = again(mutant)
        if pair is None:
            return replace(mutant, outcome="no such line any more")
        return judged(*pair, nearest_tests(mutant), args.seconds, plugin)

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(judge, known)), durations


def check_that_tests_pass(plugin: QuickestFirst) -> None:
    """A few of them, against the code as it is: where nothing runs at all, every mutant would seem to be caught."""
    source = (ROOT / "samplers" / "sigmas.py").read_text(encoding="utf-8")
    none = judged(Mutant("samplers/sigmas.py", 0, "", "as it is", ""), source, ["samplers/test_sigmas.py"], 600, plugin)
    if none.outcome != "survived":
        raise SystemExit("The tests fail as they are; mend them first.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that the tests of one mutant may take")
    parser.add_argument("--of", nargs="+", default=list(FOLDERS), help="only these, with the tests of the same folders")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only what this report, or printed run, left over")
    parser.add_argument("--report", type=Path, help="where the outcomes are written as JSON")
    args = parser.parse_args()
    found, durations = judge_again(args) if args.again else judge_new(args)
    told(found)
    if args.report:
        report = {"mutants": [asdict(mutant) for mutant in found], "durations": durations}
        args.report.write_text(json.dumps(report, indent=1))


def told(found: list[Mutant]) -> None:
    """Shares by folder, and the survivors."""
    by_folder: dict[str, list[bool]] = defaultdict(list)
    for mutant in found:
        by_folder[str(Path(mutant.path).parent)].append(mutant.outcome == "caught")
    for folder, caught in sorted(by_folder.items()):
        print(f"{folder}: {sum(caught)} of {len(caught)} caught")
    print(f"in all: {sum(m.outcome == 'caught' for m in found)} of {len(found)} caught")
    for mutant in found:
        if mutant.outcome != "caught":
            print(f"\n{mutant.outcome}: {mutant.path}:{mutant.line} ({mutant.operator})")
            print(f"  - {mutant.before}\n  + {mutant.after}")


if __name__ == "__main__":
    main()
