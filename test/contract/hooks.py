"""What schemathesis must know beyond the document: scripts/schemathesis.sh
loads it."""

import json
import os

import schemathesis


@schemathesis.deserializer("application/x-ndjson")
def lines(ctx, response):
    """A stream of JSON lines, of which the document describes one: the first
    stands for all but an error's, which the streams' own tests look at."""
    values = [json.loads(line) for line in response.content.splitlines() if line]
    return values[0] if values else {"offset": 0, "seq": 1}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Nobody saws off the branch that the test sits on: GET /tokens shows the
    ID of our own token, and what is seen is tried in DELETE /tokens/{id}."""
    if case.operation.path == "/tokens/{id}" and case.path_parameters.get("id") == os.environ["TOKEN_ID"]:
        case.path_parameters["id"] = "tok-0000000000000000"
