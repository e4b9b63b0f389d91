# The Docker steps of an environment, on top of its base image.
#
# envbuild owns everything up to FROM and appends the steps as they were parsed: nothing is interpolated.
# This first line is a plain comment on purpose: after it no "syntax" or "escape" directive has any effect,
# so no other frontend is ever downloaded. ENVBUILD_BASE is a tag that exists only in the engine, or "scratch".
ARG ENVBUILD_BASE
FROM ${ENVBUILD_BASE}
