"""What a user did wrong, told apart from what is wrong with this code.

A ``UserError`` is one sentence: what was wrong, what was given, what is allowed, what to do. It is the only kind of
exception that becomes one line and exit status 1 at the command line, or a 4xx at the endpoint. Everything else,
``ValueError`` included, is a defect or a failure of the machines and shows its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what was asked for, or something missing that only the user can provide.

    The message is one sentence for the user. Subclasses exist only where a caller tells them apart.
    """
