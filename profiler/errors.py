"""What this library refuses, each with one sentence that says what was given and what to do."""


class ProfilerError(ValueError):
    """The parent of every error that this library raises on purpose."""


class TraceError(ProfilerError):
    """The model, the loss or the optimizer cannot be written as one graph."""


class BatchMismatchError(ProfilerError):
    """A traced step got a batch that differs from the one it was traced with."""


class StaleStepError(ProfilerError):
    """A constant of the graph (a learning rate, the mode) no longer agrees with the user's objects."""


class NotProfiledError(ProfilerError):
    """A measured number was asked for before anything was measured."""


class MissingStatsError(ProfilerError, FileNotFoundError):
    """A statistics file that an analysis reads is not there, or lacks what the analysis needs."""


class EmptyTraceError(ProfilerError):
    """A figure or a table was asked of a collector that holds nothing, or nothing of the kind."""


class MismatchedTracesError(ProfilerError):
    """Collectors of different runs were given where those of one run belong together."""


class CuptiError(ProfilerError):
    """CUPTI is not there, refuses, or is taken by another subscriber."""


class MissingPackageError(ProfilerError, ImportError):
    """An optional package is not installed."""
