"""A command whose output cannot be written as it is still does its work."""

import os
import subprocess
import sys

CODE = """
import sys
from parotid_seg import cli
from parotid_seg.commands.terminal import following

def say() -> None:
    with following(quiet=False) as line:
        line.say("Müller")
        line.error("Müller")
        line.say("Meier")

cli.app.command("say")(say)
sys.argv = ["parotid-seg", "say"]
cli.main()
"""


def test_names_that_the_encoding_lacks_are_escaped() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("M\\xfcller\nMeier\n", "parotid-seg: M\\xfcller\n")


def test_a_command_goes_on_if_nobody_reads_its_output() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", CODE]
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, text=True, check=True)
        assert done.stderr.splitlines() == [
            "parotid-seg: nobody reads this output any more; the command goes on without it",
            "parotid-seg: Müller",
        ]
        subprocess.run(words, stdout=closed, stderr=closed, check=True)
