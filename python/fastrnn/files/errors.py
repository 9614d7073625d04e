"""What is raised for a file that is not as it must be."""


class FileError(ValueError):
    """A file that holds no layer, is damaged, or that this version cannot read."""
