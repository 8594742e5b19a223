"""The commands of ``emollama``, one module each.

To add a command, add a line to :data:`COMMANDS` and a module with

* a docstring, which is the description in the command's help,
* ``HELP``: the command in one line, for the list of commands,
* ``EXAMPLE``: a complete command line,
* ``DOCS``: the page and section that describe the command,
* ``add_arguments(parser)`` and ``run(arguments)``.

``emollama --help`` imports all these modules, so they import heavy libraries inside ``run`` only.
"""

TRAINING, DATA, CHECKPOINTS = "Training and evaluation", "Data", "Checkpoints"
REPORTS, SETUP = "Scores and reports", "Setup"

COMMANDS = (  # (name, group in the help, module below this package)
    ("train", TRAINING, "train"),
    ("plan", TRAINING, "plan"),
    ("eval", TRAINING, "eval"),
    ("eval-checkpoints", TRAINING, "eval_checkpoints"),
    ("predict", TRAINING, "predict"),
    ("serve", TRAINING, "serve"),
    ("app", TRAINING, "app"),
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
