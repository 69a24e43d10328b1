import ast
import inspect
import json
import random

import pytest

from megabert.corpora import builtin, files
from megabert.corpora.document import Document

SOURCE = '''"""Module text that is long enough to be seen as documentation."""
X = f"""an f-string that is long enough to be seen as documentation {X}"""
def f():
    r"""Raw \\d text, long enough to be seen as documentation by the pattern."""
class A:
    """An escaped \\"\\"\\" quote and a tab\\there, in a text of more than forty characters.

        Indented.
    """
add_docstr(f,
           r"""
f(x) is documented here although it was never defined in Python.
""")
'''


def write_package(root, name, files_):
    for relative, text in files_.items():
        path = root / name / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def package(tmp_path, monkeypatch):
    def use(files_):
        write_package(tmp_path, "somepackage", files_ | {"__init__.py": ""})
        (tmp_path / "python").mkdir(exist_ok=True)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(builtin.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "python")})
        return list(builtin.documents(("somepackage", "not_installed_anywhere")))

    return use


def test_documentation_strings_are_found_where_python_finds_them():
    found = list(builtin.documentation_strings(SOURCE))
    tree = ast.parse(SOURCE)
    expected = [ast.get_docstring(tree), *(ast.get_docstring(node) for node in tree.body if hasattr(node, "name"))]
    assert found == [*expected, "f(x) is documented here although it was never defined in Python."]


def test_nearly_all_docstrings_of_a_real_module_are_found():
    source = inspect.getsource(inspect)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    expected = {text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 60}
    assert len(expected - set(builtin.documentation_strings(source))) <= 0.02 * len(expected)


def test_packages_are_read_and_never_run(package):
    text = "The first sentence of the module. The second sentence of it."
    source = f'"""{text}"""\nraise RuntimeError("must not run")\n'
    found = package({"part.py": source, "tests/test_it.py": source.replace("first", "tested"), "bad.py": "\0'''x"})
    assert found == [Document(text, "somepackage.part")]


def test_sentences_that_differ_in_names_only_are_kept_a_few_times(package, monkeypatch):
    monkeypatch.setattr(builtin, "_REPEATS", 8)
    template = (
        '"""The configuration of Model{} is stored here. It is the number {} of them all. And {} is known of it."""\n'
    )
    words = ["nothing", "much", "little", "something", "more", "less", "enough", "plenty", "all", "none", "half"]
    found = package({f"{word}.py": template.format(number, word, word) for number, word in enumerate(words)})
    everything = " ".join(document.text for document in found)
    assert everything.count("The configuration of") == 8
    assert all(f"the number {word}" in everything for word in words)


def test_equal_documents_are_one(package):
    text = '"""The configuration of the model is stored here. It is used by the trainer of the library."""\n'
    assert len(package({"a.py": text, "b.py": text, "c.py": text})) == 1


def test_sentences_with_special_tokens_are_left_out(package):
    found = package({"a.py": '"""The [MASK] token stands for a word. The word is then to be found. It is hard."""\n'})
    assert [document.text for document in found] == ["The word is then to be found. It is hard."]


def test_long_modules_become_several_documents_in_a_mixed_order(package):
    generator = random.Random(0)
    words = ["the", "network", "of", "a", "model", "is", "in", "it", "and", "for", "this", "with", "that"]
    blocks = [" ".join(generator.choices(words, k=20)).capitalize() + "." for _ in range(400)]
    found = package({"long.py": "\n".join(f'"""{block}"""' for block in blocks)})
    assert len(found) > 4
    assert all(len(document.text) < 7000 for document in found)
    assert sorted(line for document in found for line in document.text.split("\n")) == sorted(blocks)
    assert [document.text for document in package({})] == [document.text for document in found]


def test_written_corpus_is_read_back(tmp_path):
    items = [Document("One é.\nTwo.", "t"), Document("Three.")]
    path = tmp_path / "corpus.jsonl"
    builtin.write(path, items)
    assert list(files.read_documents(path)) == items
    assert json.loads(path.read_text().split("\n")[0]) == {"text": "One é.\nTwo.", "title": "t"}


def test_installed_packages_give_a_corpus():
    found = list(builtin.documents(("numpy",)))
    assert len({document.text for document in found}) == len(found) > 500
    assert sum(len(document.text) for document in found) > 1e6
    assert {document.title.split(".")[0] for document in found} == {"python", "numpy"}
