"""A library that nobody uses is not imported; whoever uses it gets it."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_build_imports_no_json_schemas() -> None:
    assert run("import sys, envbuild.oci.remote\nprint('jsonschema' in sys.modules)") == "False"


def test_oras_has_them_when_it_wants_them() -> None:
    program = (
        "import envbuild.oci.remote, oras.provider, oras.schemas\n"
        "try: oras.provider.jsonschema.validate({}, schema=oras.schemas.manifest)\n"
        "except oras.provider.jsonschema.ValidationError as error: print(type(error).__module__)"
    )
    assert run(program) == "jsonschema.exceptions"


def test_others_import_them_as_ever() -> None:
    program = (
        "import envbuild.oci.remote, jsonschema, jsonschema.validators, oras.provider\n"
        "print(type(jsonschema).__name__, oras.provider.jsonschema.validate is jsonschema.validate)"
    )
    assert run(program) == "module True"


def test_a_library_that_is_there_stays() -> None:
    program = (
        "import jsonschema, envbuild.oci.remote, oras.provider\nprint(oras.provider.jsonschema is jsonschema)"
    )
    assert run(program) == "True"


def test_a_submodule_can_be_imported_meanwhile() -> None:
    program = (
        "import sys\n"
        "from envbuild.oci.late import imported_late\n"
        "with imported_late('jsonschema'):\n"
        "    import jsonschema.validators\n"
        "print(sys.modules['jsonschema'].__name__, jsonschema.validators.__name__)"
    )
    assert run(program) == "jsonschema jsonschema.validators"
