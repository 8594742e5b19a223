"""``emollama <command>``: one module for each command.

To add a command, add a line to :data:`COMMANDS` and a module with

* ``HELP``: what the command does, in one line,
* ``EXAMPLE``: a command line, as a user would type it,
* ``DOCS``: the page and section that describe it,
* ``add_arguments(parser)``, and ``run(arguments)``.

The module is imported by ``emollama --help``, so it imports heavy libraries inside ``run`` only.
"""

TRAINING, DATA, CHECKPOINTS = "Training and evaluation", "Data", "Checkpoints"
REPORTS, SETUP = "Scores and reports", "Setup"

COMMANDS = (  # (name, group in the help, module below this package)
    ("train", TRAINING, "train"),
    ("plan", TRAINING, "plan"),
    ("eval", TRAINING, "eval"),
    ("eval-checkpoints", TRAINING, "eval_checkpoints"),
    ("predict", TRAINING, "predict"),
    ("check-data", DATA, "check_data"),
    ("import", DATA, "importing"),
    ("prepare", DATA, "prepare"),
    ("extract", DATA, "extract"),
    ("pack", DATA, "pack"),
    ("checkpoint", CHECKPOINTS, "checkpoint"),
    ("score", REPORTS, "score"),
    ("rate", REPORTS, "rate"),
    ("submission", REPORTS, "submission"),
    ("report", REPORTS, "report"),
    ("compare", REPORTS, "compare"),
    ("demo", SETUP, "demo"),
    ("init", SETUP, "init"),
    ("config", SETUP, "config"),
    ("reference", SETUP, "reference"),
    ("env", SETUP, "env"),
    ("completion", SETUP, "completion"),
)
ALIASES = {"sweep": "eval-checkpoints"}  # former name -> name
