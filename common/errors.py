"""The one exception that a user of the scripts is meant to see."""


class UserError(Exception):
    """Something the user can mend: one line that names the file or constant and what to change."""


def faults_of(check, items):
    """The messages of the UserErrors of check(item), each once, so that all that is wrong is told at once."""
    faults = []
    for item in items:
        try:
            check(item)
        except UserError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))
