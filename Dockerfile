# hw-server. Two stages: packages are built into /opt/venv once per change of requirements, the result has no tools.
ARG PYTHON_IMAGE=python:3.13.11-slim

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

FROM ${PYTHON_IMAGE} AS server
RUN apt-get update \
 && apt-get install -y --no-install-recommends postgresql-client redis-tools bash-completion \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /bin/bash hw \
 && install -d -o hw -g hw /app /var/lib/hw-server /backups
COPY --from=build /opt/venv /opt/venv
COPY migrations /app/migrations
WORKDIR /app
USER hw
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HW_HTTP__HOST=0.0.0.0 HW_AUDIT__SPILL_DIR=/var/lib/hw-server/spill
EXPOSE 8000
# Whether the process lives, not whether it is ready: Traefik routes to no container that Docker calls unhealthy, and without
# PostgreSQL clients shall get the server's own 503. By bash: Python takes longer to start than the answer.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /health/live HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
CMD ["hw", "serve"]

# `hw backup` with what copies to another place.
FROM server AS backup
USER root
RUN apt-get update && apt-get install -y --no-install-recommends rclone && rm -rf /var/lib/apt/lists/*
USER hw
ENV HW_BACKUP__DIR=/backups
HEALTHCHECK --interval=30s --timeout=3s --start-period=30s --retries=3 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9101"]
CMD ["hw", "backup", "--schedule"]

FROM server
