import json


def json_dumps_safer(value):
    return json.dumps(value)
