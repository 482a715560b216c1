"""The form of the notebooks: what every chapter must have, and what no page may contain.

A notebook whose name begins with a number is a chapter. The others are pages: the general rules hold for them, too.
Whether the stored outputs are true is nbval's business (`make test` runs it); `test_nbval_catches_a_wrong_output`
plants a lie to see that it would be caught.
"""

import ast
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from execute import hero
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from reading_time import WIDGET, Reading, reading_time

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in PATHS if path.stem[0].isdigit()]
HEADINGS = ["What you will be able to do", "Exercises", "What we did not tell you", "References", "Next"]
MAX_BYTES = 3_000_000
MAX_IGNORED = 6  # cells whose output nbval does not compare, or of a long chapter a third of its code
MAX_MINUTES = 40  # to read a chapter
MAX_COLUMNS = 80  # of code


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def cells(notebook: NotebookNode, kind: str, tag: str | None = None) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == kind and (tag is None or tag in tags(cell))]


def prose(notebook: NotebookNode) -> str:
    """All Markdown of a chapter, without code, in which anything may stand."""
    text = "\n\n".join(cell.source for cell in cells(notebook, "markdown"))
    return re.sub(r"```.*?```|`[^`\n]*`", "`code`", text, flags=re.DOTALL)


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture(params=CHAPTERS, ids=[path.stem for path in CHAPTERS])
def chapter_path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def chapter(chapter_path: Path) -> NotebookNode:
    return nbformat.read(chapter_path, as_version=4)


def test_there_are_chapters_and_the_contents_list_them_and_every_page() -> None:
    listed = re.findall(r"file: notebooks/(\w+)", (ROOT / "_toc.yml").read_text())
    assert sorted(listed) == [path.stem for path in PATHS]
    chapters = [name for name in listed if name[0].isdigit()]
    assert chapters and chapters == sorted(chapters)


def test_the_format_is_valid(path: Path, notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_opens_with_its_number_its_title_and_one_question(chapter_path: Path, chapter: NotebookNode) -> None:
    title, _, question, *_ = [*chapter.cells[0].source.splitlines(), "", "", ""]
    assert re.match(rf"# {int(chapter_path.stem[:2])}\. \S", title)
    assert re.fullmatch(r"\*\*[^*]+\?\*\*", question)


def test_has_the_parts_of_a_chapter(chapter: NotebookNode) -> None:
    found = re.findall(r"^## (.+)$", prose(chapter), re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


def test_headings_are_in_order(notebook: NotebookNode) -> None:
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(notebook), re.MULTILINE)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_has_three_to_five_exercises_and_checks_at_least_two(chapter_path: Path, chapter: NotebookNode) -> None:
    numbers = re.findall(r"^### Exercise (\d+\.\d+)\b", prose(chapter), re.MULTILINE)
    assert numbers == [f"{int(chapter_path.stem[:2])}.{i + 1}" for i in range(len(numbers))]
    assert 3 <= len(numbers) <= 5
    assert sum("check_" in cell.source for cell in cells(chapter, "code", "exercise")) >= 2


def test_only_the_readers_own_work_is_counted(chapter: NotebookNode) -> None:
    for cell in cells(chapter, "code", "exercise"):
        assert "solution=" not in cell.source
    for cell in cells(chapter, "code", "solution"):
        assert len(re.findall(r"^check_\w+\(", cell.source, re.MULTILINE)) == cell.source.count(", solution=True)")


def test_the_last_cell_sums_up_every_exercise(chapter: NotebookNode) -> None:
    *_, last = cells(chapter, "code")
    assert "progress" in tags(last)
    called = ast.parse(last.source).body[-1].value
    listed = {keyword.arg: ast.literal_eval(keyword.value) for keyword in called.keywords}
    number, checked, others = "", [], []
    for cell in chapter.cells:
        if heading := re.match(r"### Exercise (\d+\.\d+)\b", cell.source):
            number = heading[1]
            others.append(number)
        elif "exercise" in tags(cell) and "check_" in cell.source:
            checked.append(number)
            others.remove(number)
    assert listed == {"checked": checked, "unchecked": others}
    said = last.outputs[0].text
    assert f"0 of {len(checked)}" in said and said.count("not yet") == len(checked), "run `make execute`"


def test_every_exercise_has_a_solution_or_what_we_found(chapter: NotebookNode) -> None:
    part = prose(chapter).split("## Exercises")[1].split("\n## ")[0]
    solved = {
        cell.source.split("\n")[0].removeprefix("# @title Solution ") for cell in cells(chapter, "code", "solution")
    }
    for text in part.split("### Exercise ")[1:]:
        number = re.match(r"\d+\.\d+", text)[0]
        assert number in solved or "<summary>What we found</summary>" in text.split("### ")[0], number


def test_asks_for_predictions(chapter: NotebookNode) -> None:
    assert prose(chapter).count("> **Predict, then run.**") >= 2


def test_what_is_folded_on_the_site_is_folded_everywhere(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        if {"hide-input", "hide-cell"} & set(tags(cell)):
            assert cell.metadata.get("jupyter", {}).get("source_hidden") is True, f"in JupyterLab:\n{cell.source}"
            assert cell.metadata.get("cellView") == "form", f"in Colab:\n{cell.source}"
            assert cell.source.startswith("# @title "), f"in Colab:\n{cell.source}"


def test_solutions_are_folded(chapter: NotebookNode) -> None:
    solutions = cells(chapter, "code", "solution")
    assert solutions
    assert all({"hide-input", "hide-cell"} & set(tags(cell)) for cell in solutions)


def test_begins_with_something_to_look_at(chapter: NotebookNode) -> None:
    # The set-up, folded; the hook; then what the chapter is good for, and the imports, folded.
    set_up, hook, *others = cells(chapter, "code")
    assert "setup" in tags(set_up) and "hide-cell" in tags(set_up)
    assert "hook" in tags(hook) and "hide-input" in tags(hook), "the second code cell is the hook"
    assert hook.outputs, "a picture, or a number"
    imports = [cell for cell in others if "imports" in tags(cell)]
    assert len(imports) == 1 and "hide-cell" in tags(imports[0])
    objectives = next(cell for cell in chapter.cells if cell.source.startswith(f"## {HEADINGS[0]}"))
    place = chapter.cells.index
    assert place(set_up) < place(hook) < place(objectives) < place(imports[0])


def test_says_how_long_it_takes_to_read_and_is_right(chapter: NotebookNode) -> None:
    said = re.search(
        r"^Reading time: about (\d+) minutes, exercises (\d+) more\. Running time: ",
        chapter.cells[0].source,
        re.MULTILINE,
    )
    assert said, "Reading time: about R minutes, exercises E more. Running time: ..."
    text, _ = reading_time(chapter)
    assert abs(int(said[1]) - text.minutes) <= 2, f"{said[1]} minutes are said, {text.minutes:.1f} measured: {text}"
    assert text.minutes <= MAX_MINUTES, text


def test_code_fits_the_page(chapter: NotebookNode) -> None:
    for cell in cells(chapter, "code"):
        if "setup" not in tags(cell):  # it holds the book's address, which may be long
            assert [line for line in cell.source.splitlines() if len(line) > MAX_COLUMNS] == []
        assert "noqa" not in cell.source, "notebooks/ruff.toml is the place for exceptions"


def test_prints_what_was_asked_not_whether_it_is_true(chapter: NotebookNode) -> None:
    for cell in cells(chapter, "code"):
        for output in cell.outputs:
            said = str(output.get("text", "")) + "\n" + str(output.get("data", {}).get("text/plain", ""))
            assert re.findall(r"^(?:.*: )?(?:True|False)$", said, re.MULTILINE) == [], cell.source


def test_set_up_is_the_same_in_every_notebook() -> None:
    firsts = [cells(nbformat.read(path, as_version=4), "code")[0] for path in PATHS]
    assert all("setup" in tags(cell) for cell in firsts)
    assert len({cell.source for cell in firsts}) == 1


def test_every_code_cell_was_run_in_order(notebook: NotebookNode) -> None:
    # nbval never looks at a cell without a count.
    counts = [cell.execution_count for cell in cells(notebook, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run `make execute`"


def test_outputs_hold_no_noise(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        assert "execution" not in cell.metadata, "timings: run `make execute`"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


def test_few_outputs_escape_the_comparison(notebook: NotebookNode) -> None:
    ignored, code = (len(cells(notebook, "code", tag)) for tag in ("nbval-ignore-output", None))
    assert ignored <= max(MAX_IGNORED, code // 3)
    assert not cells(notebook, "code", "nbval-skip")


def test_no_path_of_some_computer(notebook: NotebookNode) -> None:
    pattern = r"(?<![\w:/.])/(home|Users|root|tmp|work|mnt|content)/|[A-Z]:\\\\"
    for cell in notebook.cells:
        text = cell.source + "".join(
            json.dumps({mime: data for mime, data in output.get("data", {}).items() if mime.startswith("text/")})
            + str(output.get("text", ""))
            for output in cell.get("outputs", [])
        )
        assert not re.search(pattern, text), re.search(pattern, text)


def test_every_picture_has_words_for_those_who_do_not_see_it(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        pictures = [mime for output in cell.outputs for mime in output.get("data", {}) if mime.startswith("image/")]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if pictures:
            assert len(pictures) == 1, "one picture a cell: the words belong to the cell"
            assert len(alt) > 30, cell.source
            assert not re.search(r"\.(png|jpe?g|svg)$", alt)


def test_prose_is_plain_markdown(notebook: NotebookNode) -> None:
    # Colab and GitHub would show MyST as it stands.
    text = prose(notebook)
    assert ":::" not in text
    assert not re.search(r"\{[a-z:-]+\}`", text)
    assert "```{" not in "".join(cell.source for cell in cells(notebook, "markdown"))
    assert not re.search(r"^\(.+\)=$", text, re.MULTILINE)
    assert not re.search(r"\\newcommand|\\def\\", text), "Colab forgets macros between cells: write the TeX out"
    assert not re.search(r"!\[.*\]\(https?:|<img[^>]+https?:", text), "a picture from another host"


def test_references_are_in_the_bibliography(chapter: NotebookNode) -> None:
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8").lower()
    references = prose(chapter).split("## References")[1].split("\n## ")[0]
    for entry in re.findall(r"^- .+$", references, re.MULTILINE):
        identifiers = re.findall(r"arxiv\.org/abs/([\d.]+\d)|doi\.org/([^\s)]+)", entry)
        for arxiv, doi in identifiers:
            assert (arxiv or doi).lower() in bibliography, entry


def test_the_hero_picture_is_the_one_that_a_chapter_made() -> None:
    made = [picture for path in PATHS if (picture := hero(nbformat.read(path, as_version=4)))]
    stored = sorted((ROOT / "book" / "images").glob("hero.*"))
    assert len(made) == len(stored) == 1
    assert stored[0].read_text(encoding="utf-8") == made[0], "run `make execute`"


@pytest.mark.parametrize(("stored", "exit_code"), [("2", 0), ("3", 1)])
def test_nbval_catches_a_wrong_output(tmp_path: Path, stored: str, exit_code: int) -> None:
    output = new_output("stream", name="stdout", text=f"{stored}\n")
    planted = new_notebook(cells=[new_code_cell("print(1 + 1)", execution_count=1, outputs=[output])])
    planted.metadata["kernelspec"] = {"display_name": "Python 3", "name": "python3"}
    nbformat.write(planted, tmp_path / "planted.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
    command += ["--nbval-sanitize-with", str(ROOT / "tests/nbval.cfg"), "-c"]
    run = subprocess.run([*command, "/dev/null", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == exit_code, run.stdout


def test_reading_time_counts_what_is_in_view() -> None:
    picture = [new_output("display_data", data={"image/svg+xml": "<svg/>"})]
    widget = [new_output("display_data", data={WIDGET: {}, "text/plain": "a widget"})]
    long = " ".join(["word"] * 230)

    def code(*names: str, outputs: list[NotebookNode] = ()) -> NotebookNode:
        return new_code_cell("x", outputs=list(outputs), metadata={"tags": list(names)})

    notebook = new_notebook(
        cells=[
            new_markdown_cell(f"# 1. Two words\n\n[{long}](a b c) <b>\n\n<details>{long}</details>"),
            code("hide-cell"),
            code("hide-input", outputs=picture),
            code(outputs=widget),
            new_markdown_cell(f"## Exercises\n\n<details>{long}</details>"),
            code("exercise"),
            code("solution", "hide-cell"),
            new_markdown_cell(f"## What we did not tell you\n\n{long}"),
            new_markdown_cell(f"## References\n\n{long}"),
            new_markdown_cell(f"## Next\n\n{long}"),
        ]
    )
    text, exercises = reading_time(notebook)
    assert text == Reading(words=3 + 230 + 6 + 230, figures=2, code_cells=1)
    assert exercises == Reading(words=1 + 230, figures=0, code_cells=2)
    assert text.minutes == pytest.approx(469 / 230 + 1 + 1)


def test_hero_finds_the_tagged_cell() -> None:
    output = new_output("display_data", data={"image/svg+xml": "<svg/>"})
    tagged = new_notebook(cells=[new_code_cell("x"), new_code_cell("y", outputs=[output], metadata={"tags": ["hero"]})])
    assert hero(tagged) == "<svg/>"
    assert hero(new_notebook(cells=[new_code_cell("x", outputs=[output])])) is None
