"""What goes wrong in an evaluation."""


class EvaluationError(Exception):
    """A comparison that cannot be made. The message names the file and says what to do."""


class UsageError(Exception):
    """A command line that cannot be followed. The message names the option and says what to do."""
