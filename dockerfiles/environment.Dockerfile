# An environment as one layer on its base, for those who may build with an engine only.
#
# The first stage installs the lock: environment.tar.gz in the context, which is the folder .envbuild.context, is what
# envbuild's own installer makes of the packages and wheels, so what is in the image does not depend on who built it, and
# nothing is fetched while the engine builds.
# Appended is the COPY from that stage onto the base, which is a tag that exists only in the engine, or "scratch".
ARG ENVBUILD_BASE
FROM scratch AS environment
ADD .envbuild.context/environment.tar.gz /
FROM ${ENVBUILD_BASE}
