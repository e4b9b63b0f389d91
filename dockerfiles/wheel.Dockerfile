# A wheel of a Python project, built by the project's own code with the python of the environment that it is for.
#
# The context, which is the folder .envbuild.context, has the project (source/), the wheels that its build asks for
# (wheels/) and the program uv. The build gets no network and leaves nothing but the wheel: the last stage starts again
# from the image of the environment. UV_PYTHON, a build argument, is the python's path; uv reads it from the environment.
ARG ENVBUILD_BASE
FROM ${ENVBUILD_BASE} AS build
USER 0
WORKDIR /.envbuild-wheel
COPY .envbuild.context/ /.envbuild-wheel/
ARG UV_PYTHON
ENV HOME=/.envbuild-wheel LC_ALL=C.UTF-8 PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=315532800 TMPDIR=/.envbuild-wheel \
    UV_CACHE_DIR=/.envbuild-wheel/cache UV_FIND_LINKS=/.envbuild-wheel/wheels UV_NO_CONFIG=1 UV_NO_INDEX=1 UV_OFFLINE=1 \
    UV_PYTHON_DOWNLOADS=never
RUN ["/.envbuild-wheel/uv", "build", "--wheel", "--out-dir", "/.envbuild-wheel/out", "/.envbuild-wheel/source"]
FROM ${ENVBUILD_BASE}
COPY --from=build /.envbuild-wheel/out/ /.envbuild-wheel/out/
