"""The mutation script: a smoke of it here, all mutants in the slow tier."""

import pytest

from reference import mutants


def test_every_mutant_applies_to_the_code_and_names_tests_that_exist():
    """Each edit's text occurs exactly once, changes it, and its killers are real tests."""
    for mutant in mutants.load_mutants():
        text = (mutants.ROOT / mutant.file).read_text()
        assert text.count(mutant.old) == 1, mutant.id
        assert mutant.old != mutant.new
        assert mutant.effect in ("lossy", "waste", "gpu")
        for test in mutant.tests():
            path, name = test.split("::", 1)
            name = name.split("[")[0]
            source = (mutants.ROOT / path).read_text()
            assert f"def {name}(" in source or f"class {name}:" in source, test


def test_a_mutant_is_killed_and_a_harmless_edit_survives(monkeypatch, capsys):
    """The script tells the two apart: exit 0 for M06, exit 1 when something survives."""
    harmless = mutants.Mutant(
        "M01", "a comment", "reference/verify.py", "    return p / q\n",
        "    return p / q  # harmless\n", "lossy", ("verify::test_residual",),
    )  # fmt: skip
    monkeypatch.setattr(mutants, "load_mutants", lambda: [harmless])
    assert mutants.main(["M01"]) == 1
    assert "SURVIVED" in capsys.readouterr().out
    monkeypatch.undo()
    assert mutants.main(["M07"]) == 0
    assert "killed by verify::test_residual" in capsys.readouterr().out
    assert mutants.main(["M99"]) == 2


def test_the_written_table_is_complete():
    """docs/mutants.md has a row for every mutant, none of them a survivor."""
    text = mutants.TABLE.read_text()
    assert "survived" not in text
    for mutant in mutants.load_mutants():
        assert f"| {mutant.id} | {mutant.title} " in text.replace("\\|", "|")


@pytest.mark.slow
def test_every_mutant_is_killed(tmp_path, monkeypatch):
    """All of them, on copies of this tree."""
    monkeypatch.setattr(mutants, "TABLE", tmp_path / "mutants.md")
    assert mutants.main([]) == 0
