"""An executor that makes calls without another process."""

from concurrent.futures import Executor, Future


class InThisProcess(Executor):
    """Runs each call at once, in this process: a new one needs seconds for its imports."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, *args):
        future: Future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future
