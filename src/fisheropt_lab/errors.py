"""The one exception a user is meant to read."""


class LabError(Exception):
    """Something the user can put right. The command line prints it as one line, without a traceback."""
