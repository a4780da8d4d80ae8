"""The one entry: every command explains itself, an old name leads to the new one, the table of numbers is whole."""

import importlib
import subprocess
import sys

import pytest

from lib import COMMANDS
from lib.__main__ import main
from lib.config import load_config
from lib.machine.folders import root


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith(f"usage: python -m lib {name}")
    assert importlib.import_module(f"lib.commands.{name}").__doc__.split()[0] in out


def test_without_a_command_all_are_listed(capsys):
    main([])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == list(COMMANDS)
    commands = {path.stem for path in (root() / "lib" / "commands").glob("*.py")} - {"__init__"}
    assert commands == set(COMMANDS)


def test_an_unknown_command_is_one_line():
    with pytest.raises(SystemExit, match="^error: there is no command 'trian': choose one of run, train, "):
        main(["trian"])


@pytest.mark.parametrize("old, new", [("train", "train"), ("synthetic", "scenes"), ("coco", "coco")])
def test_an_earlier_name_leads_to_the_new_one(old, new):
    result = subprocess.run([sys.executable, "-m", f"lib.{old}"], cwd=root(), capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"error: `python -m lib.{old}` is now `python -m lib {new}`\n"


def test_the_table_holds_every_number_in_both_profiles(capsys):
    main(["config", "--set", "rpn.epochs=3", "joint.rpn.box_weight=7"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["number", "demo", "course"]
    numbers = [path for path, field in load_config("demo").paths().items() if field.metadata]
    assert [line.split()[0] for line in lines] == numbers
    shown = {line.split()[0]: line for line in lines}
    assert shown["rpn.epochs"].split()[1:3] == ["3", "3"]
    assert "1.0 (joint 7)" in shown["rpn.box_weight"].replace("7.0", "7") and "§4.5" in shown["rpn.box_weight"]
    assert "a number from 0 up to 1" in shown["rpn.nms_iou"] and "in px" in shown["anchors.scales"]
