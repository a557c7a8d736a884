"""The one exception for mistakes that the user can fix."""


class UserError(ValueError):
    """A mistake in settings, files or inputs: one sentence with the value, the rule and the remedy.

    The command line prints the sentence and exits with 2; a traceback is for our own bugs only.
    """
