"""The one exception that means "your input, not our code"."""


class UserError(Exception):
    """Something that the user can put right, told in one clear line that names the remedy."""
