"""Names of before, for modules that have not moved yet."""

from common.corpora.emodb import CLASSES as EMODB_CLASSES  # noqa: F401
from common.corpora.emodb import COUNTS as EMODB_COUNTS  # noqa: F401
from common.corpora.emodb import LETTERS as EMODB_LETTERS  # noqa: F401
from common.corpora.emodb import TEXTS as EMODB_TEXTS  # noqa: F401
from common.corpora.emodb import read as read_emodb  # noqa: F401
from common.corpora.ravdess import CLASSES as RAVDESS_CLASSES  # noqa: F401
from common.corpora.ravdess import NAME as RAVDESS_NAME  # noqa: F401
from common.corpora.ravdess import STATEMENTS as RAVDESS_STATEMENTS  # noqa: F401
from common.corpora.ravdess import read as read_ravdess  # noqa: F401
from common.corpora.voxceleb2 import read as read_voxceleb2  # noqa: F401
