"""Would the tests notice? Small faults are put into samplers/ and schedulers/, one at a time, and the tests run.

    python3 run.py python -m pip install cosmic-ray==8.7.0 coverage==7.17.5
    python3 run.py python tests/mutants.py [--count 200] [--seed 0] [--jobs 2] [--of FOLDER ...] [--report FILE.json]

A mutant is one change by one of cosmic-ray's operators (a number, a comparison, an operator, a decorator ...). Against
it run the tests that reach its line, the quickest first, until one fails or the seconds are used up; then it counts as
survived. Changes of annotations alone are none. Survivors are printed with their place, to be read.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import json
import multiprocessing
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])
FOLDERS = ("samplers", "schedulers")
ARGUMENTS = ["-c", str(ROOT / "tests" / "pytest.ini"), "-q", "--no-header", "--tb=no"]
SECONDS = 120  # of tests for one mutant
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


def attacked(mutant: Mutant, source: str, tests: list[str], outcome) -> None:
    """In a process of its own: the tests against the mutant."""
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT / "tests")  # where the names of tests begin
    sys.meta_path.insert(0, Instead(ROOT / mutant.path, source))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    outcome.value = 1 + int(pytest.main([*ARGUMENTS, "-x", "-W", "ignore", *tests]) != 0)


def judged(mutant: Mutant, source: str, tests: list[str]) -> Mutant:
    """The mutant with its outcome."""
    outcome, began = forking.Value("i", 0), time.monotonic()
    if tests:
        process = forking.Process(target=attacked, args=(mutant, source, tests, outcome))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            outcome.value = outcome.value or 3
        elif outcome.value == 0:
            outcome.value = 2  # the process died
    names = ("no test reaches it", "survived", "caught", f"survived {SECONDS} s")
    mutant.outcome, mutant.seconds = names[outcome.value], round(time.monotonic() - began, 1)
    print(f"{mutant.outcome:10} {mutant.path}:{mutant.line} {mutant.seconds} s  {mutant.after}", flush=True)
    return mutant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--of", nargs="+", default=list(FOLDERS), help="only these, with the tests of the same folders")
    parser.add_argument("--report", type=Path, help="where the outcomes are written as JSON")
    args = parser.parse_args()
    lines, seconds = in_child(reached, args.of)
    import scipy.interpolate  # noqa: F401  (here, so that every child has it)
    import torch  # noqa: F401

    def judge(pair: tuple[Mutant, str]) -> Mutant:
        mutant, source = pair
        own = lines.get(str(ROOT / mutant.path), {})
        tests = set(own.get(mutant.line, [])) & set(seconds)
        if not tests:  # a line that runs when the file is imported
            tests = {test for reaching in own.values() for test in reaching} & set(seconds)
        if not tests:  # a file of constants
            tests = {test for test in seconds if test.startswith(str(Path(mutant.path).parent))}
        return judged(mutant, source, sorted(tests, key=lambda test: seconds[test]))

    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(judge, chosen(args.count, args.seed, args.of)))
    told(found)
    if args.report:
        args.report.write_text(json.dumps([asdict(mutant) for mutant in found], indent=1))


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
