"""The words of the project: one term for one thing, the one of the field, in code, help and pages alike."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for pattern in ("iidlib/**/*.py", "iidlib/**/*.cpp", "data/scripts/*.py", ".ci/*.py", "book/_ext/*.py")
    for path in ROOT.glob(pattern)
)
TESTS = [path for path in sorted(ROOT.glob("tests/**/*.py")) if path != Path(__file__)]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "book/*.md",
        "book/*.rst",
        "book/[0-9]*.py",
        "data/**/*.md",
        "Makefile",
        "*.yml",
        "*.toml",
        ".ci/run",
        ".github/**/*.yml",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it names what is gone
)

_COUNTED = (
    "images|mosaics|pictures|samples|tiles|networks|members|seeds|epochs|iterations|updates|steps|seconds|minutes|"
    "hours|milliseconds|ms|bytes|bits|KiB|MiB|GiB|kB|MB|GB|pixels|channels|values|numbers|points|vectors|kernels|"
    "launches|statistics|numerals|time|times|once|twice|one|two|three|four|five|six|seven|eight|nine|ten|twenty|fifty|"
    r"hundred|thousand|\d+"
)
_PER = (
    "class|network|image|pixel|channel|iteration|update|step|epoch|set|seed|distillation|evaluation|method|term|layer|"
    "sample|pair|file|point|cell|dataset|picture|mosaic|pool|row|run|member|thread|core|process|batch|draw|command|"
    "chapter|call|tile|query|kernel|side"
)

# What must not be written: (name, pattern, what to write instead). A pattern is searched with line breaks as spaces.
WORDS = {
    "images a class": (rf"\b(?:{_COUNTED}) an? (?:{_PER})\b", "images per class, seconds per iteration"),
    "data set": (r"\bdata[ -]sets?\b", "dataset"),
    "passes": (r"(?<!forward )(?<!backward )\bpasses\b", "epochs; forward passes; a test succeeds"),
    "judge": (r"\bjudg\w*|\w+_judg\w*", "evaluate, evaluation"),
    "damaged": (r"\b\w*damaged?\b", "corrupted; incomplete"),
    "not whole": (r"\b(?:not|all|is|are|be|were|was) whole\b(?! number)", "incomplete; complete; verified"),
    "go on": (r"\b(?:go|goes|going|went|gone) on\b", "resume; continue"),
    "take up": (r"\b(?:take|takes|taking|took|taken) up\b", "resume; restore the state"),
    "expert": (r"(?<!iid )(?<!cli/)(?<!cli\.)\bexperts?\b(?!\.|\(|\"|`)", "pretrained network (of the pool)"),
    "drift": (r"\b\w*drift\w*\b", "environment mismatch"),
    "stacked": (r"\bstacked\b", "ensemble (networks trained together)"),
    "stand beside": (r"\b(?:stand|stands|stood|standing) beside\b", "is reported alongside"),
    "to be had": (r"\bto be had\b", "returns None, with one warning, if ..."),
    "told": (r"(?<!as )\btold\b(?! apart)", "said, reported, warned about"),
    "anew": (r"\banew\b", "again; from scratch"),
    "laid": (r"\b(?:laid|lays|laying)\b", "put, placed"),
    "of every": (r"\b(?:of every draw|of every other draw|questions that are asked)\b", "random seed; FAQ"),
}

# A key of files that version 0.1.0 wrote and this one reads, and the module of the command `iid experts`.
KEPT = {
    "iidlib/distillation/finished.py": {"drifted"},
    "tests/test_distillation.py": {"drifted"},
    "iidlib/cli/__init__.py": {"experts"},
    "tests/test_cli.py": {"experts"},
}

# Prepositions and possessives that leave a docstring or a help text without its noun.
SUBJECTLESS = re.compile(r"(?:Of|Its|Their|From|In|On|At|By|With|Without|To|For|As|After|Before|Beside|Else|Such)\b")


def text_of(path: Path) -> str:
    """A file with its comment signs and line breaks as single spaces, so that a phrase is found across lines."""
    lines = path.read_text(encoding="utf8").splitlines()
    return re.sub(r"\s+", " ", " ".join(re.sub(r"^\s*(?:#|//|>|\|)+ ?", "", line) for line in lines))


@pytest.mark.parametrize("word", WORDS)
def test_one_term_for_one_thing(word: str) -> None:
    pattern, instead = WORDS[word]
    wrong = [
        f"{path.relative_to(ROOT)}: ...{text[max(0, found.start() - 30) : found.end() + 20]}..."
        for path in [*CODE, *PAGES, *TESTS]
        for text in [text_of(path)]
        for found in re.finditer(pattern, text, re.IGNORECASE)
        if found[0] not in KEPT.get(path.relative_to(ROOT).as_posix(), ())
    ]
    assert not wrong, f"{len(wrong)} times {word!r} for: {instead}\n" + "\n".join(wrong)


def described(path: Path) -> list[tuple[int, str]]:
    """Every docstring of a module (of functions, classes, constants, fields) and every help text of an option."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.append((node.lineno, node.value.value))
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            found.append((node.value.lineno, str(node.value.value)))
    return found


def test_descriptions_begin_with_the_noun_they_mean() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in CODE
        if path.suffix == ".py"
        for line, text in described(path)
        if SUBJECTLESS.match(text)
    ]
    assert not wrong, "\n".join([f"{len(wrong)} descriptions without their noun", *wrong])


@pytest.mark.parametrize(
    "text", ["ten images a class", "an expert of the pool", "12 ms an iteration", "Data sets", "is told"]
)
def test_the_words_are_found(text: str) -> None:
    assert any(re.search(pattern, text, re.IGNORECASE) for pattern, _ in WORDS.values())


@pytest.mark.parametrize(
    "text", ["images per class", "the dataset", "iid experts", "a whole number", "forward passes", "told apart"]
)
def test_the_words_that_are_right_are_not_found(text: str) -> None:
    assert not any(re.search(pattern, text, re.IGNORECASE) for pattern, _ in WORDS.values())
