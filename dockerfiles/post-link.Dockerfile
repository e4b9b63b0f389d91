# The post-link scripts of an environment's packages. It stands behind steps.Dockerfile, on the image of the environment.
#
# ENVBUILD_PACKAGES is "NAME VERSION BUILD_NUMBER" of each package with a script, in the order of installation.
# As Conda does it: a script is sourced, so that it may "return", by a new shell (bash where there is one) that has sourced
# the environment's activation scripts in the order of their names, in the folder of the script, without input, with these
# variables; what a script leaves in .messages.txt is shown. The image's variables are those before these scripts. Of this
# image's settings none is kept, only what the scripts wrote.
USER 0
WORKDIR /
SHELL ["/bin/sh", "-c"]
ARG ENVBUILD_PREFIX
ARG ENVBUILD_PACKAGES
RUN exec 2>&1 </dev/null; \
    set -f; set -- $ENVBUILD_PACKAGES; \
    export PREFIX="$ENVBUILD_PREFIX" ROOT_PREFIX="$ENVBUILD_PREFIX" CONDA_PREFIX="$ENVBUILD_PREFIX"; \
    export CONDA_DEFAULT_ENV="$ENVBUILD_PREFIX" CONDA_SHLVL=1; \
    unset ENVBUILD_PREFIX ENVBUILD_PACKAGES; \
    export PATH="$PREFIX/bin:$PATH"; \
    cd "$PREFIX/bin" || exit 1; \
    shell=$(command -v bash || command -v sh); \
    while [ $# -gt 0 ]; do \
        echo "envbuild: post-link $1"; \
        code=$(LC_ALL=C; set +f; for each in "$PREFIX"/etc/conda/activate.d/*.sh "$PREFIX/bin/.$1-post-link.sh"; do \
            if [ -f "$each" ]; then printf ". '%s'\n" "$each"; fi; done); \
        PKG_NAME=$1 PKG_VERSION=$2 PKG_BUILDNUM=$3 "$shell" -c "$code"; \
        code=$?; \
        if [ -f "$PREFIX/.messages.txt" ]; then cat "$PREFIX/.messages.txt"; rm -f "$PREFIX/.messages.txt"; echo; fi; \
        if [ "$code" -ne 0 ]; then echo "envbuild: exit code $code"; exit 1; fi; \
        shift 3; \
    done
