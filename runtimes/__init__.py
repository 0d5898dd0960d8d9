"""The device side: one adapter a runtime, found by its file name, and what turns logits into tokens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgellm.bundle import Bundle, graph_name
from edgellm.errors import RuntimeUnavailable, UsageError
from edgellm.runtimes.session import Runtime

if TYPE_CHECKING:
    from edgellm.runtimes.tuned import How

MINIMAL_CONTEXT = 256

logger = logging.getLogger(__name__)


def open_runtime(
    bundle: Bundle,
    *,
    name: str | None = None,
    threads: int | None = None,
    max_context: int | None = None,
    how: How | None = None,
) -> Runtime:
    """Load a bundle's graph.

    Args:
        name: the adapter, which is also the graph's name in the bundle; hyphens are underscores. None takes the one that is
            best on this machine as far as that is known; see `edgellm.runtimes.preference`.
        threads: threads of a step; None is what was found best for this bundle, else what fits the machine (see
            `edgellm.runtimes.threads`).
        max_context: tokens that a session may hold, at most the model's own; None takes the model's. The cache grows as it
            fills, so a large context costs nothing until it is used.
        how: everything but the context, exactly so, whatever was found best here; instead of `name` and `threads`.

    Raises:
        UsageError: the bundle has no such graph, or a number is out of range.
        RuntimeUnavailable: the adapter or its package is missing.
        ResourceError: too little memory for the weights and the context that was asked for. Without `max_context`, for a
            short one; where the whole of the model's does not fit, a warning says how much does.
        BundleError: the runtime refuses the graph.
    """
    from edgellm.runtimes import adapters
    from edgellm.runtimes.memory import check_fits, room
    from edgellm.runtimes.preference import settle
    from edgellm.runtimes.threads import default_threads, pinned
    from edgellm.runtimes.tuned import MOST_THREADS

    threads = threads if how is None else how.threads
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
        raise UsageError(f"threads is {threads}", fix=f"use 1 to {MOST_THREADS}, or leave it out")
    if max_context is not None and not (isinstance(max_context, int) and 1 <= max_context <= bundle.spec.max_context):
        raise UsageError(
            f"max_context is {max_context}", where=bundle.path, fix=f"use a number from 1 to {bundle.spec.max_context}"
        )
    if how is None:
        how = settle(bundle, None if name is None else _graph_name(bundle, name), threads)
    name = _graph_name(bundle, how.runtime)
    context = bundle.spec.max_context if max_context is None else max_context
    check_fits(bundle, bundle.graphs[name], min(context, MINIMAL_CONTEXT) if max_context is None else context)
    fitting = room(bundle, bundle.graphs[name])
    if fitting is not None and fitting < context:  # only without max_context: a context that was asked for is refused
        logger.warning(
            "%s: there is memory for a context of about %d tokens, not for the model's %d; set max_context",
            *(bundle.path, fitting, context),
        )
    adapter = adapters.find(name)
    if adapter is None:
        raise RuntimeUnavailable(f"no adapter for '{name}' in this edgellm", where=bundle.path, fix="upgrade edgellm")
    wanted = default_threads() if how.threads is None else how.threads
    with pinned(how.cpus if adapter.THREADS_AT_LOAD else ()):
        runtime: Runtime = adapter.load(bundle, threads=wanted, max_context=context)
    if how.chunk in runtime.chunks:
        runtime.chunk = how.chunk
    logger.debug("loaded %s with %s, %d threads, context up to %d", bundle.path, name, runtime.threads, context)
    return runtime


def _graph_name(bundle: Bundle, name: str) -> str:
    there, found = list(bundle.graphs), graph_name(name)
    if found not in there:
        raise UsageError(
            f"the bundle has no graph for the runtime '{name}'",
            where=bundle.path,
            fix=f"it has: {', '.join(there)}; another comes with 'edgellm convert --target'",
        )
    return found
