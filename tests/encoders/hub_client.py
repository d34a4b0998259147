"""Loads encoders with the real client: a request a line, as JSON; so are the answers."""

import json
import os
import resource
import sys

from g2l_plugin import UserError, load_encoder

for line in sys.stdin:
    source, revision, file_limit, token, options = json.loads(line)
    os.environ["HF_TOKEN"] = token
    if file_limit:  # imitates a full disk, for this process only
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    try:
        answer = vars(load_encoder(source, revision, **options).provenance)
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
