"""A job runner: resolve an environment, run a script in its image.

    python examples/job_runner.py environment.yml script.py --base oci:base --workspace HOST/NAME -- ARGUMENTS

The script's folder is the working directory of the job, read-only; the runner exits with the script's code.
What a job runner needs from envbuild is the two calls in ``main``: ``resolve``, and ``run_image`` where it
does not hand the reference to a cluster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import envbuild
from envbuild.build.engine import Engine
from envbuild.errors import EnvbuildError
from envbuild.run import Command, run_image

WORK = "/job"


def parse(words: list[str]) -> argparse.Namespace:
    """What the command line says; what follows ``--`` is for the script."""
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("environment", type=Path, help="the environment's definition")
    parser.add_argument("script", type=Path, help="a Python script to run in it")
    parser.add_argument("--base", help="the base image, where the definition names none")
    parser.add_argument("--workspace", help="where images are looked up and pushed")
    parser.add_argument("--timeout", type=float, help="seconds in which the image must be there")
    parser.set_defaults(arguments=words[end + 1 :])
    return parser.parse_args(words[:end])


def write(stream: int, content: bytes) -> None:
    """Pass the job's output on."""
    target = sys.stderr.buffer if stream == 2 else sys.stdout.buffer
    target.write(content)
    target.flush()


def main() -> int:
    """Run the job."""
    job = parse(sys.argv[1:])
    try:
        config = envbuild.Config.load(workspace=job.workspace)
        definition = envbuild.load(job.environment, base=job.base)
        with envbuild.Resolver(config) as resolver, Engine.connect(config.docker_host) as engine:
            image = resolver.resolve(definition, timeout=job.timeout)
            print(f"{image.reference} ({image.source})", file=sys.stderr)
            script = job.script.resolve()
            command = Command(
                ("python", script.name, *job.arguments),
                mounts={script.parent: f"{WORK}:ro"},
                workdir=WORK,
            )
            return run_image(
                image.reference, command, engine=engine, registries=resolver.registries, output=write
            )
    except EnvbuildError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code  # of a retryable error (error.retryable) a runner would try again later


if __name__ == "__main__":
    sys.exit(main())
