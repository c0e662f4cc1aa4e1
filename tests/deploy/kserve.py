"""JSON Schemas of KServe's objects, made from the classes in KServe's own wheel (Apache-2.0):

    pip download --no-deps kserve==0.21.0
    python tests/deploy/kserve.py kserve-0.21.0-py3-none-any.whl

writes kserve.schema.json beside this file. The wheel is read, not installed: it would bring a server with it. The types
of Kubernetes itself, such as containers, are left open: kubernetes-validate has their schemas.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("kserve.schema.json")
OBJECTS = ("V1beta1InferenceService", "V1alpha1ServingRuntime")
PLAIN = {"str": "string", "bool": "boolean", "int": "integer", "float": "number"}

Schema = dict[str, Any]


def classes(wheel: Path) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Class -> its attributes' types, and their names in JSON."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.fullmatch(r"kserve/models/v\w+\.py", name):
                for node in ast.parse(archive.read(name)).body:
                    if isinstance(node, ast.ClassDef):
                        tables = {
                            line.targets[0].id: ast.literal_eval(line.value)
                            for line in node.body
                            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
                        }
                        found[node.name] = (tables["openapi_types"], tables["attribute_map"])
    return found


def schema_of(kind: str, known: dict[str, Any]) -> Schema:
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": schema_of(inner[1], known)}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": schema_of(inner[1], known)}
    return {"$ref": f"#/$defs/{kind}"} if kind in known else {}


def main() -> None:
    known = classes(Path(sys.argv[1]))
    needed, definitions = list(OBJECTS), {}
    for name in needed:
        types, names = known[name]
        properties = {names[attribute]: schema_of(kind, known) for attribute, kind in types.items()}
        definitions[name] = {"type": "object", "properties": properties, "additionalProperties": False}
        needed += sorted({*re.findall(r"#/\$defs/(\w+)", json.dumps(properties))} - {*needed})
    content = {"$comment": f"written by kserve.py from {Path(sys.argv[1]).name}", "$defs": definitions}
    SCHEMA.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
