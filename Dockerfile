# Training in a container, on NVIDIA GPUs or a CPU; docs/cluster.md has the commands.
# torch's wheels bring the CUDA libraries; the driver comes from the NVIDIA container toolkit.

FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY native native
COPY hydra_plugins hydra_plugins
COPY configs configs
COPY mobilenext mobilenext
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# runtime.compile=true and runtime.fused=true need a C compiler as well: --build-arg PACKAGES="gcc libc6-dev"
ARG PACKAGES=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends libjpeg62-turbo $PACKAGES \
    && rm -rf /var/lib/apt/lists/*
# Before the package, so that a changed source leaves these gigabytes as they are.
ARG EXTRAS="parquet report"
COPY pyproject.toml /tmp/
RUN python -c "import sys, tomllib; p = tomllib.load(open('/tmp/pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *sum((p['optional-dependencies'][extra] for extra in sys.argv[1:]), []), sep='\n')" $EXTRAS > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt
COPY --from=build /wheels /tmp/wheels
# An install succeeds without the native decoder; an image without it would be a slow surprise.
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl \
    && python -c "from mobilenext.data.native import library; assert library().mn_libjpeg(), 'no libjpeg-turbo'"
# Whatever user `docker run --user` names may write here, and torch asks what it is called.
RUN useradd --uid 1000 mobilenext \
    && mkdir --mode=1777 /work /home/mobilenext /home/mobilenext/.cache
ENV HOME=/home/mobilenext USER=mobilenext PYTHONUNBUFFERED=1
USER mobilenext
WORKDIR /work
CMD ["mobilenext"]
