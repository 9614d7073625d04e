"""Where the library for C lies, which the package itself runs in."""

from pathlib import Path

from . import _core


def get_include() -> str:
    """Return the folder of ``fastrnn.h`` and ``fastrnn.hpp``, for a compiler's ``-I``."""
    return str(_folder() / "include")


def get_library() -> str:
    """Return the path of the shared library that has the functions of ``fastrnn.h``.

    Linked with its path, it is found again by ``-Wl,-rpath,FOLDER``. `docs/c.md` shows a program.
    """
    return str(_folder() / "libfastrnn.so")


def _folder() -> Path:
    # of the compiled module: an editable installation has its Python files elsewhere
    return Path(str(_core.__file__)).parent
