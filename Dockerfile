# hw-server. Two stages: packages are built into /opt/venv once per change of requirements, the result has no tools.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
RUN python3 -m venv /opt/venv
COPY requirements/base.txt requirements/base.txt
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/base.txt
COPY pyproject.toml README.md ./
COPY requirements/base.in requirements/base.in
COPY src src
RUN cp -r src/hw_server /opt/venv/lib/python3.*/site-packages/ \
 && printf '#!/opt/venv/bin/python3\nfrom hw_server.cli import main\nmain()\n' > /opt/venv/bin/hw \
 && chmod 755 /opt/venv/bin/hw \
 && /opt/venv/bin/python3 -m compileall -q /opt/venv/lib

FROM ${PYTHON_IMAGE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends postgresql-client redis-tools bash-completion \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /bin/bash hw \
 && install -d -o hw -g hw /app /var/lib/hw-server
COPY --from=build /opt/venv /opt/venv
COPY migrations /app/migrations
WORKDIR /app
USER hw
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HW_HTTP__HOST=0.0.0.0 HW_AUDIT__SPILL_DIR=/var/lib/hw-server/spill
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["hw", "serve"]
