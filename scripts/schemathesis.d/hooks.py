"""What a description cannot say of a request."""

import itertools

import schemathesis

numbers = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    """One Idempotency-Key stands for one request, and a generator repeats short ones."""
    key = (case.headers or {}).get("Idempotency-Key")
    if key is not None and case.meta and case.meta.generation.mode.is_positive:
        case.headers["Idempotency-Key"] = f"{next(numbers)}-{key}"[:255].rstrip()
