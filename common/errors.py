"""The one exception that a user of the scripts is meant to see."""


class UserError(Exception):
    """Something the user can mend: one line that names the file or constant and what to change."""
